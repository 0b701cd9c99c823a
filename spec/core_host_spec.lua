-- core_host_spec.lua -- src/host.sh does the same under every POSIX shell that a host may have.
-- weight: 4
local core = require "deployrt.core"

local directory, link, shell, root
local launched = {} -- pids of what a spec started

local shells = {
  { name = "dash", sh = "dash" },
  { name = "bash", sh = "bash" },
  { name = "busybox sh", sh = "busybox" },
  { name = "busybox sh with only the tools of busybox", sh = "busybox", alone = true },
}

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

--- All variables of host.sh, and those that a shell has of its own.
local function variables()
  local names, seen = { "IFS", "CDPATH", "PS1", "OLDPWD" }, { PWD = true }
  for name in read("src/host.sh"):gmatch("%f[%w_]([%a_][%w_]*)=") do
    if not seen[name] and name ~= "IFS" and name ~= "NAME" then names[#names + 1] = name end
    seen[name] = true
  end
  return names
end

--- That each of these variables has its own name for a value, as env(1) prints it.
local function has_each(text, names)
  for _, name in ipairs(names) do
    assert.truthy(("\n" .. text):find(("\n%s=(%s)\n"):format(name, name), 1, true), name .. " in:\n" .. text)
  end
end

local function exists(path)
  return core.fs.stat(path) ~= nil
end

--- Calls a function of host.sh in a shell of its own, as a host whose /bin/sh is `shell` would.
local function call(name, ...)
  local script = read("src/host.sh") .. '\ndeployrt_root "$0"\n"$@"\n'
  local words = { "/bin/sh", "-c", 'umask 027; exec "$@"', "sh", shell.path, "-c", script, root, name, ... }
  local path = directory .. "/" .. shell.sh .. ":" .. (shell.alone and "" or os.getenv("PATH"))
  local result = assert(link:exec(words, { env = { PATH = path, HOME = directory }, timeout = 20 }))
  assert.equal("", (result.stderr:gsub("[^\n]*Terminated[^\n]*\n", "")))
  return result.stdout, result.status
end

local function eventually(condition, what)
  local deadline = core.now() + 10
  while not condition() do
    assert(core.now() < deadline, "never: " .. what)
    core.sleep(0.01)
  end
end

local function start(port, key, ...)
  local pid, status = call("process_start", port, key, directory, "the record", "", ...)
  if status == 0 then launched[#launched + 1] = pid:match("%d+") end
  return pid:gsub("\n$", ""), status
end

local function state(port)
  local _, found, pid, key, record = call("process_show", port):match("^(.-)\t(.-)\t(.-)\t(.-)\t(.-)\n")
  return found, pid, key, record, _
end

local function with_link(body)
  return function()
    local ok, err = core.run(function()
      local opened <close> = assert(core.connect {})
      link = opened
      root = directory .. "/" .. shell.name:gsub("%W", "") .. "/" .. tostring(core.now())
      assert(link:exec { "mkdir", "-p", root })
      local closing <close> = setmetatable({}, { __close = function()
        for _, pid in ipairs(launched) do
          local killed = link:exec { "sh", "-c", 'kill -9 "-$0" 2>/dev/null || ! kill -0 "-$0" 2>/dev/null', pid }
          assert(killed.status == 0, "process group " .. pid .. " can't be ended")
        end
        launched = {}
      end })
      body()
    end)
    if not ok then error(err, 0) end
  end
end

setup(function()
  local pipe = io.popen("mktemp -d")
  directory = pipe:read("l")
  pipe:close()
  for _, sh in ipairs { "dash", "bash", "busybox" } do
    os.execute(("mkdir -p '%s/%s' && ln -sf \"$(command -v %s)\" '%s/%s/sh'"):format(directory, sh, sh, directory, sh))
  end
  os.execute(("busybox --install -s '%s/busybox' 2>/dev/null"):format(directory))
end)

teardown(function() os.execute("rm -rf '" .. directory .. "'") end)

local function free_port()
  local used = call("port_list") .. "\t"
  for port = 30000 + core.whoami().pid % 2000, 32700 do
    if not used:find("\t" .. port .. "\t", 1, true) then return tostring(port) end
  end
end

for _, candidate in ipairs(shells) do
  describe("host.sh under " .. candidate.name, function()
    setup(function()
      shell = candidate
      shell.path = directory .. "/" .. shell.sh .. "/sh"
    end)

    it("starts a process in a session of its own, with its log, environment and directory", with_link(function()
      local port = free_port()
      local pid, status = start(port, "k1", "A=it's $HOME", "--", "sh", "-c", 'echo "$A|$PWD"; echo err >&2; exec sleep 600')
      assert.equal(0, status, pid)
      local session, group
      eventually(function()
        local stat = read("/proc/" .. pid .. "/stat")
        group, session = stat:match("%) %u %d+ (%d+) (%d+)")
        return read(root .. "/logs/" .. port .. ".log") == "it's $HOME|" .. directory .. "\nerr\n"
      end, "its log")
      assert.equal(pid, session)
      assert.equal(pid, group)
      assert.same({ "running", pid, "k1", "the record", port }, { state(port) })
      assert.equal("err\n", (call("process_log", port, "1")))
    end))

    it("starts what can be ended by any signal", with_link(function()
      local port = free_port()
      local pid = start(port, "k1", "--", "sleep", "600")
      eventually(function() return read("/proc/" .. pid .. "/cmdline") == "sleep\000600\0" end, "its program")
      local function ignored(status) return tonumber(status:match("SigIgn:\t(%x+)"), 16) & 0x7fffffff end
      assert.equal(0, ignored(read("/proc/" .. pid .. "/status")))
      assert.equal("sent\n", (call("process_signal", port, pid, "INT")))
      eventually(function() return state(port) == "exited" end, "exited")
      assert.equal(0, ignored(call("operation_run", "run/signals", root, "", "--", "cat", "/proc/self/status")))
    end))

    it("gives what it starts the umask of the login, and keeps its own files private", with_link(function()
      local port = free_port()
      assert.equal(0, select(2, start(port, "k1", "--", "sh", "-c", "umask; exec sleep 600")))
      local log = root .. "/logs/" .. port .. ".log"
      eventually(function() return read(log):find "\n" end, "its umask")
      assert.equal("0027\n", read(log))
      assert.equal("600\n", assert(link:exec { "stat", "-c", "%a", log }).stdout)
      assert.equal("0\t\t5\t0\n0027\n", (call("operation_run", "run/umask", root, "", "--", "sh", "-c", "umask")))
      assert.equal("600\n", assert(link:exec { "stat", "-c", "%a", root .. "/runs/run/umask/out" }).stdout)
    end))

    it("says why a log cannot be made, and starts nothing then", with_link(function()
      local port = free_port()
      local log = root .. "/logs/" .. port .. ".log"
      assert(link:exec { "mkdir", "-p", log })
      assert.same({ ("start: cannot write %s: Is a directory"):format(log), 1 }, { start(port, "k1", "--", "sleep", "600") })
      assert.equal("none", (state(port)))
      assert(link:exec { "rmdir", log })
    end))

    it("starts the same only once, and nothing over another one", with_link(function()
      local port = free_port()
      local pid = start(port, "k1", "--", "sleep", "600")
      assert.equal(pid, (start(port, "k1", "--", "sleep", "600")))
      local answer, status = start(port, "k2", "--", "sleep", "600")
      assert.equal(1, status)
      assert.matches("^busy: slot " .. port .. " runs another process", answer)
    end))

    it("signals the process group, and only the process that was meant", with_link(function()
      local port = free_port()
      local pid = start(port, "k1", "--", "sh", "-c", 'sleep 600 & echo $!; wait')
      local child
      eventually(function()
        child = read(root .. "/logs/" .. port .. ".log"):match("%d+")
        return child
      end, "a child")
      assert.equal("gone\n", (call("process_signal", port, tostring(pid + 1), "TERM")))
      assert.equal("running\n", (call("process_forget", port, pid)))
      assert.equal("sent\n", (call("process_signal", port, pid, "TERM")))
      eventually(function() return state(port) == "exited" end, "exited")
      eventually(function()
        local file = io.open("/proc/" .. child .. "/stat")
        local text = file and file:read("a")
        if file then file:close() end
        return not text or text:match("%) [ZX]")
      end, "its child ended")
      assert.equal("gone\n", (call("process_signal", port, pid, "TERM")))
      assert.same({ "", 0 }, { call("process_forget", port, pid) })
      assert.equal("none", (state(port)))
    end))

    it("tells a process that was told to end from one that goes on", with_link(function()
      local port = free_port()
      local pid = start(port, "k1", "--", "sh", "-c", "trap '' TERM; echo deaf; sleep 600")
      eventually(function() return read(root .. "/logs/" .. port .. ".log") == "deaf\n" end, "its trap")
      assert.equal("running", (state(port)))
      call("process_signal", port, pid, "TERM")
      assert.equal("ending", (state(port)))
      call("process_signal", port, pid, "KILL")
      eventually(function() return state(port) == "exited" end, "exited")
      call("process_forget", port, pid)
      start(port, "k2", "--", "sleep", "600")
      assert.equal("running", (state(port)))
    end))

    it("tells of a process that died at once, with what it said", with_link(function()
      local port = free_port()
      local pid, status = start(port, "k1", "--", "sh", "-c", "echo cannot; exit 3")
      assert.equal(0, status)
      assert.matches("^%d+$", pid)
      eventually(function() return state(port) == "exited" end, "exited")
      eventually(function() return call("process_log", port, "5") == "cannot\n" end, "its log")
      assert.equal(0, select(2, start(port, "k2", "--", "sh", "-c", "echo again; exit 3")))
      eventually(function() return call("process_log", port, "5") == "again\n" end, "the log of the second only")
    end))

    it("never mistakes a reused pid, nor one of before a reboot", with_link(function()
      local port = free_port()
      local pid = start(port, "k1", "--", "sleep", "600")
      local path = root .. "/instances/" .. port
      local record = read(path)
      local key, at, boot, rest = record:match("^(.-)\t%d+\t(%d+)\t(%S+)\t(.*)$")
      for _, forged in ipairs { { at + 1, boot }, { at, "another-boot" } } do
        core.fs.write(path, ("%s\t%s\t%d\t%s\t%s"):format(key, pid, forged[1], forged[2], rest))
        assert.equal("exited", (state(port)))
        assert.equal("gone\n", (call("process_signal", port, pid, "KILL")))
      end
      core.fs.write(path, record)
      assert.equal("running", (state(port)))
    end))

    it("hands secrets over and leaves no trace of them", with_link(function()
      local port = free_port()
      local secret = "s3cr'et"
      local pid, status = call("process_start", port, "k1", directory, "the record", "export S='s3cr'\\''et'\n", "--",
        "sh", "-c", 'echo ${#S}; exec sleep 600')
      launched[#launched + 1] = pid:match("%d+")
      assert.equal(0, status)
      eventually(function() return read(root .. "/logs/" .. port .. ".log") == #secret .. "\n" end, "the secret arrived")
      assert.is_false(exists(root .. "/instances/" .. port .. ".secrets"))
      local found = assert(link:exec { "grep", "-rlF", secret, root })
      assert.equal("", found.stdout)
      assert.is_nil(read("/proc/" .. pid:match("%d+") .. "/cmdline"):find(secret, 1, true))
    end))

    it("gives a process and a command variables of any name", with_link(function()
      local port, names, exports, words = free_port(), variables(), {}, {}
      local half = #names // 2
      for turn, first in ipairs { 1, half + 1 } do
        local last = turn == 1 and half or #names
        for i, name in ipairs(names) do
          local is_secret = i >= first and i <= last
          exports[#exports + 1] = is_secret and ("export %s='(%s)'\n"):format(name, name) or nil
          words[#words + 1] = not is_secret and ("%s=(%s)"):format(name, name) or nil
        end
        words[#words + 1], words[#words + 2] = "--", "env"
        local answer, status = call("process_start", port, "k" .. turn, directory, "the record", table.concat(exports), table.unpack(words))
        assert.same({ 0, "" }, { status, (answer:gsub("^%d+\n", "")) })
        local log = root .. "/logs/" .. port .. ".log"
        eventually(function() return exists(log) and select(2, read(log):gsub("\nroot=", "")) == turn end, "its environment")
        has_each(read(log), names)
        exports, words = {}, {}
      end
      start(port, "k3", "A=", "--", "sh", "-c", 'echo "$#:$1:$2"', "sh", "", "--")
      eventually(function() return read(root .. "/logs/" .. port .. ".log"):find("\n2::--\n", 1, true) end, "its arguments")
      for i, name in ipairs(names) do words[i] = ("%s=(%s)"):format(name, name) end
      words[#words + 1], words[#words + 2] = "--", "env"
      has_each(call("operation_run", "run/names", root, "", table.unpack(words)), names)
    end))

    it("says why nothing can be started", with_link(function()
      local port = free_port()
      local answer, status = call("process_start", port, "k1", directory .. "/none", "r", "S=1", "--", "true")
      assert.same({ "missing: " .. directory .. "/none: no such directory\n", 1 }, { answer, status })
      assert.is_false(exists(root .. "/instances/" .. port))
      assert.is_false(exists(root .. "/instances/" .. port .. ".secrets"))
    end))

    for _, where in ipairs { "TCP-LISTEN:%s,bind=127.0.0.1", "TCP6-LISTEN:%s,bind=[::1],ipv6only=1" } do
      it("tells who listens on a port, and starts nothing there: " .. where:match "^TCP6?", with_link(function()
        local port = free_port()
        assert.equal("", (call("port_owner", port)))
        local server <close> = link:stream { "socat", where:format(port) .. ",reuseaddr,fork", "EXEC:cat" }
        eventually(function() return (call("port_list") .. "\t"):find("\t" .. port .. "\t", 1, true) end, "listening")
        assert.matches("^port " .. port .. " is taken by pid %d+ %(socat", (call("port_owner", port)))
        assert.matches("^stranger: port " .. port .. " is taken by pid", (start(port, "k1", "--", "true")))
        server:close()
        eventually(function() return call("port_owner", port) == "" end, "free again")
      end))
    end

    it("runs an operation once, however often it is asked for", with_link(function()
      local words = { "run/op1", root, "input\n", "A=b", "--", "sh", "-c", 'cat; echo "$A"; echo oops >&2; echo x >> count; exit 3' }
      local answer = "3\t\t8\t5\ninput\nb\noops\n"
      assert.same({ answer, 0 }, { call("operation_run", table.unpack(words)) })
      assert.same({ answer, 0 }, { call("operation_run", table.unpack(words)) })
      assert.equal("x\n", read(root .. "/count"))
    end))

    it("runs no operation where its directory is not there", with_link(function()
      local answer, status = call("operation_run", "run/op1", root .. "/none", "", "--", "sh", "-c", "echo x > ../../../ran")
      assert.equal(0, status)
      assert.matches("^126\t\t0\t%d+\n[^\n]*" .. root:gsub("%p", "%%%0") .. "/none", answer)
      assert.is_false(exists(root .. "/ran"))
    end))

    it("lets a second asker wait for an operation that is under way", with_link(function()
      local words = { "run/op1", root, "", "--", "sh", "-c", "echo x >> count; while [ ! -e go ]; do sleep 0.02; done; echo done" }
      local tasks = {}
      for i = 1, 2 do tasks[i] = core.spawn(call, "operation_run", table.unpack(words)) end
      eventually(function() return exists(root .. "/count") end, "begun")
      core.fs.write(root .. "/go", "")
      for i = 1, 2 do assert.same({ true, "0\t\t5\t0\ndone\n", 0 }, { tasks[i]:wait() }) end
      assert.equal("x\n", read(root .. "/count"))
    end))

    it("does not give up an operation that another asker has just begun", with_link(function()
      local marker = root .. "/runs/run/op1"
      assert(link:exec { "mkdir", "-p", marker })
      local boot = read "/proc/sys/kernel/random/boot_id"
      core.fs.write(marker .. "/boot", boot)
      core.fs.write(marker .. "/pid", "") -- as if it was not there when it was read, and is when it is looked for
      local asker = core.spawn(call, "operation_run", "run/op1", root, "", "--", "false")
      assert.is_nil((asker:wait(0.5)))
      for name, text in pairs { out = "done\n", err = "" } do core.fs.write(marker .. "/" .. name, text) end
      core.fs.write(marker .. "/status", "0\t\n")
      assert.same({ true, "0\t\t5\t0\ndone\n", 0 }, { asker:wait() })
    end))

    it("tells an operation that a signal ended from one that failed, and stops one", with_link(function()
      local answer = call("operation_run", "run/killed", root, "", "--", "sh", "-c", "kill -s KILL $$")
      assert.matches("^137\t9?\t", answer) -- bash does not tell the two apart
      assert.matches("^137\t\t", (call("operation_run", "run/failed", root, "", "--", "sh", "-c", "exit 137")))
      local task = core.spawn(call, "operation_run", "run/stopped", root, "", "--", "sleep", "600")
      eventually(function() return exists(root .. "/runs/run/stopped/pid") end, "begun")
      call("operation_stop", "run/stopped")
      local _, text, status = task:wait()
      assert.equal(1, status)
      assert.matches("^lost: ", text)
    end))

    it("gives the lock to one of many, and only its owner releases it", with_link(function()
      local tasks, taken = {}, 0
      for i = 1, 6 do tasks[i] = core.spawn(call, "lock_take", "run" .. i, "1", "me", "5", "life" .. i, "") end
      local winner
      for i = 1, 6 do
        local _, text, status = tasks[i]:wait()
        if status == 0 then taken, winner = taken + 1, i
        else assert.matches("^locked: run%d\t1\tme\t5\tlife%d\t%d+\t%d+\t\n$", text) end
      end
      assert.equal(1, taken)
      winner = tostring(winner)
      assert.equal(0, select(2, call("lock_take", "run" .. winner, "1", "me", "5", "life" .. winner, "")))
      assert.equal(1, select(2, call("lock_take", "run" .. winner, "1", "me", "5", "another", "")))
      assert.matches("^superseded: ", (call("lock_beat", "other", "1", "")))
      call("lock_release", "other", "1")
      assert.equal(0, select(2, call("lock_beat", "run" .. winner, "1", "step")))
      call("lock_release", "run" .. winner, "1")
      assert.equal(1, select(2, call "lock_read"))
    end))

    it("tells who reads the lock a step as it was or as it is, and never none, while the holder tells another one", with_link(function()
      call("lock_take", "run", "1", "me", "5", "one", "")
      call("lock_beat", "run", "1", "one")
      link:exec { "ln", root .. "/runs/run/step", root .. "/held" } -- as who has it open while another is written
      call("lock_beat", "run", "1", "two")
      assert.equal("one\n", link:exec({ "cat", root .. "/held" }).stdout)
      assert.matches("\ttwo\n$", (call "lock_read"))
      local before = link:exec({ "stat", "-c", "%i", root .. "/runs/run/step" }).stdout
      call("lock_beat", "run", "1", "two")
      assert.equal(before, link:exec({ "stat", "-c", "%i", root .. "/runs/run/step" }).stdout)
      call("lock_beat", "run", "1", "")
      assert.matches("\t\n$", (call "lock_read"))
      call("lock_beat", "run", "1", "three")
      call("lock_take", "run", "2", "you", "5", "another", "")
      call("lock_beat", "run", "2")
      assert.matches("^locked: run\t2\tyou\t5\tanother\t[^\n]*\tthree\n$", (call "lock_read"))
    end))

    it("lets a later epoch of the same run take the lock over, and does not hear the earlier one any more", with_link(function()
      assert.equal(0, select(2, call("lock_take", "run", "1", "me", "5", "one", "")))
      assert.equal("done\n", (call("as", "run", "1", "first\n", "echo", "done")))
      local tasks, taken = {}, 0
      for i = 1, 4 do tasks[i] = core.spawn(call, "lock_take", "run", "2", "me", "5", "life" .. i, "") end
      for i = 1, 4 do
        local _, _, status = tasks[i]:wait()
        taken = taken + (status == 0 and 1 or 0)
      end
      assert.equal(1, taken)
      assert.matches("^superseded: ", (call("as", "run", "1", "late\n", "echo", "harm")))
      assert.equal("done\n", (call("as", "run", "2", "second\n", "echo", "done")))
      assert.equal("first\nsecond\n", (call("run_journal", "run")))
      call("lock_release", "run", "1")
      assert.equal(0, select(2, call("lock_beat", "run", "2", "")))
      call("lock_release", "run", "2")
      assert.matches("^superseded: ", (call("lock_take", "run", "1", "me", "5", "one", "")))
      assert.equal(1, select(2, call "lock_read"))
    end))

    it("does what the holder of a lock asks also where the copy of the journal cannot be written, and tells it by the status", with_link(function()
      call("lock_take", "run", "1", "me", "5", "one", "")
      for _, name in ipairs { "journal", "step.part" } do link:exec { "ln", "-sf", "/dev/full", root .. "/runs/run/" .. name } end
      assert.same({ "done\n", 64 }, { call("as", "run", "1", "first\n", "echo", "done") })
      assert.same({ "", 64 }, { call("as", "run", "1", "first\n", "lock_beat", "run", "1", "step") })
      assert.same({ "", 65 }, { call("as", "run", "1", "first\n", "test", "") })
      assert.same({ "done\n", 0 }, { call("as", "run", "1", "", "echo", "done") })
      link:exec { "rm", root .. "/runs/run/journal" }
      assert.same({ "done\n", 0 }, { call("as", "run", "1", "\nfirst\n", "echo", "done") })
      assert.equal("\nfirst\n", (call("run_journal", "run")))
    end))

    it("answers the holder of a lock with all that was asked of its run, and a later one with nothing of that", with_link(function()
      call("lock_take", "run", "1", "me", "5", "one", "")
      assert.same({ "", 0 }, { call("lock_beat", "run", "1", "") })
      for _, line in ipairs { "pause 1", "approve 2 yes" } do assert.same({ "", 0 }, { call("run_control", "run", line) }) end
      for _ = 1, 2 do assert.same({ "pause 1\napprove 2 yes\n", 0 }, { call("lock_beat", "run", "1", "") }) end
      call("lock_take", "run", "2", "me", "5", "two", "")
      assert.same({ "", 0 }, { call("lock_beat", "run", "2", "") })
    end))

    it("tells who takes the lock which run held it before", with_link(function()
      local function last() return (call "facts"):match("([^\t]*)\n$") end
      call("lock_take", "before", "3", "me", "5", "one", "")
      call("lock_release", "before", "3")
      assert.equal("before", last())
      assert.same({ "before", 0 }, { call("lock_take", "after", "1", "me", "5", "two", "") })
      assert.equal("before", last())
      call("lock_release", "after", "1")
      assert.equal("after", last())
      assert.matches("^superseded: ", (call("lock_take", "before", "2", "me", "5", "one", "")))
    end))

    it("takes a release whole or not at all, and switches to it", with_link(function()
      local archive = directory .. "/release.tar"
      assert(link:exec { "sh", "-c", 'mkdir -p "$0.d" && echo hi > "$0.d/file" && tar -cf "$0" -C "$0.d" .', archive })
      local sum = core.sha256(read(archive))
      local receive = function(expected)
        local script = ("exec < '%s'; shift; release_receive v1 %s \"\""):format(archive, expected)
        return call("eval", script)
      end
      local answer, status = receive(("0"):rep(64))
      assert.equal(1, status)
      assert.matches("^checksum: what arrived has the SHA%-256 " .. sum, answer)
      assert.equal("", (call("release_list")))
      assert.same({ "", 0 }, { receive(sum) })
      assert.matches("^v1\t" .. sum .. "\t%d+\n$", (call("release_list")))
      assert.equal("hi\n", read(root .. "/releases/v1/file"))
      assert.equal(0, select(2, call("current_set", "v1")))
      assert.equal("v1", (call("current_get")))
      local port = free_port()
      local pid = call("process_start", port, "k", directory, '{"release":"v1"}', "", "--", "sleep", "600"):match("%d+")
      assert.matches("^busy: release v1 still runs in slot " .. port .. ", pid " .. pid, (call("release_remove", "v1")))
      assert.equal("hi\n", read(root .. "/releases/v1/file"))
      call("process_signal", port, pid, "KILL")
      eventually(function() return state(port) == "exited" end, "exited")
      call("process_forget", port, pid)
      call("release_remove", "v1")
      assert.equal("", (call("release_list")))
    end))
  end)
end
