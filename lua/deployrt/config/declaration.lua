-- declaration.lua -- How a script declares its strategy and the options of that: checked once, so that nothing else meets a wrong declaration.
local check = require "deployrt.config.check"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local pattern = require "deployrt.sandbox.pattern"
local sandbox = require "deployrt.sandbox"
local suggest = require "deployrt.suggest"
local units = require "deployrt.units"

local declaration = {}

local longest_name = 40 -- bytes of an option's name

--- Refuses what a script declares of its strategy.
---@param name string    of the strategy
---@param problem string
---@param place? string  the line that declares it
--- Raises deployrt.Error: "strategy".
function declaration.refuse(name, problem, place)
  errors.raise("strategy", ("%sstrategy '%s': %s"):format(place and place .. ": " or "", name, problem))
end

local function is(kind)
  return function(value) return type(value) == kind end
end

local function is_whole(value)
  return math.type(value) == "integer" and value >= 0
end

local function is_list_of_texts(value)
  if type(value) ~= "table" or #value == 0 then return false end
  for key, each in pairs(value) do
    if math.type(key) ~= "integer" or type(each) ~= "string" then return false end
  end
  return true
end

local function is_pattern(value)
  if type(value) ~= "string" then return false end
  return not pattern.problem(value), pattern.problem(value)
end

local text, flag, number, whole, patt = { is "string", "a text" }, { is "boolean", "true or false" }, { is "number", "a number" },
  { is_whole, "a whole number" }, { is_pattern, "a pattern of Lua" }

--- What each key of a declaration takes: a test, and its words.
local keys = {
  type = text, doc = text, expected = text, regex = text, required = flag, always = flag, rising = flag, template = flag, secret = flag, min = number, max = number,
  least = whole, longest = whole, lowest = whole, highest = whole, pattern = patt, beside = patt, names = patt,
  values = { is_list_of_texts, "a list of texts" }, rule = { is "function", "a function of the runtime" },
  default = { function() return true end }, of = { function(of) return type(of) == "string" or type(of) == "table" end, "a type, or a table with one" },
  keys = { is "table", "a table of declarations by name" }, either = { is "table", "a list of declarations" },
}

local function shown(value)
  local kind = type(value)
  local word = kind == "string" and ("'%s'"):format(value:gsub("%c", "?")) or (kind == "number" or kind == "boolean" or kind == "nil") and tostring(value)
    or "a " .. kind
  return #word > 60 and word:sub(1, 60) .. "..." or word
end

local numeric = { number = true, integer = true, percent = true, duration = true }

--- A type that works on others needs them.
local function check_parts(spec, where)
  if spec.either then return end
  local known, hint = check.known_type(spec.type)
  if spec.type == nil then return ("%s has no type"):format(where) end
  if not known then return ("%s has the unknown type '%s'%s"):format(where, spec.type, hint) end
  if (spec.type == "list" or spec.type == "map") and spec.of == nil then return ("%s has no type of items"):format(where) end
  local of = type(spec.of) == "table" and spec.of.type or spec.of
  if spec.rising and not numeric[of] then return ("%s: only numbers can be `rising`, and its items are not"):format(where) end
  if spec.type == "object" and spec.keys == nil then return ("%s is an object, and has no `keys`"):format(where) end
  if (spec.type == "ports" or spec.type == "statuses") and not (spec.lowest and spec.highest) then
    return ("%s: the type %s needs `lowest` and `highest`"):format(where, spec.type)
  end
end

local function check_keys(spec, where)
  for _, key in ipairs(check.names_of(spec)) do
    local takes = keys[key]
    if not takes then return ("%s: a declaration has no key '%s'%s"):format(where, shown(key):gsub("^'(.*)'$", "%1"), suggest.hint(key, check.names_of(keys))) end
    local fits, why = takes[1](spec[key])
    if not fits then return ("%s: `%s` is %s, not %s%s"):format(where, key, takes[2], shown(spec[key]), why and ": " .. why or "") end
  end
end

--- What is wrong with a declaration, or with one inside it; nil when nothing is.
local function problem_of(spec, where)
  if type(spec) ~= "table" then return ("%s is declared by a table with a type"):format(where) end
  for key in pairs(spec) do
    if type(key) ~= "string" then return ("%s: a declaration has no key [%s]"):format(where, shown(key)) end
  end
  local problem = check_keys(spec, where) or check_parts(spec, where)
  if problem then return problem end
  if spec.of then problem = problem_of(type(spec.of) == "string" and { type = spec.of } or spec.of, "an item of " .. where) end
  for i, each in ipairs(spec.either or {}) do problem = problem or problem_of(each, ("either[%d] of %s"):format(i, where)) end
  for key, each in pairs(spec.keys or {}) do
    if type(key) ~= "string" then return ("%s: `keys` has no names"):format(where) end
    problem = problem or problem_of(each, ("key '%s' of %s"):format((key:gsub("%c", "?")), where))
  end
  return problem
