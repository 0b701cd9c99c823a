-- options.lua -- The options that a verb takes in a table: what it does not know would be left out without a word.
local check = require "deployrt.config.check"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local signature = require "deployrt.signature"
local suggest = require "deployrt.suggest"

local options = {}

--- Refuses what is no table, and keys that are not known.
---@param what string              who takes them, for the error
---@param given table?
---@param known table<string, string|true> by name: what it takes, as signatures have it; true: the verb sees to that
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
  for _, key in ipairs(names) do
    if type(known[key]) == "string" then signature.check_value(what, key, known[key], given[key]) end
  end
  return given
end

--- Checks an option that is declared as app.yml's keys are.
---@param what string   who takes it, for the error
---@param name string
---@param spec deployrt.Spec
---@param value any
---@return any value  normalized
--- Raises deployrt.Error: "usage".
function options.declared(what, name, spec, value)
  local at = { null = core.yaml.null, source = function() end, failures = function() return 0 end }
  function at.child() return at end
  function at.fail(message) errors.raise("usage", ("%s: %s"):format(what, message)) end
  return check.value(value, spec, at, name)
end

return options
