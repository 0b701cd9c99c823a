-- sim/shrink.lua -- Fewer faults that break the same invariant: what a person must read to understand a violation.
local shrink = {}

local function without(list, i)
  local shorter = table.move(list, 1, #list, 1, {})
  table.remove(shorter, i)
  return shorter
end

--- Leaves out one fault after the other, as long as the same invariant breaks.
---@async
---@param result deployrt.sim.Result   one with a violation
---@param play fun(faults: deployrt.sim.Fault[]): deployrt.sim.Result
---@return deployrt.sim.Result  the shortest that was found
function shrink.result(result, play)
  local i = 1
  while i <= #result.faults do
    local tried = play(without(result.faults, i))
    if tried.violation and tried.violation.invariant == result.violation.invariant then
      result = tried
    else
      i = i + 1
    end
  end
  return result
end

return shrink
