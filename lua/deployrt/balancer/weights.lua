-- weights.lua -- What an instance of a run weighs, and all of them together, by what gets traffic when the run begins.
local weights = {}

weights.usual = 100
local least = 100 -- of a smaller sum a percent cannot be told

---@class deployrt.Weights
---@field full integer  of an instance that serves as all others do
---@field most? integer  of all instances of the run together, where a share must take nothing from others; nil: anything
---@field odd table<string, integer>  what slots weigh that do not weigh that
---@field raised? {times: integer, full: integer, most: integer}  the same once all that serve weigh so many times as much, for a
---  share to take nothing from others; nil: it need not be, or nobody can
---@field dwarfed? deployrt.OtherServer  who gets next to nothing beside a share

--- The one that most have; of those that are as frequent the largest.
local function most_frequent(list)
  local count, best = {}, nil
  for _, weight in ipairs(list) do
    count[weight] = (count[weight] or 0) + 1
    local more = best and count[weight] - count[best]
    if not best or more > 0 or more == 0 and weight > best then best = weight end
  end
  return best
end

local function sum_of(list)
  local sum = 0
  for _, each in ipairs(list) do sum = sum + each end
  return sum
end

--- The one that all have.
local function common(list)
  for _, weight in ipairs(list) do
    if weight ~= list[1] then return nil end
  end
  return list[1]
end

--- The weights of what gets traffic: of the run's own slots, of those that it is not about, and of servers that no slot is for.
local function found(balancer, is_elsewhere)
  local own, left_out, foreign = {}, {}, {}
  for name, slot in pairs(balancer.slots) do
    local serves = slot.state == "ready" and slot.weight > 0 and slot.up ~= false
    if serves then table.insert(is_elsewhere(name) and left_out or own, slot.weight) end
  end
  for _, other in ipairs(balancer.others) do foreign[#foreign + 1] = other.weight end
  return own, left_out, foreign
end

--- A run that never ended left more instances than are wanted, and shares: all together weigh what they weighed before it.
local function full_of(own, left_out, wanted)
  if #own == 0 or #own == wanted or wanted == 0 then return most_frequent(own) end
  local each = math.max(1, math.floor(sum_of(own) / wanted + 0.5))
  return (not common(own) or each == common(left_out)) and each or most_frequent(own)
end

local function differ(others)
  for _, other in ipairs(others) do
    if other.differs then return true end
  end
  return false
end

--- What a run weighs that is the first: of several balancers, where all others weigh the same on all of them.
local function first_of(balancer, besides)
  if balancer.several then return not differ(balancer.others) and common(besides) or nil end
  return most_frequent(besides)
end

local function raised(full, own, left_out, heaviest)
  local sum = sum_of(own)
  local times = math.ceil(least / sum)
  local fits = math.max(full, table.unpack(own)) * times <= heaviest and math.max(table.unpack(left_out)) * times <= heaviest
  return fits and { times = times, full = full * times, most = sum * times } or nil
end

--- One's own balancer comes up with weights of its configuration, and beside a weight of 1 one of 100 would get nearly all of the
--- traffic. Where several balancers have different ones, none fits all.
---@param balancer deployrt.Balancer  as it was read
---@param is_elsewhere fun(slot: string): boolean  slots that the run is not about
---@param wanted integer  instances that serve when all is well
---@param heaviest integer  the largest weight that balancers take
---@return deployrt.Weights
function weights.of(balancer, is_elsewhere, wanted, heaviest)
  local own, left_out, foreign = found(balancer, is_elsewhere)
  local besides = table.move(foreign, 1, #foreign, #left_out + 1, table.move(left_out, 1, #left_out, 1, {}))
  local full = not balancer.differ and full_of(own, left_out, wanted) or first_of(balancer, besides) or weights.usual
  local sum, odd = sum_of(own), {}
  for name, slot in pairs(balancer.slots) do odd[name] = slot.weight ~= full and slot.weight or nil end
  local result = { full = full, odd = odd }
  if #besides == 0 or sum == 0 then return result end
  if sum >= least then
    result.most = sum
  elseif #foreign == 0 then
    result.raised = raised(full, own, left_out, heaviest)
  else
    result.dwarfed = balancer.others[1]
  end
  return result
end

return weights
