-- abort_spec.lua -- What served when a run began serves again after `abort`, and after `abort --force`, which asks no strategy.
-- weight: 5
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local sim = require "deployrt.sim"

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

  describe("of a script that catches it", function()
    local log

    before_each(function()
      app:write(fixture.release "2.0", "2.0")
      log = app.dir .. "/log"
    end)

    --- Begins a run, or an abort, and waits until it says something.
    local function begin_and_hear(argv, text)
      os.remove(log)
      local pid = app:command(argv, { background = true, log = log })
      fixture.eventually(function() return (fixture.read(log) or ""):find(text, 1, true) end, 20, text)
      return pid
    end

    --- How long it took from a signal until the log has a text.
    local function seconds_from_signal(pid, text)
      local began = core.now()
      fixture.signal(pid, "INT")
      fixture.eventually(function() return fixture.read(log):find(text, 1, true) end, 20, text)
      return core.now() - began
    end

    it("is heard at once: a script that only waits on and on runs no further", function()
      for _, text in ipairs { "pcall(self.sleep, self, 1)", "pcall(function() self:each({ 1 }, function() self:sleep(1) end) end)",
        "self:each({ 1, 2, 3 }, function() while true do pcall(self.sleep, self, 1) end end)" } do
        app:extend_rolling(('self.super.deploy(self) self:log "now" while true do %s end'):format(text))
        local pid = begin_and_hear({ "./own.lua", "app.yml" }, "now")
        assert.is_true(seconds_from_signal(pid, "rolling back") < 4, "a script may compute for 5 s, and did")
        app:await_end(pid)
        assert.truthy(fixture.read(log):find("interrupted by SIGINT", 1, true), fixture.read(log))
        assert.same({ "1.0", "1.0" }, app:serving())
      end
    end)

    it("ends an undo of the script's own that goes on and on, which is left to be done by hand", function()
      app:extend_rolling [[
        self:undo(function() self:log "for ever" while true do pcall(self.sleep, self, 1) end end)
        self.super.deploy(self)
        self:fail "later"]]
      local pid = begin_and_hear({ "./own.lua", "app.yml" }, "for ever")
      seconds_from_signal(pid, "the strategy's own undo: ")
      app:await_end(pid)
      assert.same({ "1.0", "1.0" }, app:serving())
      pid = begin_and_hear({ "abort", "app.yml" }, "for ever")
      seconds_from_signal(pid, "the strategy's own undo: ")
      app:await_end(pid)
      assert.equal(0, app:command({ "abort", "app.yml", "--force" }).exit)
    end)

    it("comes to an end without a signal, too: an undo of the script's own has ten minutes", function()
      app:extend_rolling [[
        self:undo(function() self:each({ 1, 2 }, function() while true do pcall(self.sleep, self, 1) end end) end)
        self.super.deploy(self)
        self:fail "later"]]
      local began, ended
      for _, event in ipairs(sim.play(app.dir .. "/own.lua", 1, { faults = {} }).events) do
        if event.kind == "rollback" then began = began or event.at end
        if event.kind == "finished" then ended = ended or event end
      end
      assert.matches("left: strategy: the strategy's own undo: .*is this an endless loop%?", ended.text)
      assert.is_true(ended.at - began >= 600 and ended.at - began < 660, ended.at - began)
    end)
  end)

  describe("that dies", function()
    before_each(function() -- 1.1 answers at once, with failures until it is warm
      assert.equal(0, app:deploy("rolling", "1.1", { conf = "warm_up=1500ms" }).exit)
      app:write(fixture.release "2.0", "2.0")
    end)

    --- A little after it has said something.
    local function die_after(text)
      local log = app.dir .. "/log"
      local pid = app:command({ "abort", "app.yml" }, { background = true, log = log })
      fixture.eventually(function() return fixture.read(log):find(text, 1, true) end, 10, text)
      os.execute("sleep 0.7")
      fixture.signal(pid, "KILL")
      app:await_end(pid)
    end

    it("while what it puts back warms up waits for that when it is called again", function()
      app:extend_rolling 'self.super.deploy(self) self:log "now" self:sleep(30)'
      app:kill_at({ "./own.lua", "app.yml" }, "now")
      die_after "rolling back"
      abort()
      assert.same({ "1.1", "1.1" }, app:serving())
    end)

    it("while it starts again what died meanwhile waits for that when it is called again", function()
      app:kill_at({ "canary", "app.yml", "--set", "strategy={steps: [50%, 100%], hold: 30s, latency: 1000}" }, "50% to the new")
      for _, each in ipairs(app:status().instances) do
        if each.release == "1.1" then fixture.signal(each.pid, "KILL") end
      end
      fixture.eventually(function() return #app:status().instances < 4 end, 5, "their end")
      die_after "it is started again"
      abort()
      assert.same({ "1.1", "1.1" }, app:serving())
    end)
  end)
end)
