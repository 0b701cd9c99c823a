-- check.lua -- Checks a value against its declaration: one function a type. Failures are collected, with their places.
local suggest = require "deployrt.suggest"
local template = require "deployrt.config.template"
local units = require "deployrt.units"

---@class deployrt.config.At  where a value stands
---@field fail fun(message: string)                       remembers a failure at this place
---@field child fun(node: table, key: any): deployrt.config.At  the place of one of its keys or items
---@field failures fun(): integer                         how many there are so far, anywhere
---@field source fun(): string?                           the value as it was written, when that is no text
---@field refuse? fun(path: string, value: any): string?  why this version has no such thing
---@field null any                                        what stands for "not given"

local check = {}

local types = {}

--- A value as an error shows it; one that may be a secret shows only its kind.
local function describe(value, at, spec)
  if value == at.null then return "nothing" end
  if type(value) == "table" then return (#value > 0 or next(value) == nil) and "a list" or "a mapping" end
  if spec.secret then return "a text" end
  if type(value) ~= "string" then return tostring(value) end
  local text = value:gsub("%c", "?")
  return ('"%s"'):format(#text > 60 and text:sub(1, 60) .. "..." or text)
end

local function mistyped(value, spec, at, path, expected)
  at.fail(("%s: expected %s, got %s"):format(path, spec.expected or expected, describe(value, at, spec)))
end

local function is_list(value)
  return type(value) == "table" and (#value > 0 or next(value) == nil)
end

local function is_mapping(value)
  return type(value) == "table" and #value == 0
end

--- The keys of a mapping, sorted, so that errors come in the same order each time.
local function names_of(keys)
  local list = {}
  for name in pairs(keys) do list[#list + 1] = name end
  table.sort(list)
  return list
end
check.names_of = names_of

local function in_range(value, spec, at, path, unit)
  if (not spec.min or value >= spec.min) and (not spec.max or value <= spec.max) then return true end
  local wanted = spec.min and spec.max and ("from %s to %s"):format(spec.min, spec.max)
    or spec.min and ("at least %s"):format(spec.min) or ("at most %s"):format(spec.max)
  at.fail(("%s: expected %s%s, got %s%s"):format(path, wanted, unit or "", value, unit or ""))
  return false
end

local function one_of(value, spec, at, path)
  if not spec.values or (spec.beside and value:find(spec.beside)) then return true end
  for _, each in ipairs(spec.values) do
    if each == value then return true end
  end
  local hint = suggest.hint(value, spec.values)
  at.fail(("%s: '%s' is not one of %s%s"):format(path, value, table.concat(spec.values, ", "), hint))
  return false
end

local function scalar(expected, accept)
  return function(value, spec, at, path)
    if not accept(value) then return mistyped(value, spec, at, path, expected) end
    if in_range(value, spec, at, path) then return value end
  end
end

types.number = scalar("a number", function(v) return type(v) == "number" and v == v end)
types.integer = scalar("a whole number", function(v) return math.type(v) == "integer" end)

function types.any(value)
  return value
end

function types.boolean(value, spec, at, path)
  if type(value) == "boolean" then return value end
  mistyped(value, spec, at, path, "true or false")
end

--- A number or a boolean where a text is wanted is taken as it was written: `version: 1.10` is "1.10".
function types.string(value, spec, at, path)
  if type(value) == "number" or type(value) == "boolean" then value = at.source() or tostring(value) end
  if type(value) ~= "string" then return mistyped(value, spec, at, path, "a text") end
  if value:find("\0", 1, true) then return at.fail(("%s: a NUL byte cannot stand here"):format(path)) end
  if spec.pattern and not value:find(spec.pattern) or #value > (spec.longest or math.huge) then
    return mistyped(value, spec, at, path, "something else")
  end
  if not one_of(value, spec, at, path) then return nil end
  local problem = spec.template and template.problem(value) or spec.secret and template.secret_problem(value)
  if problem then return at.fail(("%s: %s"):format(path, problem)) end
  return value
end

--- Of an amount its count is held to the limits, and not a share.
local function measured(convert, unit)
  return function(value, spec, at, path)
    local result, message = convert(value, spec)
    if result == nil then return at.fail(("%s: %s"):format(path, value == at.null and "nothing is given" or message)) end
    local size = type(result) == "table" and result.count or result
    if type(size) ~= "number" or in_range(size, spec, at, path, unit) then return result end
  end
end

types.duration = measured(units.duration, "s")
types.amount = measured(function(value, spec) return units.amount(value, spec.min == 0) end)
types.percent = measured(units.percent, "%")

local function declared(of)
  return type(of) == "string" and { type = of } or of
end

local function falling(list, value, at, path)
  for i = 2, #list do
    if list[i] < list[i - 1] then return at.child(value, i).fail(("%s[%d]: it is less than what stands before it, and these only rise"):format(path, i)) end
  end
end

function types.list(value, spec, at, path)
  if not is_list(value) then return mistyped(value, spec, at, path, "a list") end
  if #value < (spec.least or 0) then return at.fail(("%s: this list is empty"):format(path)) end
  local out, of, before = {}, declared(spec.of), at.failures()
  for i, each in ipairs(value) do
    local checked = check.value(each, of, at.child(value, i), ("%s[%d]"):format(path, i))
    if checked ~= nil then out[#out + 1] = checked end
  end
  if spec.rising and at.failures() == before then falling(out, value, at, path) end
  return out
end

function types.map(value, spec, at, path)
  if not is_mapping(value) then return mistyped(value, spec, at, path, "a mapping") end
  local out = {}
  for _, key in ipairs(names_of(value)) do
    local here = at.child(value, key)
    if value[key] == at.null or key:find("^x%-") then
      out[key] = nil
    elseif spec.names and not key:find(spec.names) then
      here.fail(("%s: '%s' is not a name of a variable"):format(path, (key:gsub("%c", "?"))))
    else
      out[key] = check.value(value[key], declared(spec.of), here, path .. "." .. key)
    end
  end
  return out
end

--- 8080, "8080-8087", or a list of these, in `range`'s terms: calls add(from, to, at) for each.
local function each_range(value, spec, at, path, add)
  for i, each in ipairs(is_list(value) and value or { value }) do
    local here = is_list(value) and at.child(value, i) or at
    local text = math.type(each) == "integer" and tostring(each) or type(each) == "string" and each or ""
    local from, to = text:match("^(%d+)%-(%d+)$")
    from = tonumber(from or text:match("^%d+$"))
    to = tonumber(to) or from
    local wrong = from and (math.min(from, to) < spec.lowest or math.max(from, to) > spec.highest)
    if not from then
      mistyped(each, spec, here, path)
    elseif wrong then
      here.fail(("%s: %s is not from %d to %d"):format(path, text, spec.lowest, spec.highest))
    elseif from > to then
      here.fail(("%s: the range %s runs backwards"):format(path, text))
    else
      add(from, to, here)
    end
  end
end

--- A flat list of ports.
function types.ports(value, spec, at, path)
  local list, seen = {}, {}
  local function add(from, to, here)
    for port = from, to do
      if seen[port] then return here.fail(("%s: port %d is there twice"):format(path, port)) end
      seen[port], list[#list + 1] = true, port
    end
  end
  if is_list(value) and #value == 0 then return at.fail(("%s: at least one port is needed"):format(path)) end
  local before = at.failures()
  each_range(value, spec, at, path, add)
  if at.failures() == before then return list end
end

--- HTTP statuses: a number, or a list of numbers and of {from=, to=}.
function types.statuses(value, spec, at, path)
  if is_list(value) and #value == 0 then return at.fail(("%s: this list is empty"):format(path)) end
  local list = {}
  each_range(value, spec, at, path, function(from, to)
    list[#list + 1] = from == to and from or { from = from, to = to }
  end)
  if math.type(value) == "integer" then return list[1] end
  return list
end

--- Where else a key is known, for one that stands at the wrong level.
local function elsewhere(key, keys)
  for _, name in ipairs(names_of(keys)) do
    if keys[name].keys and keys[name].keys[key] then return (" (did you mean '%s.%s'?)"):format(name, key) end
  end
  return ""
end

local function unknown_keys(value, spec, at, path)
  local meant = {}
  for _, key in ipairs(names_of(value)) do
    if not spec.keys[key] and not key:find("^x%-") then
      local close = suggest.closest(key, names_of(spec.keys))
      if close then meant[close] = true end
      local hint = close and suggest.hint(key, { close }) or path == "" and elsewhere(key, spec.keys) or ""
      at.child(value, key).fail(("unknown key '%s'%s"):format((key:gsub("%c", "?")), hint))
    end
  end
  return meant
end

--- The default of a declaration, checked like any other value; an object has the defaults of its keys.
local function default_of(spec, at, path)
  if spec.default ~= nil then return check.value(spec.default, spec, at, path) end
  if spec.type == "object" and spec.always then return types.object({}, spec, at, path) end
end

function types.object(value, spec, at, path)
  if not is_mapping(value) then return mistyped(value, spec, at, path == "" and "app.yml" or path, "a mapping") end
  local out, prefix, meant = {}, path == "" and "" or path .. ".", unknown_keys(value, spec, at, path)
  for _, key in ipairs(names_of(spec.keys)) do
    local known, given = spec.keys[key], value[key]
    if given ~= nil and given ~= at.null then
      out[key] = check.value(given, known, at.child(value, key), prefix .. key)
    elseif known.required then
      if not meant[key] then at.fail(("%s%s is missing"):format(prefix, key)) end
    else
      out[key] = default_of(known, at, prefix .. key)
    end
  end
  return out
end

local function fits(value, spec)
  if spec.type == "object" or spec.type == "map" then return is_mapping(value) end
  if spec.type == "list" then return is_list(value) end
  return type(value) ~= "table"
end

local function either(value, spec, at, path)
  local kinds = {}
  for i, each in ipairs(spec.either) do
    if value ~= at.null and fits(value, each) then return check.value(value, each, at, path) end
    kinds[i] = (each.type == "object" or each.type == "map") and "a mapping" or each.type == "list" and "a list" or "a text"
  end
  mistyped(value, spec, at, path, table.concat(kinds, " or "))
end

--- Checks one value, and gives it back normalized, with defaults; nil when it failed.
---@param value any
---@param spec deployrt.Spec
---@param at deployrt.config.At
---@param path string  "process.ports"; "" for the whole file
---@return any
function check.value(value, spec, at, path)
  local refusal = at.refuse and at.refuse(path, value)
  if refusal then return at.fail(refusal) end
  if spec.either then return either(value, spec, at, path) end
  local before = at.failures()
  local result = types[spec.type](value, spec, at, path)
  local problem = spec.rule and at.failures() == before and spec.rule(result)
  if problem then return at.fail(("%s: %s"):format(path, problem)) end
  return result
end

--- Whether there is such a type; strategies name types too.
---@param name string
---@return boolean known
---@return string hint  " (did you mean 'duration'?)"
function check.known_type(name)
  local known = types[name] ~= nil
  return known, known and "" or suggest.hint(tostring(name), names_of(types))
end

return check
