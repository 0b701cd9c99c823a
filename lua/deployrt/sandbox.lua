-- sandbox.lua -- What a strategy script can name, and what it may use: enough to decide, nothing that is not repeatable.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local library = require "deployrt.sandbox.library"
local membrane = require "deployrt.membrane"
local trace = require "deployrt.trace"

local sandbox = {}

--- Between two waits. A script that decides needs a thousandth of this.
sandbox.limits = { instructions = 200e6, seconds = 5, memory = 256 << 20, text = 8 << 20, strings = library.strings }
local for_each_instance = 128 << 10 -- bytes: what the runtime keeps of it in a run, and uses in passing
local longest_script = 1 << 20 -- bytes

--- What a key is sorted by: its kind, and its place among those.
local function rank_of(key)
  local kind = type(key)
  if kind == "number" or kind == "string" then return kind, key end
  if kind == "boolean" then return kind, key and 1 or 0 end
  return membrane.number(key) and "object" or kind, membrane.number(key)
end

--- Raises where two keys have nothing that a replay could sort them by.
local function come_before(a, b)
  local kind, place = rank_of(a)
  local other_kind, other = rank_of(b)
  if kind ~= other_kind then return kind < other_kind end
  if place == nil and not rawequal(a, b) then
    error(("the order of keys that are %ss is another one each time: use texts, numbers, instances or hosts as keys"):format(kind), 0)
  end
  return place ~= nil and place < other
end

--- The keys of a table in their order; `level` is whose mistake it is when they have none.
local function sorted_keys(t, level)
  local keys = {}
  for key in next, t do keys[#keys + 1] = key end
  local ok, problem = pcall(table.sort, keys, come_before)
  if not ok then error(problem, level + 1) end
  return keys
end

local function sorted_pairs(t)
  local meta = debug.getmetatable(t)
  if type(meta) == "table" and meta.__pairs then return meta.__pairs(t) end
  local keys, i = sorted_keys(t, 2), 0
  return function()
    i = i + 1
    if keys[i] ~= nil then return keys[i], t[keys[i]] end
    return nil
  end, t, nil
end

--- `next`, in order. Whoever goes through a table may take out the field where he is, as stock Lua has it: its key has a place all the same.
local function ordered_next()
  local given = setmetatable({}, { __mode = "k" }) -- table -> the key of it that was given last
  return function(t, key)
    local keys = sorted_keys(t, 2)
    if key ~= nil and rawget(t, key) == nil and not rawequal(key, given[t]) then error("invalid key to 'next'", 2) end
    for _, each in ipairs(keys) do
      if key == nil or come_before(key, each) then
        given[t] = each
        return each, t[each]
      end
    end
    return nil
  end
end

--- A fresh environment.
---@param find fun(name: string): any  what its `require` gives for a name; nil: nothing is called so
---@param print_line fun(text: string)
---@return table
function sandbox.environment(find, print_line)
  local env = library.new()
  for name, value in pairs {
    assert = assert, error = error, ipairs = ipairs, pairs = sorted_pairs, select = select, tonumber = tonumber, type = type,
    rawequal = rawequal, rawget = rawget, rawlen = rawlen, _VERSION = _VERSION,
  } do env[name] = value end
  env.next = ordered_next()
  env.print = function(...)
    local words = table.pack(...)
    for i = 1, words.n do words[i] = env.tostring(words[i]) end
    local line = table.concat(words, "\t")
    core.charge(1000 + #line)
    print_line(line)
  end
  env.require = function(name)
    local module = type(name) == "string" and find(name)
    if module then return module end
    error(("a strategy cannot require '%s': it may use deployrt.strategy, Lua files beside it, and those of the libraries that app.yml requires"):format(
      tostring(name)), 2)
  end
  env._G = env
  return env
end

--- The limits of who calls: what a run needs itself for a large fleet is not taken from its script.
local function limits_here()
  local run, limits = (core.locals() or {}).run, setmetatable({}, { __index = sandbox.limits })
  if run then limits.memory = sandbox.limits.memory + for_each_instance * run.fleet:capacity() end
  return limits
end

--- Calls what a script made, in a task that is held to the limits. Raises what it raises, as an error.
---@async
---@param fn fun(...): ...
---@return any  the first result
function sandbox.call(fn, ...)
  local task = core.spawn(function(...)
    core.confine(limits_here())
    return (fn(...))
  end, ...)
  local ok, result = task:wait()
  if ok == nil then -- this task was canceled
    task:cancel()
    task:wait()
  end
  if ok then return result end
  error(errors.raised_by_script(result), 0)
end

--- Loads and runs a chunk in an environment, and makes something of what it returns; all under the limits.
---@async
---@param text string
---@param name string  of the file, for messages
---@param env table
---@param use? fun(result: any): any
function sandbox.run(text, name, env, use)
  if #text > longest_script then errors.raise("strategy", ("%s: a script has at most %d KB"):format(name, longest_script >> 10)) end
  return sandbox.call(function()
    if text:sub(1, 1) == "\27" then errors.raise("strategy", ("%s: this is compiled Lua: a script is its source"):format(name)) end
    trace.know(name, text)
    local chunk, err = load(text, "@" .. name, "t", env)
    if not chunk then errors.raise("strategy", errors.of_script(err)) end
    local result = chunk()
    return use and use(result) or result
  end)
end

return sandbox
