-- world/pretend.lua -- A world that only pretends: it begins as the real one is, answers the same operations, and changes
-- nothing but what it remembers. Its time goes on when everybody waits.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Pretend: deployrt.World
---@field real? deployrt.World   where it looks first; without, hosts are empty
---@field hosts table<string, table>  what it remembers of each
---@field time number            seconds since it began
local Pretend = {}
Pretend.__index = Pretend

local pretend = {}

---@param real? deployrt.World
---@return deployrt.Pretend
function pretend.new(real)
  return setmetatable({ real = real, hosts = {}, time = 0, waiting = {}, active = true, pids = 0 }, Pretend)
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
  local event = core.event()
  table.insert(self.waiting, { at = self.time + math.max(seconds, 1e-6), event = event }) -- time moves, however little is left
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
    if idle >= 3 and self.waiting[1] then
      idle = 0
      table.sort(self.waiting, function(a, b) return a.at < b.at end)
      local first = table.remove(self.waiting, 1)
      self.time = math.max(self.time, first.at)
      first.event:set()
    elseif idle > 3 then
      core.sleep(0.001) -- somebody looks at the real world
    end
  end
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
    known = look(self, { name = "instance.list", host = host, args = {} }, { slots = {}, listening = {} })
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

local rooms = { instance = {}, release = {}, balancer = {}, host = {} }

function rooms.instance:list(known)
  return { slots = table.move(known.slots, 1, #known.slots, 1, {}), listening = known.listening, current = known.current }
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
  return { slots = slots_of(self) }
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

rooms.balancer.restore, rooms.balancer.adopt = rooms.balancer.apply, rooms.balancer.apply

function rooms.balancer:await_drained()
  return { drained = true }
end

function rooms.balancer:stats()
  return {}
end

function rooms.balancer:prepare()
  return {}
end

rooms.balancer.stop = rooms.balancer.prepare

function rooms.host:run()
  return { status = 0, stdout = "", stderr = "" }
end

function rooms.host:hook()
  return { output = "" }
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
