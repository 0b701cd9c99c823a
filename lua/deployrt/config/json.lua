-- config/json.lua -- The declarations of app.yml as a JSON Schema.
local cjson = require "cjson"
local check = require "deployrt.config.check"

local json = {}

local duration = { anyOf = { { type = "string", pattern = "^[0-9]+(\\.[0-9]*)?(ms|s|m|h)$" }, { const = 0 } } }
local percent = "^[0-9]+(\\.[0-9]*)?%$"

local function ranges(spec)
  local one = { anyOf = {
    { type = "integer", minimum = spec.lowest, maximum = spec.highest }, { type = "string", pattern = "^[0-9]+(-[0-9]+)?$" },
  } }
  return { anyOf = { one.anyOf[1], one.anyOf[2], { type = "array", items = one, minItems = 1 } } }
end

local shapes = {}

function shapes.string(spec)
  local values = spec.values
  if values and spec.beside then return { anyOf = { { enum = values }, { type = "string" } } } end
  if values then return { enum = table.move(values, 1, #values, 1, {}) } end
  return { type = { "string", "number", "boolean" }, pattern = spec.regex, maxLength = spec.longest }
end

function shapes.integer(spec) return { type = "integer", minimum = spec.min, maximum = spec.max } end
function shapes.number(spec) return { type = "number", minimum = spec.min, maximum = spec.max } end
function shapes.boolean() return { type = "boolean" } end
function shapes.any() return {} end
function shapes.duration() return { anyOf = table.move(duration.anyOf, 1, 2, 1, {}) } end

function shapes.amount(spec)
  return { anyOf = { { type = "integer", minimum = spec.min or 1, maximum = spec.max }, { type = "string", pattern = percent } } }
end

function shapes.percent()
  return { anyOf = { { type = "number", minimum = 0, maximum = 100 }, { type = "string", pattern = percent } } }
end

shapes.ports, shapes.statuses = ranges, ranges

local function declared(value)
  return type(value) == "string" and { type = value } or value
end

--- The same, where nothing is given too: check takes that for a key that is not there.
local function or_nothing(schema)
  if schema.enum then table.insert(schema.enum, cjson.null) end
  if schema.anyOf then table.insert(schema.anyOf, { type = "null" }) end
  if schema.type then
    schema.type = type(schema.type) == "table" and schema.type or { schema.type }
    table.insert(schema.type, "null")
  end
  return schema
end

--- Files that extend each other merge mappings alone, so what stands in a list is complete in itself.
local function complete(spec)
  local out = json.of(spec)
  local needs = json.needs(spec)
  out.allOf = needs and { needs } or nil
  return out
end

function shapes.list(spec) return { type = "array", items = complete(declared(spec.of)), minItems = spec.least } end
function shapes.map(spec) return { type = "object", additionalProperties = or_nothing(json.of(declared(spec.of))) } end

--- x- keys are the user's, everywhere.
function shapes.object(spec)
  local out = { type = "object", properties = {}, patternProperties = { ["^x-"] = {} }, additionalProperties = false }
  for _, name in ipairs(check.names_of(spec.keys)) do
    local key = spec.keys[name]
    out.properties[name] = key.required and json.of(key) or or_nothing(json.of(key))
  end
  return out
end

--- What a declaration needs to be complete, in a schema that says nothing else; nil when it needs nothing.
---@param spec deployrt.Spec
---@return table?
function json.needs(spec)
  for _, each in ipairs(spec.either or {}) do
    local needs = json.needs(each) -- `required` is of objects alone, and at most one of these is
    if needs then return needs end
  end
  local required, properties = {}, {}
  for _, name in ipairs(check.names_of(spec.keys or {})) do
    properties[name] = json.needs(spec.keys[name])
    if spec.keys[name].required then required[#required + 1] = name end
  end
  if #required == 0 and next(properties) == nil then return nil end
  return { required = #required > 0 and required or nil, properties = next(properties) and properties or nil }
end

--- The JSON Schema of one declaration, of which each key may be left out: another file may have it.
---@param spec deployrt.Spec
---@return table
function json.of(spec)
  local out = {}
  if spec.either then
    out.anyOf = {}
    for i, each in ipairs(spec.either) do out.anyOf[i] = json.of(each) end
  else
    out = shapes[spec.type](spec)
  end
  out.description, out.default = spec.doc, spec.default
  return out
end

return json
