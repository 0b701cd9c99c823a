-- forgotten.lua -- Instances that served, and that the balancer does not know any more: not at all, or not at their host's address.
local elsewhere = require "deployrt.elsewhere"
local slot_name = require "deployrt.slot_name"

local forgotten = {}

local function kind_of(launch)
  return launch.release .. "\t" .. launch.settings
end

--- Slots whose host has another address now, and that serve at the one that it had; and whether anything serves that app.yml
--- does not name.
local function served_as(balancer)
  local found, left = {}, elsewhere.left(balancer)
  for _, name in ipairs(left) do
    local successor = slot_name.successor(name)
    if successor then found[successor] = true end
  end
  return found, #left > 0
end

--- What serves, by release and settings: nothing is known of it at addresses that app.yml does not name but what was deployed last.
local function serving(run)
  local kinds, serves = {}, false
  if run.last then kinds[kind_of(run.last.launch)] = true end
  for _, member in ipairs(run.fleet.members) do
    if member.state == "serving" then kinds[kind_of(member.launch)], serves = true, true end
  end
  return kinds, serves
end

--- Whether an instance is as it was when it served, on a host that has a current release.
local function is_settled(member)
  local current = member.host.current
  return member.state ~= "serving" and not member.stranger and (current == nil or current == member.release)
end

--- They are on hosts that have another address now, and are what serves; or no one serves, as after a reload, and they are of one
--- release, with slots that the balancer does not know.
---@param run table
---@return deployrt.Instance[]
function forgotten.find(run)
  local balancer, list = run.balancer, {}
  if not balancer:exists() or balancer.down then return {} end
  local former, serves_left = served_as(balancer)
  local kinds, serves = serving(run)
  for _, member in ipairs(run.fleet.members) do
    local is_lost = not balancer.slots[member.slot]
    if serves or serves_left then is_lost = former[member.slot] and kinds[kind_of(member.launch)] end
    if is_lost and is_settled(member) then list[#list + 1] = member end
  end
  for _, member in ipairs(list) do
    if not (serves or serves_left) and member.launch.settings ~= list[1].launch.settings then return {} end
  end
  return list
end

return forgotten
