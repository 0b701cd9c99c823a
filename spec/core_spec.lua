-- core_spec.lua -- What the C core promises to Lua: tasks, and a host reached by a local shell.
local core = require "deployrt.core"
local machine = require "spec.support.machine"

local directory, link

--- Runs `body` as a task; what it raises fails the spec.
local function run(body)
  return function()
    local ok, err = core.run(body)
    if not ok then error(err, 0) end
    assert.equal(0, core.live_tasks())
  end
end

--- The same with a link to this machine.
local function with_link(body)
  return run(function()
    local opened <close> = assert(core.connect { root = directory .. "/root" })
    link = opened
    body()
  end)
end

local function sh(script, options)
  return assert(link:exec({ "/bin/sh", "-c", script }, options))
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local function write(path, text)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(text))
end

--- Waits until `condition()` holds.
local function eventually(condition, what)
  local deadline = core.now() + 5
  while not condition() do
    assert(core.now() < deadline, "never: " .. (what or "the condition"))
    core.sleep(0.01)
  end
end

local function is_dead(pid)
  local file = io.open("/proc/" .. pid .. "/stat")
  if not file then return true end
  local state = (file:read("a") or ""):match("%) (%u)")
  file:close()
  return state == nil or state == "Z" or state == "X"
end

setup(function()
  local pipe <close> = io.popen("mktemp -d")
  directory = pipe:read("l")
end)

teardown(function() os.execute("rm -rf '" .. directory .. "'") end)

describe("core.run", function()
  it("returns what the body returns, nils included", function()
    local results = table.pack(core.run(function(...) return select("#", ...), nil, "x", nil end, 1, nil))
    assert.same({ true, 2, nil, "x", nil, n = 5 }, results)
  end)

  it("returns what the body raises, tables as they are", function()
    local ok, err = core.run(function() error { code = "mine" } end)
    assert.is_false(ok)
    assert.same({ code = "mine" }, err)
  end)

  it("refuses to nest", run(function()
    assert.has_error(function() core.run(function() end) end, "core.run is for the outermost call; use core.spawn inside a task")
  end))

  it("refuses to wait outside a task", function()
    assert.error_matches(function() core.sleep(0) end, "make it inside core.run")
  end)

  it("refuses to wait in a coroutine and below table.sort, with one clear error", run(function()
    local ok, err = coroutine.resume(coroutine.create(function() core.sleep(0) end))
    assert.is_false(ok)
    assert.matches("inside a coroutine of your own", err)
    assert.error_matches(function()
      table.sort({ 1, 2 }, function() core.sleep(0) end)
    end, "callback of table.sort")
  end))

  it("goes on after an error, and can be used again", function()
    core.run(error, "once")
    assert.same({ true, 7 }, { core.run(function() return 7 end) })
  end)
end)

