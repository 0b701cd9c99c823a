-- abort_spec.lua -- What served when a run began serves again after `abort`, and after `abort --force`, which asks no strategy.
local fixture = require "spec.support.fixture"

describe("abort", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, slots = 3, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0", { start_delay = 1500 }).exit) -- what goes back takes its time
  end)

  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    fixture.cleanup()
  end)

  --- Aborts under load that sees no error, and returns what was said.
  local function abort(...)
    local load = app:load { rate = 200 }
    local run = app:command { "abort", "app.yml", ... }
    assert.same({}, load:stop().errors)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return run.stdout .. run.stderr
  end

  it("gives traffic back to what served already and is of the release that was being deployed", function()
    app:extend_rolling 'self.balancer:drain(self.fleet:new()[1]) self:log "now" self:sleep(30)'
    app:kill_at({ "./own.lua", "app.yml", "--set", "process.instances=3" }, "now")
    local said = abort()
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.truthy(said:find("1.0 serves as before", 1, true), said)
  end)

  it("--force asks no strategy whether it could begin now, and tells what serves in the end", function()
    app:write(fixture.release "2.0", "2.0")
    app:kill_at({ "canary", "app.yml", "--set", "strategy={steps: [50%, 100%], hold: 30s, latency: 1000}" }, "50% to the new")
    local said = abort "--force"
    assert.truthy(said:find("1.0 serves as before", 1, true), said)
    local _, announced = said:gsub("deploy    shop", "")
    assert.equal(1, announced, said)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.equal("rolled_back", app:status().run.outcome)
  end)

  it("--force leaves what a rollback that died had put back already", function()
    app:extend_rolling [[
      local old = self.fleet:old()
      self:replace(old[1])
      self:undo(function() self:log "now" self:sleep(30) end)
      self:replace(old[2])
      self:fail "later"]]
    app:write(fixture.release "2.0", "2.0")
    app:kill_at({ "./own.lua", "app.yml" }, "now")
    assert.same({ "1.0", "2.0" }, app:serving())
    abort "--force"
    assert.same({ "1.0", "1.0" }, app:serving())
  end)
end)
