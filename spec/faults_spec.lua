-- faults_spec.lua -- What goes wrong on one machine: one clear error, the right exit code, the old release serves.
-- weight: 31
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a release that does not work", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 100ms}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  local function fails(run, ...)
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, ...)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.equal("1.0\n", fixture.sh(("ls %s/home/.deployrt/shop/releases"):format(app.dir)))
  end

  it("that exits at once is undone, and the end of its log is in the error", function()
    local load = app:load()
    fails(app:deploy("rolling", "2.0", { fault = "dies" }), "exited before it was healthy", "fatal: cannot open database")
    assert.same({}, load:stop().errors)
  end)

  it("that exits at once does not pass for healthy, whatever a health command says", function()
    for _, successes in ipairs { 1, 2 } do
      app.opts.health = ("{command: [sleep, '0.1'], interval: 20ms, successes: %d}"):format(successes) -- by then it has exited
      local run = app:deploy("rolling", "2.0", { fault = "dies" })
      app.opts.health = nil
      fails(run, "exited before it was healthy", "fatal: cannot open database")
    end
  end)

  it("that leaves a daemon behind and exits is none that deployrt could stop", function()
    local pid = app.dir .. "/daemon.pid"
    app.opts.command = ('  command: ["/bin/sh", "-c", "setsid ./server --port ${port} > /dev/null 2>&1 & echo $! > %s; sleep 0.3"]'):format(pid)
    local run = app:deploy("rolling", "2.0", nil, { "--set", "health.interval=400ms" })
    app.opts.command = nil
    fixture.sh(("kill $(cat %s)"):format(pid))
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "exited before it was healthy")
  end)

  it("that never gets healthy is undone at the deadline", function()
    fails(app:deploy("rolling", "2.0", { fault = "sick" }, { "--set", "health.deadline=1s" }), "not healthy after 1s", "/healthz answers 503")
  end)

  it("whose health flaps does not pass for healthy", function()
    fails(app:deploy("rolling", "2.0", { fault = "flap" }, { "--set", "health.deadline=1s" }), "not healthy after 1s")
  end)

  it("whose command is not there says so", function()
    app.opts.command = '  command: [./nosuch, --port, "${port}"]'
    local run = app:deploy("rolling", "2.0")
    app.opts.command = nil
    fails(run, "nosuch", "No such file or directory")
  end)

  it("that answers errors is caught by the canary's gate", function()
    local load = app:load()
    local run = app:deploy("canary", "2.0", { fault = "errors" }, { "--set", "strategy={hold: 2s, steps: [20%, 100%]}" })
    local numbers = load:stop()
    fails(run, "the new release fails 3")
    assert.equal(numbers.failed, numbers.errors["500"])
  end)

  it("that ignores SIGTERM is killed at its deadline, when it is replaced", function()
    app.opts.process = "  stop: {timeout: 300ms}"
    assert.equal(0, app:deploy("rolling", "2.0", { fault = "stubborn" }).exit)
    local run = app:deploy("rolling", "3.0")
    assert.equal(0, run.exit, run.stderr)
    assert.matches("warning +local:%d+: pid %d+ is killed: it did not end within 0.3s of TERM", run.stdout)
    assert.same({ "3.0", "3.0" }, app:serving())
  end)

  it("never blocks its own fix", function()
    fixture.sh(("pkill -KILL -f %s/home/.deployrt/shop/releases/1.0; pkill -KILL -f 'server --port %d'; true"):format(app.dir, app.ports[1]))
    for _, each in ipairs(app:status().instances) do
      if each.pid ~= cjson.null then fixture.signal(each.pid, "KILL") end
    end
    local run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)
end)