describe("tasks", function()
  it("run beside each other", run(function()
    local began, tasks = core.now(), {}
    for i = 1, 20 do tasks[i] = core.spawn(function() core.sleep(0.05) return i end) end
    for i = 1, 20 do assert.same({ true, i }, { tasks[i]:wait() }) end
    assert.is_true(core.now() - began < 0.5)
  end))

  it("are waited for by whoever spawned them", function()
    local done = false
    core.run(function() core.spawn(function() core.sleep(0.02) done = true end) end)
    assert.is_true(done)
  end)

  it("may be waited for by several, and after their end", run(function()
    local task = core.spawn(function() core.sleep(0.01) return "x" end)
    local other = core.spawn(function() return select(2, task:wait()) end)
    assert.same({ true, "x" }, { other:wait() })
    assert.same({ true, "x" }, { task:wait() })
    assert.equal("done", task:status())
  end))

  it("tell what they raised to whoever waits, and stop nobody else", run(function()
    local bad, good = core.spawn(error, { code = "mine" }), core.spawn(function() core.sleep(0.01) return 1 end)
    local ok, err = bad:wait()
    assert.is_false(ok)
    assert.same({ code = "mine" }, err)
    assert.equal("failed", bad:status())
    assert.same({ true, 1 }, { good:wait() })
  end))

  it("cancel their children when they raise", function()
    local outcome
    core.run(function()
      core.spawn(function() outcome = select(2, core.sleep(60)) end)
      core.sleep(0)
      error("stop")
    end)
    assert.equal("canceled", outcome.code)
  end)

  it("can be canceled at a wait, before their start and while they wait for children", run(function()
    local waiting = core.spawn(function() return select(2, core.sleep(60)) end)
    core.sleep(0)
    local fresh = core.spawn(function() return select(2, core.sleep(60)) end)
    local parent = core.spawn(function() core.spawn(core.sleep, 60) end)
    core.sleep(0)
    for _, task in ipairs { waiting, fresh, parent } do task:cancel() end
    assert.equal("canceled", select(2, waiting:wait()).code)
    assert.equal("canceled", select(2, fresh:wait()).code)
    assert.is_true(parent:wait())
    waiting:cancel()
  end))

  it("get a cancellation once: the next wait is a normal one", run(function()
    local task = core.spawn(function()
      local _, err = core.sleep(60)
      return err.code, core.sleep(0.001)
    end)
    core.sleep(0)
    task:cancel()
    assert.same({ true, "canceled", true }, { task:wait() })
  end))

  it("can be waited for with a deadline, and go on after it", run(function()
    local task = core.spawn(function() core.sleep(0.05) return 1 end)
    local nothing, err = task:wait(0.01)
    assert.is_nil(nothing)
    assert.equal("timeout", err.code)
    assert.same({ true, 1 }, { task:wait(5) })
  end))

  it("cannot wait for themselves", run(function()
    local task
    task = core.spawn(function() task:wait() end)
    local ok, err = task:wait()
    assert.is_false(ok)
    assert.matches("cannot wait for itself", err)
  end))

  it("close their variables while they may wait, also when they raise", function()
    local closed
    core.run(function()
      local guard <close> = setmetatable({}, { __close = function() closed = core.sleep(0.001) end })
      error("with " .. tostring(guard))
    end)
    assert.is_true(closed)
  end)

  it("read the locals of whoever spawned them, and write their own", run(function()
    core.locals().step = "a"
    core.spawn(function()
      assert(core.locals().step == "a")
      core.locals().step = "b"
    end):wait()
    assert.equal("a", core.locals().step)
  end))
end)

describe("events", function()
  it("wake all that wait, and stay set", run(function()
    local event, woken = core.event(), 0
    for _ = 1, 3 do core.spawn(function() if event:wait() then woken = woken + 1 end end) end
    core.sleep(0)
    assert.is_false(event:is_set())
    event:set()
    assert.is_true(event:wait(0))
    eventually(function() return woken == 3 end)
    event:clear()
    assert.equal("timeout", select(2, event:wait(0.01)).code)
  end))

  it("forget a waiter that was canceled", run(function()
    local event = core.event()
    local task = core.spawn(function() return select(2, event:wait()) end)
    core.sleep(0)
    task:cancel()
    assert.equal("canceled", select(2, task:wait()).code)
    event:set()
  end))
end)

describe("signals", function()
  it("arrive in order, with a deadline", with_link(function()
    local signals <close> = core.signals("WINCH", "HUP")
    assert.equal("timeout", select(2, signals:next(0.01)).code)
    sh("kill -s WINCH " .. core.whoami().pid)
    assert.equal("WINCH", signals:next(5))
    assert.has_error(function() core.signals("KILL") end)
  end))
end)

