-- waiting.lua -- The step of a run that waits for a person, as hosts have it and others read it there.
local waiting = {}

local mark = "waits for approval"

--- The step of a run that waits.
---@param what string
---@param answers? string[]  one of them lets it through
---@return string
function waiting.step(what, answers)
  return ("%s%s: %s"):format(mark, answers and (" (%s)"):format(table.concat(answers, "|")) or "", what)
end

--- Whether a run that is at this step waits.
---@param step string
---@return boolean
function waiting.is_so(step)
  return step:sub(1, #mark) == mark
end

--- The answers that it takes, as a person is told them; nil where any approval lets it through.
---@param step string
---@return string? choice  "new|old"
function waiting.choice(step)
  return waiting.is_so(step) and step:match("^%(([^)]*)%): ", #mark + 2) or nil
end

return waiting
