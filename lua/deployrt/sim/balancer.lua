-- sim/balancer.lua -- A simulated balancer, its driver, and the traffic that it spreads over slots.
local core = require "deployrt.core"
local names_of = require("deployrt.balancer.driver").names_of
local errors = require "deployrt.errors"
local machine = require "deployrt.sim.machine"
local routes = require "deployrt.balancer.route"
local slot_name = require "deployrt.slot_name"

---@class deployrt.sim.Slot
---@field name string
---@field host string
---@field port integer
---@field state "ready"|"drain"|"maint"
---@field weight integer
---@field routed boolean   requests that are told apart go there
---@field since number     when its state, weight or route last changed
---@field drained_at number  when the last request of those that it had ends
---@field requests number
---@field errors number
---@field lost? {state: string, weight: integer}  before it was closed because a fault had taken its process: until it is back

---@class deployrt.sim.Balancer
---@field slots deployrt.sim.Slot[]
---@field named table<string, deployrt.sim.Slot>
---@field demand number    requests a second
---@field route? deployrt.Route  who gets the routed slots, where requests are told apart
---@field counted? number   until when requests were counted
---@field lives integer    one more with each restart
---@field pending integer  changes that will come late
---@field dirty boolean    somebody else changed it, and nobody has set all of it right yet
---@field absent boolean   app.yml has none: clients come to whatever runs
local Balancer = {}
Balancer.__index = Balancer

local balancer = {}

local check_takes = 2   -- seconds until a balancer's own health check takes a dead slot out
local patience = 10     -- seconds in which a change must be seen

