-- rollback_spec.lua -- The way back stays open, whatever came between, and a rollback gives up no more than it must.
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

describe("rollback", function()
  local app

  local function ok(run)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return run
  end

  local function deploy(version, flags)
    return ok(app:deploy("rolling", version, { path = fixture.release(version) }, flags))
  end

  local function rollback(...)
    return ok(app:command { "rollback", "app.yml", ... })
  end

  describe("on one host", function()
    before_each(function()
      app = fixture.app { instances = 2, slots = 5, yaml = "strategy: {settle: 0}" }
      for _, version in ipairs { "1.0", "2.0" } do deploy(version) end
    end)
    after_each(function()
      app:stop()
      assert.same({}, app:leftovers())
      fixture.cleanup()
    end)

    it("goes back to what served before a run whose controller died, once somebody has unlocked", function()
      app:write(fixture.release "3.0", "3.0")
      local log = app.dir .. "/log"
      local pid = app:command({ "rolling", "app.yml", "--set", "strategy.settle=30s", "--set", "strategy.batch=100%" }, { background = true, log = log })
      fixture.eventually(function() return table.concat(app:serving(), " ") == "3.0 3.0" end, 20, "3.0")
      fixture.signal(pid, "KILL")
      local said = ok(app:command { "unlock", "app.yml" }).stdout
      assert.truthy(said:find("is unfinished: `deployrt resume app.yml --run ", 1, true), said)
      app:write(fixture.release "3.0", "3.0")
      ok(app:command { "rolling", "app.yml" })
      local current = fixture.sh(("readlink %s/home/.deployrt/shop/current"):format(app.dir))
      assert.truthy(current:find("3%.0\n"), current)
      rollback()
      assert.same({ "2.0", "2.0" }, app:serving())
    end)

    it("goes back to what served before a run that nobody took up", function()
      app:write(fixture.release "3.0", "3.0")
      local pid = app:command({ "rolling", "app.yml", "--set", "strategy.settle=30s", "--set", "strategy.batch=100%" }, { background = true, log = app.dir .. "/log" })
      fixture.eventually(function() return table.concat(app:serving(), " ") == "3.0 3.0" end, 20, "3.0")
      fixture.signal(pid, "KILL")
      ok(app:command { "unlock", "app.yml" })
      rollback()
      assert.same({ "2.0", "2.0" }, app:serving())
    end)

    it("goes back past a run that only added an instance", function()
      deploy("2.0", { "--set", "process.instances=3" })
      rollback()
      assert.same({ "1.0", "1.0" }, app:serving())
    end)

    it("goes back past a run that only healed, which removed nothing that this needs", function()
      app.opts.keep = 1
      fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
      deploy "2.0"
      rollback()
      assert.same({ "1.0", "1.0" }, app:serving())
    end)

    it("to what serves already changes nothing, the way back included", function()
      app.opts.keep = 1
      assert.truthy(rollback("--to", "2.0").stdout:find("nothing to change: release 2.0 serves already", 1, true))
      rollback()
      assert.same({ "1.0", "1.0" }, app:serving())
    end)

    it("after a stop starts what was stopped, and after that what was before", function()
      ok(app:command { "stop", "app.yml" })
      rollback()
      assert.same({ "2.0", "2.0" }, app:serving())
      rollback()
      assert.same({ "1.0", "1.0" }, app:serving())
    end)

    it("goes back to what was stopped before the last deployment", function()
      ok(app:command { "stop", "app.yml" })
      deploy "3.0"
      rollback()
      assert.same({ "2.0", "2.0" }, app:serving())
    end)

    it("replaces an old instance that hangs where it was kept", function()
      app.opts.yaml = "strategy: {settle: 0, keep: true}"
      app.opts.process = "  stop: {timeout: 300ms}"
      ok(app:deploy("blue_green", "3.0"))
      for _, each in ipairs(app:status().instances) do
        if each.release == "2.0" then fixture.signal(math.tointeger(each.pid), "STOP") end
      end
      rollback()
      assert.same({ "2.0", "2.0" }, app:serving())
    end)

    it("is not needed where blue_green finds no room for all that it would have to start", function()
      for i, each in ipairs(app:status().instances) do app.ports[i] = math.tointeger(each.port) end
      app.ports = { app.ports[1], app.ports[2] }
      fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
      fixture.eventually(function() return #app:serving() == 1 end, 5, "the crash")
      local run = app:deploy("blue_green", "3.0")
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find("1 free slots for 2 instances", 1, true), run.stderr)
    end)

    it("starts instances in spare slots before it stops any, even if there is no room for all", function()
      app.ports = { app.ports[1], app.ports[2], app.ports[3] }
      deploy "3.0"
      local run = rollback "--json"
      local first_start, first_stop = run.stdout:find('"op":"instance.start"', 1, true), run.stdout:find('"op":"instance.stop"', 1, true)
      assert.is_true(first_start < first_stop, run.stdout)
      assert.same({ "2.0", "2.0" }, app:serving())
    end)
  end)

  if not hosts.possible() then
    print("rollback_spec: skipped: with groups of hosts, because test hosts need root, iproute2 and sshd")
    return
  end

  describe("with groups of hosts", function()
    local bed

    setup(function()
      bed = hosts.up(2)
      bed.hosts[1].group, bed.hosts[2].group = "eu", "us"
    end)
    teardown(function() bed:down() end)

    before_each(function()
      app = fixture.app { slots = 2, yaml = "strategy: {settle: 0}" }
      app.ports, app.opts.hosts = { 8080, 8081 }, bed:yaml()
    end)
    after_each(function()
      app:stop()
      for i = 1, 2 do bed:exec(i, "rm -rf /home/deploy/.deployrt") end
      fixture.cleanup()
    end)

    it("keeps all hosts serving where all of them served", function()
      for _, version in ipairs { "1.0", "2.0" } do deploy(version) end
      rollback()
      assert.same({ "1.0", "1.0" }, app:serving())
    end)

    it("is told why blue_green finds none free while both serve, and what frees one", function()
      app.ports = { 8080 }
      app:write(fixture.release "1.0", "1.0")
      deploy("1.0", { "--set", "strategy.allow_gap=true" })
      local run = app:deploy("blue_green", "2.0")
      assert.equal(2, run.exit, run.stdout)
      assert.truthy(run.stderr:find("hosts of several groups serve, so no group is free: take those of all but one out of service with `deployrt stop --host`", 1, true), run.stderr)
      ok(app:command { "stop", "app.yml", "--host", "web2" })
      ok(app:deploy("blue_green", "2.0"))
      assert.same({ "2.0" }, app:serving())
    end)

    it("goes back to those that served, where the run brought the release to all, and to all from there", function()
      for _, ports in ipairs { { 8080, 8081 }, { 8080 } } do
        app.ports = ports
        for _, version in ipairs { "1.0", "2.0" } do ok(app:deploy("blue_green", version)) end
        deploy("3.0", { "--set", "strategy.allow_gap=true" })
        assert.same({ "3.0", "3.0" }, app:serving())
        local load = app:load()
        rollback()
        assert.same({ "2.0" }, app:serving())
        assert.equal("web2", app:status().instances[1].host)
        rollback()
        assert.same({ "3.0", "3.0" }, app:serving())
        assert.same({}, load:stop().errors)
        app:stop()
        for i = 1, 2 do bed:exec(i, "rm -rf /home/deploy/.deployrt") end
      end
    end)
  end)
end)
