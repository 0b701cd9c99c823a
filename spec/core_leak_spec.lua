-- core_leak_spec.lua -- Nothing is left over: descriptors, children, tasks and memory stay flat over many cycles.
-- weight: 4
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"

local directory

local function count_descriptors()
  return #assert(core.fs.list("/proc/self/fd"))
end

--- Children of this process, dead ones that nobody has waited for included.
local function count_children()
  local pid, count = tostring(core.whoami().pid), 0
  for _, name in ipairs(assert(core.fs.list("/proc"))) do
    local file = name:match("^%d+$") and io.open("/proc/" .. name .. "/stat")
    if file then
      local parent = (file:read("a") or ""):match("%) %u (%d+)")
      file:close()
      if parent == pid then count = count + 1 end
    end
  end
  return count
end

local sanitized -- a sanitizer keeps what was freed

local function resident_kilobytes()
  if sanitized then return 0 end
  local file <close> = assert(io.open("/proc/self/status"))
  return tonumber(file:read("a"):match("VmRSS:%s*(%d+)"))
end

local function measure()
  collectgarbage()
  collectgarbage()
  return { descriptors = count_descriptors(), children = count_children(), tasks = core.live_tasks(),
    lua = collectgarbage("count"), resident = resident_kilobytes() }
end

--- Lets canceled children die and handles close: until there are as few as before, or a while has passed.
local function settled(before, patience)
  local deadline, now = core.now() + patience, measure()
  while (now.descriptors > before.descriptors or now.children > before.children) and core.now() < deadline do
    core.run(function() core.sleep(0.01) end)
    now = measure()
  end
  return now
end

--- Repeats the cycle, each in a core.run of its own, and holds what is left to what was there after the first ones.
local function flat(times, cycle)
  local first = measure()
  local function once()
    local ok, err = core.run(cycle)
    if not ok then error(err, 0) end
  end
  for _ = 1, 5 do once() end
  local before = settled(first, 0.3)
  for _ = 1, times do once() end
  local after = settled(before, 5)
  assert.equal(before.tasks, after.tasks)
  assert.is_true(after.descriptors <= before.descriptors, ("descriptors: %d, then %d"):format(before.descriptors, after.descriptors))
  assert.is_true(after.children <= before.children, ("children: %d, then %d"):format(before.children, after.children))
  assert.is_true(after.lua - before.lua < 64, ("Lua memory: %.0f KiB, then %.0f"):format(before.lua, after.lua))
  assert.is_true(after.resident - before.resident < 8192, ("memory: %.0f KiB, then %.0f"):format(before.resident, after.resident))
end

local function with_link(body)
  return function()
    local link <close> = assert(core.connect { root = directory })
    body(link)
  end
end

setup(function()
  local maps <close> = assert(io.open("/proc/self/maps"))
  sanitized = maps:read("a"):find("asan", 1, true) ~= nil
  local pipe <close> = io.popen("mktemp -d")
  directory = pipe:read("l")
end)

teardown(function() os.execute("rm -rf '" .. directory .. "'") end)

