-- advice.lua -- What a person types about a run that is not at its end: of that very run, whatever others there are by then.
local advice = {}

--- What takes a run up again.
---@param file string  app.yml as the user named it
---@param run string
---@return string
function advice.resume(file, run)
  return ("deployrt resume %s --run %s"):format(file, run)
end

--- What rolls it back.
---@param file string
---@param run string
---@return string
function advice.abort(file, run)
  return ("deployrt abort %s --run %s"):format(file, run)
end

return advice
