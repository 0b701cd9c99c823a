-- sim/tally.lua -- Who gets how much of the traffic and who could carry it, kept up to date by what happens: a fleet of
-- thousands is not looked through for each event.
local core = require "deployrt.core"
local machine = require "deployrt.sim.machine"
local slot_name = require "deployrt.slot_name"

---@class deployrt.sim.Side  the slots that run the new release, or did until it died there, or all others
---@field name string
---@field open integer      that requests may come to
---@field routed integer    that get requests which are told apart
---@field weight integer    sum, of those that are ready
---@field weights table<integer, integer>  how many of them have each weight
---@field able_ready integer   that can serve, and are ready with a weight
---@field able_routed integer  that can serve, and get routed requests
---@field able_both integer    that are both

---@class deployrt.sim.Tally
---@field new deployrt.sim.Side
---@field old deployrt.sim.Side
---@field serving integer   open slots whose process serves well, or would if no fault had hit it
local Tally = {}
Tally.__index = Tally

local tally = {}

local function new_side(name)
  return { name = name, open = 0, routed = 0, weight = 0, weights = {}, able_ready = 0, able_routed = 0, able_both = 0 }
end

--- A tally of the world as it is now.
---@param world deployrt.sim.World
---@return deployrt.sim.Tally
function tally.new(world)
  local self = setmetatable({ world = world, new = new_side("new"), old = new_side("old"), serving = 0, parts = {} }, Tally)
  for _, slot in ipairs(world.balancer.slots) do self:recount(slot) end
  return self
end

--- What a slot adds to its side.
local function part_of(self, slot)
  local process, last = slot.machine:running(slot.port), slot.machine.processes[slot.port]
  local fit = slot.hurt or (process and process.hurt) or machine.is_healthy(process, core.now())
  local open, set = self.world.balancer:is_open(slot), slot.lost or slot -- who closes what is dead takes nothing away
  local ready = (open or slot.hurt) and set.state == "ready" and set.weight > 0
  return {
    side = last and last.release == self.world.target.release and self.new or self.old, open = open and 1 or 0,
    routed = slot.routed and 1 or 0, weight = ready and set.weight or 0, able_ready = fit and ready and 1 or 0,
    able_routed = fit and slot.routed and 1 or 0, able_both = fit and ready and slot.routed and 1 or 0, serving = fit and (open or slot.lost ~= nil) and 1 or 0,
  }
end

local counted = { "open", "routed", "weight", "able_ready", "able_routed", "able_both" }

local function add(self, part, sign)
  local weights = part.side.weights
  local count = (weights[part.weight] or 0) + sign
  weights[part.weight] = count > 0 and count or nil
  for _, key in ipairs(counted) do part.side[key] = part.side[key] + sign * part[key] end
  self.serving = self.serving + sign * part.serving
end

--- Counts a slot as it is now.
---@param slot deployrt.sim.Slot
function Tally:recount(slot)
  local before, part = self.parts[slot], part_of(self, slot)
  if before then add(self, before, -1) end
  add(self, part, 1)
  self.parts[slot] = part
end

--- Takes in what has happened.
---@param event table
function Tally:hear(event)
  local named = self.world.balancer.named
  if event.kind == "traffic" then
    for _, change in ipairs(event.changes) do self:recount(named[change.slot]) end
  elseif event.process then
    self:recount(named[slot_name.of(event.host, event.port)])
  end
end

--- The part of requests that are told apart and go to the routed slots, 0 to 1.
local function apart(self)
  return self.new.routed + self.old.routed > 0 and self.world.balancer.route.percent / 100 or 0
end

--- The percentage of the requests that a part of the slots gets; no rule fits a simulated request.
local function share_of(self, part)
  local routed, weight, told = self.new.routed + self.old.routed, self.new.weight + self.old.weight, apart(self)
  return 100 * ((routed > 0 and told * part.routed / routed or 0) + (weight > 0 and (1 - told) * part.weight / weight or 0))
end

--- The percentage of the requests that a side gets.
---@param side deployrt.sim.Side
---@return number
function Tally:share(side)
  return share_of(self, side)
end

--- The largest percentage of the requests that goes to one slot of a side by its weight.
---@param side deployrt.sim.Side
---@return number
function Tally:heaviest(side)
  local most = 0
  for weight in pairs(side.weights) do most = math.max(most, weight) end
  return share_of(self, { routed = 0, weight = most })
end

--- How many of a side get requests and can serve them.
---@param side deployrt.sim.Side
---@return integer
function Tally:able(side)
  local told = apart(self)
  if told == 0 then return side.able_ready end
  return told == 1 and side.able_routed or side.able_ready + side.able_routed - side.able_both
end

return tally