end

--- The first default that its own declaration refuses.
local function default_problem(spec, where)
  local problem
  local at = { null = core.yaml.null, source = function() end, failures = function() return problem and 1 or 0 end,
    fail = function(message) problem = problem or message end }
  function at.child() return at end
  if spec.default ~= nil then check.value(spec.default, spec, at, "the default of " .. where) end
  if type(spec.of) == "table" then problem = problem or default_problem(spec.of, "an item of " .. where) end
  for key, each in pairs(spec.keys or {}) do problem = problem or default_problem(each, ("key '%s' of %s"):format(key, where)) end
  return problem
end

local function check_name(key)
  if type(key) == "string" and #key <= longest_name and key:find("^[%a_][%w_-]*$") then return nil end
  return ("an option's name is of letters, digits and _, at most %d, and not %s"):format(longest_name, shown(key))
end

local function check_all(started, options, name, place)
  local function fail(problem)
    if problem then declaration.refuse(name, problem, place) end
  end
  if type(options) ~= "table" then fail(("`options` is a table of declarations by name, not %s"):format(shown(options))) end
  for key in pairs(options) do fail(check_name(key)) end
  for _, key in ipairs(check.names_of(options)) do
    started(key)
    local where = ("option '%s'"):format(key)
    fail(problem_of(options[key], where) or default_problem(options[key], where))
  end
end

--- Calls fn(started, ...) under the limits of a script: a pattern may try forever. Past them, or where it fails, the error names
--- the option that was `started(key)` last.
---@param name string  of the strategy
function declaration.limited(name, fn, ...)
  local current = ""
  local ok, first, second = core.confined(sandbox.limits, fn, function(key) current = key end, ...)
  if ok then return first, second end
  local why = type(first) == "string" and first or first.code == "limit" and first.message
  if not why then error(first, 0) end
  declaration.refuse(name, ("option '%s' cannot be checked: %s"):format(current, why))
end

--- Checks the declarations of a strategy's options, their defaults too.
---@param options table<string, deployrt.Spec>
---@param name string    of the strategy
---@param place? string  the line that declares it
--- Raises deployrt.Error: "strategy", naming the option.
function declaration.check(options, name, place)
  declaration.limited(name, check_all, options, name, place)
end

--- What is wrong with an invariant of the author's; nil when nothing is.
---@param name any
---@param fn any
---@return string?
function declaration.invariant_problem(name, fn)
  if type(name) ~= "string" then return ("an invariant has a name, and %s is none"):format(shown(name)) end
  if type(fn) ~= "function" then return ("the invariant '%s' is a function of a view, not %s"):format(name:gsub("%c", "?"), shown(fn)) end
end

local fields = { summary = text, groups = flag, invariants = { is "table", "a table of functions by name" } }

--- Checks what a definition says besides its name, its options and the like.
---@param definition table
---@param name string    of the strategy
---@param place? string  the line that declares it
--- Raises deployrt.Error: "strategy".
function declaration.check_fields(definition, name, place)
  for _, field in ipairs(check.names_of(fields)) do
    local value, takes = definition[field], fields[field]
    if value ~= nil and not takes[1](value) then declaration.refuse(name, ("`%s` is %s, not %s"):format(field, takes[2], shown(value)), place) end
  end
  for key, fn in next, definition.invariants or {} do
    local problem = declaration.invariant_problem(key, fn)
    if problem then declaration.refuse(name, problem, place) end
  end
end

local function is_amount(option)
  return type(option) == "table" and option.type == "amount"
end

local function amounts_of(options)
  local names = {}
  for name, option in pairs(options) do names[#names + 1] = is_amount(option) and name or nil end
  table.sort(names)
  return names
end

--- How many instances a strategy may do without while it runs: an amount, or the option that says it. nil: it keeps all.
---@param given any           what the script declares; nil: its option `batch`, if it has one that is an amount
---@param options table<string, deployrt.Spec>
---@param name string         of the strategy
---@param place? string       the line that declares it
---@return {option?: string, count?: integer, percent?: number}?
--- Raises deployrt.Error: "strategy".
function declaration.lack(given, options, name, place)
  if given == nil and is_amount(options.batch) then given = "batch" end
  if given == nil or given == false then return nil end
  if type(given) == "string" and is_amount(options[given]) then return { option = given } end
  local amount = units.amount(given)
  if amount then return amount end
  declaration.refuse(name, ("`may_lack` says how many instances may be missing meanwhile: an amount such as 1 or \"25%%\", or the name of an "
    .. "option of type amount, and not %s%s"):format(shown(given), type(given) == "string" and suggest.hint(given, amounts_of(options)) or ""), place)
end

return declaration
