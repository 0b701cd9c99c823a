-- team_spec.lua -- Runs whose lock, journal and history are in etcd: three members, of which one dies.
-- weight: 12
local cjson = require "cjson"
local etcd = require "spec.support.etcd"
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a team's state in etcd", function()
  local cluster, app

  setup(function() cluster = etcd.start() end)
  teardown(function() cluster:stop() end)

  before_each(function()
    app = fixture.app { instances = 1, health = "{http: /healthz, interval: 20ms, deadline: 4s}",
      yaml = ("strategy: {settle: 0}\nstate: {etcd: [%s]}"):format(table.concat(cluster.endpoints, ", ")) }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- As if on another machine: nothing of this one's state.
  local function elsewhere()
    os.execute(("rm -rf %s/state"):format(app.dir))
  end

  it("has the history, so that anybody can roll back", function()
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    elsewhere()
    contains(app:command({ "history", "app.yml" }).stdout, "1.0 -> 2.0")
    local run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
  end)

  --- Starts a run that stays at its end until it is let go.
  local function begin_lingering(version, seconds)
    app:write(fixture.release(version), version)
    app:extend_rolling(("self.super.deploy(self) self:log('now') self:sleep(%g)"):format(seconds))
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now", 1, true) end, 10, "the sleep")
    return pid, log
  end

  it("has a lock that `unlock` removes together with those of the hosts, if the run is dead", function()
    local pid = begin_lingering("2.0", 30)
    local run = app:command { "unlock", "app.yml" }
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    run = app:command { "unlock", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "local: removed the lock of run", "etcd: removed the lock of run")
    contains(app:command({ "unlock", "app.yml" }).stdout, "there is no lock")
    run = app:deploy("rolling", "3.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
  end)

  it("that was away when a run ended hears of it afterwards, and keeps nobody waiting", function()
    local pid, log = begin_lingering("2.0", 1)
    cluster:kill(1)
    cluster:kill(2)
    fixture.eventually(function() return not fixture.alive(pid) end, 60)
    local checked = app:command { "check", "app.yml", "--connect" }
    assert.equal(2, checked.exit)
    contains(checked.stderr, "etcd")
    cluster:heal()
    contains(fixture.read(log), "the history lacks this run", "done")
    assert.truthy(app:status().lock)
    contains(app:command({ "unlock", "app.yml" }).stdout, "etcd: removed the lock of run")
    assert.equal("succeeded", app:status().run.outcome)
    elsewhere()
    assert.equal("succeeded", app:status().run.outcome)
    assert.equal(0, app:deploy("rolling", "3.0").exit)
  end)

  it("has the journal: a run is resumed where neither the machine nor the hosts have any", function()
    app:write(fixture.release("2.0"), "2.0")
    fixture.write(app.dir .. "/own.lua", 'local s = require "deployrt.strategy"\nlocal own = s.extend("rolling", { name = "own" })\n'
      .. "function own:deploy() self.super.deploy(self) self:log('now') self:sleep(30) end\nreturn own\n")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now", 1, true) end, 10, "the sleep")
    os.execute "sleep 1.2" -- the copy is a moment behind
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    elsewhere()
    os.execute(("rm -f %s/home/.deployrt/shop/runs/*/journal"):format(app.dir))
    local other = app:command { "rolling", "app.yml" }
    assert.equal(4, other.exit, other.stdout .. other.stderr)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  it("goes on when a member dies, and says plainly when too many are dead", function()
    cluster:kill(1)
    local run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    cluster:kill(2)
    run = app:deploy("rolling", "3.0")
    assert.equal(2, run.exit)
    contains(run.stderr, "etcd")
    local away = "what is said of runs is what this machine knows"
    run = app:command { "status", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stdout, "shop: release 2.0", "rolling of 2.0: succeeded")
    contains(run.stderr, away)
    run = app:command { "history", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stdout, "1.0 -> 2.0")
    contains(run.stderr, "etcd", away)
    for i = 1, 2 do
      cluster:start(i)
      cluster:await(i)
    end
  end)
end)
