-- session.lua -- An application that is being worked on: its hosts connected, its secrets read, its balancers opened.
local clock = require "deployrt.clock"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local driver = require "deployrt.balancer.driver"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local host = require "deployrt.host"
local launch = require "deployrt.launch"
local secrets = require "deployrt.secrets"
local slot_name = require "deployrt.slot_name"
local ssh_config = require "deployrt.ssh_config"
local balancer = require "deployrt.balancer"
local turns = require "deployrt.turns"
local world = require "deployrt.world"

---@class deployrt.Site  where an application is, if not on real machines: `app.site`
---@field dial fun(entry: table, opts: table): deployrt.Link?, deployrt.Error?
---@field driver fun(entry: table, opts: table): table  a balancer's driver
---@field world fun(context: table): deployrt.World

---@type deployrt.Site
local real = {
  driver = driver.open,
  world = world.real,
}

---@class deployrt.Session
---@field app table
---@field hosts deployrt.Host[]
---@field connections table<string, deployrt.Connection>  by the name of the host
---@field unreachable table<string, deployrt.Error>  hosts that were left out, or are away
---@field controller deployrt.Connection  this machine, whether or not it is one of the hosts
local Session = {}
Session.__index = Session
Session.__close = function(self) self:close() end

local session = {}

--- Slots as balancers know them: of all hosts, also where the run is limited to some.
local function slots_of(app)
  local slots, read = {}, ssh_config.reader()
  for _, entry in ipairs(app.all_hosts) do
    local address = connection.address(entry, read)
    for _, port in ipairs(app.process.ports) do
      slots[#slots + 1] = { name = slot_name.of(entry.name, port), address = address, port = port }
    end
  end
  return slots
end

--- Drops the hosts that cannot be had.
local function keep_reachable(self)
  local hosts = {}
  for _, each in ipairs(self.hosts) do
    if not self.unreachable[each.name] then hosts[#hosts + 1] = each end
  end
  self.hosts = hosts
end

--- Two names of one machine would each find the instances of the other in their slots.
local function refuse_twins(self)
  local seen = {}
  for _, line in ipairs(self:lines()) do
    local place = line.machine and line.machine .. "\t" .. line.root or line
    if seen[place] then
      errors.raise("config", ("hosts: '%s' and '%s' lead to the same machine and directory (%s); one is enough"):format(
        seen[place], line.name, line.root))
    end
    seen[place] = line.name
  end
end

--- Connections that are not there yet, for hosts of the application and for those that balancers are on.
local function connect(self, app, opts)
  local opening = { self.controller }
  local wanted = {}
  for i, entry in ipairs(app.hosts) do
    self.hosts[i], wanted[entry.name] = host.new(entry), true
  end
  for _, each in ipairs(app.balancers) do wanted[each.host or ""] = true end
  for _, entry in ipairs(app.all_hosts) do
    if wanted[entry.name] then
      local line = connection.new(entry, app.app, self.site.dial)
      self.connections[entry.name], opening[#opening + 1] = line, line
    end
  end
  local there, problem = pcall(fleet.together, opening, function(each)
    local ok, err = pcall(each.connect, each)
    if not ok and not ((opts.partial or opts.away) and each ~= self.controller) then error(err, 0) end
    if not ok then
      each.away = errors.wrap(err)
      self.unreachable[each.name] = each.away
    end
  end)
  if not there then
    if #app.hosts > 1 and errors.is_gone(problem) then problem.message = problem.message .. "; to go on without it, name the others with --host" end
    error(problem, 0)
  end
  if opts.partial then keep_reachable(self) end
  refuse_twins(self)
end

--- Connects to all hosts at once; one that cannot be had is an error, or left out.
---@async
---@param app table  from config.load
---@param opts? {secrets?: boolean|"unread", partial?: boolean, away?: boolean}  secrets: read them, because processes will be started;
---  partial: hosts that cannot be had are left out; away: they are known, and whatever is asked of them fails
---@return deployrt.Session
function session.open(app, opts)
  opts = opts or {}
  local self = setmetatable({ app = app, hosts = {}, connections = {}, unreachable = {}, drivers = {}, wanted = {}, site = app.site or real }, Session)
  self.controller = connection.new({ name = "local" }, app.app, self.site.dial)
  local opened, problem = pcall(function()
    connect(self, app, opts)
    self.secrets = secrets.read(opts.secrets and app.process.secrets or {}, app.dir, self.controller, app.place, opts.secrets == "unread")
    for i, entry in ipairs(app.balancers) do
      local name = #app.balancers > 1 and ("balancer[%d]"):format(i) or "balancer"
      self.drivers[i] = self.site.driver(entry, {
        app = app.app, dir = app.dir, place = function(key) return (app.place(name .. "." .. key)) end, slots = slots_of(app), health = app.health,
        host = entry.host and self.connections[entry.host] or self.controller,
      })
    end
  end)
  if not opened then
    self:close()
    error(problem, 0)
  end
  self.balancer = balancer.new(#self.drivers, app.balancers[1] and app.balancers[1].drain)
  self.fleet = fleet.new(self.hosts, app.process, self.balancer)
  return self
end

--- Runs `fn` with this session's world as the one that operations act on, outside any deployment.
---@async
---@param fields table  overrides of the run: emit, journal, ...
---@param fn fun(run: table)
function Session:with_run(fields, fn)
  local run = self:new_run(fields)
  local locals = core.locals()
  locals.run, locals.scope = run, require("deployrt.undo").root()
  return fn(run)
end

local silent_journal = { write = function() end, sync = function() end, close = function() end }

--- What operations need to know of the run that they belong to.
function Session:new_run(fields)
  local run = {
    id = "look", asked = {}, app = self.app, balancer = self.balancer, fleet = self.fleet, journal = silent_journal,
    turns = turns.none, clock = clock.new(core.now), control = { hold = function() end }, stop_event = core.event(), hurry_event = core.event(), emit = function() end, report_traffic = function() end,
    mask = function(err)
      err.message = self.secrets:mask(err.message)
      err.detail = err.detail and self.secrets:mask(err.detail)
      return err
    end,
  }
  for key, value in pairs(fields or {}) do run[key] = value end
  run.world = self.site.world {
    run_id = run.id .. "/op", app = self.app, secrets = self.secrets, drivers = self.drivers, wanted = self.wanted,
    held_back = {}, -- by slot: what was done there could not be undone, so traffic is not put back there
    kept_open = {}, kept_routed = {}, -- by slot: its traffic could not be taken away, so what runs there is not stopped
    closed_aside = {}, -- by slot: somebody else had opened it, and it may have got requests
    gone = {}, closed = {}, new = {}, -- by slot, on a way back that is taken up: stopped already, closed already, of the new release
    behind = {}, has = {}, instances = {}, -- by the balancer's place: why it is away, the states that it was last known to have, and its process
    complaints = {}, -- by the balancer's place: looks in a row that it did not answer
    warn = function(message) run.emit { event = "warning", message = message } end,
    log = function(message) run.emit { event = "log", message = message } end,
    wait_for = function(reason) run.emit { event = "waiting", reason = reason } end,
    successors = self.fleet.successors, connections = self.connections, controller = self.controller,
    archive = self.archive,
    check_lock = function()
      if run.lock then run.lock:check() end
    end,
    check_stop = function()
      if run.stopping and not core.locals().undoing then error(run.stopping, 0) end
    end,
    rest = function(seconds) -- less, if the run is stopped meanwhile
      if core.locals().undoing then core.sleep(seconds) else run.stop_event:wait(seconds) end
    end,
    stop_event = run.stop_event, hurry_event = run.hurry_event, -- hurry: on the way back
    why_stopped = function() return errors.text(run.hurried or run.stopping) end,
    tell = function(what)
      if run.tell then run.tell(what) end
    end,
    note_process = function(id, process) run.journal:write { type = "PROCESS", id = id, process = process } end,
    process_of = function(id) return run.turns:process(id) end,
    hook_environment = function(more)
      local env = { APP = self.app.app, RELEASE = run.release or "", PREVIOUS = run.previous or "", RUN = run.id }
      for key, value in pairs(more or {}) do env[key] = value end
      return env
    end,
  }
  return run
end

--- What is to serve in the end: balancers check it as it says itself. A rollback's is of another day than app.yml.
---@param target deployrt.Launch
function Session:deploys(target)
  self.fleet.target = target
  for _, each in ipairs(self.drivers) do each.health = launch.health(self.app, target) end
end

--- The connections that there are, in the order of the hosts.
---@return deployrt.Connection[]
function Session:lines()
  local list = {}
  for _, each in ipairs(self.hosts) do
    if not self.unreachable[each.name] then list[#list + 1] = self.connections[each.name] end
  end
  return list
end

--- Raises why a host is away, the first of them.
---@param without? table<string, boolean>  names of hosts that may be
function Session:check_complete(without)
  for _, entry in ipairs(self.app.hosts) do
    local err = self.unreachable[entry.name]
    if err and not (without and without[entry.name]) then error(err, 0) end
  end
end

function Session:close()
  for _, each in pairs(self.connections) do each:close() end
  self.controller:close()
end

return session