describe("link:exec", function()
  it("keeps standard output and standard error apart, any bytes", with_link(function()
    local result = sh([[printf 'a\0b\377'; printf 'e\0' >&2]])
    assert.same({ status = 0, stdout = "a\0b\255", stderr = "e\0" }, result)
  end))

  it("tells the exact exit status and the signal", with_link(function()
    for _, status in ipairs { 0, 1, 126, 127, 255 } do
      local result = sh("exit " .. status)
      assert.equal(status, result.status)
      assert.is_nil(result.signal)
    end
    for _, signal in ipairs { "TERM", "KILL", "HUP", "SEGV" } do
      assert.equal(signal, sh("ulimit -c 0; kill -s " .. signal .. " $$").signal)
    end
    assert.equal(127, assert(link:exec { "/nonexistent/command" }).status)
  end))

  it("feeds standard input, however large, and closes it", with_link(function()
    local text = ("\0\1\2\n'\""):rep(500000)
    local result = assert(link:exec({ "cat" }, { stdin = text }))
    assert.is_true(result.stdout == text)
    assert.equal("", assert(link:exec { "cat" }).stdout)
    assert.equal(0, assert(link:exec({ "true" }, { stdin = text })).status)
  end))

  it("takes each word as it is", with_link(function()
    local words = { "printf", "%s|", "", " ", "'", '"', "$HOME", "`id`", "a\nb", "\\", "*", "--", "\255" }
    assert.equal(table.concat(words, "|", 3) .. "|", assert(link:exec(words)).stdout)
    assert.error_matches(function() link:exec { "echo", "a\0b" } end, "without NUL")
    assert.error_matches(function() link:exec {} end, "empty command")
  end))

  it("sets directory and environment", with_link(function()
    local env = { A = "it's", B = "$(id)\n" }
    assert.equal("it's|$(id)\n|/", sh([[printf '%s|%s|%s' "$A" "$B" "$PWD"]], { env = env, cwd = "/" }).stdout)
    assert.equal(126, sh("true", { cwd = "/nonexistent" }).status)
    assert.error_matches(function() sh("true", { env = { ["A B"] = "x" } }) end, "not a name")
  end))

  it("hands on none of our open files", with_link(function()
    local file <close> = assert(io.open(directory .. "/held", "w"))
    assert.equal("file", io.type(file))
    assert.equal("0\n1\n2\n", sh("ls /proc/$$/fd; true").stdout)
  end))

  it("ends the whole process group at its deadline", with_link(function()
    local file = directory .. "/group"
    local result, err = link:exec({ "/bin/sh", "-c", 'sleep 600 & echo $! $$ > "$0"; wait', file }, { timeout = 0.3 })
    assert.is_nil(result)
    assert.equal("timeout", err.code)
    local child, shell = read(file):match("(%d+) (%d+)")
    eventually(function() return is_dead(child) and is_dead(shell) end, "both dead")
  end))

  it("ends the command of a task that is canceled", with_link(function()
    local file = directory .. "/canceled"
    local task = core.spawn(function()
      return select(2, link:exec { "/bin/sh", "-c", 'echo $$ > "$0.part"; mv "$0.part" "$0"; exec sleep 600', file })
    end)
    eventually(function() return core.fs.stat(file) end, "started")
    task:cancel()
    assert.equal("canceled", select(2, task:wait()).code)
    eventually(function() return is_dead(read(file):match("%d+")) end, "dead")
  end))

  it("refuses more output than allowed", with_link(function()
    local _, err = link:exec({ "/bin/sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyy; done" }, { max_output = 5000 })
    assert.equal("output", err.code)
  end))
end)

describe("link:stream", function()
  it("gives output as it comes, and the status at the end", with_link(function()
    local fifo = directory .. "/go"
    sh("mkfifo " .. fifo)
    local stream <close> = link:stream { "/bin/sh", "-c", "echo one; read x < " .. fifo .. "; echo two >&2; exit 3" }
    assert.same({ "one\n", 1 }, { stream:read(5) })
    assert.equal("timeout", select(2, link:stream({ "sleep", "60" }):read(0.01)).code)
    sh("echo > " .. fifo)
    assert.same({ "two\n", 2 }, { stream:read(5) })
    assert.same({ false, 3 }, { stream:read(5) })
    local killed <close> = link:stream { "/bin/sh", "-c", "kill -KILL $$" }
    assert.same({ false, 0, "KILL", 9 }, { killed:read(5) })
  end))
end)

