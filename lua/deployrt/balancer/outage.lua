-- outage.lua -- Before traffic moves: whether the balancer's host reaches anybody who is to take over.
local outage = {}

--- Slots that get traffic after the changes and did not before.
local function entering(slots, changes)
  local names = {}
  for _, change in ipairs(changes) do
    local enters = change.state == "ready" and slots[change.slot].state ~= "ready"
    if enters then names[#names + 1] = change.slot end
  end
  return names
end

local function takes_traffic(slots, changes)
  for _, change in ipairs(changes) do
    local slot = slots[change.slot]
    local leaves = (change.state or "ready") ~= "ready" or change.weight == 0
    if leaves and slot.state == "ready" and slot.weight > 0 and slot.up ~= false then return true end
  end
  return false
end

local function slot_named(context, name)
  for _, slot in ipairs(context.slots) do
    if slot.name == name then return slot end
  end
end

--- Why nobody at these slots would answer: a balancer may count a server as up until its first check, or not check at all, so
--- its host connects to each one itself. nil when somebody can be reached from there, or there are none.
---@async
---@param context deployrt.DriverContext
---@param names string[]  of slots
---@return string? problem
---@return string? detail
function outage.silence(context, names)
  local why
  for _, name in ipairs(names) do
    local slot = slot_named(context, name)
    local ok, err = context.host:reaches(slot.address, slot.port, 2)
    if ok then return nil end
    why = why or err
  end
  if #names == 0 then return nil end
  return ("it cannot reach %s, so traffic stays where it is: can %s connect to it?"):format(
    table.concat(names, ", "), context.host.name), type(why) == "table" and why.message or why
end

--- Why a change would leave nobody to answer; nil when somebody who is to take over can be reached.
---@async
---@param context deployrt.DriverContext
---@param slots table<string, {state: deployrt.SlotState, weight: integer, up?: boolean}>  before the changes
---@param changes deployrt.SlotChange[]
---@return string? problem
---@return string? detail
function outage.expected(context, slots, changes)
  if not takes_traffic(slots, changes) then return nil end
  return outage.silence(context, entering(slots, changes))
end

return outage