describe("what is wrong before a run", function()
  local app

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 100ms}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  --- One error, exit 2, and nothing was touched.
  local function refused(run, ...)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, ...)
    assert.same({ "1.0" }, app:serving())
    assert.equal("", fixture.sh(("find %s/state -mindepth 3 -type d -empty"):format(app.dir)), "the trace of a run that never was")
  end

  it("names the stranger on a slot", function()
    local free = app.ports[1]
    if fixture.is_listened(free) then free = app.ports[2] end
    local pid = fixture.start { fixture.service(), "--port", free }
    fixture.eventually(function() return fixture.is_listened(free) end)
    refused(app:deploy("rolling", "2.0"), ("port %d is taken by pid %s"):format(free, pid))
    fixture.stop(pid)
  end)

  it("says which release directory is missing", function()
    refused(app:deploy("rolling", "2.0", { path = "/nonexistent/build" }), "/nonexistent/build", "No such file")
  end)

  it("says where a strategy's syntax is wrong", function()
    fixture.write(app.dir .. "/bad.lua", "local x = = 1\n")
    refused(app:deploy("./bad.lua", "2.0"), "bad.lua:1:")
  end)

  it("suggests the strategy that was meant", function()
    refused(app:deploy("roling", "2.0"), "did you mean 'rolling'?")
  end)

  it("stops a strategy that never ends while it is loaded", function()
    fixture.write(app.dir .. "/loop.lua", "while true do end\n")
    refused(app:deploy("./loop.lua", "2.0"), "endless loop")
  end)

  it("refuses what a strategy may not require", function()
    fixture.write(app.dir .. "/nosy.lua", 'require "deployrt.core"\n')
    refused(app:deploy("./nosy.lua", "2.0"), "cannot require 'deployrt.core'")
  end)

  it("refuses an option that the strategy does not have, with its place", function()
    refused(app:deploy("rolling", "2.0", nil, { "--set", "strategy.bach=1" }), "has no option 'bach' (did you mean 'batch'?)")
  end)

  it("refuses a YAML alias bomb, unknown keys and wrong types, with their places", function()
    local text = fixture.read(app.file)
    local bomb = { "a0: &a0 [x,x,x,x,x,x,x,x,x,x]" }
    for i = 1, 8 do bomb[#bomb + 1] = ("a%d: &a%d [%s]"):format(i, i, ("*a" .. i - 1):rep(10, ",")) end
    fixture.write(app.file, table.concat(bomb, "\n") .. "\n")
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "app.yml:", "aliases expand")
    fixture.write(app.file, (text:gsub("health:", "heath:")))
    run = app:command { "check", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "unknown key 'heath' (did you mean 'health'?)")
    fixture.write(app.file, (text:gsub("instances: 1", "instances: many")))
    run = app:command { "check", "app.yml" }
    contains(run.stderr, "process.instances: expected a whole number")
    fixture.write(app.file, text)
    assert.same({ "1.0" }, app:serving())
  end)

  it("says that app.yml is missing", function()
    refused(app:command { "rolling", "other.yml" }, "other.yml: no such file")
  end)

  it("refuses blue-green without room for a second set", function()
    table.remove(app.ports, fixture.is_listened(app.ports[1]) and 2 or 1)
    refused(app:deploy("blue_green", "2.0"), "needs a full second set")
  end)

  it("refuses plainly what this version does not have", function()
    refused(app:deploy("rolling", "2.0", nil, { "--set", "process.supervisor=systemd" }), "'systemd' is not supported by this version")
    refused(app:command { "report", "app.yml" }, "not supported by this version")
  end)
end)