---@param world deployrt.sim.World
---@return deployrt.sim.Balancer
function balancer.new(world)
  local self = setmetatable({ world = world, slots = {}, named = {}, demand = 0, lives = 1, pending = 0, dirty = false, absent = #world.app.balancers == 0, random = world:stream("balancer") }, Balancer)
  for _, host in ipairs(world.machines) do
    for _, port in ipairs(world.ports) do
      local slot = {
        name = slot_name.of(host.name, port), host = host.name, machine = host, port = port, state = self.absent and "ready" or "maint", weight = 100, since = 0, routed = false,
        drained_at = 0, left_at = 0, requests = 0, errors = 0,
      }
      self.slots[#self.slots + 1], self.named[slot.name] = slot, slot
    end
  end
  return self
end

--- Whether requests may come to a slot: as one of all, or as one that only routed requests go to.
---@param slot deployrt.sim.Slot
---@return boolean
function Balancer:is_open(slot)
  if self.absent then return slot.machine:running(slot.port) ~= nil end
  return slot.routed or (slot.state == "ready" and slot.weight > 0)
end

--- Whether the balancer sends requests to a slot: its own health check needs a moment to see a dead one.
function Balancer:feeds(slot)
  if not self:is_open(slot) then return false end
  local process = slot.machine:running(slot.port)
  if process and (process.ready_at <= core.now() or process.sick_from) then return true end
  return core.now() - math.max(slot.since, process and process.started or slot.died_at or 0) < check_takes
end

--- The part of the requests that goes to each slot which is accepted. No rule fits a simulated request.
---@param accepts fun(slot: deployrt.sim.Slot): boolean
---@return table<string, number>  0 to 1, by name
function Balancer:parts(accepts)
  local parts, weights, routed = {}, 0, 0
  for _, slot in ipairs(self.slots) do
    if accepts(slot) then
      parts[slot.name] = 0
      if slot.state == "ready" then weights = weights + slot.weight end
      if slot.routed then routed = routed + 1 end
    end
  end
  local apart = routed > 0 and self.route.percent / 100 or 0
  for _, slot in ipairs(self.slots) do
    local name = slot.name
    if parts[name] and slot.routed then parts[name] = apart / routed end
    if parts[name] and slot.state == "ready" and weights > 0 then parts[name] = parts[name] + (1 - apart) * slot.weight / weights end
  end
  return parts
end

--- Counts the requests of the time that has passed. Counters are compared with earlier ones: nothing is counted before
--- somebody has asked for them.
function Balancer:count()
  local now = core.now()
  local seconds = self.counted and now - self.counted or 0
  self.counted = self.counted and now
  if seconds <= 0 then return end
  local parts = self:parts(function(slot) return self:feeds(slot) end)
  for _, slot in ipairs(self.slots) do
    if parts[slot.name] then
      local requests = self.demand * seconds * parts[slot.name]
      local process = slot.machine:running(slot.port)
      local rate = machine.is_healthy(process, now) and (process.error_rate or 0) or 1
      slot.requests, slot.errors = slot.requests + requests, slot.errors + requests * rate
    end
  end
end

local function sessions(slot, fed, now)
  if fed then return 2 end
  return now < slot.drained_at and 1 or 0
end

--- Changes slots at once, and tells who looks what they were before.
---@param changes {slot: string, state?: string, weight?: integer, routed?: boolean}[]
---@param by string   "run", or a fault
local function change_slots(self, changes, by)
  local now, before = core.now(), {}
  for i, change in ipairs(changes) do
    local slot = self.named[change.slot]
    local fed = self:feeds(slot)
    before[i] = { state = slot.state, weight = slot.weight, routed = slot.routed, open = self:is_open(slot) }
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
    if change.routed ~= nil then slot.routed = change.routed end
    if slot.state ~= "maint" then slot.reopened = by ~= "run" and before[i].state == "drain" and slot.state == "ready" end
    local is_lost = slot.hurt and not slot.machine:running(slot.port) and before[i].state == "ready" and slot.state == "maint"
    slot.lost = is_lost and before[i] or slot.state ~= "ready" and slot.lost or nil
    if before[i].state ~= slot.state or before[i].weight ~= slot.weight or before[i].routed ~= slot.routed then slot.since = now end
    if fed and not self:is_open(slot) then slot.left_at, slot.drained_at = now, now + self.world.faults:session_length(self.random) end
  end
  self.world:note("traffic", { changes = changes, before = before, by = by })
end

--- Sets states, whoever asks.
---@param changes {slot: string, state?: string, weight?: integer}[]
---@param by string   "run", or a fault
function Balancer:set(changes, by)
  self:count()
  change_slots(self, changes, by)
end

--- Tells requests apart from now on, or none any more.
---@param wanted? deployrt.Route
---@param by string
function Balancer:reroute(wanted, by)
  self:count()
  local has, changes = {}, {}
  for _, name in ipairs(wanted and wanted.slots or {}) do has[name] = true end
  self.route = wanted
  for _, slot in ipairs(self.slots) do
    if slot.routed or has[slot.name] then changes[#changes + 1] = { slot = slot.name, routed = has[slot.name] or false } end
  end
  change_slots(self, changes, by)
end

local function row_of(self, slot, now)
  local fed = self:feeds(slot)
  return { state = slot.state, weight = slot.weight, up = fed, sessions = sessions(slot, fed, now) }
end

--- What the balancer says of slots.
---@param names? string[]  default: of all
local function snapshot(self, names)
  local rows, now = {}, core.now()
  if names then
    for _, name in ipairs(names) do rows[name] = row_of(self, self.named[name], now) end
  else
    for _, slot in ipairs(self.slots) do rows[slot.name] = row_of(self, slot, now) end
  end
  return rows
end

--- The driver: what the runtime holds of it.
---@class deployrt.sim.Driver
local Driver = {}
Driver.__index = Driver

--- What the runtime talks to: a driver of this balancer.
---@return deployrt.Driver
function balancer.driver(self)
  return setmetatable({ balancer = self, world = self.world }, Driver)
end

--- A request on its way. What was sent arrives, whatever becomes of the sender.
local function reach(self)
  self.world:hold()
  core.sleep(self.balancer.random:uniform(0.0005, 0.005))
  if self.balancer.down then errors.raise("refused", "the balancer's socket refuses the connection") end
end

function Driver:check()
  reach(self)
  self.world:hold()
end

function Driver:prepare()
  reach(self)
  self.world:hold()
end

--- A stale answer is that of a moment ago.
---@param names? string[]
function Driver:read(names)
  reach(self)
  local stale = self.balancer.stale
  local seen = stale and core.now() < stale.till and stale or { slots = snapshot(self.balancer, names), route = self.balancer.route }
  self.world:hold()
  return seen
end

local function agrees(slots, changes)
  for _, change in ipairs(changes) do
    local slot = slots[change.slot]
    if change.state and slot.state ~= change.state or change.weight and slot.weight ~= change.weight then return false end
  end
  return true
end

--- Whether somebody else changed something, and the run has not set it right yet.
local function is_dirty(self)
  for _, slot in ipairs(self.slots) do
    if slot.dirty then return true end
  end
  return self.route_lost or false
end

--- What the run asks for is not somebody else's any more.
local function clean(self, changes)
  for _, change in ipairs(changes) do self.named[change.slot].dirty = nil end
  self.dirty = is_dirty(self)
end

--- Somebody else sets states. What the run has not seen yet is how it finds things, and what it puts back: less may serve
--- than the traffic needs, and an empty slot may be open.
---@param by string
function Balancer:disturb(changes, by)
  if not self.known then self.world.hurt = true end
  for _, change in ipairs(changes) do
    local slot = self.named[change.slot]
    slot.found_edited = not self.known or slot.found_edited
    slot.found_open = not self.known and change.state == "ready" or slot.found_open
    if slot.state ~= (change.state or slot.state) or slot.weight ~= (change.weight or slot.weight) then slot.dirty, self.dirty = true, true end
  end
  self:set(changes, by)
end

--- A restart forgets whom it told apart.
---@param by string
function Balancer:lose_route(by)
  if not self.route then return end
  self.route_lost, self.dirty = true, true
  self:reroute(nil, by)
end

local function different(self, changes)
  local list = {}
  for _, change in ipairs(changes) do
    local slot = self.named[change.slot]
    if (change.state and slot.state ~= change.state) or (change.weight and slot.weight ~= change.weight) then list[#list + 1] = change end
  end
  return list
end

--- Has an effect happen, with what faults make of it, and returns when it is seen.
local function carry_out(self, effect, is_seen)
  local owner, started = self.balancer, core.now()
  local fate = self.world.faults:on_apply(owner)
  if fate.stale then owner.stale = { slots = snapshot(owner), route = owner.route, till = core.now() + fate.stale } end
  local life = owner.lives
  local function late_effect() -- a restart forgets what it was still to do
    owner.pending = owner.pending - 1
    if owner.lives == life then effect() end
  end
  if fate.late then
    owner.pending = owner.pending + 1
    self.world.agenda:after(fate.late, late_effect)
  else
    effect()
  end
  if fate.timeout then
    core.sleep(5)
    errors.raise("timeout", "the balancer's socket: no answer within the time allowed")
  end
  while not is_seen() do
    if core.now() - started > patience then errors.raise("timeout", "the balancer does not do what it was asked") end
    core.sleep(0.1)
  end
end

--- Sets states; what is so already is not sent. Tells what was found.
function Driver:apply(changes)
  reach(self)
  local owner, names = self.balancer, names_of(changes)
  local found = snapshot(owner, names)
  if owner.pending == 0 and #different(owner, changes) == 0 then
    if owner.dirty then clean(owner, changes) end
    return found
  end
  local backwards = self.world.backwards
  carry_out(self, function()
    local list = different(owner, changes)
    if #list > 0 then owner:set(list, self.world.backwards == backwards and "run" or "late") end -- the run has turned round since
    if owner.dirty then clean(owner, changes) end
  end, function() return agrees(self:read(names).slots, changes) end)
  return found
end

--- Tells requests apart; nil: none any more.
---@param wanted? deployrt.Route
function Driver:route(wanted)
  reach(self)
  carry_out(self, function()
    local owner = self.balancer
    if not routes.is_same(owner.route, wanted) then owner:reroute(wanted, "run") end
    owner.route_lost = nil
    owner.dirty = is_dirty(owner)
  end, function() return routes.is_same(self:read().route, wanted) end)
end

--- What a restart comes up with.
function Driver:persist(wanted)
  reach(self)
  self.balancer.kept = {}
  for name, state in pairs(wanted) do self.balancer.kept[name] = state end
end

--- Counters: name -> {requests, errors, latency}.
function Driver:stats()
  reach(self)
  self.balancer.counted = self.balancer.counted or core.now()
  self.balancer:count()
  local stats = {}
  for _, slot in ipairs(self.balancer.slots) do
    local process = slot.machine:running(slot.port)
    stats[slot.name] = {
      requests = math.floor(slot.requests), errors = math.floor(slot.errors), latency = process and process.latency or 0.02,
    }
  end
  self.world:hold()
  return self.world.faults:on_stats(stats)
end

function Driver:stop() end

return balancer