describe("a command that has ended", function()
  it("is not waited for because others hold its output open, and all that it wrote is there", with_link(function()
    local script = "exec sleep 1003 & echo $!; head -c 100000 /dev/zero >&2"
    local result = assert(link:exec({ "/bin/sh", "-c", script }, { timeout = 5 }))
    sh("kill " .. result.stdout)
    assert.same({ 0, 100000 }, { result.status, #result.stderr })
  end))
end)

describe("link:call", function()
  it("answers output and status of a function, through one shell that stays open", with_link(function()
    local first, status = assert(link:call("eval", { "echo $$; exit_status() { return $1; }" }))
    assert.equal(0, status)
    assert.same({ first, 0 }, { link:call("eval", { "echo $$" }) })
    assert.same({ "", 7 }, { link:call("exit_status", { "7" }) })
  end))

  it("carries large and binary output, and words of any bytes", with_link(function()
    local output = assert(link:call("eval", { "head -c 3000000 /dev/zero" }))
    assert.is_true(output == ("\0"):rep(3000000))
    local word = "\1\255'\n@0 \r\n" .. ("x"):rep(200000)
    assert.is_true(assert(link:call("printf", { "%s", word })) == word)
    assert.error_matches(function() link:call("echo", { "\0" }) end, "without NUL")
  end))

  it("is not fooled by output that looks like the end of an answer", with_link(function()
    assert.equal("\n@0123456789abcdef01234567 0\n", (link:call("printf", { "\\n@0123456789abcdef01234567 0\\n" })))
  end))

  it("tells that its shell died, and goes on in another one", with_link(function()
    local output, err = link:call("eval", { "echo last words; kill -s KILL $$" })
    assert.is_nil(output)
    assert.equal("lost", err.code)
    assert.matches("last words", err.message)
    local _, exited = link:call("exit", { "4" })
    assert.matches("ended with status 4", exited.message)
    assert.same({ "on\n", 0 }, { link:call("echo", { "on" }) })
  end))

  it("runs several at once, more than there are shells", with_link(function()
    local tasks = {}
    for i = 1, 30 do tasks[i] = core.spawn(function() return link:call("echo", { tostring(i) }) end) end
    for i = 1, 30 do assert.same({ true, i .. "\n", 0 }, { tasks[i]:wait() }) end
  end))

  it("leaves at its deadline, and the next call is not confused", with_link(function()
    local _, err = link:call("eval", { "sleep 30; echo late" }, 0.05)
    assert.equal("timeout", err.code)
    assert.same({ "early\n", 0 }, { link:call("echo", { "early" }) })
  end))

  it("fails with \"closed\" when the link is closed under it", with_link(function()
    local other = assert(core.connect {})
    local task = core.spawn(function() return select(2, other:call("sleep", { "30" })) end)
    core.sleep(0)
    other:close()
    other:close()
    assert.equal("closed", select(2, task:wait()).code)
    assert.equal("closed", other:state())
    assert.error_matches(function() other:exec { "true" } end, "closed")
  end))
end)

describe("core.pipe", function()
  it("moves files and commands' output either way, with the SHA-256 of what went by", with_link(function()
    local data = ("\0binary\255\n"):rep(400000)
    local from, to = directory .. "/from", directory .. "/to"
    write(from, data)
    local put = assert(core.pipe { from = { file = from }, to = { link = link, command = { "tee", to } }, timeout = 30 })
    assert.equal(core.sha256(data), put.sha256)
    assert.equal(#data, put.bytes)
    assert.is_true(read(to) == data)
    local get = assert(core.pipe { from = { link = link, command = { "cat", from } }, to = { file = to .. "2" } })
    assert.equal(put.sha256, get.sha256)
    assert.is_true(read(to .. "2") == data)
    local through = { link = link, command = { "cat" } }
    local both = assert(core.pipe { from = { link = link, command = { "cat", from } }, to = through, hash = false })
    assert.is_nil(both.sha256)
    assert.equal(#data, both.bytes)
  end))

  it("tells which side failed, and how", with_link(function()
    local sink = { link = link, command = { "cat" } }
    local _, missing = core.pipe { from = { file = directory .. "/none" }, to = sink }
    assert.equal("missing", missing.code)
    local failed = { link = link, command = { "/bin/sh", "-c", "echo no >&2; exit 3" } }
    local result = assert(core.pipe { from = failed, to = sink })
    assert.same({ status = 3, output = "no\n" }, result.from)
    result = assert(core.pipe { from = { file = "/dev/zero" }, to = failed, timeout = 10 })
    assert.same({ status = 3, output = "no\n" }, result.to)
    local _, late = core.pipe { from = { link = link, command = { "sleep", "60" } }, to = sink, timeout = 0.05 }
    assert.equal("timeout", late.code)
  end))
end)

describe("link:dial, talk and forward", function()
  local server, port

  local function listen()
    port = machine.free_port()
    server = link:stream({ "socat", "TCP-LISTEN:" .. port .. ",bind=127.0.0.1,reuseaddr,fork", "EXEC:cat" }, {})
    eventually(function() return link:dial("127.0.0.1", port, 1) end, "listening")
  end

  it("tells whether somebody listens", with_link(function()
    listen()
    local stream <close> = server
    assert.is_true(link:dial("127.0.0.1", port))
    stream:close()
    eventually(function() return not link:dial("127.0.0.1", port) end, "closed")
    assert.equal("refused", select(2, link:dial("127.0.0.1", port)).code)
    assert.equal("missing", select(2, link:dial(directory .. "/no.sock")).code)
    assert.error_matches(function() link:dial("127.0.0.1", 0) end, "a port from 1 to 65535")
  end))

  it("find the addresses of a name, of which some may have no listener", with_link(function()
    listen() -- at 127.0.0.1, and localhost may be ::1 first
    local stream <close> = server
    assert.is_true(link:dial("localhost", port))
    assert.equal("refused", select(2, link:dial("localhost", machine.free_port())).code)
    local _, unknown = link:dial("no-such-host.invalid", port)
    assert.equal("unresolved", unknown.code)
    assert.is_nil(link:dial("localhost", port, 0), "given up while the name is looked up")
    stream:close()
  end))

  it("sends a request and returns the whole answer", with_link(function()
    local socket = directory .. "/talk.sock"
    local stream <close> = link:stream { "socat", "UNIX-LISTEN:" .. socket .. ",fork", "SYSTEM:head -n1; printf end" }
    eventually(function() return link:dial(socket) end, "listening")
    assert.equal("hello\nend", link:talk(socket, nil, "hello\n", { timeout = 5 }))
    stream:close()
    local port_of_it = machine.free_port()
    local other <close> = link:stream { "socat", "TCP-LISTEN:" .. port_of_it .. ",bind=127.0.0.1,reuseaddr,fork", "SYSTEM:head -n1; printf end" }
    eventually(function() return link:dial("127.0.0.1", port_of_it) end, "listening")
    assert.equal("hello\nend", link:talk("localhost", port_of_it, "hello\n", { timeout = 5 }))
    other:close()
  end))

  it("gives a descriptor that other operations take over", with_link(function()
    local socket, answer = directory .. "/http.sock", directory .. "/answer"
    write(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    local command = "SYSTEM:sed /^.$/q >&2; cat " .. answer
    local stream <close> = link:stream { "socat", "UNIX-LISTEN:" .. socket .. ",fork", command }
    eventually(function() return link:dial(socket) end, "listening")
    local fd = assert(link:forward(socket, 0))
    local response = assert(core.http.request { url = "http://service/", fd = fd, timeout = 5 })
    assert.equal("hi", response.body)
    stream:close()
  end))
end)
