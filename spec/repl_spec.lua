-- repl_spec.lua -- deployrt repl: verbs by hand, as one run that is kept or taken back.
-- weight: 10
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local screen = require "spec.support.screen"
local contains = fixture.contains

local swap = [[
old = fleet:old()[1]
new = self:successor(old)
new:start(); new:await_healthy()
balancer:swap(old, new)
old:stop()
]]

describe("deployrt repl", function()
  local app, before

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, deadline: 4s}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.yaml = "hooks: {failed: touch paged, after: touch announced}"
    app:write(fixture.release("2.0"), "2.0")
    before = app:status().instances
  end)
  after_each(function()
    for _, file in ipairs { "paged", "announced" } do assert.is_nil(fixture.read(app.dir .. "/" .. file), "hooks are for deployments") end
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  --- Types these lines into a pipe.
  local function typed(text)
    local env = { HOME = app.dir .. "/home", TERM = "dumb" }
    return fixture.run({ fixture.deployrt(), "--state", app.dir .. "/state", "repl", "app.yml" }, { stdin = text, cwd = app.dir, env = env })
  end

  local function assert_as_before()
    local status = app:status()
    assert.same(cjson.null, status.lock)
    assert.same(before, status.instances)
  end

  it("does what is typed, and keeps it at :commit", function()
    local run = typed(swap .. ":commit\n")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
    contains(app:command({ "history", "app.yml" }).stdout, "repl       succeeded")
    assert.equal(2, app:command({ "abort", "app.yml" }).exit)
  end)

  it("prints what an expression gives: instances by label and state, tables in order", function()
    local run = typed 'fleet\nself.release.version\n{b = 2, a = "x", c = {1}, [1] = fleet:old()[1]}\nhosts[1]\nnil\n1, "two"\nx = 1\nx\nlocal y = 2\ny\n'
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local label = ("local:%d  1.0  serving  pid %d"):format(before[1].port, before[1].pid)
    contains(run.stdout, label .. "\n\"2.0\"\n[1] = " .. label .. "\na = \"x\"\nb = 2\nc = {...}\nlocal  current 1.0\nnil\n1\n\"two\"\n1\nnil\n")
    contains(run.stderr, "nothing was changed")
    assert_as_before()
  end)

  it("takes everything back at :undo, and says with exit 1 that the input ended before anything was decided", function()
    local run = typed(swap .. ":undo\nnot read any more\n")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal("1.0", app:serving()[1])
    run = typed(swap .. ":quit\n")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "something was changed: :commit keeps it, :undo takes it back")
    contains(run.stderr, "the input ended without :commit")
    assert.same({ "1.0" }, app:serving())
    assert.equal(0, typed(":quit\n").exit)
  end)

  it("goes on after a line that fails, and takes back what that line had done", function()
    local run = typed [[
new = self:successor(fleet:old()[1])
new:start(); nothing.at_all()
#fleet:instances()
new:start(); error("again")
new.state
new == self:successor(fleet:old()[1])
hosts[1]:run { "false" }
1 +
+
for i = 1, 2 do
  print("round", i)
end
os.exit(0)
require "acme"
:nonsense
"still here"
]]
    contains(run.stdout, "line 2:1: attempt to index a nil value (global 'nothing')", "what the line had done was taken back\n1\n", "error: line 4:1: again", '"down"\nfalse\n',
      "ended with status 1", "unexpected symbol near", "round\t1\nround\t2\n", "global 'os'", "cannot require 'acme'", "there is no :nonsense", '"still here"')
    assert_as_before()
  end)

  it("that is killed is taken back by abort; resume says that it cannot go on", function()
    local fifo, log = app.dir .. "/fifo", app.dir .. "/log"
    fixture.sh("mkfifo " .. fifo)
    local argv = { "sh", "-c", 'cd "$1" && exec "$2" --state "$1/state" repl app.yml < fifo', "sh", app.dir, fixture.deployrt() }
    local pid = fixture.start(argv, { log = log, env = { HOME = app.dir .. "/home" } })
    local typing = io.open(fifo, "w")
    typing:write("new = self:successor(fleet:old()[1]); new:start(); nothing.at_all()\n", swap, "'done'\n")
    typing:flush()
    fixture.eventually(function() return (fixture.read(log) or ""):find('"done"', 1, true) end, 20, "the last line")
    assert.same({ "2.0" }, app:serving())
    contains(app:command({ "rolling", "app.yml" }).stderr, "holds the lock")
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    typing:close()
    local run = app:command { "resume", "app.yml" }
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "was typed by hand", "nothing was changed now", "`deployrt abort app.yml --run ")
    run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.same(cjson.null, app:status().lock)
  end)

  --- A conversation on a terminal.
  local function converse()
    local fifo, log = app.dir .. "/fifo", app.dir .. "/log"
    fixture.sh("mkfifo " .. fifo)
    local line = ("%s --state %s/state repl app.yml; echo exit $?"):format(fixture.deployrt(), app.dir)
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && exec script -qefc "$2" log < fifo', "sh", app.dir, line }, { env = { HOME = app.dir .. "/home",
      TERM = "xterm", SHELL = "/bin/sh" } })
    local typing = io.open(fifo, "w")
    typing:setvbuf("no")
    local function shown()
      local view = screen.new(120, 200)
      view:write((fixture.read(log) or ""):match("^[^\n]*\n(.*)$") or "")
      return view:text()
    end
    local function await(text)
      fixture.eventually(function() return shown():find(text, 1, true) end, 20, text .. " in:\n" .. shown())
    end
    await ":help says more.\n>"
    return typing, await, shown, function()
      typing:close()
      fixture.eventually(function() return not fixture.alive(pid) end, 10, "the end of the terminal")
    end
  end

  it("that is killed in the middle of a line, before or after any operation, is taken back by abort", function()
    local _, operations = app:mortal("count", 0, { "repl", "app.yml" }, swap .. ":undo\n")
    assert.is_true(operations > 10, operations)
    for n = 1, operations do
      local mortal = app:mortal(n % 2 == 0 and "before" or "after", n, { "repl", "app.yml" }, swap .. ":undo\n")
      assert.equal(137, mortal.exit, mortal.stdout .. mortal.stderr)
      local run = app:command { "abort", "app.yml" }
      local nothing = run.exit == 2 and run.stderr:find("there is no", 1, true)
      assert.truthy(run.exit == 0 or nothing, ("killed at operation %d: %s%s"):format(n, run.stdout, run.stderr))
      local status = app:status()
      before[1].pid, status.instances[1].pid = nil, nil -- it may have been started again
      assert.same({ cjson.null, before }, { status.lock, status.instances }, "killed at operation " .. n)
    end
  end)

  it("on a terminal lets a line be edited, and brings former ones back", function()
    local typing, await, _, finish = converse()
    typing:write("'onf'\27[D\127e\n") -- to the left, the letter before it away, another one
    await '"one"\n>'
    typing:write("'two'\n")
    await '"two"\n>'
    typing:write("\27[A\27[A .. '!'\n")
    await '"one!"\n>'
    typing:write("\4")
    await "nothing was changed"
    finish()
    assert_as_before()
  end)

  it("on a terminal has prompts; Ctrl-C stops a line, and twice leaves", function()
    local typing, await, shown, finish = converse()
    typing:write("new = self:successor(fleet:old()[1])\nnew:start() if true then\n")
    await ">>"
    typing:write("self:sleep(600) end\n")
    fixture.eventually(function() return #fixture.sh(("pgrep -f '%s/home/[.]deployrt/shop/releases/2.0' || true"):format(app.dir)) >= 0
      and shown():find("start ", 1, true) end, 20, "the start")
    typing:write("\3")
    await "error: the line was stopped"
    await "what the line had done was taken back"
    typing:write("'again'\n")
    await '"again"'
    typing:write("\3")
    await "once more, and everything is taken back"
    typing:write("\3")
    await "exit 130"
    finish()
    assert_as_before()
  end)
end)
