-- config/json.lua -- The declarations of app.yml as a JSON Schema.
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
  if values then return { enum = values } end
  return { type = spec.regex and "string" or { "string", "number", "boolean" }, pattern = spec.regex, maxLength = spec.longest }
end

function shapes.integer(spec) return { type = "integer", minimum = spec.min, maximum = spec.max } end
function shapes.number(spec) return { type = "number", minimum = spec.min, maximum = spec.max } end
function shapes.boolean() return { type = "boolean" } end
function shapes.any() return {} end
function shapes.duration() return { anyOf = duration.anyOf } end

function shapes.amount()
  return { anyOf = { { type = "integer", minimum = 1 }, { type = "string", pattern = percent } } }
end

function shapes.percent()
  return { anyOf = { { type = "number", minimum = 0, maximum = 100 }, { type = "string", pattern = percent } } }
end

shapes.ports, shapes.statuses = ranges, ranges

local function of(value)
  return json.of(type(value) == "string" and { type = value } or value)
end

function shapes.list(spec) return { type = "array", items = of(spec.of), minItems = spec.least } end
function shapes.map(spec) return { type = "object", additionalProperties = of(spec.of) } end

--- x- keys are the user's, everywhere.
function shapes.object(spec)
  local out = { type = "object", properties = {}, patternProperties = { ["^x-"] = {} }, additionalProperties = false }
  local required = {}
  for _, name in ipairs(check.names_of(spec.keys)) do
    out.properties[name] = json.of(spec.keys[name])
    if spec.keys[name].required then required[#required + 1] = name end
  end
  if #required > 0 then out.required = required end
  return out
end

--- The JSON Schema of one declaration.
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
