-- survive_spec.lua -- Locks, signals, gates, journals: what keeps a run whole, and tells others about it.
-- weight: 20
local cjson = require "cjson"
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local journal = require "deployrt.journal"
local history = require "deployrt.state"
local contains = fixture.contains

describe("a run", function()
  local app

  before_each(function()
    app = fixture.due()
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("whose controller dies when all is done is over for `resume` and `abort`, and leaves no lock", function()
    assert.equal(137, app:mortal("end", 0, { "rolling", "app.yml" }).exit)
    assert.same({ "2.0" }, app:serving())
    assert.equal(4, app:command({ "rolling", "app.yml" }).exit)
    local run = app:command { "abort", "app.yml" }
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "had ended already: succeeded", "deployrt rollback app.yml")
    assert.equal(cjson.null, app:status().lock)
    assert.equal("succeeded", app:status().run.outcome)
    assert.equal(2, app:command({ "resume", "app.yml" }).exit)
    app:write(fixture.release("3.0", { fault = "dies" }), "3.0")
    assert.equal(137, app:mortal("end", 0, { "rolling", "app.yml" }).exit)
    run = app:command { "resume", "app.yml" }
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "had ended already: rolled back, exit 1")
    assert.equal(cjson.null, app:status().lock)
    assert.same({ "2.0" }, app:serving())
  end)

  it("that dies while a process ends starts that one again when it is aborted, and does not take it for alive", function()
    local lingering = fixture.app { instances = 1, slots = 1, balancer = false, yaml = "strategy: {settle: 0, allow_gap: true}",
      health = "{http: /healthz, interval: 20ms, deadline: 4s, successes: 1}", process = "  stop: {timeout: 9s}" }
    lingering.opts.command = [[  command: [/bin/sh, -c, 'trap "sleep 2; exit" TERM; ./server --port "$0" & wait', '${port}'] ]]
    assert.equal(0, lingering:deploy("in_place", "1.0").exit)
    lingering:write(fixture.release("2.0"), "2.0")
    local pid = lingering:command({ "in_place", "app.yml" }, { background = true })
    local told = ("%s/home/.deployrt/shop/instances/%d.told"):format(lingering.dir, lingering.ports[1])
    fixture.eventually(function() return fixture.read(told) end, 20, "the signal")
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    local run = lingering:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, lingering:serving())
    lingering:stop()
  end)

  it("that starts at the same instant as others goes on alone; they say whose run it is", function()
    local logs, pids = {}, {}
    for i = 1, 4 do
      logs[i] = app.dir .. "/log" .. i
      pids[i] = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
        "--state", app.dir .. "/state", "rolling", "app.yml" }, { log = logs[i] })
    end
    for _, pid in ipairs(pids) do app:await_end(pid) end
    local exits = {}
    for _, log in ipairs(logs) do
      local text = fixture.read(log)
      local exit = text:match("exit (%d+)")
      exits[exit] = (exits[exit] or 0) + 1
      if exit == "4" then contains(text, "is under way", "begun 2", "it holds the lock on local") end
    end
    assert.equal(1, (exits["0"] or 0) - (exits["0"] and exits["0"] - 1 or 0))
    assert.equal(4, (exits["0"] or 0) + (exits["4"] or 0))
    assert.is_true((exits["4"] or 0) >= 1)
    assert.same({ "2.0" }, app:serving())
  end)

  it("that has taken the last free slot is what another one hears of, and not that there is none", function()
    app:extend_rolling "self:sleep(0.1) local new = self:successor(self.fleet:old()[1]) new:start() new:await_healthy() self.balancer:attach(new) self:approve('go on?') self:fail('no')"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return fixture.read(log):find("go on?", 1, true) end, 15, "the gate")
    local run = app:command { "canary", "app.yml", "--set", "strategy={hold: 100ms}" }
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "is under way")
    assert.equal(0, app:command({ "abort", "app.yml" }).exit)
    app:await_end(pid)
  end)

  it("that lives keeps its lock against unlock; --force takes it away, and the run does no more harm", function()
    app:extend_rolling "self:sleep(1.5) self.super.deploy(self)"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    local run = app:command { "unlock", "app.yml" }
    assert.equal(4, run.exit)
    contains(run.stderr, "is under way")
    fixture.signal(pid, "STOP")
    assert.equal(0, app:command({ "unlock", "app.yml", "--force" }).exit)
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    assert.same({ "2.0" }, app:serving())
    fixture.signal(pid, "CONT")
    app:await_end(pid)
    contains(fixture.read(log), "does not hold the lock")
    assert.same({ "2.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  it("that slept while its lock was taken away does no harm when it wakes, also not to the balancer", function()
    app:extend_rolling "self.super.deploy(self) self:log('asleep') self:sleep(60)"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return fixture.read(log):find("asleep", 1, true) end, 8, "the sleep")
    fixture.signal(pid, "STOP")
    assert.equal(0, app:command({ "unlock", "app.yml", "--force" }).exit)
    assert.equal(0, app:deploy("rolling", "3.0", nil, { "--force" }).exit)
    local load = app:load { rate = 200 }
    fixture.eventually(function() return load:numbers().requests > 20 end)
    fixture.signal(pid, "CONT")
    app:await_end(pid)
    contains(fixture.read(log), "does not hold the lock")
    assert.same({ "3.0" }, app:serving())
    assert.same({}, load:stop().errors)
  end)

  it("that was killed blocks others, is shown by status, and can be resumed where its journal never was", function()
    local killed = app:mortal("after", 12, { "rolling", "app.yml" })
    assert.equal(137, killed.exit)
    local run = app:command { "rolling", "app.yml" }
    assert.equal(4, run.exit)
    contains(run.stderr, "was interrupted", "deployrt resume app.yml", "deployrt abort app.yml")
    contains(app:command({ "status", "app.yml" }).stdout, "was interrupted", "at 'batch 1 of 1'", "UNFINISHED")
    assert.equal("unfinished", app:status().run.outcome)
    contains(app:command({ "history", "app.yml" }).stdout, "unfinished")
    os.rename(app.dir .. "/state", app.dir .. "/other")
    contains(app:command({ "status", "app.yml" }).stdout, "was interrupted")
    run = app:command { "resume", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
    os.execute("rm -r " .. app.dir .. "/other")
    run = app:command { "resume", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "nothing to resume or abort")
  end)

  it("that another machine ended, or began, is what rollback and status here go by", function()
    local function there(...)
      return fixture.run({ fixture.deployrt(), ..., "app.yml", "--state", app.dir .. "/other" },
        { cwd = app.dir, env = { HOME = app.dir .. "/home", TERM = "dumb" }, timeout = 60 })
    end
    local function rolls_back_to(version)
      local run = app:command { "rollback", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.truthy((run.stdout .. run.stderr):find("rolled back: " .. version .. " serves again", 1, true), run.stdout)
      assert.same({ version }, app:serving())
    end
    assert.equal(0, app:deploy("rolling", "80").exit)
    assert.equal(0, app:deploy("rolling", "81").exit)
    app:write(fixture.release("82"), "82")
    assert.equal(137, app:mortal("after", 12, { "rolling", "app.yml" }).exit)
    local run = there "resume"
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "82" }, app:serving())
    assert.equal("succeeded", app:status().run.outcome)
    rolls_back_to "81"
    for _, version in ipairs { "83", "84" } do
      app:write(fixture.release(version), version)
      run = there "rolling"
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end
    rolls_back_to "83"
    local known = app:command({ "history", "app.yml" }).stdout
    assert.truthy(known:find("83 -> 84", 1, true) and not known:find("running", 1, true), known)
  end)

  it("is aborted from another machine in the same way", function()
    assert.equal(137, app:mortal("before", 14, { "rolling", "app.yml" }).exit)
    os.rename(app.dir .. "/state", app.dir .. "/other")
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(1, #app:status().instances)
  end)

  it("whose rollback is killed rolls back to the end when it is resumed", function()
    app:write(fixture.release("2.0", { fault = "dies" }), "2.0")
    local _, count = app:mortal("count", nil, { "rolling", "app.yml" })
    for n = count - 3, count do
      local killed = app:mortal("after", n, { "rolling", "app.yml" })
      assert.equal(137, killed.exit)
      local run = app:command { "resume", "app.yml" }
      assert.is_true(run.exit == 1 or run.exit == 2, run.stdout .. run.stderr)
      assert.same({ "1.0" }, app:serving())
      assert.equal("1.0\n", fixture.sh(("ls %s/home/.deployrt/shop/releases"):format(app.dir)))
    end
  end)

  it("whose resume or abort is killed as well is finished by the next one", function()
    local _, count = app:mortal("count", nil, { "rolling", "app.yml" })
    local serving, version = "2.0", 2
    for _, first in ipairs { "resume", "abort" } do
      for _, last in ipairs { "resume", "abort" } do
        for n = 1, 5, 4 do
          version = version + 1
          local new, where = version .. ".0", ("%s killed at %d, then %s"):format(first, n, last)
          app:write(fixture.release(new), new)
          assert.equal(137, app:mortal("after", count // 2, { "rolling", "app.yml" }).exit)
          local killed = app:mortal(n % 8 == 1 and "before" or "after", n, { first, "app.yml" })
          local over = killed.exit == 0 -- it had less to do
          if not over then
            assert.equal(137, killed.exit, where .. killed.stdout .. killed.stderr)
            local run = app:command { last, "app.yml" }
            -- A rollback that was begun is finished by `resume` as well; one that was not, is not.
            assert.is_true(run.exit == 0 or first == "abort" and last == "resume" and run.exit == 1, where .. run.stdout .. run.stderr)
            if last == "resume" and run.exit == 0 then serving = new end
          elseif first == "resume" then
            serving = new
          end
          assert.same({ serving }, app:serving(), where)
          assert.equal(cjson.null, app:status().lock, where)
        end
      end
    end
  end)

  it("is rolled back at its timeout, which counts over all its lives", function()
    app.opts.yaml = "strategy: {settle: 0, timeout: 5s}"
    app:write(fixture.release("2.0"), "2.0")
    app:extend_rolling "self:log('asleep') for _ = 1, 6000 do self:sleep(0.1) end"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return fixture.read(log):find("asleep", 1, true) end, 5, "the sleep")
    core.run(function() core.sleep(3) end)
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    local run = app:command { "resume", "app.yml", "--json" }
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "took longer than its timeout of 5s")
    local last = cjson.decode(run.stdout:match("([^\n]+)\n$"))
    assert.is_true(last.seconds < 4, "it had 5 s anew: " .. last.seconds)
    assert.same({ "1.0" }, app:serving())
  end)

  it("resumes with its own copies of the strategy and of app.yml", function()
    app:extend_rolling "self.super.deploy(self)"
    assert.equal(137, app:mortal("before", 10, { "./own.lua", "app.yml", "--set", "process.env.MARK=kept" }).exit)
    app:extend_rolling "self:fail('another strategy')"
    fixture.write(app.file, (fixture.read(app.file):gsub("instances: 1", "instances: 2")))
    local run = app:command { "resume", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal(1, #app:serving())
    contains(fixture.sh(("curl -s 'http://127.0.0.1:%d/env?MARK'"):format(app.listen)), "kept")
  end)

  it("cuts a torn end of its journal", function()
    assert.equal(137, app:mortal("after", 13, { "rolling", "app.yml" }).exit)
    local path = app:journal_path()
    local text = fixture.read(path)
    fixture.write(path, text:sub(1, -40))
    os.execute("rm -f " .. app.dir .. "/home/.deployrt/shop/runs/*/journal")
    local run = app:command { "resume", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
  end)

  it("refuses a damaged record with its place, and undoes from the rest with --force", function()
    assert.equal(137, app:mortal("after", 13, { "rolling", "app.yml" }).exit)
    local path = app:journal_path()
    local lines = {}
    for line in fixture.read(path):gmatch("[^\n]*\n") do lines[#lines + 1] = line end
    local damaged = #lines - 1
    lines[damaged] = lines[damaged]:gsub('"ok"', '"oh"'):gsub('"op"', '"po"')
    fixture.write(path, table.concat(lines))
    for _, command in ipairs { "resume", "abort" } do
      local run = app:command { command, "app.yml" }
      assert.equal(2, run.exit)
      contains(run.stderr, ("journal:%d: this record is damaged"):format(damaged), "abort --force")
    end
    local run = app:command { "abort", "app.yml", "--force" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  it("stops before any effect when the journal tells of something else", function()
    assert.equal(137, app:mortal("after", 13, { "rolling", "app.yml" }).exit)
    local path = app:journal_path()
    local changed = {}
    for line in fixture.read(path):gmatch("[^\n]*\n") do
      local body = line:match("^%x+ %d+ (.*)\n$")
      body = body:gsub('("op":"instance.start")', '"op":"instance.stop"')
      changed[#changed + 1] = ("%s %d %s\n"):format(core.sha256(body):sub(1, 8), #body, body)
    end
    fixture.write(path, table.concat(changed))
    local before = app:status()
    local run = app:command { "resume", "app.yml" }
    assert.equal(2, run.exit, run.stdout)
    contains(run.stderr, "instance.stop", "instance.start", "nothing was changed", "abort --force")
    assert.same(before.instances, app:status().instances)
    run = app:command { "abort", "app.yml", "--force" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
  end)

  it("asks a person about a hook that may have been done", function()
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before: 'echo once >> hooks.log; kill -KILL $PPID'}"
    app:write(fixture.release("2.0"), "2.0")
    assert.equal(137, app:mortal("count", nil, { "rolling", "app.yml" }).exit)
    local run = app:command { "resume", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "the hook 'before' was begun", "--yes")
    run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal("once\n", fixture.read(app.dir .. "/hooks.log"))
    assert.same({ "1.0" }, app:serving())
  end)

  it("starts an old instance again that died while no controller was there", function()
    assert.equal(137, app:mortal("before", 9, { "rolling", "app.yml" }).exit)
    local pid
    for _, each in ipairs(app:status().instances) do pid = each.release == "1.0" and math.tointeger(each.pid) or pid end
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "does not run any more: it is started again")
    assert.same({ "1.0" }, app:serving())
    assert.is_true(app:status().instances[1].healthy)
  end)

  it("that was interrupted twice is aborted also when something must be mended first", function()
    app:extend_rolling "self.fleet.hosts[1]:run({ 'sleep', '60' }) self.super.deploy(self)"
    local pid = app:begin { "./own.lua", "app.yml" }
    local function await_record(text)
      fixture.eventually(function() return (fixture.read(app:journal_path()) or ""):find(text, 1, true) end, 8, text)
    end
    await_record '"op":"host.run"'
    fixture.signal(pid, "INT")
    await_record '"SIGNAL"'
    fixture.signal(pid, "INT")
    app:await_end(pid)
    fixture.signal(app:status().instances[1].pid, "KILL")
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  --- What a run of a 2.0 that takes its time to end exits with, when signals come once its log has the text.
  local function interrupted(text, signals)
    app:write(fixture.release("2.0", { fault = "stubborn" }), "2.0")
    local log = app.dir .. "/log"
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
      "--state", app.dir .. "/state", "./own.lua", "app.yml" }, { log = log })
    fixture.eventually(function() return fixture.read(log):find(text, 1, true) end, 10, text)
    local child = fixture.sh(("cat /proc/%s/task/%s/children"):format(pid, pid)):match("%d+")
    fixture.signal(child, "HUP")
    for _ = 1, signals do
      fixture.signal(child, "INT")
      os.execute("sleep 0.4")
    end
    app:await_end(pid)
    return fixture.read(log):match("exit (%d+)")
  end

  it("stops at SIGINT, rolls back, and exits 130; at a second one it leaves, and can be aborted", function()
    app:extend_rolling "self.super.deploy(self) self:log 'now' self:sleep(20)"
    assert.equal("130", interrupted("now", 1))
    assert.same({ "1.0" }, app:serving())
    assert.equal("3", interrupted("now", 2))
    assert.equal(0, app:command({ "abort", "app.yml" }).exit)
    assert.same({ "1.0" }, app:serving())
  end)

  it("goes on with the way back of what failed at SIGINT, says what a second one does, and does it then", function()
    app:extend_rolling "self.super.deploy(self) self:fail 'broken'"
    assert.equal("1", interrupted("rolling back", 1))
    assert.truthy(fixture.read(app.dir .. "/log"):find("once more leaves at once", 1, true))
    assert.same({ "1.0" }, app:serving())
    assert.equal("3", interrupted("rolling back", 2))
    assert.equal(0, app:command({ "abort", "app.yml" }).exit)
    assert.same({ "1.0" }, app:serving())
  end)

  it("may lose its terminal at any time; a signal before it has changed anything ends it with 130", function()
    for _, case in ipairs { { "INT", "130", "1.0" }, { "HUP", "0", "2.0" } } do
      local log = app.dir .. "/log"
      os.execute("rm -rf " .. app.dir .. "/state") -- its directory shows that the run begins
      local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
        "--state", app.dir .. "/state", "rolling", "app.yml" }, { log = log })
      fixture.eventually(function() return app:journal_path() ~= "" end, 20, "the beginning")
      local child = fixture.sh(("cat /proc/%s/task/%s/children"):format(pid, pid)):match("%d+")
      fixture.signal(child, case[1])
      app:await_end(pid)
      assert.equal(case[2], fixture.read(log):match("exit (%d+)%s*$"), fixture.read(log))
      assert.same({ case[3] }, app:serving())
      assert.equal(cjson.null, app:status().lock)
    end
  end)

  local function kept()
    return fixture.sh(("grep -rlE 'hunter2|x65r2' %s/home %s/state || true"):format(app.dir, app.dir))
  end

  local function variable(name)
    return fixture.sh(("curl -s 'http://127.0.0.1:%d/env?%s'"):format(app.listen, name))
  end

  it("never keeps a secret that stands in app.yml itself, however it is written, and resumes and aborts with it", function()
    app.opts.process = ([[
  secrets:
    NAME: shop
    PIN: "%s"
    BLOCK: |
      hunter2 block
      hunter2 lines
    FOLDED: &folded >-
      hunter2
      folded
    PLAIN: hunter2
      plain
    QUOTED: 'hunter2''quoted'
    ESCAPED: "hunt\x65r2escaped"
    ALIAS: *folded
    MIXED: hunter2-${env:HOME}
  stop: {timeout: 3s}]]):format(tostring(app.ports[1]):sub(1, 3))
    app:write(fixture.release("2.0"), "2.0")
    for _, verb in ipairs { "abort", "resume" } do
      assert.equal(137, app:mortal("before", 10, { "rolling", "app.yml" }).exit)
      assert.equal("", kept())
      local run = app:command { verb, "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end
    for name, value in pairs { NAME = "shop", FOLDED = "hunter2 folded", PLAIN = "hunter2 plain", QUOTED = "hunter2'quoted", ESCAPED = "hunter2escaped",
      ALIAS = "hunter2 folded", BLOCK = "hunter2 block\nhunter2 lines\n", MIXED = ("hunter2-%s/home"):format(app.dir) } do
      assert.equal(value .. "\n", variable(name))
    end
    assert.equal(0, app:command({ "stop", "app.yml" }).exit) -- it reads no secret
    assert.equal("", kept())
  end)

  it("never keeps a secret that is given by --set, says so, and takes it again from there", function()
    app:write(fixture.release("2.0"), "2.0")
    local given = { "rolling", "app.yml", "--set", "process.secrets.TOKEN=hunter2set", "--set", "process.secrets={A: 'hunter2''a', TOKEN: hunter2set}" }
    assert.equal(137, app:mortal("before", 10, given).exit)
    assert.equal("", kept())
    for _, verb in ipairs { "resume", "abort" } do
      local run = app:command { verb, "app.yml", "--set", "process.secrets.TOKEN=hunter2set" }
      assert.equal(2, run.exit)
      contains(run.stderr, "process.secrets.A was given by --set: give it again, by `--set process.secrets.A=...`")
    end
    local run = app:command { "resume", "app.yml", "--set", "process.secrets={A: hunter2a, TOKEN: hunter2set}" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("hunter2", 1, true), run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("changes nothing", 1, true), run.stdout .. run.stderr)
    assert.equal("hunter2set\n", variable "TOKEN")
    assert.equal("", kept())
  end)
end)

describe("the history", function()
  after_each(function() fixture.cleanup() end)

  it("has the newest run last, also after the clock was set back", function()
    local directory = fixture.dir()
    for _, last in ipairs { "20991231T235959.999-abcdef", "20000101T000000.000-abcdef" } do
      local runs = history.open("shop", directory)
      runs:directory(last)
      local first = runs:create()
      local second = runs:create()
      assert.is_true(last < first and first < second, ("%s %s %s"):format(last, first, second))
      os.execute("rm -rf " .. directory .. "/shop")
    end
  end)
end)

describe("a journal", function()
  after_each(function() fixture.cleanup() end)

  it("is restored from a copy that has records twice, out of order, or lacks some", function()
    local path = fixture.dir() .. "/journal"
    local log = journal.open(path)
    for i = 1, 6 do log:write { type = "X", value = i } end
    log:close()
    local lines = {}
    for line in fixture.read(path):gmatch("[^\n]*\n") do lines[#lines + 1] = line end
    local text, count = journal.restore(lines[1] .. lines[3] .. lines[2] .. lines[2] .. "rubbish\n" .. lines[4] .. lines[6])
    assert.equal(4, count)
    assert.equal(table.concat(lines, "", 1, 4), text)
    assert.equal(4, #journal.parse(text, "copy"))
  end)
end)