describe("nothing leaks from", function()
  it("tasks, events, signals and deadlines", function()
    flat(300, function()
      local event = core.event()
      local signals <close> = core.signals("WINCH", "HUP")
      for _ = 1, 5 do
        core.spawn(function() event:wait(5) end)
        core.spawn(core.sleep, 60):cancel()
        core.spawn(function() error("x") end)
        core.spawn(error, { code = "x" })
      end
      signals:next(0)
      event:wait(0)
      event:set()
    end)
  end)

  it("links that are opened and closed, by hand or by the collector", function()
    flat(100, function()
      core.connect {}:close()
      core.connect {}
      local link <close> = assert(core.connect {})
      assert(link:call("echo", {}))
    end)
  end)

  it("commands that end, fail, are killed, time out, are canceled or do not exist", function()
    flat(25, with_link(function(link)
      assert(link:exec({ "cat" }, { stdin = ("x"):rep(100000) }))
      assert(link:exec { "false" })
      assert(link:exec { "/nonexistent" })
      assert(link:exec { "sh", "-c", "kill -s KILL $$" })
      assert.is_nil((link:exec({ "sleep", "60" }, { timeout = 0 })))
      assert.is_nil((link:exec({ "yes" }, { max_output = 1000 })))
      local task = core.spawn(link.exec, link, { "sleep", "60" })
      core.sleep(0)
      task:cancel()
      task:wait()
      pcall(link.exec, link, { "a\0b" })
    end))
  end)

  it("streams that are read, closed early or forgotten", function()
    flat(25, with_link(function(link)
      local whole <close> = link:stream { "echo", "x" }
      while whole:read(5) do core.sleep(0) end
      link:stream({ "yes" }):close()
      link:stream { "sleep", "60" }
      collectgarbage()
    end))
  end)

  it("calls that answer, kill their shell, time out or are canceled", function()
    flat(25, with_link(function(link)
      assert(link:call("head", { "-c", "100000", "/dev/zero" }))
      assert.is_nil((link:call("eval", { "kill -s KILL $$" })))
      assert.is_nil((link:call("sleep", { "60" }, 0)))
      local tasks = {}
      for i = 1, 10 do tasks[i] = core.spawn(link.call, link, "sleep", { "60" }) end
      core.sleep(0)
      for i = 1, 10 do tasks[i]:cancel() end
    end))
  end)

  it("transfers that end, fail, time out or are canceled", function()
    local file = directory .. "/file"
    assert(core.fs.write(file, ("x"):rep(300000)))
    flat(25, with_link(function(link)
      local cat = { link = link, command = { "cat" } }
      assert(core.pipe { from = { file = file }, to = cat })
      assert(core.pipe { from = { link = link, command = { "cat", file } }, to = { file = file .. ".copy" } })
      assert(core.pipe { from = { file = file }, to = { link = link, command = { "false" } } })
      assert.is_nil((core.pipe { from = { file = file .. ".none" }, to = cat }))
      assert.is_nil((core.pipe { from = { file = "/dev/zero" }, to = cat, timeout = 0.005 }))
      local task = core.spawn(core.pipe, { from = { file = "/dev/zero" }, to = cat })
      core.sleep(0.002)
      task:cancel()
    end))
  end)

  it("requests, dials and sockets that are handed on", function()
    local socket, answer = directory .. "/http.sock", directory .. "/answer"
    assert(core.fs.write(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"))
    local command = "exec setsid socat UNIX-LISTEN:%s,fork 'SYSTEM:sed /^.$/q >&2; cat %s' > /dev/null 2>&1"
    local pipe <close> = io.popen(("{ %s; } & echo $!"):format(command:format(socket, answer)))
    local server = pipe:read("l")
    local closing <close> = setmetatable({}, { __close = function() os.execute("kill " .. server) end })
    core.run(with_link(function(link)
      local deadline = core.now() + 5
      while not link:dial(socket) and core.now() < deadline do core.sleep(0.01) end
    end))
    flat(20, with_link(function(link)
      assert(link:dial(socket))
      assert.is_nil((link:dial("127.0.0.1", 1)))
      assert.is_nil((link:dial("localhost", 1)))
      assert.is_nil((link:talk("localhost", 1, "x", { timeout = 0 })))
      assert.is_nil((link:dial(directory .. "/none")))
      assert.matches("hi$", assert(link:talk(socket, nil, "GET / HTTP/1.1\r\n\r\n", { timeout = 5 })))
      local over = { url = "http://service/", unix_socket = socket, timeout = 5 }
      assert(core.http.request(over))
      core.http.request { url = "http://service/", unix_socket = socket, timeout = 0 } -- too late, or just in time
      assert.is_nil((core.http.request { url = "http://127.0.0.1:1/" }))
      local task = core.spawn(core.http.request, over)
      core.sleep(0)
      task:cancel()
      local fd = assert(link:forward(socket, 0))
      assert(core.http.request { url = "http://service/", fd = fd, timeout = 5 })
    end))
  end)

  it("files and texts", function()
    local path = directory .. "/log"
    flat(100, function()
      local file <close> = assert(core.fs.append(path))
      assert(file:write("line\n"))
      local task = core.spawn(function() return file:sync() end)
      core.sleep(0)
      task:cancel()
      task:wait()
      core.fs.append(path)
      core.fs.list(directory)
      core.fs.write(directory .. "/none/x", "")
      core.yaml.parse("a: &x {b: [1, 2, {c: d}]}\ne: *x\n", "x")
      core.yaml.parse("a: [", "x")
    end)
  end)

  it("a program that goes on for long: its Lua takes again what it let go of", function()
    local pipe <close> = assert(io.popen(fixture.deployrt() .. [[ test canary --seeds=40 --fault=none >/dev/null & of=$!
      for i in $(seq 600); do grep VmHWM "/proc/$of/status" 2>/dev/null || break; sleep 0.05; done; wait "$of" && echo done]]))
    local text, most = pipe:read("a"), 0
    for peak in text:gmatch("VmHWM:%s*(%d+)") do most = math.max(most, tonumber(peak)) end
    assert.matches("done\n$", text)
    assert.is_true(most > 4096 and (sanitized or most < 40 * 1024), ("at most %d KiB"):format(most))
  end)
end)