describe("what goes wrong in a run", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  local function strategy(text)
    return fixture.write(app.dir .. "/own.lua", 'local strategy = require "deployrt.strategy"\nlocal own = strategy.extend("rolling", { name = "own" })\n'
      .. text .. "\nreturn own\n")
  end

  it("an error in a parallel child is told with its place, and everything is undone", function()
    strategy 'function own:deploy() self:each({ 1, 2, 3 }, function(_, i) if i == 2 then local x = nil; x() end end) end'
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(1, run.exit, run.stderr)
    contains(run.stderr, "own.lua:3", "attempt to call")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("errors of several children are all told", function()
    strategy 'function own:deploy() self:each({ "first", "second" }, function(s, name) s:fail(name .. " broke") end) end'
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(1, run.exit)
    contains(run.stderr, "first broke", "second broke")
  end)

  it("tolerates as many failures as it is told", function()
    strategy 'function own:deploy() self:each({ 1, 2, 3, 4 }, function(s, i) if i == 1 then s:fail("one") end end, { tolerate = "25%" }) end'
    assert.equal(0, app:deploy("./own.lua", "1.1").exit)
  end)

  it("an endless loop is ended by the instruction limit", function()
    strategy 'function own:deploy() while true do end end'
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(1, run.exit)
    contains(run.stderr, "endless loop")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("stopping what still serves is refused", function()
    strategy 'function own:deploy() self.fleet:old()[1]:stop() end'
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(1, run.exit)
    contains(run.stderr, "still gets traffic")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("an undo of the strategy's own runs on failure, in reverse order", function()
    strategy [[function own:deploy()
      self:undo(function() self:log("undo one") end)
      self:undo(function() self:log("undo two") end)
      self:fail("now")
    end]]
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(1, run.exit)
    assert.is_true(run.stdout:find("undo two", 1, true) < run.stdout:find("undo one", 1, true))
  end)

  it("a rollback that is incomplete exits 3 and says what is left", function()
    strategy [[function own:deploy()
      self:undo(function() self:fail("the undo is broken") end)
      self:fail("now")
    end]]
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(3, run.exit)
    contains(run.stderr, "the undo is broken")
  end)

  it("a rollback that is incomplete is told by status with what is to be done, also where it left a lock", function()
    local lock = app.dir .. "/home/.deployrt/shop/lock"
    strategy(([[function own:deploy()
      self.fleet.hosts[1]:run { "cp", "-a", "%s", "%s.kept" }
      self:undo(function() self:fail("the undo is broken") end)
      self:fail("now")
    end]]):format(lock, lock))
    assert.equal(3, app:deploy("./own.lua", "2.0").exit)
    local words = ("needs attention: `deployrt abort app.yml --run %s` goes on with its rollback"):format(app:status().run.id)
    contains(app:command({ "status", "app.yml" }).stdout, "own of 2.0: " .. words)
    fixture.sh(("mv %s.kept %s"):format(lock, lock))
    local status = app:command({ "status", "app.yml" }).stdout
    contains(status, ", " .. words .. ", and removes the lock on local")
    assert.falsy(status:find("its controller died", 1, true), status)
    assert.same({ true, nil }, { app:status().lock.needs_attention, app:status().lock.over })
    assert.equal(0, app:command({ "unlock", "app.yml" }).exit)
  end)

  it("traffic does not go back to what could not be put back", function()
    strategy [[function own:deploy()
      self.super.deploy(self)
      self:log("now") self:sleep(1)
      self:fail("too late")
    end]]
    app:write(fixture.release("2.0"), "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log):find("now", 1, true) end, 10, "the sleep")
    fixture.sh(("rm -r %s/home/.deployrt/shop/releases/1.0"):format(app.dir))
    app:await_end(pid)
    assert.matches("balancer.apply: local%-%d+[^\n]*: traffic was not put back there, because what was done there could not be undone", fixture.read(log))
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("SIGINT rolls back and exits 130; a second run may follow", function()
    strategy 'function own:deploy() self:each(self.fleet:old(), self.replace); self:sleep(30) end'
    app:write(fixture.release("2.0"), "2.0")
    local load = app:load()
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 0 end, 10, "traffic on 2.0")
    fixture.signal(pid, "INT")
    fixture.eventually(function() return not fixture.alive(pid) end, 10, "end of the run")
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, load:stop().errors)
    contains(fixture.read(log), "interrupted")
    assert.equal("interrupted", app:status().run.outcome)
    assert.equal(0, app:deploy("rolling", "3.0").exit)
  end)

  it("a run that takes longer than its timeout is rolled back", function()
    strategy 'function own:deploy() self:sleep(30) end'
    local run = app:deploy("./own.lua", "2.0", nil, { "--set", "strategy.timeout=500ms" })
    assert.equal(1, run.exit)
    contains(run.stderr, "longer than its timeout")
  end)

  it("a second run at the same time exits 4 and names the first", function()
    strategy 'function own:deploy() self:approve() end'
    app:write(fixture.release("2.0"), "2.0")
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true })
    fixture.eventually(function() return app:status().lock ~= cjson.null end, 5, "the lock")
    local holder = app:status().lock.run
    local second = app:command { "rolling", "app.yml" }
    assert.equal(4, second.exit)
    contains(second.stderr, holder, "under way")
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    fixture.eventually(function() return not fixture.alive(pid) end, 20)
    assert.equal(cjson.null, app:status().lock)
  end)

  it("a managed HAProxy that is killed comes back as it should be", function()
    strategy 'function own:deploy() self.super.deploy(self); self:approve() end'
    app:write(fixture.release("2.0"), "2.0")
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true })
    fixture.eventually(function() return #app:serving() == 2 and app:serving()[1] == "2.0" end, 10, "2.0 serving")
    fixture.sh(("pkill -KILL -f %s/home/.deployrt/shop/balancer/haproxy.cfg; true"):format(app.dir))
    fixture.eventually(function() return fixture.is_listened(app.listen) end, 5, "HAProxy back")
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    fixture.eventually(function() return not fixture.alive(pid) end, 20)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("a managed HAProxy is told the last change also when writing it takes longer than the rest of the run", function()
    strategy 'function own:deploy() self.super.deploy(self); self:sleep(0.5) end'
    local slow = "#!/bin/sh\ncase $* in *haproxy.cfg.part*) sleep 2 ;; esac\nexec /bin/mv \"$@\"\n"
    fixture.sh(("chmod 755 %s"):format(fixture.write(app.dir .. "/bin/mv", slow)))
    app:write(fixture.release("2.0"), "2.0")
    local run = app:command({ "./own.lua", "app.yml" }, { env = { PATH = app.dir .. "/bin:" .. os.getenv("PATH") } })
    assert.equal(0, run.exit, run.stderr)
    assert.equal("", fixture.sh(("find %s/home -name '*.part*'"):format(app.dir)))
    fixture.sh(("pkill -KILL -f %s/home/.deployrt/shop/balancer/haproxy.cfg; true"):format(app.dir))
    fixture.eventually(function() return not fixture.is_listened(app.listen) end, 5, "the end of HAProxy")
    local place = app.dir .. "/home/.deployrt/shop/balancer/haproxy"
    fixture.sh(("haproxy -W -D -f %s.cfg -p %s.pid 2>/dev/null"):format(place, place))
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("secrets reach the process, and nothing else", function()
    app.opts.process = '  secrets: {DB_URL: "${env:DB_URL}"}\n  stop: {timeout: 3s}'
    app:write(fixture.release("2.0"), "2.0")
    local secret = "postgres://user:hunter2secret@db"
    local env = { DB_URL = secret }
    local missing = app:command({ "rolling", "app.yml" })
    assert.equal(2, missing.exit)
    contains(missing.stderr, "DB_URL is not set")
    local run = app:command({ "rolling", "app.yml", "--verbose", "--json" }, { env = env })
    assert.equal(0, run.exit, run.stderr)
    local answer = fixture.sh(("curl -s 'http://127.0.0.1:%d/env?DB_URL'"):format(app.listen))
    assert.equal(secret .. "\n", answer)
    assert.is_nil((run.stdout .. run.stderr):find("hunter2", 1, true))
    assert.equal("", fixture.sh(("grep -rl hunter2 %s/home %s/state || true"):format(app.dir, app.dir)))
    app.opts.process = nil
  end)

  it("secrets come from commands and files, and from several in one value", function()
    fixture.write(app.dir .. "/password", "hunter2\n")
    app.opts.process = "  secrets: {DB_URL: 'pg://${command:printf user}:${file:password}@${env:DB_HOST}/x'}\n  stop: {timeout: 3s}"
    app:write(fixture.release("2.0"), "2.0")
    local run = app:command({ "rolling", "app.yml" }, { env = { DB_HOST = "db" } })
    assert.equal(0, run.exit, run.stderr)
    assert.equal("pg://user:hunter2@db/x\n", fixture.sh(("curl -s 'http://127.0.0.1:%d/env?DB_URL'"):format(app.listen)))
    app.opts.process = "  secrets: {DB_URL: '${command:exit 3}'}\n  stop: {timeout: 3s}"
    app:write(fixture.release("2.0"), "2.0")
    run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "app.yml:", "process.secrets.DB_URL: the command 'exit 3' failed with status 3")
    app.opts.process = nil
  end)

  it("a full disk during the upload leaves nothing half-released", function()
    if fixture.sh("id -u") ~= "0\n" then return print("skipped without root: needs a small tmpfs") end
    local releases = app.dir .. "/home/.deployrt/shop/releases"
    local path = fixture.release("2.0")
    fixture.sh(("head -c 3000000 /dev/urandom > %s/big"):format(path))
    fixture.sh(("mkdir %s/keep && cp -a %s/. %s/keep/ && mount -t tmpfs -o size=2m tmpfs %s && cp -a %s/keep/. %s/"):format(app.dir, releases, app.dir, releases,
      app.dir, releases))
    local run = app:deploy("rolling", "2.0", { path = path })
    local left = fixture.sh("ls -A " .. releases)
    fixture.sh("umount -l " .. releases)
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "No space left on device; ", "make room")
    assert.equal(".1.0.sha256\n1.0\n", left)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)
end)

