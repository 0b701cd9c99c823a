-- hook_spec.lua -- Hooks end with their run: at its timeout, when it is stopped, and when it is aborted after its controller died.
-- weight: 6
local cjson = require "cjson"
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local journal = require "deployrt.journal"
local contains = fixture.contains

describe("a hook", function()
  local app, log

  before_each(function()
    app = fixture.due()
    log = app.dir .. "/log"
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Its lines are in a file, and so is the pid that it has.
  local function hook(name, ...)
    fixture.write(app.dir .. "/hook.sh", table.concat({ "echo $$ > hook.pid", ... }, "\n") .. "\n")
    app.opts.yaml = ("strategy: {settle: 0}\nhooks: {%s: 'exec sh hook.sh'}"):format(name)
    app:write(fixture.release("2.0"), "2.0")
  end

  local function pid_of(file)
    local path, pid = app.dir .. "/" .. (file or "hook.pid"), nil
    fixture.eventually(function()
      pid = (fixture.read(path) or ""):match("%d+")
      return pid
    end, 10, file or "the hook")
    return pid
  end

  local function ended(pid)
    fixture.eventually(function() return not fixture.alive(pid) end, 2, "the end of the hook")
  end

  it("is told of a failure whose text no variable could hold", function()
    hook("failed", 'echo "$ERROR" >> said')
    app:extend_rolling 'error("nothing\\0 here", 0)'
    local run = app:command { "./own.lua", "app.yml" }
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(fixture.read(app.dir .. "/said"), "nothing? here")
    assert.falsy(run.stdout:find("NUL", 1, true), run.stdout)
  end)

  it("is ended by the run's timeout, with all that it started", function()
    hook("before", "timeout 1000 sleep 1000 & echo $! > child.pid", "wait", "touch effect")
    local run = app:command({ "rolling", "app.yml", "--set", "strategy.timeout=1s" }, { timeout = 20 })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "hook 'before' is ended: the run took longer than its timeout of 1s", "rolled back")
    for _, file in ipairs { "hook.pid", "child.pid" } do ended(pid_of(file)) end
    assert.is_nil(fixture.read(app.dir .. "/effect"))
    assert.same({ "1.0" }, app:serving())
  end)

  it("is over when the command is, whatever that left behind", function()
    hook("before", "sleep 1001 & echo $! > child.pid", "echo done")
    local run = app:command({ "rolling", "app.yml" }, { timeout = 20 })
    fixture.signal(pid_of "child.pid", "KILL")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
  end)

  it("is ended by a signal and by abort, also one that will not hear, and says so at once; status names it", function()
    for _, case in ipairs { { "trap '' TERM; sleep 1000; sleep 1000", "signal" }, { "sleep 1000", "abort" } } do
      hook("before", case[1])
      os.remove(app.dir .. "/hook.pid")
      local pid = app:begin({ "rolling", "app.yml" }, log)
      local own = pid_of()
      fixture.eventually(function() return app:status().lock.step == "hook before" end, 5, "its name")
      local asked
      if case[2] == "signal" then fixture.signal(pid, "TERM") else asked = app:command { "abort", "app.yml" } end
      local why = asked and "aborted by `deployrt abort`" or "interrupted by SIGTERM"
      fixture.eventually(function() return fixture.read(log):find("hook 'before' is ended: " .. why, 1, true) end, 2, "the word")
      app:await_end(pid)
      assert.is_false(fixture.alive(own))
      contains(fixture.read(log), "rolled back")
      assert.equal(asked and 0 or nil, asked and asked.exit)
      assert.equal("interrupted", app:status().run.outcome)
      assert.same({ "1.0" }, app:serving())
    end
  end)

  it("of a controller that died is ended by abort, and not called again while it runs", function()
    for _, flags in ipairs { {}, { "--force" } } do
      hook("before", "sleep 1000", "touch effect")
      os.remove(app.dir .. "/hook.pid")
      local pid = app:begin({ "rolling", "app.yml" }, log)
      local own = pid_of()
      fixture.eventually(function() return fixture.read(app:journal_path()):find('"PROCESS"', 1, true) end, 5, "its pid")
      fixture.signal(pid, "KILL")
      app:await_end(pid)
      local run = app:command { "resume", "app.yml", "--yes" }
      assert.equal(2, run.exit, run.stdout)
      contains(run.stderr, "the hook 'before' was begun, and runs still, with pid " .. own)
      run = app:command { "abort", "app.yml", table.unpack(flags) }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      contains(run.stdout .. run.stderr, ("hook 'before' ran still, with pid %s: it was ended"):format(own))
      ended(own)
      assert.is_nil(fixture.read(app.dir .. "/effect"))
      assert.same({ "1.0" }, app:serving())
    end
  end)

  it("of a controller that died on another machine is named by abort", function()
    hook("before", "exec sleep 1000")
    local pid = app:begin({ "rolling", "app.yml" }, log)
    local own = pid_of()
    fixture.eventually(function() return fixture.sh(("cat %s/home/.deployrt/shop/runs/*/journal"):format(app.dir)):find('"PROCESS"', 1, true) end, 5, "its pid")
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    os.remove(app:journal_path())
    local kept = fixture.sh(("ls %s/home/.deployrt/shop/runs/*/journal | tail -n 1"):format(app.dir)):gsub("%s+$", "")
    local lines = {}
    for i, record in ipairs((journal.read(kept))) do
      if record.type == "PROCESS" then record.process = record.process:gsub("^%S+", "elsewhere") end
      local text = cjson.encode(record)
      lines[i] = ("%s %d %s\n"):format(core.sha256(text):sub(1, 8), #text, text)
    end
    fixture.write(kept, table.concat(lines))
    local run = app:command { "abort", "app.yml" }
    fixture.signal(own, "KILL")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, ("hook 'before' may run still on elsewhere, with pid %s: look there, and end it"):format(own))
  end)

  --- A release that dies, so that `failed` is called.
  local function break_release()
    app:write(fixture.release("3.0", { fault = "dies" }), "3.0")
  end

  it("`failed` is called once in a run that left something, which abort ends all the same", function()
    hook("failed", "echo $ERROR >> said")
    fixture.write(app.dir .. "/own.lua", 'local own = require("deployrt.strategy").define { name = "own", api = 1 }\n'
      .. 'function own:deploy() self:undo(function() self:fail "stuck" end) self:fail "broken" end\nreturn own\n')
    assert.equal(3, app:command({ "./own.lua", "app.yml" }).exit)
    for _, case in ipairs { { 3 }, { 0, "--force" } } do
      local run = app:command { "abort", "app.yml", case[2] }
      assert.equal(case[1], run.exit, run.stdout .. run.stderr)
    end
    assert.equal("broken\n", fixture.read(app.dir .. "/said"))
    assert.equal(cjson.null, app:status().lock)
  end)

  it("`failed` of a controller that died is ended by abort, and called again", function()
    hook("failed", "test -e said && echo again >> said && exit", "touch said", "sleep 1000")
    break_release()
    local pid = app:begin({ "rolling", "app.yml" }, log)
    local own = pid_of()
    fixture.eventually(function() return fixture.read(app:journal_path()):find('"PROCESS"', 1, true) end, 5, "its pid")
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, ("hook 'failed' ran still, with pid %s: it was ended"):format(own))
    ended(own)
    assert.equal("again\n", fixture.read(app.dir .. "/said"))
    assert.same({ "1.0" }, app:serving())
  end)

  it("`failed` that hangs is ended by a signal and by abort, and the run ends as it failed", function()
    for _, asks in ipairs { "a signal", "abort" } do
      hook("failed", "sleep 1000")
      break_release()
      os.remove(app.dir .. "/hook.pid")
      local pid = app:begin({ "rolling", "app.yml" }, log)
      local own = pid_of()
      local asked = asks == "abort" and app:command({ "abort", "app.yml" }, { timeout = 20 })
      if not asked then fixture.signal(pid, "INT") end
      app:await_end(pid)
      ended(own)
      if asked then assert.equal(0, asked.exit, asked.stdout .. asked.stderr) end
      contains(fixture.read(log), "hook 'failed' is ended", "rolled back")
      assert.equal(cjson.null, app:status().lock)
      assert.same({ "1.0" }, app:serving())
    end
  end)
end)
