-- force_spec.lua -- `abort --force` undoes what the journal tells, without the strategy.
local fixture = require "spec.support.fixture"

describe("abort --force", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, slots = 3, yaml = "strategy: {steps: [50%, 100%], hold: 30s, latency: 1000}" }
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "strategy={settle: 0}" }).exit)
  end)

  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    fixture.cleanup()
  end)

  it("asks no strategy whether it could begin now, and tells what serves in the end", function()
    app:write(fixture.release "2.0", "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "canary", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("50%% to the new") end, 20, "the first share")
    fixture.signal(pid, "KILL")
    local load = app:load { rate = 200 }
    local run = app:command { "abort", "app.yml", "--force" }
    assert.same({}, load:stop().errors)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local said = run.stdout .. run.stderr
    assert.truthy(said:find("1.0 serves as before", 1, true), said)
    local _, announced = said:gsub("deploy    shop", "")
    assert.equal(1, announced, said)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.equal("rolled_back", app:status().run.outcome)
  end)
end)
