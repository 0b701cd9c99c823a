-- sim/random.lua -- Streams of random numbers that a seed and a name determine, on every machine alike.
local random = {}

---@class deployrt.sim.Random
local Random = {}
Random.__index = Random

--- A stream of its own for each purpose: what one draws does not move the others.
---@param seed integer
---@param name string
---@return deployrt.sim.Random
function random.stream(seed, name)
  local state = seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019
  for i = 1, #name do state = (state ~ name:byte(i)) * 0x100000001B3 end
  return setmetatable({ state = state }, Random)
end

--- 64 bits (splitmix64).
function Random:next()
  self.state = self.state + 0x9E3779B97F4A7C15
  local z = self.state
  z = (z ~ (z >> 30)) * 0xBF58476D1CE4E5B9
  z = (z ~ (z >> 27)) * 0x94D049BB133111EB
  return z ~ (z >> 31)
end

---@param low number
---@param high number
---@return number  from low to below high
function Random:uniform(low, high)
  return low + (self:next() >> 11) * 0x1p-53 * (high - low)
end

---@return integer  from low to high
function Random:integer(low, high)
  return low + (self:next() >> 1) % (high - low + 1)
end

---@param probability number
function Random:chance(probability)
  return self:uniform(0, 1) < probability
end

--- One of a list, each as likely as the others.
function Random:pick(list)
  return list[self:integer(1, #list)]
end

return random
