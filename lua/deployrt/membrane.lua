-- membrane.lua -- What a script holds in its hands: views of the runtime's objects, which it can use and not change.
-- What goes in is copied, and views become what they show; what comes out is copied, and objects become views.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local permission = require "deployrt.permission"
local signature = require "deployrt.signature"

local membrane = {}

local function set(text)
  local names = {}
  for name in text:gmatch("%S+") do names[name] = true end
  return names
end

--- What of a kind of object a script sees; methods are verbs, unless they are hidden. `needs` what of app.yml's `allow`
--- a verb asks for; `looks` are verbs that need nothing.
local kinds = {
  instance = { fields = set "host port label slot release state pid", hidden = {} },
  host = { fields = set "name group current", hidden = {}, needs = "host.run" },
  fleet = { fields = set "hosts", hidden = set "add elsewhere exchange forget check_ports discover_hosts is_idle release_slots renew" },
  balancer = { fields = set "slots", hidden = set "down_among has_left look settle", needs = "balancer", looks = set "exists is_serving is_routed refresh stats" },
}

local deepest = 20

local views = setmetatable({}, { __mode = "k" })   -- object -> view
local objects = setmetatable({}, { __mode = "k" }) -- view -> object
local metatables = {}
local numbers, counted = setmetatable({}, { __mode = "k" }), 0 -- object -> its place among those that scripts have seen

local trusted = setmetatable({}, { __mode = "k" }) -- functions of the runtime's that its own declarations hold

--- Lets scripts hand back the functions that stand in a declaration of the runtime's.
---@param value any
function membrane.trust(value)
  if type(value) == "function" then trusted[value] = true end
  if type(value) == "table" then
    for _, each in next, value do membrane.trust(each) end
  end
end

local function refuse(value)
  errors.raise("usage", ("a verb of the runtime takes texts, numbers, tables and what it gave itself, not a %s"):format(type(value)))
end

--- Plain data as a script made it, without its metatables; what it holds of the runtime becomes that.
---@param value any
---@return any
function membrane.import(value, depth)
  depth = depth or 0
  if type(value) ~= "table" then
    if type(value) == "thread" or type(value) == "function" and not trusted[value] then refuse(value) end
    return value
  end
  if objects[value] then return objects[value] end
  if depth > deepest then errors.raise("usage", ("a table given to the runtime is nested more than %d levels deep"):format(deepest)) end
  local out = {}
  for key, each in next, value do
    core.charge(1)
    if type(key) == "table" then refuse(key) end
    out[key] = membrane.import(each, depth + 1)
  end
  return out
end

--- The object that a view shows; other values as they are, and uncopied.
function membrane.behind(value)
  return objects[value] or value
end

--- The place of a view's object among those that scripts have seen, which is the same in a replay; nil for other values.
---@param view any
---@return integer?
function membrane.number(view)
  return numbers[objects[view]]
end

--- `pass` of each of its arguments; most calls have one or none.
local function all(pass, ...)
  local count = select("#", ...)
  if count == 0 then return end
  if count == 1 then return pass((...)) end
  local list = table.pack(...)
  for i = 1, count do list[i] = pass(list[i]) end
  return table.unpack(list, 1, count)
end

--- What a script gets of a value: a view of an object, a copy of plain data.
---@param value any
---@return any
function membrane.export(value)
  if type(value) ~= "table" then return value end
  local meta = getmetatable(value)
  local kind = type(meta) == "table" and rawget(meta, "kind")
  if kind then
    local view = views[value]
    if not view then
      view = setmetatable({}, metatables[kind](meta))
      views[value], objects[view] = view, value
      if not numbers[value] then numbers[value], counted = counted, counted + 1 end
    end
    return view
  end
  local out = {}
  for key, each in next, value do out[key] = membrane.export(each) end
  return out
end

--- A verb as a script calls it; `takes`, its signature.
local function verb(kind, name, method, takes)
  local function checked(object, ...)
    signature.check(name, takes, ...)
    return method(object, ...)
  end
  local needs = kind.needs and not (kind.looks and kind.looks[name]) and kind.needs
  return function(view, ...)
    local object = objects[view]
    if not object then errors.raise("usage", ("call it with a colon: object:%s(...)"):format(name)) end
    if needs then permission.check(needs) end
    return all(membrane.export, checked(object, all(membrane.import, ...)))
  end
end

local function metatable_of(name)
  local kind, made = kinds[name], nil
  return function(class)
    if made then return made end
    local verbs = {}
    for key, method in pairs(class) do
      if type(method) == "function" and not kind.hidden[key] and not key:find("^__") then verbs[key] = verb(kind, key, method, class.takes and class.takes[key]) end
    end
    made = {
      __index = function(view, key)
        local object = objects[view]
        if kind.fields[key] then return object and membrane.export(object[key]) end
        return verbs[key]
      end,
      __newindex = function(_, key) errors.raise("usage", ("a script cannot set %s of an %s: it belongs to the runtime"):format(tostring(key), name)) end,
      __tostring = function(view) return objects[view] and (objects[view].label or objects[view].name) or name end,
      __metatable = "deployrt." .. name,
    }
    return made
  end
end

for name in pairs(kinds) do metatables[name] = metatable_of(name) end

return membrane
