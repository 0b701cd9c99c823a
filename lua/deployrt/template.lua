-- template.lua -- ${name} in the values of app.yml.
local template = {}

--- Replaces ${name} by values[name]; config.lua has refused unknown names.
---@param text string
---@param values table<string, string|number>
---@return string
function template.expand(text, values)
  return (text:gsub("%${(%w+)}", function(name)
    return values[name] and tostring(values[name])
  end))
end

---@param list string[]
---@return string[]
function template.expand_all(list, values)
  local out = {}
  for key, text in pairs(list) do out[key] = template.expand(tostring(text), values) end
  return out
end

return template
