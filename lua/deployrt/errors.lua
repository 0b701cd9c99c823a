-- errors.lua -- The one shape of an error, as C returns it and verbs raise it.
local errors = {}

---@class deployrt.Error
---@field code string      what kind of failure: "timeout", "unreachable", "exit", "health", "config", ...
---@field message string   what, where, why and what to do next
---@field host? string     name of the host it is about
---@field detail? string   more lines, such as the end of a log
---@field errors? deployrt.Error[]  when several tasks failed

local Error = {}
Error.__index = Error
Error.__tostring = function(self)
  return self.message
end

--- Makes an error; raise it with error(err, 0).
---@param code string
---@param message string
---@param fields? {host?: string, detail?: string, errors?: deployrt.Error[]}
---@return deployrt.Error
function errors.new(code, message, fields)
  local err = setmetatable({ code = code, message = message }, Error)
  for key, value in pairs(fields or {}) do err[key] = value end
  return err
end

--- Makes and raises an error.
function errors.raise(code, message, fields)
  error(errors.new(code, message, fields), 0)
end

--- Turns whatever was raised into an error table; a string is a programming error in a script or in us.
---@return deployrt.Error
function errors.wrap(raised)
  if type(raised) == "table" and raised.message then return raised end
  return errors.new("script", tostring(raised))
end

--- Passes results on; raises when the first one is nil (what C returns on failure).
function errors.check(first, second, ...)
  if first == nil and second ~= nil then error(second, 0) end
  return first, second, ...
end

--- One error for several: itself when there is one.
---@param list deployrt.Error[]
function errors.several(list)
  if #list == 1 then return list[1] end
  local lines, seen = {}, {}
  for _, err in ipairs(list) do
    if not seen[err.message] then lines[#lines + 1] = err.message end
    seen[err.message] = true
  end
  return errors.new("several", table.concat(lines, "\n"), { errors = list, detail = list[1].detail })
end

--- The message with its host in front and its detail indented below.
---@param err deployrt.Error
---@return string
function errors.text(err)
  local text = err.message
  if err.host and not text:find(err.host, 1, true) then text = err.host .. ": " .. text end
  if err.detail and err.detail ~= "" then text = text .. "\n  | " .. err.detail:gsub("%s+$", ""):gsub("\n", "\n  | ") end
  return text
end

return errors
