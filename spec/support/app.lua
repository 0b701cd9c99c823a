-- app.lua -- An application on this machine, in a HOME of its own: what specs deploy.
local assert = require "luassert"
local cjson = require "cjson"
local load = require "spec.support.load"
local machine = require "spec.support.machine"

local app, App = {}, {}
App.__index = App

--- An application with managed HAProxy on this machine, in a HOME of its own.
---@param opts? {instances?: integer, slots?: integer, yaml?: string, balancer?: string, health?: string, process?: string}
function app.new(opts)
  opts = opts or {}
  local self = setmetatable({ dir = machine.dir(), listen = machine.free_port(), ports = {}, opts = opts }, App)
  for i = 1, opts.slots or 2 * (opts.instances or 1) do self.ports[i] = machine.free_port() end
  self.file = self.dir .. "/app.yml"
  self:write(machine.release("1.0"), "1.0")
  return self
end

--- Writes app.yml for a release.
function App:write(path, version)
  local o = self.opts
  machine.write(self.file, table.concat({
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
  local all = { machine.deployrt(), "--state", self.dir .. "/state" }
  for _, word in ipairs(argv) do all[#all + 1] = word end
  local env = { HOME = self.dir .. "/home", TERM = "dumb" }
  os.execute("mkdir -p " .. env.HOME)
  for key, value in pairs(opts.env or {}) do env[key] = value end
  if opts.background then return machine.start(all, { env = env, cwd = self.dir, log = opts.log }) end
  return machine.run(all, { env = env, timeout = opts.timeout or 60, cwd = self.dir })
end

--- The same, dying by SIGKILL before or after its n-th operation. With `when` "count" it lives, and the number of its
--- operations is returned too, and a list of them: {name, looks}.
---@param when "before"|"after"|"count"|"end"|"lock"|"group"
---@param n? integer
function App:mortal(when, n, argv, stdin)
  local counted = self.dir .. "/operations"
  local all = { "lua5.4", machine.here .. "/spec/support/mortal.lua", when, when == "count" and counted or tostring(n), "--state", self.dir .. "/state" }
  for _, word in ipairs(argv) do all[#all + 1] = word end
  local env = machine.modules()
  env.HOME, env.TERM = self.dir .. "/home", "dumb"
  local result = machine.run(all, { env = env, timeout = 120, cwd = self.dir, stdin = stdin })
  if when ~= "count" then return result end
  local list = {}
  for looks, name in (machine.read(counted) or ""):gmatch("(%l+) (%S+)\n") do list[#list + 1] = { name = name, looks = looks == "look" } end
  return result, #list, list
end

--- Deploys a version with a strategy; `release` says how the service misbehaves.
---@param strategy string
---@param version string
---@param release? {fault?: string, start_delay?: integer, path?: string}
---@param flags? string[]
function App:deploy(strategy, version, release, flags)
  self:write(release and release.path or machine.release(version, release), version)
  local argv = { strategy, "app.yml" }
  for _, flag in ipairs(flags or {}) do argv[#argv + 1] = flag end
  return self:command(argv)
end

--- Deploys a version with rolling, expects how that ends, and returns what was said.
---@param version string
---@param exit integer
---@param release? {fault?: string, start_delay?: integer, path?: string}
function App:roll(version, exit, release)
  local run = self:deploy("rolling", version, release)
  assert.equal(exit, run.exit, run.stdout .. run.stderr)
  return run.stdout .. run.stderr
end

--- What a server gets of the traffic that app.yml does not name any more; nil: nothing.
---@param server string
---@return number?
function App:left_share(server)
  for _, each in ipairs(self:status().elsewhere or {}) do
    if each.server == server then return each.left and each.share end
  end
end

--- Starts an A/B test in the background, and waits until it asks what is to stay.
---@param options string   the strategy's
---@param version? string  default "2.0"
---@return {pid: string, log: string} run
function App:begin_ab(options, version)
  self.opts.yaml = "strategy: " .. options
  self:write(machine.release(version or "2.0"), version or "2.0")
  local log = self.dir .. "/log"
  local pid = self:command({ "ab", "app.yml" }, { background = true, log = log })
  local ok = pcall(machine.eventually, function() return machine.read(log):find("which release stays", 1, true) end, 15)
  if not ok then error(machine.read(log), 2) end
  return { pid = pid, log = log }
end

--- Ends an A/B test; returns what it said.
---@param run {pid: string, log: string}
---@param answer "new"|"old"
---@return string
function App:end_ab(run, answer)
  local said = self:command { "approve", answer, "app.yml" }
  if said.exit ~= 0 then error(said.stderr, 2) end
  machine.eventually(function() return not machine.alive(run.pid) end, 20, "end of the run")
  return machine.read(run.log)
end

--- Writes a strategy that extends rolling, own.lua; the text stands in its deploy().
---@param text string
function App:extend_rolling(text)
  machine.write(self.dir .. "/own.lua", 'local strategy = require "deployrt.strategy"\nlocal own = strategy.extend("rolling", { name = "own" })\n'
    .. "function own:deploy()\n" .. text .. "\nend\nreturn own\n")
end

--- Starts a run in the background, and waits until it has the lock.
---@param argv string[]
---@param log? string
---@return string pid
function App:begin(argv, log)
  local pid = self:command(argv, { background = true, log = log })
  machine.eventually(function() return self:status().lock ~= cjson.null end, 5, "the lock")
  return pid
end

--- Starts a run in the background, and ends its controller when it says something.
---@param argv string[]
---@param text string
function App:kill_at(argv, text)
  local log = self.dir .. "/log"
  local pid = self:command(argv, { background = true, log = log })
  machine.eventually(function() return (machine.read(log) or ""):find(text, 1, true) end, 20, text)
  machine.signal(pid, "KILL")
end

function App:await_end(pid)
  machine.eventually(function() return not machine.alive(pid) end, 20, "end of the run")
end

--- Where the journal of the last run lies on this machine.
---@param state? string  default: where runs of specs are remembered
function App:journal_path(state)
  return machine.sh(("ls -d %s/%s/shop/runs/*/journal 2>/dev/null | tail -n 1"):format(self.dir, state or "state")):gsub("%s+$", "")
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
  return load.start(opts)
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
  for line in machine.sh(("pgrep -fa %s || true"):format(machine.quote(self.dir .. "/home"))):gmatch("[^\n]+") do
    if not line:find("pgrep") and not line:find("sh %-c") then list[#list + 1] = line end
  end
  for line in machine.sh(("find %s/home -name '*.part*' -o -name lock -o -name '*.secrets' 2>/dev/null"):format(self.dir)):gmatch("[^\n]+") do list[#list + 1] = line end
  for _, port in ipairs(self.ports) do
    if machine.is_listened(port) then list[#list + 1] = "port " .. port end
  end
  return list
end

--- One whose release 1.0 serves, by one instance, and whose app.yml has 2.0: it is due to be deployed.
---@return App
function app.due()
  local self = app.new { instances = 1, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, deadline: 4s}" }
  self:roll("1.0", 0)
  self:write(machine.release "2.0", "2.0")
  return self
end

return app
