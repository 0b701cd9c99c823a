-- outage.lua -- Before traffic moves: whether the balancer's host reaches those who are to take over.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local outage = {}

--- Slots that get traffic after the changes and did not before.
local function entering(slots, changes)
  local names = {}
  for _, change in ipairs(changes) do
    local enters = change.state == "ready" and slots[change.slot].state ~= "ready" and change.weight ~= 0
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

--- Why nobody of those that would go on serving gets requests: they are down for the balancer, whatever app.yml's health says. nil when one
--- does; that none is to go on is another's to judge.
local function only_down(slots, changes)
  local after, down = {}, {}
  for name, slot in pairs(slots) do after[name] = { state = slot.state, weight = slot.weight, up = slot.up } end
  for _, change in ipairs(changes) do
    local slot = after[change.slot]
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
  end
  for name, slot in pairs(after) do
    if slot.state == "ready" and slot.weight > 0 then
      if slot.up ~= false then return nil end
      down[#down + 1] = name
    end
  end
  if #down == 0 then return nil end
  table.sort(down)
  return ("it finds down all that would be left to serve (%s), so traffic stays where it is: what do its own health checks ask for?"):format(table.concat(down, ", "))
end

local function slot_named(context, name)
  for _, slot in ipairs(context.slots) do
    if slot.name == name then return slot end
  end
end

local function text_of(why)
  return type(why) == "table" and why.message or why
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
    table.concat(names, ", "), context.host.name), text_of(why)
end

local at_once = 50   -- connections
local patience = 2   -- seconds for one that is refused: a service may listen here a moment later than there

--- Whether the balancer's host reaches a slot; it has a moment for that.
local function is_reached(context, slot)
  local deadline = core.now() + patience
  while true do
    local ok, err = context.host:reaches(slot.address, slot.port, 2)
    if ok or core.now() >= deadline then return ok, err end
    errors.check(core.sleep(0.1))
  end
end

--- Why not all of these slots would answer; nil when they would.
local function gap(context, names)
  local missing, why = {}, nil
  for first = 1, #names, at_once do
    local tasks = {}
    for i = first, math.min(#names, first + at_once - 1) do
      tasks[#tasks + 1] = core.spawn(function()
        local ok, err = is_reached(context, slot_named(context, names[i]))
        if not ok then missing[#missing + 1], why = names[i], why or err end
      end)
    end
    for _, task in ipairs(tasks) do task:wait() end
  end
  if #missing == 0 then return nil end
  table.sort(missing)
  return ("it cannot reach %s, which would get traffic: does the service listen on more than 127.0.0.1 there, and can %s connect to it?"):format(
    table.concat(missing, ", "), context.host.name), text_of(why)
end

--- Why a change would leave requests without an answer. On the way forward each one that is to get traffic must be reached, and
--- one that the balancer finds up must be left, unless a gap is allowed; when what was so is put back, it is enough that somebody is
--- reached.
---@async
---@param context deployrt.DriverContext
---@param slots table<string, {state: deployrt.SlotState, weight: integer, up?: boolean}>  before the changes
---@param changes deployrt.SlotChange[]
---@param forward? "serve"|"gap"
---@return string? problem
---@return string? detail
function outage.expected(context, slots, changes, forward)
  local names, takes = entering(slots, changes), takes_traffic(slots, changes)
  local problem = forward == "serve" and takes and #names == 0 and only_down(slots, changes)
  if problem then return problem end
  if forward then return gap(context, names) end
  if not takes then return nil end
  return outage.silence(context, names)
end

return outage
