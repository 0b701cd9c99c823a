-- config/setting.lua -- A value of the command line: YAML where it says so by brackets or quotes, else the text itself.
local core = require "deployrt.core"

local setting = {}

local closing = { ["["] = "]", ["{"] = "}", ['"'] = '"', ["'"] = "'" }
local escaped = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r" }

--- The text itself, where YAML has its characters.
local function plain(text, label, parse)
  local value, problem = parse(('"%s"'):format(text:gsub('["\\\n\r]', escaped)), label)
  if value == nil then return nil, problem end
  return text, {}
end

--- [a, list], {a: mapping}, "a text" and 'a text' are YAML; a word may be its number, boolean or null. All else is the text as it
--- was given: YAML would take `a #b` for `a`, and `#fff` for nothing.
---@param text string
---@param label string  how errors name it
---@param parse? fun(text: string, name: string): any, table
---@return any value  nil where it cannot be read
---@return deployrt.YamlMarks|deployrt.Error marks  or the error
function setting.parse(text, label, parse)
  parse = parse or core.yaml.parse
  local first, last = text:match("^%s*(.)"), text:match("(.)%s*$")
  local is_word = text:find("^[%w.+-]*%w%.?$") or text == "" or text == "~"
  if not is_word and not closing[first] then return plain(text, label, parse) end
  local value, marks = parse(text, label)
  if value ~= nil and closing[first] and closing[first] ~= last then return plain(text, label, parse) end
  return value, marks
end

return setting
