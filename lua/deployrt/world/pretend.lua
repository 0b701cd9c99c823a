-- world/pretend.lua -- A world that only pretends: it begins as the real one is, answers the same operations, and changes
-- nothing but what it remembers. Its time goes on when everybody waits.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Pretend: deployrt.World
---@field real? deployrt.World   where it looks first; without, hosts are empty
---@field hosts table<string, table>  what it remembers of each
---@field time number            seconds since it began
---@field alarm? {at: number, action: fun()}
local Pretend = {}
Pretend.__index = Pretend

local pretend = {}

local calm = 30 -- turns of the loop without an operation, after which everybody waits for time to pass

---@param real? deployrt.World
---@param begin? {hosts: table<string, table>, balancer: table}  what is known without looking
---@return deployrt.Pretend
function pretend.new(real, begin)
  return setmetatable({ real = real, hosts = begin and begin.hosts or {}, balancer = begin and begin.balancer, time = 0, moments = {}, active = true, pids = 0 }, Pretend)
end

function Pretend:now()
  return self.time
end

function Pretend:wall()
  return self.time
end

--- Waits in the time of this world.
---@async
function Pretend:rest(seconds)
  if seconds <= 0 then return end
  local event, at = core.event(), self.time + math.max(seconds, 1e-6) -- time moves, however little is left
  local first, past = 1, #self.moments + 1
  while first < past do
    local middle = (first + past) // 2
    if self.moments[middle].at < at then first = middle + 1 else past = middle end
  end
  local moment = self.moments[first]
  if not moment or moment.at ~= at then
    moment = { at = at, events = {} }
    table.insert(self.moments, first, moment)
  end
  table.insert(moment.events, event) -- behind those that were there
  event:wait()
end

--- Moves the time on to the next moment that somebody waits for, whenever nothing else goes on; until close().
---@async
---@param is_busy fun(): boolean
function Pretend:serve(is_busy)
  local idle = 0
  while self.active do
    core.sleep(0)
    idle = is_busy() and 0 or idle + 1
    if idle >= calm and self.moments[1] then
      idle = 0
      local moment = table.remove(self.moments, 1)
      self.time = math.max(self.time, moment.at)
      self:look_at_alarm()
      for _, event in ipairs(moment.events) do event:set() end
    elseif idle > calm then
      core.sleep(0.001) -- somebody looks at the real world
    end
  end
end

--- Has something happen once the time has gone on for so long; it does not go on for that.
---@param seconds number
---@param action fun()
function Pretend:set_alarm(seconds, action)
  self.alarm = { at = self.time + seconds, action = action }
end

---@private
function Pretend:look_at_alarm()
  local alarm = self.alarm
  if not alarm or self.time < alarm.at then return end
  self.alarm = nil
  alarm.action()
end

function Pretend:close()
  self.active = false
end

local function look(self, spec, empty)
  if not self.real then return empty end
  return self.real:perform(spec, "")
end

--- What is known of a host; looked up once.
local function host_of(self, host)
  local known = self.hosts[host.name]
  if not known then
    known = look(self, { name = "instance.list", host = host, args = {} }, { slots = {}, listening = {}, origins = {} })
    known.releases = look(self, { name = "release.list", host = host, args = {} }, {})
    known.name, self.hosts[host.name] = host.name, known
  end
  return known
end

local function slots_of(self)
  self.balancer = self.balancer or look(self, { name = "balancer.read", args = {} }, { slots = {} })
  return self.balancer.slots
end

local function slot_at(known, port)
  for i, slot in ipairs(known.slots) do
    if slot.port == port then return slot, i end
  end
end

local rooms = { instance = {}, release = {}, balancer = {}, host = {}, stranger = {}, metric = {} }

