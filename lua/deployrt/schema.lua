-- schema.lua -- Every key of app.yml, declared once: validation, defaults, suggestions and the JSON Schema come from here.
local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"
local units = require "deployrt.units"

local schema = {}

---@class deployrt.Spec
---@field type string       "string", "integer", "number", "boolean", "duration", "amount", "percent", "list", "map", "object", "any", "ports", "words"
---@field of? string|table  element of a list or map
---@field keys? table<string, deployrt.Spec>  of an object
---@field either? deployrt.Spec[]             one of these
---@field default? any
---@field required? boolean
---@field values? string[]
---@field pattern? string
---@field min? number
---@field max? number
---@field doc? string

local words = { type = "list", of = { type = "string" } }
local command = { either = { { type = "string" }, words }, doc = "a command" }
local port = { type = "integer", min = 1, max = 65535 }

local host = {
  type = "object", keys = {
    name = { type = "string", pattern = "^[%w._-]+$", doc = "how it is called here" },
    address = { type = "string", doc = "name or number; leave out for this machine" },
    port = port, user = { type = "string" }, identity = { type = "string", doc = "private key file" },
    group = { type = "string", doc = "such as blue or green" },
    transport = { type = "string", values = { "auto", "local", "ssh", "openssh" }, default = "auto" },
    known_hosts = { type = "string", default = nil, doc = "strict, accept-new, or a file" },
    jump = { type = "string", doc = "user@host[:port] to go through" },
    dir = { type = "string", default = ".deployrt", doc = "root of deployrt's files there" },
  },
}

local balancer = {
  type = "object", keys = {
    type = { type = "string", required = true, doc = "haproxy" },
    socket = { type = "string", doc = "runtime socket: a path, or address:port" },
    backend = { type = "string" }, host = { type = "string", doc = "the host that the balancer runs on" },
    managed = { type = "boolean", doc = "deployrt writes the configuration and runs HAProxy" },
    listen = { type = "string", doc = "address:port of a managed balancer" },
    drain = { type = "object", keys = { timeout = { type = "duration", default = "30s" } } },
    style = { type = "string" }, file = { type = "string" }, upstream = { type = "string" }, variable = { type = "string" },
    config = { type = "string" }, reload = command,
  },
}

--- The root of app.yml.
schema.root = {
  type = "object", keys = {
    app = { type = "string", required = true, pattern = "^[a-z0-9][a-z0-9_-]*$", doc = "name of the application" },
    extends = { type = "string", doc = "a file whose keys apply unless this one says otherwise" },
    release = { type = "object", keys = {
      path = { type = "string", doc = "a directory or a tar archive" },
      version = { type = "string", pattern = "^[%w._+][%w._+-]*$" },
      keep = { type = "integer", min = 1, default = 5, doc = "releases kept on a host" },
    } },
    hosts = { type = "list", of = { either = { { type = "string" }, host } }, default = { "local" } },
    process = { type = "object", required = true, keys = {
      command = { type = "list", of = { type = "string" }, required = true },
      env = { type = "map", of = { type = "string" } }, secrets = { type = "map", of = { type = "string" } },
      ports = { type = "ports", required = true, doc = "the slots of each host: [8080, 8082] or \"8080-8087\"" },
      instances = { type = "integer", min = 1, default = 1, doc = "serving per host" },
      supervisor = { type = "string", values = { "process", "systemd", "container" }, default = "process" },
      adopt = { type = "boolean" },
      stop = { type = "object", keys = {
        signal = { type = "string", values = { "TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL" }, default = "TERM" },
        timeout = { type = "duration", default = "30s" },
      } },
    } },
    health = { type = "object", keys = {
      http = { type = "string", pattern = "^/" }, tcp = { type = "boolean" }, command = words,
      status = { either = { { type = "integer", min = 100, max = 599 }, { type = "list", of = { type = "integer", min = 100, max = 599 } } } },
      body = { type = "string", doc = "text that the answer contains" },
      interval = { type = "duration", default = "500ms" }, timeout = { type = "duration", default = "2s" },
      successes = { type = "integer", min = 1, default = 2 }, deadline = { type = "duration", default = "60s" },
    } },
    balancer = { either = { balancer, { type = "list", of = balancer } } },
    strategy = { type = "any", doc = "the strategy's own options" },
    hooks = { type = "object", keys = { before = command, after = command, failed = command, before_traffic = command, build = command } },
    notify = { type = "any" }, require = { type = "any" }, state = { type = "any" }, report = { type = "any" },
  },
}

local checks = {}

