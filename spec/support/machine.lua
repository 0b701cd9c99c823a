-- machine.lua -- What specs need of the machine: files, processes, ports, the service of the examples.
local system = require "system"

local machine = {}

local made, given_ports = {}, {}
local started = {} -- pid to start time: a suite makes processes by the ten thousand, and their numbers come round again
local here = io.popen("pwd"):read("l")
machine.here = here

--- A word of POSIX shell.
function machine.quote(text)
  return "'" .. tostring(text):gsub("'", "'\\''") .. "'"
end

local function words(argv)
  local list = {}
  for i, word in ipairs(argv) do list[i] = machine.quote(word) end
  return table.concat(list, " ")
end

local function sh(text)
  local pipe = io.popen(text)
  local out = pipe:read("a")
  pipe:close()
  return out
end
machine.sh = sh

--- A new directory, gone at cleanup().
function machine.dir()
  local path = sh("mktemp -d /tmp/deployrt-spec.XXXXXX"):match("%S+")
  made[#made + 1] = path
  return path
end

function machine.write(path, text)
  local file = io.open(path, "wb")
  if not file then
    os.execute("mkdir -p " .. machine.quote(path:match("^(.*)/")))
    file = assert(io.open(path, "wb"))
  end
  file:write(text)
  file:close()
  return path
end

function machine.read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

local function environment(env)
  local list = {}
  for name, value in pairs(env or {}) do list[#list + 1] = name .. "=" .. machine.quote(value) end
  return table.concat(list, " ") .. " "
end

local lanes = {} -- the coroutines of together()

--- Lets a moment pass; other lanes go on meanwhile.
local function pause()
  local lane = coroutine.running()
  if lanes[lane] then coroutine.yield() else system.sleep(0.02) end
end

--- Runs a line of shell to its end; other lanes go on meanwhile.
---@return integer status  of the command, 128 and more for a signal
local function execute(line, base)
  if not lanes[coroutine.running()] then
    local _, how, code = os.execute(line)
    return how == "signal" and 128 + code or code
  end
  os.execute(("(%s; echo $? > %s.status) &"):format(line, base))
  local status
  repeat
    pause()
    status = (machine.read(base .. ".status") or ""):match("(%d+)\n")
  until status
  return tonumber(status)
end

--- Runs functions side by side: while one waits for a command or a condition, the others go on. Raises the first error
--- once all have ended.
---@param list fun()[]
function machine.together(list)
  local waiting, failure = {}, nil
  for i, fn in ipairs(list) do
    waiting[i] = coroutine.create(fn)
    lanes[waiting[i]] = true
  end
  while #waiting > 0 do
    for i = #waiting, 1, -1 do
      local ok, err = coroutine.resume(waiting[i])
      if not ok then failure = failure or { err } end
      if coroutine.status(waiting[i]) == "dead" then lanes[table.remove(waiting, i)] = nil end
    end
    pause()
  end
  if failure then error(failure[1], 0) end
end

--- Runs a command to its end. `signal` is the number of the one that ended it; a timeout (default 60 s) is exit 124.
---@param argv string[]
---@param opts? {env?: table<string,string>, timeout?: number, stdin?: string, cwd?: string}
---@return {exit: integer, signal?: integer, stdout: string, stderr: string}
function machine.run(argv, opts)
  opts = opts or {}
  local base = os.tmpname()
  if opts.stdin then machine.write(base .. ".in", opts.stdin) end
  local line = ("cd %s && %stimeout -k 5 %g %s <%s >%s.out 2>%s.err"):format(machine.quote(opts.cwd or here), environment(opts.env),
    opts.timeout or 60, words(argv), opts.stdin and base .. ".in" or "/dev/null", base, base)
  local code = execute(line, base)
  local result = {
    exit = code, signal = code > 128 and code <= 128 + 64 and code - 128 or nil,
    stdout = machine.read(base .. ".out"), stderr = machine.read(base .. ".err"),
  }
  for _, suffix in ipairs { "", ".in", ".out", ".err", ".status" } do os.remove(base .. suffix) end
  return result
end

-- From JSON a pid comes as a float, and no process is called 123.0.
local function text_of(pid)
  return tostring(math.tointeger(pid) or pid)
end

--- When a process started, in ticks since boot; nil when there is none, or only a zombie (proc(5), fields 3 and 22 of stat).
local function start_time(pid)
  local stat = machine.read("/proc/" .. pid .. "/stat") or ""
  return stat:match("%) [^ZX]" .. (" %S+"):rep(18) .. " (%d+)")
end

--- Starts a command in the background; its output goes to `log`.
---@return integer pid
function machine.start(argv, opts)
  opts = opts or {}
  local pid = sh(("cd %s && %sexec setsid %s </dev/null >%s 2>&1 & echo $!"):format(machine.quote(opts.cwd or here), environment(opts.env),
    words(argv), machine.quote(opts.log or "/dev/null"))):match("%d+")
  started[pid] = start_time(pid) or "ended"
  return pid
end

--- Whether a process runs; a zombie does not, nor does another one that got the number of one that start() began.
function machine.alive(pid)
  local name = text_of(pid)
  local since = start_time(name)
  return since ~= nil and (started[name] or since) == since
end

local patience = 4 -- times as long as things take on a quiet machine

--- Polls until the condition holds; fails at the deadline.
---@param condition fun(): any
---@param seconds? number  on a quiet machine; default 5
---@param what? string
function machine.eventually(condition, seconds, what)
  local deadline = os.time() + patience * (seconds or 5) + 1
  repeat
    local result = condition()
    if result then return result end
    pause()
  until os.time() > deadline
  error("it did not happen within the time allowed: " .. (what or "condition"), 2)
end

function machine.signal(pid, name)
  if machine.alive(pid) then os.execute(("kill -%s %s 2>/dev/null"):format(name, text_of(pid))) end
end

--- Ends a process that start() began: TERM, then KILL.
function machine.stop(pid)
  machine.signal(pid, "TERM")
  local ok = pcall(machine.eventually, function() return not machine.alive(pid) end, 5)
  if ok then return end
  machine.signal(pid, "KILL")
  machine.eventually(function() return not machine.alive(pid) end, 5, "death of " .. pid)
end

--- Whether somebody listens. The kernel lists those sockets first; connections may follow by the thousand.
local function is_listened(port)
  local hex = (":%04X 00000000:0000 0A"):format(port)
  local sockets <close> = assert(io.open("/proc/net/tcp"))
  sockets:read("l")
  for line in sockets:lines() do
    if line:find(hex, 1, true) then return true end
    if not line:find("^ *%d+: %x+:%x+ %x+:0000 0A") then return false end
  end
  return false
end
machine.is_listened = is_listened

-- Spec files that run side by side have ports of their own; one that runs alone begins anywhere.
local worker = tonumber(os.getenv("SPEC_WORKER"))
local first_port = worker and 20000 + worker % 8 * 1200 or 20000
local last_port = worker and first_port + 1199 or 29990
local next_port = first_port + (tonumber(sh("echo $$")) * 37) % (last_port - first_port)

--- A port that nobody listens on; each call gives another.
function machine.free_port()
  repeat
    next_port = next_port >= last_port and first_port or next_port + 1
  until not is_listened(next_port) and not given_ports[next_port]
  given_ports[next_port] = true
  return next_port
end

--- Compiles one C file, unless that was done; returns the program.
function machine.compile(source, target)
  local fresh = os.execute(("test %s -nt %s"):format(target, source))
  if not fresh then
    assert(os.execute(("mkdir -p %s && cc -std=gnu11 -D_GNU_SOURCE -O2 -Wall -o %s.$$ %s && mv %s.$$ %s"):format(target:match("^(.*)/"), target, source,
      target, target)))
  end
  return here .. "/" .. target
end

--- The service of examples/hello, built.
function machine.service()
  return machine.compile("examples/hello/service.c", "build/examples/hello/service")
end

--- The command under test.
function machine.deployrt()
  return os.getenv("DEPLOYRT") or (here .. "/build/deployrt")
end

--- The environment of a Lua program that uses the modules under test, wherever it runs.
---@return {LUA_PATH: string, LUA_CPATH: string}
function machine.modules()
  local built = machine.deployrt():match("^(.*)/")
  return { LUA_PATH = here .. "/lua/?.lua;" .. here .. "/?.lua;;", LUA_CPATH = built .. "/lib/?.so;;" }
end

--- A directory with a release: the service, its version, how it misbehaves.
---@param version string
---@param opts? {fault?: string, start_delay?: integer|string, conf?: string}  start_delay in milliseconds, or "2s"; conf: more
---  lines of service.conf
function machine.release(version, opts)
  opts = opts or {}
  local path = machine.dir()
  assert(os.execute(("cp %s %s/server"):format(machine.service(), path)))
  machine.write(path .. "/VERSION", version .. "\n")
  local lines = {}
  if opts.fault then lines[#lines + 1] = "fault=" .. opts.fault end
  if opts.start_delay then lines[#lines + 1] = "start_delay=" .. opts.start_delay end
  lines[#lines + 1] = opts.conf
  if #lines > 0 then machine.write(path .. "/service.conf", table.concat(lines, "\n") .. "\n") end
  return path
end

local function exists(path)
  return os.execute("test -e " .. machine.quote(path))
end

local function keep(list, condition)
  local kept = {}
  for _, each in ipairs(list) do
    if condition(each) then kept[#kept + 1] = each end
  end
  return kept
end

--- Ends what was started and removes what was made.
function machine.cleanup()
  for pid in pairs(started) do
    if machine.alive(pid) then machine.stop(pid) end
  end
  os.execute("rm -rf " .. words(made))
  made = keep(made, exists)
end

--- What is still there of all that start() and dir() have made; empty after cleanup().
---@return string[]  "pid N: COMMAND" and paths
function machine.leftovers()
  local list = {}
  for pid in pairs(started) do
    local command = (machine.read("/proc/" .. pid .. "/cmdline") or ""):gsub("%z", " ")
    if machine.alive(pid) then list[#list + 1] = ("pid %s: %s"):format(pid, command) end
  end
  for _, path in ipairs(made) do
    if exists(path) then list[#list + 1] = path end
  end
  return list
end

return machine
