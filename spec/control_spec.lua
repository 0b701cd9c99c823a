-- control_spec.lua -- What people ask of a run from another terminal: hold it, let it through a gate, roll it back.
-- weight: 8
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

describe("a run under way", function()
  local app

  before_each(function()
    app = fixture.due()
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("is held by pause and let go by approve; a gate waits for a person", function()
    app:extend_rolling "for i = 1, 40 do self:step('step ' .. i, function() self:sleep(0.2) end) end self:approve('is it good?') self.super.deploy(self)"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    fixture.eventually(function() return fixture.read(log):find("paused before", 1, true) end, 20, "the pause")
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    fixture.eventually(function() return fixture.read(log):find("is it good?", 1, true) end, 15, "the gate")
    assert.same({ "1.0" }, app:serving())
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    app:await_end(pid)
    assert.same({ "2.0" }, app:serving())
    assert.equal(2, app:command({ "approve", "app.yml" }).exit)
  end)

  it("that waits says so to who asks, takes only its answers, and is rolled back by abort from elsewhere", function()
    app:extend_rolling "self:approve('is it\\ngood?', { 'yes', 'no' }) self.super.deploy(self)"
    local log, there = app.dir .. "/log", { "--state", app.dir .. "/other" }
    for _, case in ipairs { { { "approve", "yes", "app.yml" }, "2.0", {}, "succeeded" }, { { "abort", "app.yml" }, "3.0", {}, "interrupted" },
      { { "abort", "app.yml" }, "3.0", there, "interrupted" } } do
      app:write(fixture.release(case[2]), case[2])
      local pid = app:begin({ "./own.lua", "app.yml" }, log)
      fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find("waits for approval (yes|no): is it good?", 1, true) end, 10, "the gate")
      for _, words in ipairs { { "approve", "app.yml" }, { "approve", "maybe", "app.yml" } } do
        local run = app:command(words)
        assert.equal(2, run.exit, run.stdout)
        contains(run.stderr, "`deployrt approve yes app.yml` or `deployrt approve no app.yml`")
      end
      contains(app:command({ "rolling", "app.yml" }).stderr, "`deployrt approve yes app.yml` or `deployrt approve no app.yml` lets it go on")
      local run = app:command(table.move(case[3], 1, 2, #case[1] + 1, { table.unpack(case[1]) }))
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      if case[1][1] == "abort" then contains(run.stdout .. run.stderr, "is under way: it was asked to roll back", ": interrupted\n") end
      app:await_end(pid)
      assert.equal(case[4], app:status().run.outcome)
      assert.same({ "2.0" }, app:serving())
    end
    contains(fixture.read(log), "aborted by `deployrt abort`")
  end)

  it("hears all that is asked, one after the other; an approval of a gate does not end a pause", function()
    app:extend_rolling "self:approve('go on?', { 'new', 'old' }) self:step('behind it', function() self:log('went on') end) self.super.deploy(self)"
    local log = app.dir .. "/log"
    local let, hold = { "approve", "new", "app.yml" }, { "pause", "app.yml" }
    for i, order in ipairs { { let, hold }, { hold, let } } do
      app:write(fixture.release(i .. ".1"), i .. ".1")
      local pid = app:begin({ "./own.lua", "app.yml" }, log)
      fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find("waits for approval (new|old)", 1, true) end, 10, "the gate")
      for _, words in ipairs(order) do assert.equal(0, app:command(words).exit) end
      fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find("paused before 'behind it'", 1, true) end, 20, "the pause")
      assert.falsy(fixture.read(log):find("went on", 1, true))
      contains(app:command({ "approve", "app.yml" }).stdout, "goes on")
      app:await_end(pid)
      assert.same({ i .. ".1" }, app:serving())
    end
  end)

  it("takes answers of any shape, and prints what a shell takes for them", function()
    local answers = { "x y", "a|b (c) 5%", "it's" }
    app:extend_rolling "local answer = self:approve('which?', { 'x y', 'a|b (c) 5%', \"it's\" }) self:log('it is ' .. answer) self.super.deploy(self)"
    local log = app.dir .. "/log"
    for i, answer in ipairs(answers) do
      app:write(fixture.release(i .. ".1"), i .. ".1")
      local pid = app:begin({ "./own.lua", "app.yml" }, log)
      fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find("waits for approval", 1, true) end, 10, "the gate")
      contains(app:command({ "approve", "x", "app.yml" }).stderr, [[approve 'x y' app.yml` or `deployrt approve 'a|b (c) 5%' app.yml` or `deployrt approve 'it'\''s' app.yml`]])
      assert.equal(0, app:command({ "approve", answer, "app.yml" }).exit)
      app:await_end(pid)
      contains(fixture.read(log), "it is " .. answer, [[which?: `deployrt approve 'x y' app.yml` or]])
    end
  end)

  it("is not held on its way back, which status and pause tell", function()
    app:extend_rolling [[
      self:step('first', function()
        self:undo(function() self:step('undo', function() self:sleep(4) end) self:step('undo more', function() self:log('went back') end) end)
      end)
      self:step('second', function() self:sleep(20) end)]]
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return fixture.read(log):find("== second", 1, true) end, 10, "the second step")
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    fixture.signal(pid, "INT")
    fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find("under way, at 'rolling back'", 1, true) end, 4, "the way back")
    local run = app:command { "pause", "app.yml" }
    assert.equal(2, run.exit, run.stdout)
    contains(run.stderr, "is rolling back, and nothing holds that")
    app:await_end(pid)
    contains(fixture.read(log), "went back", "== rolled back")
  end)

  it("waits at a gate again when it is resumed, and sleeps only as long as it had to", function()
    app:extend_rolling "self:sleep(1) self:approve('now?') self.super.deploy(self)"
    local pid = app:begin { "./own.lua", "app.yml" }
    fixture.eventually(function() return (fixture.read(app:journal_path()) or ""):find('"gate"', 1, true) end, 8, "the gate")
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    local run = app:command { "resume", "app.yml", "--yes", "--release", "9.9", "--set", "strategy.settle=0" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    for _, flag in ipairs { "--release 9.9", "--set strategy.settle=0" } do
      contains(run.stdout, "warning: " .. flag .. " changes nothing of this run: it goes on with what it began with")
    end
    assert.same({ "2.0" }, app:serving())
  end)
end)

describe("a run that another machine ended", function()
  local app

  before_each(function()
    app = fixture.app { instances = 1, balancer = false, yaml = "strategy: {settle: 0, allow_gap: true}", health = "{http: /healthz, interval: 20ms, deadline: 4s, successes: 1}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  local function on(machine, verb, ...)
    return app:command { "--state", app.dir .. "/" .. machine, verb, "app.yml", ... }
  end

  local function succeeds(run)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
  end

  local function refuses(run, ...)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, ...)
  end

  --- Version 2.0, killed half-way; its id.
  local function interrupt(machine, version)
    app:write(fixture.release(version), version)
    assert.equal(137, app:mortal("after", 8, { "rolling", "app.yml", "--state", app.dir .. "/" .. machine }).exit)
    return app:journal_path(machine):match("runs/([^/]+)")
  end

  local function deploys(machine, version)
    app:write(fixture.release(version), version)
    succeeds(on(machine, "rolling"))
  end

  it("long ago is not taken up again, and takes no lock: newer ones came after it", function()
    local id = interrupt("a", "2.0")
    succeeds(on("b", "resume"))
    for i = 1, 11 do deploys("b", i % 2 == 0 and "2.0" or "3.0") end
    deploys("b", "2.0")
    local last = app:journal_path("b"):match("runs/([^/]+)")
    refuses(on("a", "abort"), "run " .. id .. " was ended or unlocked by another machine", "run " .. last .. " came after it")
    assert.same({ "2.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
    for _, verb in ipairs { "resume", "abort" } do refuses(on("a", verb), "no run of shop was interrupted") end
    contains(on("a", "history").stdout, "superseded")
    refuses(app:command { "abort", "app.yml", "--force", "--run", id, "--state", app.dir .. "/a" }, "came after it")
    deploys("a", "4.0")
    assert.same({ "4.0" }, app:serving())
  end)

  it("by `unlock` can be aborted until another run took the lock", function()
    interrupt("a", "2.0")
    succeeds(on("b", "unlock"))
    succeeds(on("a", "abort"))
    assert.same({ "1.0" }, app:serving())
    local id = interrupt("a", "2.0")
    succeeds(on("b", "unlock"))
    deploys("b", "3.0")
    refuses(on("a", "resume"), "run " .. id, "came after it")
    assert.same({ "3.0" }, app:serving())
  end)

  it("is in the history of any machine that asks the hosts, and of one that cannot as far as it knows", function()
    local id = interrupt("a", "2.0")
    succeeds(on("b", "resume"))
    contains(on("a", "history").stdout, id .. "  rolling    succeeded ")
    deploys("b", "3.0")
    local last = app:journal_path("b"):match("runs/([^/]+)")
    local argv = { "history", "app.yml", "--state", app.dir .. "/a", "--set", "hosts=[{name: web9, address: 127.0.0.1, port: 1, user: nobody}]" }
    local run = app:command(argv)
    assert.equal(2, run.exit, run.stdout)
    contains(run.stdout, id)
    assert.falsy(run.stdout:find(last, 1, true), run.stdout)
    assert.equal("deployrt: web9 cannot be asked, `deployrt status app.yml` says why: what is said of runs is what this machine knows\n", run.stderr)
    contains(on("a", "history").stdout, last .. "  rolling    succeeded      2.0 -> 3.0")
  end)

  --- A run on machine a that exits 3, as its own undo fails; its id.
  local function needs_attention(version)
    app:extend_rolling "self:undo(function() self:fail('later') end) self.super.deploy(self) self:fail('now')"
    app:write(fixture.release(version), version)
    local run = app:command { "./own.lua", "app.yml", "--state", app.dir .. "/a" }
    assert.equal(3, run.exit, run.stdout .. run.stderr)
    contains(on("a", "status").stdout, "needs attention")
    return app:journal_path("a"):match("runs/([^/]+)")
  end

  it("after it had exited 3 there is not offered any more where it was made", function()
    for i, said in ipairs { "", "no run of shop was interrupted", "has ended" } do
      local id = needs_attention("2." .. i)
      local words = i < 3 and { "abort", "--force" } or { "abort", "--force", "--run", id }
      succeeds(on("b", table.unpack(words)))
      if i == 1 then contains(on("a", "status").stdout, ("own of 2.%d: rolled_back"):format(i)) else refuses(on("a", table.unpack(words)), said) end
      for _, verb in ipairs { "status", "history" } do assert.falsy(on("a", verb).stdout:find("needs.attention"), verb) end
      assert.same({ "1.0" }, app:serving())
    end
  end)

  it("does not hide the one that holds the lock now", function()
    interrupt("a", "2.0")
    succeeds(on("b", "resume"))
    interrupt("c", "3.0")
    succeeds(on("a", "resume"))
    assert.same({ "3.0" }, app:serving())
    assert.falsy(on("a", "history").stdout:find("running", 1, true))
    refuses(on("a", "resume"), "no run of shop was interrupted")
  end)
end)

if not hosts.possible() then
  print("control_spec: skipped: a run on some of the hosts, because test hosts need root, iproute2 and sshd")
  return
end

describe("a run on some of the hosts", function()
  local bed, app, pid

  setup(function() bed = hosts.up(2) end)
  teardown(function() bed:down() end)

  before_each(function()
    app = fixture.app { slots = 1, yaml = "strategy: {settle: 0}", hosts = bed:yaml() }
    app.ports = { 8080 }
    assert.equal(0, app:deploy("in_place", "1.0").exit)
    app:write(fixture.release("2.0"), "2.0")
    fixture.write(app.dir .. "/own.lua", [[
      local own = require("deployrt.strategy").extend("in_place", { name = "own" })
      function own:deploy()
        for i = 1, 100 do self:step("step " .. i, function() self:sleep(0.2) end) end
        self.super.deploy(self)
      end
      return own]])
  end)
  after_each(function()
    if pid then fixture.stop(pid) end
    app:stop()
    fixture.cleanup()
  end)

  it("that is not the first of them is seen under way, held, let go and rolled back", function()
    local log, name = app.dir .. "/log", bed.hosts[2].name
    pid = app:begin({ "./own.lua", "app.yml", "--host", name }, log)
    local status = app:status()
    assert.same({ name, false, "running" }, { status.lock.host, status.lock.dead, status.run.outcome })
    contains(app:command({ "status", "app.yml", "--host", bed.hosts[1].name }).stdout, "under way")
    assert.matches("is under way[^\n]*: wait for it\n$", app:command({ "status", "app.yml" }).stdout)
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    fixture.eventually(function() return fixture.read(log):find("paused before", 1, true) end, 20, "the pause")
    contains(app:command({ "approve", "app.yml" }).stdout, "goes on")
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "is under way: it was asked to roll back", ": interrupted\n")
    app:await_end(pid)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("hears on any of its hosts, where the first cannot write down what is asked", function()
    app:extend_rolling "self:approve('now?') for i = 1, 100 do self:step('step ' .. i, function() self:sleep(0.2) end) end"
    pid = app:begin({ "./own.lua", "app.yml" })
    fixture.eventually(function() return app:status().lock.step == "waits for approval: now?" end, 8, "the gate")
    bed:exec(1, "for run in /home/deploy/.deployrt/shop/runs/*; do mkdir $run/control; done")
    for _, verb in ipairs { "approve", "pause", "abort" } do
      local run = app:command { verb, "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end
    app:await_end(pid)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("hears what was asked of it also where the first of its hosts goes away with that", function()
    app:extend_rolling "self:approve('now?') self:step('behind it', function() self:log('went on') end) self.super.deploy(self)"
    local log = app.dir .. "/log"
    pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return app:status().lock.step == "waits for approval: now?" end, 8, "the gate")
    fixture.signal(pid, "STOP")
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    bed:exec(1, "for run in /home/deploy/.deployrt/shop/runs/*; do rm -f $run/control && mkdir $run/control; done")
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    fixture.signal(pid, "CONT")
    fixture.eventually(function() return app:status().lock.step:find("paused before 'behind it'", 1, true) end, 8, "the pause")
    assert.falsy(fixture.read(log):find("went on", 1, true))
    contains(app:command({ "approve", "app.yml" }).stdout, "goes on")
    app:await_end(pid)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("lets another one change other hosts meanwhile, and has them back, too, once the balancer has forgotten them", function()
    local proxy, log = fixture.haproxy { servers = {} }, app.dir .. "/log"
    app:stop()
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    app:write(fixture.release("1.0"), "1.0")
    assert.equal(0, app:command({ "rolling", "app.yml", "--force" }).exit)
    app:write(fixture.release("2.0"), "2.0")
    pid = app:begin({ "./own.lua", "app.yml", "--host", bed.hosts[2].name }, log)
    local load = app:load { rate = 100, port = proxy.port }
    local run = app:command { "in_place", "app.yml", "--host", bed.hosts[1].name, "--state", app.dir .. "/other" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({}, load:stop().errors)
    assert.falsy(fixture.read(log):find("set right again", 1, true), fixture.read(log))
    local function versions()
      load = app:load { rate = 100, port = proxy.port }
      fixture.eventually(function() return load:numbers().versions["2.0"] and load:numbers().versions["1.0"] end, 10, "both of them")
      load:stop()
    end
    versions()
    proxy:restart()
    fixture.eventually(function() return fixture.read(log):find("2 slots set right again", 1, true) end, 10, "the word that it is mended")
    versions()
  end)

  it("that is taken up leaves alone what another one did on other hosts meanwhile", function()
    app.ports = { 8080, 8081 }
    app:write(fixture.release("2.0"), "2.0")
    app:kill_at({ "./own.lua", "app.yml", "--host", bed.hosts[2].name }, "== step 1")
    local load = app:load { rate = 100 }
    assert.equal(0, app:command({ "rolling", "app.yml", "--host", bed.hosts[1].name, "--state", app.dir .. "/other" }).exit)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({}, load:stop().errors)
    assert.same({ "1.0", "2.0" }, app:serving())
  end)

  it("and another one, which reloads the balancer, leave one that comes up with what both of them did", function()
    app.ports = { 8080, 8081 }
    app:write(fixture.release("1.1"), "1.1")
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    app:write(fixture.release("2.0"), "2.0")
    fixture.write(app.dir .. "/waiting.lua", [[
      local waiting = require("deployrt.strategy").extend("rolling", { name = "waiting" })
      function waiting:replace(old)
        local new = self:successor(old)
        new:start() new:await_healthy()
        self.balancer:swap(old, new)
        self:approve("now?")
        old:stop()
      end
      return waiting]])
    local log, at = app.dir .. "/log", app.dir .. "/home/.deployrt/shop/balancer/haproxy"
    local function await(path, text) fixture.eventually(function() return (fixture.read(path) or ""):find(text, 1, true) end, 10, text) end
    local function approve(name, ...) assert.equal(0, app:command({ "approve", "app.yml", "--host", name, ... }).exit) end
    pid = app:begin({ "./waiting.lua", "app.yml", "--host", bed.hosts[2].name }, log)
    await(log, "now?")
    fixture.eventually(function() return fixture.read(at .. ".cfg"):find("web2%-8081 [^\n]*disabled") end, 10, "what it has persisted")
    fixture.signal(pid, "STOP") -- so that it sees all that the other one does at once
    local there = { "--state", app.dir .. "/other" }
    local other = app:command({ "./waiting.lua", "app.yml", "--host", bed.hosts[1].name, "--set", "balancer.stats=127.0.0.1:" .. fixture.free_port(),
      table.unpack(there) }, { background = true, log = log .. "-other" })
    await(log .. "-other", "now?")
    fixture.signal(pid, "CONT")
    approve(bed.hosts[1].name, table.unpack(there))
    app:await_end(other)
    approve(bed.hosts[2].name)
    app:await_end(pid)
    for _, path in ipairs { log, log .. "-other" } do
      contains(fixture.read(path), "deployed 2.0")
      assert.falsy(fixture.read(path):find("set right again", 1, true), fixture.read(path))
    end
    local master = fixture.read(at .. ".pid"):match("%d+")
    fixture.sh(("kill -KILL %s $(pgrep -P %s)"):format(master, master))
    fixture.eventually(function() return not fixture.is_listened(app.listen) end, 5, "its end")
    fixture.sh(("PATH=$PATH:/usr/sbin haproxy -q -W -D -f %s.cfg -p %s.pid 2>/dev/null"):format(at, at))
    local load = app:load { rate = 100 }
    fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 20 end, 10, "answers")
    assert.same({}, load:stop().errors)
  end)

  it("that begins together with others has one balancer with them, also where it has to start it, and where it fails", function()
    local function all(version, ports, exit)
      app.ports = ports
      app:write(fixture.release(version, exit == 1 and { fault = "dies" } or nil), version)
      local lanes = {}
      for i, host in ipairs(bed.hosts) do
        lanes[i] = function()
          local run = app:command { "rolling", "app.yml", "--host", host.name, "--state", app.dir .. "/" .. host.name }
          assert.equal(exit, run.exit, run.stdout .. run.stderr)
        end
      end
      fixture.together(lanes)
    end
    for round = 1, 2 do
      app:stop()
      all("1." .. round, { 8080, 8081 }, 0)
      all("2." .. round, { 8080, 8081, 8082 }, 0)
      all("3." .. round, { 8080, 8081 }, 1)
    end
    assert.same({ "2.2", "2.2" }, app:serving())
    local load = app:load { rate = 100 }
    fixture.eventually(function() return (load:numbers().versions["2.2"] or 0) > 20 end, 10, "answers")
    assert.same({}, load:stop().errors)
  end)

  it("leaves a balancer that it has started to one that serves by then", function()
    app:stop()
    app:write(fixture.release("1.0"), "1.0")
    app:extend_rolling "self:log('now') self:sleep(60)"
    local log, first = app.dir .. "/log", bed.hosts[1].name
    pid = app:command({ "./own.lua", "app.yml", "--host", first }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log):find("now", 1, true) end, 10, "the sleep")
    assert.equal(0, app:command({ "rolling", "app.yml", "--host", bed.hosts[2].name, "--state", app.dir .. "/other" }).exit)
    local load = app:load { rate = 100 }
    fixture.eventually(function() return load:numbers().requests > 20 end, 10, "answers")
    assert.equal(0, app:command({ "abort", "app.yml", "--host", first }).exit)
    app:await_end(pid)
    assert.same({}, load:stop().errors)
    assert.same({ "1.0" }, app:serving())
  end)

  it("is told beside another one; approve is for the one that waits, and where it is not plain which is meant, a person says so", function()
    local function go(i, strategy, state)
      return app:command({ strategy, "app.yml", "--force", "--host", bed.hosts[i].name, "--state", app.dir .. "/" .. state }, { background = true })
    end
    fixture.write(app.dir .. "/asks.lua", 'local own = require("deployrt.strategy").extend("in_place", { name = "asks" })\n'
      .. "function own:deploy() self:approve('now?') self.super.deploy(self) end\nreturn own\n")
    local function await_locks(pattern)
      fixture.eventually(function() return app:command({ "status", "app.yml" }).stdout:find(pattern) end, 8, pattern)
    end
    local first, second = bed.hosts[1].name, bed.hosts[2].name
    local pids = { go(1, "./own.lua", "a"), go(2, "./asks.lua", "b") }
    await_locks("under way, at [^\n]*the lock on " .. first .. "[^\n]*wait for it\nrun [^\n]*under way and waits for approval: now%?[^\n]* the lock on " .. second)
    assert.equal(2, #app:status().locks)
    for _, verb in ipairs { "pause", "abort" } do
      local run = app:command { verb, "app.yml" }
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, "2 runs are under way (", " on " .. first, "; ", " on " .. second, "say which with --host")
    end
    contains(app:command({ "approve", "app.yml" }).stdout, "goes on")
    app:await_end(pids[2])
    pids[2] = go(2, "./asks.lua", "b")
    assert.equal(0, app:command({ "abort", "app.yml", "--host", first }).exit)
    app:await_end(pids[1])
    pids[1] = go(1, "./asks.lua", "a")
    await_locks("waits for approval[^\n]*\nrun [^\n]*waits for approval")
    local run = app:command { "approve", "app.yml" }
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "2 runs are under way (", "at 'waits for approval: now?'", "say which with --host")
    for i, name in ipairs { first, second } do
      assert.equal(0, app:command({ "approve", "app.yml", "--host", name }).exit)
      app:await_end(pids[i])
    end
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("is under way although one that was interrupted has left its lock on another", function()
    local dead = app:begin({ "./own.lua", "app.yml", "--host", bed.hosts[1].name })
    fixture.signal(dead, "KILL")
    app:await_end(dead)
    pid = app:command({ "./own.lua", "app.yml", "--host", bed.hosts[2].name, "--state", app.dir .. "/other" }, { background = true })
    fixture.eventually(function() return app:status().lock.host == bed.hosts[2].name end, 5, "its lock")
    assert.equal("unfinished", app:status().run.outcome)
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    local run = app:command { "abort", "app.yml" }
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "2 runs have not ended (", (" on %s, interrupted"):format(bed.hosts[1].name), "; ", " on " .. bed.hosts[2].name, "say which with --host")
    run = app:command { "in_place", "app.yml", "--host", bed.hosts[1].name }
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    local told, id = run.stderr:match("`deployrt (abort app.yml %-%-run (%S+))`")
    contains(app:command({ "status", "app.yml" }).stdout, ("`deployrt resume app.yml --run %s`, or roll it back with `deployrt %s`"):format(id, told))
    run = app:command { "abort", "app.yml", "--run", id }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, id)
    assert.is_true(fixture.alive(pid))
    assert.equal(bed.hosts[2].name, app:status().lock.host)
    fixture.stop(pid)
  end)
end)
