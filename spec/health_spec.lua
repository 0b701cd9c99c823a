-- health_spec.lua -- How long an instance is given to become healthy, whatever app.yml says of each probe.
-- weight: 4
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("waiting for health", function()
  local app

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Deploys 2.0 with other settings of `health`; returns the run, and how many seconds it took.
  local function deploy(health, ...)
    app.opts.health = health
    local before = core.now()
    local run = app:deploy("rolling", "2.0", { start_delay = 200 }, { ... }) -- so that the first probes fail
    return run, core.now() - before
  end

  it("ends at the deadline although the next probe is not due", function()
    local run, seconds = deploy "{http: /healthz, interval: 12s, deadline: 2s, successes: 3}"
    assert.equal(1, run.exit)
    contains(run.stderr .. run.stdout, "is not healthy after 2s: 2 of its probes succeeded in a row, and health.successes is 3, one each 12s")
    assert.is_true(seconds < 8, seconds)
    assert.same({ "1.0" }, app:serving())
  end)

  it("ends with a probe at the deadline that may be the last one needed", function()
    local run, seconds = deploy "{http: /healthz, interval: 12s, deadline: 2s, successes: 2}"
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_true(seconds < 8, seconds)
    assert.same({ "2.0" }, app:serving())
  end)

  it("ends at the deadline although a probe takes longer", function()
    for _, probe in ipairs { 'http: "/slow?ms=20000"', "command: [sleep, 20]" } do
      local run, seconds = deploy(("{%s, timeout: 15s, deadline: 2s}"):format(probe))
      assert.equal(1, run.exit, run.stdout)
      contains(run.stdout .. run.stderr, "is not healthy after 2s")
      assert.is_true(seconds < 8, seconds)
      assert.same({ "1.0" }, app:serving())
    end
  end)

  it("says how a command ended that a signal ended, and how long it waited for one that hangs", function()
    for probe, why in pairs { ['[sh, -c, "echo so; kill -KILL $$"]'] = "ended by SIGKILL so", ["[sleep, 20]"] = "no answer within 0.5s" } do
      local run = deploy(("{command: %s, timeout: 500ms, deadline: 1200ms}"):format(probe))
      assert.equal(1, run.exit, run.stdout)
      contains(run.stdout .. run.stderr, "is not healthy after 1.2s: health command: " .. why)
    end
  end)

  it("ends when the run is stopped, by its timeout and by a signal", function()
    local run, seconds = deploy("{http: /healthz, interval: 12s}", "--set", "strategy.timeout=1s")
    assert.equal(1, run.exit)
    contains(run.stdout .. run.stderr, "longer than its timeout of 1s")
    assert.is_true(seconds < 8, seconds)
    local pid = app:begin { "rolling", "app.yml" }
    fixture.eventually(function() return #app:status().instances > 1 end, 5, "2.0")
    local before = core.now()
    fixture.signal(pid, "TERM")
    app:await_end(pid)
    assert.is_true(core.now() - before < 8, core.now() - before)
    assert.same({ "1.0" }, app:serving())
  end)
end)
