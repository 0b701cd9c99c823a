-- capacity_spec.lua -- The last that serves goes on serving, whatever a strategy forgets.
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

describe("what serves", function()
  local app, bed

  local function contains(text, ...)
    for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), ("expected %q in:\n%s"):format(part, text)) end
  end

  local function deploy(strategy, version, release, flags)
    local run = app:deploy(strategy, version, release, flags)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return run
  end

  local function new_app(opts)
    opts.yaml = "strategy: {settle: 0}"
    app = fixture.app(opts)
    deploy("rolling", "1.0")
  end

  --- Runs a strategy whose deploy() is the text, under load, and returns the run and the errors that clients saw.
  local function run_own(text)
    app:extend_rolling(text)
    app.opts.yaml = "strategy: {settle: 0}"
    local load = app:load { rate = 200 }
    local run = app:deploy("./own.lua", "2.0")
    return run, load:stop().errors
  end

  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    if bed then bed:down() end
    bed = nil
    fixture.cleanup()
  end)

  it("is what a strategy started, although it forgot to give it traffic", function()
    new_app { instances = 2, slots = 4 }
    local run, errors = run_own [[
      for _, old in ipairs(self.fleet:old()) do
        local new = self.fleet:candidate(old.host)
        new:start()
        new:await_healthy()
      end]]
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("is not stopped for what found no slot", function()
    new_app { instances = 2, slots = 2 }
    local run, errors = run_own "self:log 'nothing is done'"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr .. run.stdout, "local lacks 2 of its 2 instances of release 2.0, and no slot is free there")
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("keeps the last instance although a strategy would take all away, even side by side", function()
    new_app { instances = 2, slots = 2 }
    local run, errors = run_own "self:each(self.fleet:old(), function(_, old) self.balancer:drain(old); old:stop() end)"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr .. run.stdout, "is the last that serves", "strategy.allow_gap: true", "1.0 serves as before")
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("is all that status shows once it has replaced what had crashed", function()
    new_app { instances = 2, slots = 4 }
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    fixture.eventually(function() return #app:serving() == 1 end, 5, "the crash")
    deploy("rolling", "2.0")
    assert.equal(2, #app:status().instances)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("is as it was when a run fails, also what ended by itself meanwhile", function()
    new_app { instances = 2, slots = 4 }
    app:extend_rolling "self:log 'now' self:sleep(1) self:fail 'later'"
    app:write(fixture.release "2.0", "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now", 1, true) end, 20, "the sleep")
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    app:await_end(pid)
    contains(fixture.read(log), "1.0 serves as before")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("is not all replaced together without leave; with it, it is", function()
    new_app { instances = 1, slots = 1 }
    local run = app:deploy("rolling", "2.0")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "nothing would serve meanwhile: local has no free slot", "strategy.allow_gap: true")
    assert.same({ "1.0" }, app:serving())
    deploy("rolling", "2.0", nil, { "--set", "strategy.allow_gap=true" })
    assert.same({ "2.0" }, app:serving())
  end)

  it("goes on while what hangs beside it is replaced first", function()
    new_app { instances = 2, slots = 2, process = "  stop: {timeout: 300ms}" }
    fixture.signal(math.tointeger(app:status().instances[2].pid), "STOP")
    fixture.eventually(function() return fixture.sh(("curl -s 'http://127.0.0.1:%d/'"):format(app.listen)) and #app:serving() == 1 end, 10, "the hang")
    fixture.eventually(function()
      for _ = 1, 4 do
        if not fixture.sh(("curl -s -m 1 http://127.0.0.1:%d/ || true"):format(app.listen)):find("hello", 1, true) then return false end
      end
      return true
    end, 10, "the balancer to notice")
    local load = app:load { rate = 100 }
    deploy("rolling", "2.0")
    assert.same({}, load:stop().errors)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  for _, strategy in ipairs { "rolling", "in_place" } do
    it(("grows again by %s where one had crashed and no slot is spare, or another is added"):format(strategy), function()
      new_app { instances = 2, slots = 2 }
      fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
      fixture.eventually(function() return #app:serving() == 1 end, 5, "the crash")
      local load = app:load { rate = 100 }
      deploy(strategy, "2.0")
      assert.same({ "2.0", "2.0" }, app:serving())
      app.opts.instances, app.ports[3] = 3, fixture.free_port()
      deploy(strategy, "3.0")
      assert.same({ "3.0", "3.0", "3.0" }, app:serving())
      assert.same({}, load:stop().errors)
    end)
  end

  it("does not keep its place when it is broken", function()
    new_app { instances = 1, slots = 1 }
    app.opts.process = "  stop: {timeout: 300ms}"
    fixture.signal(math.tointeger(app:status().instances[1].pid), "STOP")
    deploy("rolling", "2.0")
    assert.same({ "2.0" }, app:serving())
  end)

  if not hosts.possible() then
    print("capacity_spec: skipped: over SSH, because test hosts need root, iproute2 and sshd")
    return
  end

  it("on other hosts counts where a run is about one of them, which are full", function()
    bed = hosts.up(2)
    app = fixture.app { slots = 1, yaml = "strategy: {settle: 0}" }
    app.ports, app.opts.hosts = { 8080 }, bed:yaml()
    deploy("rolling", "1.0")
    local load = app:load { rate = 100 }
    deploy("rolling", "2.0", nil, { "--host", bed.hosts[1].name })
    deploy("in_place", "2.0", { path = fixture.release "2.0" }, { "--host", bed.hosts[2].name, "--force" })
    assert.same({}, load:stop().errors)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)
end)
