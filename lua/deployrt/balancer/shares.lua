-- shares.lua -- Weights that split traffic exactly, whatever the numbers of instances.
local shares = {}

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

--- The best pair of totals when no exact one fits: the nearest ratio within the limits.
local function nearest(share, new_limit, old_limit)
  local best_new, best_old, least = 1, old_limit, math.huge
  for old = 1, old_limit do
    local new = math.max(1, math.min(new_limit, math.floor(old * share / (1 - share) + 0.5)))
    local off = math.abs(new / (new + old) - share)
    if off < least then best_new, best_old, least = new, old, off end
  end
  return best_new, best_old
end

--- The totals for both sides: the largest multiple of the reduced ratio that fits, one that divides evenly if there is one.
local function totals(percent, new_count, old_count, max)
  local p = math.floor(percent * 1000 + 0.5)
  local q = 100000 - p
  local divisor = gcd(p, q)
  p, q = p // divisor, q // divisor
  local most = math.min(max * new_count // p, max * old_count // q)
  if most < 1 then return nearest(percent / 100, max * new_count, max * old_count) end
  for k = most, 1, -1 do
    if (k * p) % new_count == 0 and (k * q) % old_count == 0 then return k * p, k * q end
  end
  return most * p, most * q
end

--- Weights of each side's instances, so that the new side gets `percent` of the requests.
---@param percent number     0 to 100, to a thousandth
---@param new_count integer
---@param old_count integer
---@param max? integer       largest weight of one instance, default 256
---@return integer[] new
---@return integer[] old
---@return number reached    the percentage that the weights give
function shares.weights(percent, new_count, old_count, max)
  max = max or 256
  if new_count == 0 then return {}, spread(100 * old_count, old_count), 0 end
  if old_count == 0 then return spread(100 * new_count, new_count), {}, 100 end
  if percent <= 0 then return spread(0, new_count), spread(100 * old_count, old_count), 0 end
  if percent >= 100 then return spread(100 * new_count, new_count), spread(0, old_count), 100 end
  local new, old = totals(percent, new_count, old_count, max)
  return spread(new, new_count), spread(old, old_count), 100 * new / (new + old)
end

return shares