describe("a user's own HAProxy", function()
  local app, proxy

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    proxy = fixture.haproxy { servers = { ("a 127.0.0.1:%d check disabled"):format(app.ports[1]) } }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 3s}}"):format(proxy.socket)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("is used through its socket; a slot that it does not know is added", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local load = app:load { port = proxy.port }
    local run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 10 end)
    assert.same({}, load:stop().errors)
  end)

  it("that was restarted in mid-run is set right again", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    fixture.write(app.dir .. "/own.lua", 'local s = require "deployrt.strategy"\nlocal own = s.extend("rolling", { name = "own" })\n'
      .. "function own:deploy() self.super.deploy(self); self:sleep(3) end\nreturn own\n")
    app:write(fixture.release("2.0"), "2.0")
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true })
    fixture.eventually(function() return app:serving()[1] == "2.0" end, 10)
    proxy:restart()
    fixture.eventually(function() return app:serving()[1] == "2.0" end, 5, "the wanted state after a restart")
    fixture.eventually(function() return not fixture.alive(pid) end, 20)
    assert.same({ "2.0" }, app:serving())
  end)

  it("of deployrt's own that is killed in mid-run is started again, and that is said", function()
    app.opts.balancer = nil
    app:write(fixture.release("1.0"), "1.0")
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:extend_rolling("self.super.deploy(self); self:sleep(20)")
    app:write(fixture.release("2.0"), "2.0")
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return app:serving()[1] == "2.0" end, 10)
    os.execute("sleep 1") -- by then it has on its disk what it is to come up with
    local master = fixture.read(app.dir .. "/home/.deployrt/shop/balancer/haproxy.pid"):match("%d+")
    fixture.sh(("kill -KILL %s $(pgrep -P %s)"):format(master, master))
    fixture.eventually(function() return fixture.read(log):find("did not run, and was started again", 1, true) end, 10, "the word that it runs again")
    fixture.eventually(function() return app:serving()[1] == "2.0" end, 5, "the new release")
    fixture.signal(pid, "INT")
    app:await_end(pid)
    assert.falsy(fixture.read(log):find(" 0 slots", 1, true), fixture.read(log))
  end)

  it("whose socket or backend is missing is an error before anything is touched", function()
    app.opts.balancer = "{type: haproxy, socket: /nonexistent/admin.sock, backend: shop}"
    local run = app:deploy("rolling", "1.0")
    assert.equal(2, run.exit)
    contains(run.stderr, "/nonexistent/admin.sock", "is HAProxy running")
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shopp}"):format(proxy.socket)
    run = app:deploy("rolling", "1.0")
    assert.equal(2, run.exit)
    contains(run.stderr, "no backend 'shopp' (did you mean 'shop'?)")
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop}"):format(proxy.socket)
    app:write(fixture.release("1.0"), "1.0")
  end)
end)