local function describe(value)
  if type(value) == "string" then return ('"%s"'):format(value) end
  return type(value) == "table" and (#value > 0 and "a list" or "a mapping") or tostring(value)
end

local function plain(expected, accept)
  return function(value, spec, context, path)
    if not accept(value) then
      context.fail(("%s: expected %s, got %s"):format(path, expected, describe(value)))
      return nil
    end
    if spec.min and value < spec.min or spec.max and value > spec.max then
      context.fail(("%s: %s is not between %s and %s"):format(path, value, spec.min or "-", spec.max or "-"))
    end
    if spec.pattern and not value:find(spec.pattern) then context.fail(("%s: %s is not allowed here"):format(path, describe(value))) end
    if spec.values then
      for _, each in ipairs(spec.values) do
        if each == value then return value end
      end
      local close = suggest.closest(value, spec.values)
      context.fail(("%s: %s is none of %s%s"):format(path, describe(value), table.concat(spec.values, ", "),
        close and (" (did you mean '%s'?)"):format(close) or ""))
    end
    return value
  end
end

checks.boolean = plain("true or false", function(v) return type(v) == "boolean" end)
checks.number = plain("a number", function(v) return type(v) == "number" end)
checks.integer = plain("a whole number", function(v) return math.type(v) == "integer" end)
checks.any = function(value) return value end

local check_text = plain("a text", function(v) return type(v) == "string" end)

--- A number or a boolean where a text is wanted is taken as it was written: `version: 1.10` is "1.10".
function checks.string(value, spec, context, path)
  if type(value) == "number" or type(value) == "boolean" then value = context.source() or tostring(value) end
  return check_text(value, spec, context, path)
end

local function measured(convert)
  return function(value, _, context, path)
    local result, message = convert(value)
    if result == nil then context.fail(("%s: %s"):format(path, message)) end
    return result
  end
end

checks.duration = measured(units.duration)
checks.amount = measured(units.amount)
checks.percent = measured(units.percent)

local function is_list(value)
  return type(value) == "table" and (#value > 0 or next(value) == nil)
end

function checks.list(value, spec, context, path)
  if not is_list(value) then
    context.fail(("%s: expected a list, got %s"):format(path, describe(value)))
    return nil
  end
  local of, out = type(spec.of) == "string" and { type = spec.of } or spec.of, {}
  for i, each in ipairs(value) do out[i] = schema.check(each, of, context:at(value, i), ("%s[%d]"):format(path, i)) end
  return out
end

function checks.map(value, spec, context, path)
  if type(value) ~= "table" or #value > 0 then
    context.fail(("%s: expected a mapping, got %s"):format(path, describe(value)))
    return nil
  end
  local out = {}
  for key, each in pairs(value) do out[key] = schema.check(each, spec.of, context:at(value, key), path .. "." .. key) end
  return out
end

--- [8080, 8082], "8080-8087", or a list of both: a flat list of ports.
function checks.ports(value, _, context, path)
  local list, seen = {}, {}
  local function add(from, to)
    for number = from, to do
      if number < 1 or number > 65535 then return context.fail(("%s: %d is no port"):format(path, number)) end
      if seen[number] then return context.fail(("%s: port %d stands there twice"):format(path, number)) end
      seen[number] = true
      list[#list + 1] = number
    end
  end
  for i, each in ipairs(type(value) == "table" and value or { value }) do
    local from, to = tostring(each):match("^(%d+)%-(%d+)$")
    from = from or tostring(each):match("^(%d+)$")
    if not from or (to and tonumber(to) - tonumber(from) > 1000) then
      local where = type(value) == "table" and context:at(value, i) or context
      where.fail(("%s: expected a list of ports or a range like \"8080-8087\", got %s"):format(path, describe(each)))
    else
      add(math.tointeger(from), math.tointeger(to or from))
    end
  end
  if #list == 0 then context.fail(("%s: at least one port is needed"):format(path)) end
  return list
end

local function names_of(keys)
  local list = {}
  for name in pairs(keys) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local function unknown_key(key, keys, context, what)
  local close = suggest.closest(key, names_of(keys))
  context.fail(("%s '%s'%s"):format(what or "unknown key", key, close and (" (did you mean '%s'?)"):format(close) or ""))
end

function checks.object(value, spec, context, path)
  if type(value) ~= "table" or #value > 0 then
    context.fail(("%s: expected a mapping, got %s"):format(path == "" and "app.yml" or path, describe(value)))
    return nil
  end
  local out, prefix = {}, path == "" and "" or path .. "."
  for _, key in ipairs(names_of(value)) do
    local known = spec.keys[key]
    if known then
      if value[key] ~= context.null then out[key] = schema.check(value[key], known, context:at(value, key), prefix .. key) end
    elseif not key:find("^x%-") then
      unknown_key(key, spec.keys, context:at(value, key))
    end
  end
  for _, key in ipairs(names_of(spec.keys)) do
    local known = spec.keys[key]
    if value[key] == nil or value[key] == context.null then
      if known.required then context.fail(("%s%s is missing"):format(prefix, key)) end
      out[key] = schema.default(known, context, prefix .. key)
    end
  end
  return out
end

--- The default of a spec, checked like any other value; an object has the defaults of its keys.
function schema.default(spec, context, path)
  if spec.type == "object" and not spec.required and spec.default == nil then
    for _, each in pairs(spec.keys) do
      if each.default ~= nil then return checks.object({}, spec, context, path) end
    end
    return nil
  end
  if spec.default == nil then return nil end
  return schema.check(spec.default, spec, context, path)
end

--- Checks one value; failures go to context.fail.
---@param value any
---@param spec deployrt.Spec
function schema.check(value, spec, context, path)
  if not spec.either then return checks[spec.type](value, spec, context, path) end
  for _, each in ipairs(spec.either) do
    local fits = each.type == "object" and type(value) == "table" and #value == 0 or each.type == "list" and is_list(value)
      or each.type ~= "object" and each.type ~= "list" and type(value) ~= "table"
    if fits then return schema.check(value, each, context, path) end
  end
  context.fail(("%s: %s does not fit here"):format(path, describe(value)))
end

--- Checks the options of a strategy against its table, and fills in the defaults.
---@param options table<string, deployrt.Spec>
---@param values table                    as written below `strategy:`
---@param place fun(path: string): string "app.yml:30:14"
---@param name string                     of the strategy
---@return table
function schema.validate_options(options, values, place, name)
  local out, problems = {}, {}
  local function context_for(key)
    local context = { null = nil, source = function() end }
    context.at = function() return context end
    context.fail = function(message) problems[#problems + 1] = ("%s: %s"):format(place("strategy." .. key), message) end
    return context
  end
  for _, key in ipairs(names_of(values)) do
    if not options[key] and not key:find("^x%-") then
      unknown_key(key, options, context_for(key), ("strategy '%s' has no option"):format(name))
    end
  end
  for _, key in ipairs(names_of(options)) do
    local value = values[key]
    if value == nil then value = options[key].default end
    if value ~= nil then out[key] = schema.check(value, options[key], context_for(key), "strategy." .. key) end
  end
  if #problems > 0 then errors.raise("config", table.concat(problems, "\n")) end
  return out
end

local json_types = {
  string = { type = { "string", "number", "boolean" } }, integer = { type = "integer" }, number = { type = "number" }, boolean = { type = "boolean" },
  duration = { type = { "string", "integer" }, pattern = "^[0-9.]+(ms|s|m|h)$" }, amount = { type = { "string", "integer" } },
  percent = { type = { "string", "number" } }, any = {}, ports = { type = { "array", "string", "integer" } },
}

local function json_of(spec)
  if spec.either then
    local list = {}
    for i, each in ipairs(spec.either) do list[i] = json_of(each) end
    return { anyOf = list, description = spec.doc }
  end
  local out = {}
  for key, value in pairs(json_types[spec.type] or {}) do out[key] = value end
  out.description, out.enum, out.minimum, out.maximum = spec.doc, spec.values, spec.min, spec.max
  if type(spec.default) ~= "table" then out.default = spec.default end
  if spec.type == "list" then
    out.type, out.items = "array", json_of(type(spec.of) == "string" and { type = spec.of } or spec.of)
  elseif spec.type == "map" then
    out.type, out.additionalProperties = "object", json_of(spec.of)
  elseif spec.type == "object" then
    local required = {}
    out.type, out.properties, out.additionalProperties, out.patternProperties = "object", {}, false, { ["^x-"] = {} }
    for _, name in ipairs(names_of(spec.keys)) do
      out.properties[name] = json_of(spec.keys[name])
      if spec.keys[name].required then required[#required + 1] = name end
    end
    if #required > 0 then out.required = required end
  end
  return out
end

--- The JSON Schema of app.yml (draft 2020-12).
---@return table
function schema.json()
  local out = json_of(schema.root)
  out["$schema"], out.title = "https://json-schema.org/draft/2020-12/schema", "deployrt app.yml"
  return out
end

return schema
