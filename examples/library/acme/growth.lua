-- growth.lua -- Waves that grow: what several strategies of this library share.
local growth = {}

--- How many an amount is: {count=} or {percent=} of so many, and one at least.
---@param amount {count?: integer, percent?: number}
---@param of integer
---@return integer
function growth.resolve(amount, of)
  return math.max(1, amount.count or math.floor(of * amount.percent / 100))
end

--- Cuts a list into waves, each `factor` times as long as the one before, up to `most`.
---@generic T
---@param list T[]
---@param factor integer
---@param most integer
---@return T[][]
function growth.waves(list, factor, most)
  local waves, at, size = {}, 1, 1
  while at <= #list do
    waves[#waves + 1] = table.move(list, at, math.min(at + size - 1, #list), 1, {})
    at, size = at + size, math.min(size * factor, most)
  end
  return waves
end

return growth