function rooms.instance:list(known)
  return { slots = table.move(known.slots, 1, #known.slots, 1, {}), listening = known.listening, origins = known.origins, current = known.current }
end

function rooms.instance:show(known, args)
  return slot_at(known, args.port) or { host = known.name, port = args.port, state = "none", pid = 0 }
end

function rooms.instance:owner(_, args, spec)
  return self.real and look(self, { name = "instance.owner", host = spec.host, args = args }) or nil
end

function rooms.instance:start(known, args)
  self.pids = self.pids + 1
  local _, at = slot_at(known, args.port)
  known.slots[at or #known.slots + 1] = { host = known.name, port = args.port, state = "running", pid = self.pids, launch = args.launch }
  return { pid = self.pids }
end

rooms.instance.restore = rooms.instance.start

function rooms.instance:stop(known, args)
  local _, at = slot_at(known, args.port)
  if at then table.remove(known.slots, at) end
  return { stopped = at ~= nil }
end

--- At the earliest: so many probes in a row, each after its interval.
function rooms.instance:await_healthy(_, args)
  self:rest(args.health.interval * (args.health.successes - 1))
  return { seconds = 0 }
end

function rooms.instance:probe()
  return { healthy = true }
end

function rooms.release:list(known)
  return known.releases
end

function rooms.release:upload(known, args)
  known.releases[args.release] = { sha256 = args.sha256, time = math.floor(core.time()) }
  return { bytes = 0 }
end

function rooms.release:remove(known, args)
  known.releases[args.release] = nil
  return {}
end

function rooms.release:current(known)
  return { release = known.current or false }
end

function rooms.release:activate(known, args)
  known.current = args.release
  return {}
end

function rooms.balancer:read()
  local copy = {}
  for name, slot in pairs(slots_of(self)) do
    copy[name] = { state = slot.state, weight = slot.weight, up = slot.up, sessions = slot.sessions, disputed = slot.disputed, left = slot.left }
  end
  local seen = self.balancer
  return { slots = copy, route = seen.route, down = seen.down, others = seen.others, halted = seen.halted, differ = seen.differ, outdated = seen.outdated }
end

function rooms.balancer:routed()
  slots_of(self)
  return { route = self.balancer.route or false }
end

function rooms.balancer:route(_, args)
  slots_of(self)
  self.balancer.route = args.route or nil
  return {}
end

function rooms.balancer:find(_, args)
  local slots, found = slots_of(self), {}
  for i, change in ipairs(args.changes) do
    local slot = slots[change.slot] or { state = "maint", weight = 0 }
    found[i] = { slot = change.slot, state = slot.state, weight = slot.weight }
  end
  return found
end

function rooms.balancer:apply(_, args)
  local slots = slots_of(self)
  for _, change in ipairs(args.changes) do
    local slot = slots[change.slot] or { sessions = 0, up = true, weight = 0, state = "maint" }
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
    slots[change.slot] = slot
  end
  return {}
end

rooms.balancer.restore = rooms.balancer.apply

function rooms.balancer:adopt(_, args)
  rooms.balancer.apply(self, nil, args)
  self.balancer.differ = nil
  return {}
end

function rooms.balancer:await_drained()
  return { drained = true }
end

function rooms.balancer:stats()
  return {}
end

function rooms.balancer:prepare()
  slots_of(self)
  self.balancer.down, self.balancer.halted, self.balancer.outdated = nil, nil, nil
  return {}
end

function rooms.balancer:agree()
  return {}
end

for _, name in ipairs { "stop", "unprepare", "examine", "down" } do rooms.balancer[name] = rooms.balancer.agree end

function rooms.stranger:look(_, args, spec)
  return look(self, { name = "stranger.look", host = spec.host, args = args }, nil)
end

function rooms.stranger:adopt(known, args)
  table.insert(known.slots, { host = known.name, port = args.port, state = "running", pid = args.process.pid, launch = args.launch })
  return { pid = args.process.pid }
end

rooms.stranger.disown = rooms.instance.stop

function rooms.stranger:forget()
  return {}
end

function rooms.host:run()
  return { status = 0, stdout = "", stderr = "" }
end

function rooms.host:hook()
  return { output = "" }
end

function rooms.metric:read()
  return { problem = "nothing is counted in a plan" }
end

--- Performs one operation in this world.
---@async
---@param spec deployrt.Operation
function Pretend:perform(spec)
  local room, name = spec.name:match("^(%w+)%.([%w_]+)$")
  local act = rooms[room] and rooms[room][name]
  if not act then errors.raise("internal", "no such operation: " .. spec.name) end
  self.performed = (self.performed or 0) + 1
  return act(self, spec.host and host_of(self, spec.host), spec.args, spec)
end

--- Nothing of a pretended world was done before.
function Pretend:recall() end

--- Nothing goes on in a pretended world that could be given up.
function Pretend:forsake() end

return pretend
