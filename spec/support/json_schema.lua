-- json_schema.lua -- As much of JSON Schema as the one of app.yml uses, but for patterns: what an editor would say of a file.
local core = require "deployrt.core"

local json_schema = {}

local null = core.yaml.null

local is_type = {}
function is_type.null(value) return value == null end
function is_type.string(value) return type(value) == "string" end
function is_type.number(value) return type(value) == "number" end
function is_type.integer(value) return math.type(value) == "integer" end
function is_type.boolean(value) return type(value) == "boolean" end
function is_type.array(value) return type(value) == "table" and (#value > 0 or next(value) == nil) end
function is_type.object(value) return type(value) == "table" and #value == 0 end

local function any(list, fits)
  for _, each in ipairs(list) do
    if fits(each) then return true end
  end
  return false
end

local keywords = {}

function keywords.type(types, value)
  return any(type(types) == "table" and types or { types }, function(each) return is_type[each](value) end)
end

function keywords.enum(values, value) return any(values, function(each) return each == value or is_type.null(value) and each == require("cjson").null end) end
function keywords.const(wanted, value) return wanted == value end
keywords["anyOf"] = function(list, value) return any(list, function(each) return json_schema.fits(each, value) end) end
keywords["allOf"] = function(list, value) return not any(list, function(each) return not json_schema.fits(each, value) end) end
keywords["not"] = function(schema, value) return not json_schema.fits(schema, value) end
keywords["then"] = function(schema, value, all) return not json_schema.fits(all["if"], value) or json_schema.fits(schema, value) end
function keywords.minimum(limit, value) return type(value) ~= "number" or value >= limit end
function keywords.maximum(limit, value) return type(value) ~= "number" or value <= limit end
keywords["maxLength"] = function(limit, value) return type(value) ~= "string" or #value <= limit end
keywords["minItems"] = function(limit, value) return not is_type.array(value) or #value >= limit end

function keywords.items(schema, value)
  return not is_type.array(value) or not any(value, function(each) return not json_schema.fits(schema, each) end)
end

function keywords.required(names, value)
  return not is_type.object(value) or not any(names, function(name) return value[name] == nil end)
end

function keywords.properties(schemas, value)
  if not is_type.object(value) then return true end
  for name, schema in pairs(schemas) do
    if value[name] ~= nil and not json_schema.fits(schema, value[name]) then return false end
  end
  return true
end

keywords["additionalProperties"] = function(schema, value, all)
  if not is_type.object(value) then return true end
  for name, each in pairs(value) do
    local known = (all.properties or {})[name] or name:find("^x%-")
    if not known and (schema == false or not json_schema.fits(schema, each)) then return false end
  end
  return true
end

--- Whether a value, as core.yaml.parse gives it, is what a schema says.
---@param schema table
---@param value any
---@return boolean
function json_schema.fits(schema, value)
  for word, wanted in pairs(schema) do
    if keywords[word] and not keywords[word](wanted, value, schema) then return false end
  end
  return true
end

return json_schema
