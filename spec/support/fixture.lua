-- fixture.lua -- What specs need of the machine: files, processes, ports, services, load, an HAProxy, an application.
local cjson = require "cjson"
local system = require "system"

local fixture = {}

local made, started, given_ports = {}, {}, {}
local here = io.popen("pwd"):read("l")

--- A word of POSIX shell.
function fixture.quote(text)
  return "'" .. tostring(text):gsub("'", "'\\''") .. "'"
end

local function words(argv)
  local list = {}
  for i, word in ipairs(argv) do list[i] = fixture.quote(word) end
  return table.concat(list, " ")
end

local function sh(text)
  local pipe = io.popen(text)
  local out = pipe:read("a")
  pipe:close()
  return out
end
fixture.sh = sh

--- A new directory, gone at cleanup().
function fixture.dir()
  local path = sh("mktemp -d /tmp/deployrt-spec.XXXXXX"):match("%S+")
  made[#made + 1] = path
  return path
end

function fixture.write(path, text)
  local file = io.open(path, "wb")
  if not file then
    os.execute("mkdir -p " .. fixture.quote(path:match("^(.*)/")))
    file = assert(io.open(path, "wb"))
  end
  file:write(text)
  file:close()
  return path
end

function fixture.read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

local function environment(env)
  local list = {}
  for name, value in pairs(env or {}) do list[#list + 1] = name .. "=" .. fixture.quote(value) end
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
    status = (fixture.read(base .. ".status") or ""):match("(%d+)\n")
  until status
  return tonumber(status)
end

--- Runs functions side by side: while one waits for a command or a condition, the others go on. Raises the first error
--- once all have ended.
---@param list fun()[]
function fixture.together(list)
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
function fixture.run(argv, opts)
  opts = opts or {}
  local base = os.tmpname()
  if opts.stdin then fixture.write(base .. ".in", opts.stdin) end
  local line = ("cd %s && %stimeout -k 5 %g %s <%s >%s.out 2>%s.err"):format(fixture.quote(opts.cwd or here), environment(opts.env),
    opts.timeout or 60, words(argv), opts.stdin and base .. ".in" or "/dev/null", base, base)
  local code = execute(line, base)
  local result = {
    exit = code, signal = code > 128 and code <= 128 + 64 and code - 128 or nil,
    stdout = fixture.read(base .. ".out"), stderr = fixture.read(base .. ".err"),
  }
  for _, suffix in ipairs { "", ".in", ".out", ".err" } do os.remove(base .. suffix) end
  return result
end

--- Starts a command in the background; its output goes to `log`.
---@return integer pid
function fixture.start(argv, opts)
  opts = opts or {}
  local pid = sh(("cd %s && %sexec setsid %s </dev/null >%s 2>&1 & echo $!"):format(fixture.quote(opts.cwd or here), environment(opts.env),
    words(argv), fixture.quote(opts.log or "/dev/null"))):match("%d+")
  started[#started + 1] = pid
  return pid
end

-- From JSON a pid comes as a float, and no process is called 123.0.
local function text_of(pid)
  return tostring(math.tointeger(pid) or pid)
end

--- Whether a process runs; a zombie does not.
function fixture.alive(pid)
  local status = fixture.read("/proc/" .. text_of(pid) .. "/status")
  return status ~= nil and not status:find("State:%s+[ZX]")
end

local patience = 4 -- times as long as things take on a quiet machine

--- Polls until the condition holds; fails at the deadline.
---@param condition fun(): any
---@param seconds? number  on a quiet machine; default 5
---@param what? string
function fixture.eventually(condition, seconds, what)
  local deadline = os.time() + patience * (seconds or 5) + 1
  repeat
    local result = condition()
    if result then return result end
    pause()
  until os.time() > deadline
  error("it did not happen within the time allowed: " .. (what or "condition"), 2)
end

function fixture.signal(pid, name)
  os.execute(("kill -%s %s 2>/dev/null"):format(name, text_of(pid)))
end

--- Ends a process that start() began: TERM, then KILL.
function fixture.stop(pid)
  fixture.signal(pid, "TERM")
  local ok = pcall(fixture.eventually, function() return not fixture.alive(pid) end, 5)
  if ok then return end
  fixture.signal(pid, "KILL")
  fixture.eventually(function() return not fixture.alive(pid) end, 5, "death of " .. pid)
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
fixture.is_listened = is_listened

-- Spec files that run side by side have ports of their own; one that runs alone begins anywhere.
local worker = tonumber(os.getenv("SPEC_WORKER"))
local first_port = worker and 20000 + worker % 8 * 1200 or 20000
local last_port = worker and first_port + 1199 or 29990
local next_port = first_port + (tonumber(sh("echo $$")) * 37) % (last_port - first_port)

--- A port that nobody listens on; each call gives another.
function fixture.free_port()
  repeat
    next_port = next_port >= last_port and first_port or next_port + 1
  until not is_listened(next_port) and not given_ports[next_port]
  given_ports[next_port] = true
  return next_port
end

local function compile(source, target)
  local fresh = os.execute(("test %s -nt %s"):format(target, source))
  if not fresh then
    assert(os.execute(("mkdir -p %s && cc -std=gnu11 -D_GNU_SOURCE -O2 -Wall -o %s.$$ %s && mv %s.$$ %s"):format(target:match("^(.*)/"), target, source,
      target, target)))
  end
  return here .. "/" .. target
end

--- The service of examples/hello, built.
function fixture.service()
  return compile("examples/hello/service.c", "build/examples/hello/service")
end

--- The command under test.
function fixture.deployrt()
  return os.getenv("DEPLOYRT") or (here .. "/build/deployrt")
end

--- A directory with a release: the service, its version, how it misbehaves.
---@param version string
---@param opts? {fault?: string, start_delay?: integer|string, conf?: string}  start_delay in milliseconds, or "2s"; conf: more
---  lines of service.conf
function fixture.release(version, opts)
  opts = opts or {}
  local path = fixture.dir()
  assert(os.execute(("cp %s %s/server"):format(fixture.service(), path)))
  fixture.write(path .. "/VERSION", version .. "\n")
  local lines = {}
  if opts.fault then lines[#lines + 1] = "fault=" .. opts.fault end
  if opts.start_delay then lines[#lines + 1] = "start_delay=" .. opts.start_delay end
  lines[#lines + 1] = opts.conf
  if #lines > 0 then fixture.write(path .. "/service.conf", table.concat(lines, "\n") .. "\n") end
  return path
end

--- Whether a load is ready for signals; before that they would end it.
local function blocks_usr1(pid)
  local mask = (fixture.read("/proc/" .. pid .. "/status") or ""):match("SigBlk:%s*(%x+)")
  return mask ~= nil and tonumber(mask:sub(-8), 16) & 0x200 ~= 0
end

local Load = {}
Load.__index = Load

--- Starts requests against a port.
---@param opts {port: integer, address?: string, connections?: integer, keepalive?: boolean, rate?: number, path?: string}
function fixture.load(opts)
  local log = os.tmpname()
  local argv = { compile("spec/support/load.c", "build/spec/load"), "--port", opts.port, "--connections", opts.connections or 8, "--rate", opts.rate or 1000 }
  if opts.path then table.move({ "--path", opts.path }, 1, 2, #argv + 1, argv) end
  if opts.address then table.move({ "--address", opts.address }, 1, 2, #argv + 1, argv) end
  if opts.keepalive == false then argv[#argv + 1] = "--no-keepalive" end
  local self = setmetatable({ pid = fixture.start(argv, { log = log }), log = log }, Load)
  fixture.eventually(function() return blocks_usr1(self.pid) end, 5, "start of the load")
  return self
end

--- Ends the load and returns its numbers: requests, failed, retried, versions, errors, p50_ms, p99_ms.
function Load:stop()
  fixture.signal(self.pid, "TERM")
  fixture.eventually(function() return not fixture.alive(self.pid) end, 15, "end of the load")
  local line = fixture.read(self.log):match("({[^\n]*})%s*$")
  os.remove(self.log)
  return cjson.decode(line)
end

--- The numbers so far.
function Load:numbers()
  local before = #fixture.read(self.log)
  fixture.signal(self.pid, "USR1")
  fixture.eventually(function() return #fixture.read(self.log) > before end, 5, "numbers of the load")
  return cjson.decode(fixture.read(self.log):match("({[^\n]*})%s*$"))
end

local HAProxy = {}
HAProxy.__index = HAProxy

--- A user's own HAProxy in a directory of its own.
---@param opts {backend?: string, servers: string[], level?: string, listen?: integer, master?: boolean}
---  servers: the rest of each `server` line; listen: default a free port; master: with -W, for reload()
function fixture.haproxy(opts)
  local self = setmetatable({ dir = fixture.dir(), port = opts.listen or fixture.free_port() }, HAProxy)
  self.socket, self.backend, self.master = self.dir .. "/admin.sock", opts.backend or "shop", opts.master
  local lines = {
    "global", ("  stats socket %s mode 600 level %s expose-fd listeners"):format(self.socket, opts.level or "admin"),
    "defaults", "  mode http", "  timeout connect 2s", "  timeout client 30s", "  timeout server 30s",
    "  option redispatch 1", "  retries 3", "frontend in", "  bind 127.0.0.1:" .. self.port,
    "  default_backend " .. self.backend, "backend " .. self.backend, "  balance roundrobin",
  }
  for _, server in ipairs(opts.servers) do lines[#lines + 1] = "  server " .. server end
  self.config = fixture.write(self.dir .. "/haproxy.cfg", table.concat(lines, "\n") .. "\n")
  self:start()
  return self
end

function HAProxy:start()
  os.remove(self.socket)
  local argv = { "/usr/sbin/haproxy", self.master and "-W" or "-db", "-f", self.config }
  self.pid = fixture.start(argv, { log = self.dir .. "/log" })
  local function is_up() return is_listened(self.port) and os.execute("test -S " .. self.socket) end
  local ok, problem = pcall(fixture.eventually, is_up, 20, "HAProxy of the spec")
  if not ok then error(problem .. ": " .. (fixture.read(self.dir .. "/log") or ""), 2) end
end

--- Says commands to the admin socket; returns the answer.
---@param commands string  with `;` between
function HAProxy:command(commands)
  return sh(("printf '%%s\\n' %s | socat -t 5 - UNIX-CONNECT:%s"):format(fixture.quote(commands), self.socket))
end

--- Kills it and starts it anew; what was changed at runtime is lost.
function HAProxy:restart()
  self:kill()
  self:start()
end

--- Reads the configuration file anew, as `systemctl reload` does; only with master. Returns once a new worker serves.
function HAProxy:reload()
  assert(self.master, "reload needs a HAProxy with `master = true`")
  local before, asked = self:worker(), 0
  fixture.eventually(function()
    if self:worker() ~= before then return true end
    if os.time() - asked >= 5 then -- a master that is still starting does not hear it
      asked = os.time()
      fixture.signal(self.pid, "USR2")
    end
  end, 10, "reload of HAProxy")
end

--- The process that answers on the admin socket.
function HAProxy:worker()
  return self:command("show info"):match("\nPid: (%d+)") or nil
end

--- Its processes: the master, and the workers that it has now.
function HAProxy:pids()
  local workers = sh(("cat /proc/%s/task/%s/children 2>/dev/null"):format(self.pid, self.pid))
  return (self.pid .. " " .. workers):gmatch("%d+")
end

function HAProxy:kill()
  for pid in self:pids() do
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
  end
end

--- Ends it; a master that has not learned its signals yet leaves its workers behind.
function HAProxy:stop()
  for pid in self:pids() do fixture.stop(pid) end
end

local App = {}
App.__index = App

--- An application with managed HAProxy on this machine, in a HOME of its own.
---@param opts? {instances?: integer, slots?: integer, yaml?: string, balancer?: string, health?: string, process?: string}
function fixture.app(opts)
  opts = opts or {}
  local self = setmetatable({ dir = fixture.dir(), listen = fixture.free_port(), ports = {}, opts = opts }, App)
  for i = 1, opts.slots or 2 * (opts.instances or 1) do self.ports[i] = fixture.free_port() end
  self.file = self.dir .. "/app.yml"
  self:write(fixture.release("1.0"), "1.0")
  return self
end

--- Writes app.yml for a release.
function App:write(path, version)
  local o = self.opts
  fixture.write(self.file, table.concat({
    "app: shop", ("release: {path: %s, version: \"%s\"%s}"):format(path, version, o.keep and ", keep: " .. o.keep or ""),
    o.hosts and "hosts: " .. o.hosts or "hosts: [local]", "process:", o.command or '  command: [./server, --port, "${port}"]',
    ("  ports: [%s]"):format(table.concat(self.ports, ", ")), "  instances: " .. (o.instances or 1), o.process or "  stop: {timeout: 3s}",
    "health: " .. (o.health or "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 4s}"),
    o.balancer == false and "" or "balancer: " .. (o.balancer or ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(self.listen)),
    o.yaml or "",
  }, "\n") .. "\n")
end

--- Runs the command on this application.
function App:command(argv, opts)
  opts = opts or {}
  local all = { fixture.deployrt(), "--state", self.dir .. "/state" }
  for _, word in ipairs(argv) do all[#all + 1] = word end
  local env = { HOME = self.dir .. "/home", TERM = "dumb" }
  os.execute("mkdir -p " .. env.HOME)
  for key, value in pairs(opts.env or {}) do env[key] = value end
  if opts.background then return fixture.start(all, { env = env, cwd = self.dir, log = opts.log }) end
  return fixture.run(all, { env = env, timeout = opts.timeout or 60, cwd = self.dir })
end

--- The same, dying by SIGKILL before or after its n-th operation. With `when` "count" it lives, and the number of its
--- operations is returned too, and a list of them: {name, looks}.
---@param when "before"|"after"|"count"|"end"
---@param n? integer
function App:mortal(when, n, argv)
  local counted = self.dir .. "/operations"
  local all = {
    "env", "LUA_PATH=" .. here .. "/lua/?.lua", "LUA_CPATH=" .. here .. "/build/lib/?.so;" .. package.cpath, "lua5.4",
    here .. "/spec/support/mortal.lua", when, when == "count" and counted or tostring(n), "--state", self.dir .. "/state",
  }
  for _, word in ipairs(argv) do all[#all + 1] = word end
  local result = fixture.run(all, { env = { HOME = self.dir .. "/home", TERM = "dumb" }, timeout = 120, cwd = self.dir })
  if when ~= "count" then return result end
  local list = {}
  for looks, name in (fixture.read(counted) or ""):gmatch("(%l+) (%S+)\n") do list[#list + 1] = { name = name, looks = looks == "look" } end
  return result, #list, list
end

--- Deploys a version with a strategy; `release` says how the service misbehaves.
---@param strategy string
---@param version string
---@param release? {fault?: string, start_delay?: integer, path?: string}
---@param flags? string[]
function App:deploy(strategy, version, release, flags)
  self:write(release and release.path or fixture.release(version, release), version)
  local argv = { strategy, "app.yml" }
  for _, flag in ipairs(flags or {}) do argv[#argv + 1] = flag end
  return self:command(argv)
end

--- Starts an A/B test in the background, and waits until it asks what is to stay.
---@param options string   the strategy's
---@param version? string  default "2.0"
---@return {pid: string, log: string} run
function App:begin_ab(options, version)
  self.opts.yaml = "strategy: " .. options
  self:write(fixture.release(version or "2.0"), version or "2.0")
  local log = self.dir .. "/log"
  local pid = self:command({ "ab", "app.yml" }, { background = true, log = log })
  local ok = pcall(fixture.eventually, function() return fixture.read(log):find("which release stays", 1, true) end, 15)
  if not ok then error(fixture.read(log), 2) end
  return { pid = pid, log = log }
end

--- Ends an A/B test; returns what it said.
---@param run {pid: string, log: string}
---@param answer "new"|"old"
---@return string
function App:end_ab(run, answer)
  local said = self:command { "approve", answer, "app.yml" }
  if said.exit ~= 0 then error(said.stderr, 2) end
  fixture.eventually(function() return not fixture.alive(run.pid) end, 20, "end of the run")
  return fixture.read(run.log)
end

--- What `status --json` says.
function App:status()
  local result = self:command { "status", "app.yml", "--json" }
  assert(result.exit == 0, result.stderr)
  return cjson.decode(result.stdout)
end

--- The releases of the instances that serve, sorted.
function App:serving()
  local list = {}
  for _, instance in ipairs(self:status().instances) do
    if instance.state == "serving" and instance.healthy then list[#list + 1] = instance.release end
  end
  table.sort(list)
  return list
end

function App:load(opts)
  opts = opts or {}
  opts.port = opts.port or self.listen
  return fixture.load(opts)
end

--- Stops everything and returns what should not be there.
function App:stop()
  local result = self:command { "stop", "app.yml", "--quiet" }
  if result.exit == 4 then -- a spec that failed may have left an interrupted run
    self:command { "unlock", "app.yml", "--force" }
    result = self:command { "stop", "app.yml", "--quiet" }
  end
  assert(result.exit == 0, result.stderr)
  return self:leftovers()
end

--- Processes of this application that run, and files of runs that should be gone.
function App:leftovers()
  local list = {}
  for line in sh(("pgrep -fa %s || true"):format(fixture.quote(self.dir .. "/home"))):gmatch("[^\n]+") do
    if not line:find("pgrep") and not line:find("sh %-c") then list[#list + 1] = line end
  end
  for line in sh(("find %s/home -name '*.part*' -o -name lock -o -name '*.secrets' 2>/dev/null"):format(self.dir)):gmatch("[^\n]+") do list[#list + 1] = line end
  for _, port in ipairs(self.ports) do
    if is_listened(port) then list[#list + 1] = "port " .. port end
  end
  return list
end

local function exists(path)
  return os.execute("test -e " .. fixture.quote(path))
end

local function keep(list, condition)
  local kept = {}
  for _, each in ipairs(list) do
    if condition(each) then kept[#kept + 1] = each end
  end
  return kept
end

--- Ends what was started and removes what was made.
function fixture.cleanup()
  for _, pid in ipairs(started) do
    if fixture.alive(pid) then fixture.stop(pid) end
  end
  os.execute("rm -rf " .. words(made))
  made, started = keep(made, exists), keep(started, fixture.alive)
end

--- What is still there of all that start() and dir() have made; empty after cleanup().
---@return string[]  "pid N: COMMAND" and paths
function fixture.leftovers()
  local list = {}
  for _, pid in ipairs(started) do
    local command = (fixture.read("/proc/" .. pid .. "/cmdline") or ""):gsub("%z", " ")
    if fixture.alive(pid) then list[#list + 1] = ("pid %s: %s"):format(pid, command) end
  end
  for _, path in ipairs(made) do
    if exists(path) then list[#list + 1] = path end
  end
  return list
end

return fixture
