-- options.lua -- The options that a verb takes in a table: what it does not know would be left out without a word.
local check = require "deployrt.config.check"
local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"

local options = {}

--- Refuses what is no table, and keys that are not known.
---@param what string              who takes them, for the error
---@param given table?
---@param known table<string, any> by name
---@return table given  {} when there are none
--- Raises deployrt.Error: "usage".
function options.check(what, given, known)
  if given == nil then return {} end
  if type(given) ~= "table" then errors.raise("usage", ("%s takes its options in a table, not %s"):format(what, tostring(given))) end
  for key in pairs(given) do
    if type(key) ~= "string" then errors.raise("usage", ("%s takes options by name, and there is [%s]"):format(what, tostring(key))) end
  end
  local names = check.names_of(known)
  for _, key in ipairs(check.names_of(given)) do
    if known[key] == nil then
      errors.raise("usage", ("%s has no option '%s'%s; there are: %s"):format(what, (key:gsub("%c", "?")), suggest.hint(key, names), table.concat(names, ", ")))
    end
  end
  return given
end

return options
