-- shares.lua -- Weights that split traffic exactly, whatever the numbers of instances.
local shares = {}

local default_max = 256 -- the largest weight that HAProxy takes

local function gcd(a, b)
  while b ~= 0 do a, b = b, a % b end
  return a
end

--- Spreads a total over `count` instances as evenly as integers allow.
local function spread(total, count)
  local list = {}
  for i = 1, count do list[i] = total // count + (i <= total % count and 1 or 0) end
  return list
end

--- A percentage as a reduced fraction; six decimals are told apart.
local function fraction(percent)
  local part, whole = math.floor(percent * 1000000 + 0.5), 100000000
  local divisor = gcd(part, whole)
  return part // divisor, whole // divisor
end

--- How far the largest and the smallest weight of a side are apart: what a total costs in evenness.
local function unevenness(new, old, new_count, old_count)
  return (new % new_count == 0 and 0 or new_count / new) + (old % old_count == 0 and 0 or old_count / old)
end

--- The multiple of the exact ratio that spreads most evenly; the largest of those that are alike.
local function exact(part, rest, new_count, old_count, max)
  local most = math.min(max * new_count // part, max * old_count // rest)
  local best, least = nil, math.huge
  for k = most, 1, -1 do
    local cost = unevenness(k * part, k * rest, new_count, old_count)
    if cost < least then best, least = k, cost end
    if cost == 0 then break end
  end
  if best then return best * part, best * rest end
end

--- The nearest totals when no exact ones fit. Neither side gets nothing: a share asked for is never zero.
local function nearest(share, new_limit, old_limit)
  local best_new, best_old, least = 1, old_limit, math.huge
  for old = old_limit, 1, -1 do
    local ideal = old * share / (1 - share)
    for _, rounded in ipairs { math.floor(ideal), math.ceil(ideal) } do
      local new = math.max(1, math.min(new_limit, rounded))
      local off = math.abs(new / (new + old) - share)
      if off < least then best_new, best_old, least = new, old, off end
    end
  end
  return best_new, best_old
end

--- Totals with a given sum, as near to the share as that allows; a smaller sum where one side cannot weigh as much.
local function parts_of(sum, percent, new_limit, old_limit)
  sum = math.floor(math.min(sum, 100 * new_limit / percent, 100 * old_limit / (100 - percent)))
  local new = math.max(1, math.min(math.floor(sum * percent / 100 + 0.5), sum - 1))
  return math.min(new, new_limit), math.min(sum - new, old_limit)
end

local function totals(percent, new_count, old_count, max, sum)
  local new_limit, old_limit = max * new_count, max * old_count
  if percent <= 0 or new_count == 0 then return 0, math.min(sum or old_limit, old_limit) end
  if percent >= 100 or old_count == 0 then return math.min(sum or new_limit, new_limit), 0 end
  if sum then return parts_of(sum, percent, new_limit, old_limit) end
  local part, whole = fraction(percent)
  local new, old
  if part > 0 and part < whole then new, old = exact(part, whole - part, new_count, old_count, max) end
  if new then return new, old end
  return nearest(percent / 100, new_limit, old_limit)
end

--- Weights of each side's instances, so that the new side gets `percent` of the requests: exactly where
--- integers allow it, else as near as they do. A side without instances gets nothing, and the other one everything.
---@param percent number     0 to 100; fractions such as 0.5 are fine
---@param new_count integer  instances of the new release
---@param old_count integer  instances of the old one
---@param max? integer       largest weight of one instance, default 256
---@param sum? integer       what all weigh together, at most; default: what suits the share best
---@return integer[] new     a weight for each new instance, 0 to max
---@return integer[] old     a weight for each old instance
---@return number reached    the percentage that these weights give
function shares.weights(percent, new_count, old_count, max, sum)
  max = max or default_max
  local new, old = totals(percent, new_count, old_count, max, sum)
  local reached = new + old > 0 and 100 * new / (new + old) or 0
  return spread(new, new_count), spread(old, old_count), reached
end

return shares
