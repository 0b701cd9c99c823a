-- library.lua -- The standard libraries as scripts have them: what C would do without counting is counted, or done in Lua.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local pattern = require "deployrt.sandbox.pattern"

local library = {}

local charge, most = core.charge, math.maxinteger

local function copy(of, without)
  local out = {}
  for name, value in pairs(of) do
    if not (without and without[name]) then out[name] = value end
  end
  return out
end

--- The same function, but it costs as much as its first argument is long.
local function by_length(fn)
  return function(text, ...)
    if type(text) == "string" then charge(#text) end
    return fn(text, ...)
  end
end

local basic = {}

local nameless = { table = true, ["function"] = true, thread = true, userdata = true }

--- The address of a thing is another one each time: it is shown as what it is.
function basic.tostring(...)
  local value = ...
  if select("#", ...) == 0 then error("bad argument #1 to 'tostring' (value expected)", 2) end
  local meta = nameless[type(value)] and (debug.getmetatable(value) or {})
  if meta and not (type(meta) == "table" and rawget(meta, "__tostring")) then return type(value) end
  return tostring(value)
end

local strings = copy(string, { dump = true })
for name, fn in pairs(pattern) do strings[name] = string[name] and fn or nil end

function strings.rep(text, count, ...)
  if text == "" and tonumber(count) and tonumber(count) > 0 then charge(tonumber(count)) end -- it loops all the same
  return string.rep(text, count, ...)
end

--- Whether a format shows addresses. C looks for it, in a time that goes with the length of the text, and not what methods
--- of strings are while a script runs.
local function shows_addresses(text)
  charge(#text)
  return string.find(text, "p", 1, true) and string.find(string.gsub(text, "%%%%", ""), "%%[-+ #0%d.]*p") ~= nil
end

function strings.format(text, ...)
  if type(text) == "string" and shows_addresses(text) then error("a script cannot format with %p: an address is another one each time", 2) end
  local values = table.pack(...)
  for i = 1, values.n do
    if nameless[type(values[i])] then values[i] = basic.tostring(values[i]) end
  end
  return string.format(text, table.unpack(values, 1, values.n))
end

local utf8_functions = copy(utf8)
for _, name in ipairs { "len", "codepoint", "offset" } do utf8_functions[name] = by_length(utf8[name]) end

local tables = { pack = table.pack }

local function check_table(t, name)
  if type(t) ~= "table" then error(("bad argument #1 to '%s' (table expected, got %s)"):format(name, t == nil and "no value" or type(t)), 3) end
end

local function check_whole(value, position, name)
  local whole = math.tointeger(tonumber(value))
  if whole then return whole end
  error(("bad argument #%d to '%s' (number expected, got %s)"):format(position, name, value == nil and "no value" or type(value)), 3)
end

local most_results = 1000000 -- C's own limit

function tables.unpack(t, from, to)
  from, to = check_whole(from or 1, 2, "unpack"), check_whole(to or #t, 3, "unpack")
  if from > to then return end
  if not math.ult(to - from, most_results) then error("too many results to unpack", 2) end -- the difference may be more than an integer holds
  charge(to - from)
  return table.unpack(t, from, to)
end

function tables.insert(t, ...)
  check_table(t, "insert")
  local size, count = #t, select("#", ...)
  if count == 1 then
    t[size + 1] = (...)
    return
  end
  if count ~= 2 then error("wrong number of arguments to 'insert'", 2) end
  local position = check_whole((...), 2, "insert")
  if position < 1 or position > size + 1 then error("bad argument #2 to 'insert' (position out of bounds)", 2) end
  for i = size, position, -1 do t[i + 1] = t[i] end
  t[position] = select(2, ...)
end

function tables.remove(t, position)
  check_table(t, "remove")
  local size = #t
  if position == nil then position = size else position = check_whole(position, 2, "remove") end
  if size + 1 ~= position and (position < 1 or position > size + 1) and not (size == 0 and position == 0) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local value = t[position]
  for i = position, size - 1 do t[i] = t[i + 1] end
  if position <= size then t[size] = nil else t[position] = nil end
  return value
end

function tables.move(from, first, last, to, into)
  check_table(from, "move")
  first, last, to = check_whole(first, 2, "move"), check_whole(last, 3, "move"), check_whole(to, 4, "move")
  into = into or from
  if last < first then return into end
  if not (first > 0 or last < most + first) then error("bad argument #3 to 'move' (too many elements to move)", 2) end
  if to > most - (last - first) then error("bad argument #4 to 'move' (destination wrap around)", 2) end
  if to > last or to <= first or into ~= from then
    for i = 0, last - first do into[to + i] = from[first + i] end
  else
    for i = last - first, 0, -1 do into[to + i] = from[first + i] end
  end
  return into
end

function tables.concat(t, separator, from, to)
  check_table(t, "concat")
  from, to = check_whole(from or 1, 3, "concat"), to and check_whole(to, 4, "concat") or #t
  local parts, size = {}, 0
  for i = from, to do
    local value = t[i]
    if type(value) ~= "string" and type(value) ~= "number" then
      error(("invalid value (at index %d) in table for 'concat'"):format(i), 2)
    end
    size = size + 1
    parts[size] = value
  end
  return table.concat(parts, separator, 1, size)
end

local function less(a, b)
  return a < b
end

local function merge(from, into, first, middle, last, before)
  local left, right = first, middle + 1
  for i = first, last do
    if left <= middle and (right > last or not before(from[right], from[left])) then
      into[i], left = from[left], left + 1
    else
      into[i], right = from[right], right + 1
    end
  end
end

--- Equal items stay in their order, so that a replay sorts alike.
local function sort(t, before)
  local size, width, from, into = #t, 1, {}, {}
  for i = 1, size do from[i] = t[i] end
  while width < size do
    for first = 1, size, 2 * width do
      merge(from, into, first, math.min(first + width - 1, size), math.min(first + 2 * width - 1, size), before)
    end
    from, into, width = into, from, 2 * width
  end
  for i = 1, size do t[i] = from[i] end
end

--- The order is of one moment: the comparison runs below a function of C, where a verb that waits raises.
function tables.sort(t, before)
  check_table(t, "sort")
  if before ~= nil and type(before) ~= "function" then error("bad argument #2 to 'sort' (function expected)", 2) end
  string.gsub("x", "x", function() sort(t, before or less) end)
end

local coroutines = { running = coroutine.running, status = coroutine.status, isyieldable = coroutine.isyieldable }
local own = setmetatable({}, { __mode = "k" }) -- coroutines that scripts made; others are the runtime's tasks
local created_cost = 250

function coroutines.create(fn)
  charge(created_cost)
  local co = coroutine.create(fn)
  own[co] = true
  return co
end

local function back(...)
  charge(0) -- ends the script, if its coroutine passed the limit
  return ...
end

function coroutines.resume(co, ...)
  if not own[co] then error("a script can only resume its own coroutines", 2) end
  charge(1, co)
  return back(coroutine.resume(co, ...))
end

function coroutines.close(co)
  if not own[co] then error("a script can only close its own coroutines", 2) end
  charge(1, co)
  return back(coroutine.close(co))
end

function coroutines.yield(...)
  if not own[coroutine.running()] then error("coroutine.yield is for coroutines of your own: a task waits with self:sleep", 2) end
  return coroutine.yield(...)
end

function coroutines.wrap(fn)
  local co = coroutines.create(fn)
  local function pass(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return function(...) return pass(coroutines.resume(co, ...)) end
end

local deepest = 100 -- pcall in pcall: each costs as much as all below it when errors pass through them
local depths = setmetatable({}, { __mode = "k" }) -- by coroutine

--- What a script catches is its own: it may change that, and the runtime's error stays as it was.
local function caught(co, depth, ok, ...)
  depths[co] = depth
  charge(0)
  if ok then return ok, ... end
  return false, errors.copy((...))
end

function basic.pcall(...)
  local co = coroutine.running()
  local depth = depths[co] or 0
  if depth >= deepest then error(("more than %d calls of pcall in each other (stack overflow)"):format(deepest), 2) end
  depths[co] = depth + 1
  return caught(co, depth, pcall(...))
end

local function handled(handler, ok, ...)
  if ok then return ok, ... end
  return false, handler((...))
end

--- The handler runs after the error has been caught: where it was raised, nothing would be counted.
function basic.xpcall(fn, handler, ...)
  return handled(handler, basic.pcall(fn, ...))
end

-- What shows when the collector ran: at any time, which is another one each time. A finalizer would run uncounted besides.
local forbidden = { __gc = "use <close> or self:undo", __mode = "what is in a weak table is another thing each time; take out yourself what is no longer needed" }

local function refuse_key(key, level)
  error(("a script's metatable cannot have %s: %s"):format(key, forbidden[key]), level + 1)
end

local function set_allowed(t, key, value)
  if forbidden[key] then refuse_key(key, 2) end
  rawset(t, key, value)
end

local metatables = setmetatable({}, { __mode = "k" }) -- those that scripts have set
local of_metatables = { __newindex = set_allowed } -- of those that have none themselves

--- Has a metatable refuse what is forbidden when it is added later. What it inherits from is guarded where a script has set it, and left alone where the runtime has.
local function guard(meta)
  local inherited = debug.getmetatable(meta)
  if not inherited then
    setmetatable(meta, of_metatables)
  elseif metatables[inherited] and rawget(inherited, "__newindex") == nil then
    rawset(inherited, "__newindex", set_allowed)
  end
end

function basic.setmetatable(t, meta)
  for _, key in ipairs { "__gc", "__mode" } do
    if type(meta) == "table" and rawget(meta, key) ~= nil then refuse_key(key, 2) end
  end
  setmetatable(t, meta)
  if meta then
    metatables[meta] = true
    guard(meta)
  end
  if metatables[t] then guard(t) end
  return t
end

function basic.getmetatable(value)
  local meta = type(value) == "table" and getmetatable(value)
  return meta ~= of_metatables and meta or nil
end

function basic.rawset(t, key, value)
  if forbidden[key] then refuse_key(key, 2) end
  return rawset(t, key, value)
end

--- Fresh copies for one script, so that what it changes there is its own.
---@return table<string, any>
function library.new()
  local env = copy(basic)
  env.string, env.table, env.utf8, env.coroutine = copy(strings), copy(tables), copy(utf8_functions), copy(coroutines)
  env.math = copy(math, { random = true, randomseed = true })
  return env
end

--- What methods of strings are found in while a script runs.
library.strings = strings

return library
