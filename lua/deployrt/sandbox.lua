-- sandbox.lua -- What a strategy script can name: enough to decide, nothing that is not repeatable.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local sandbox = {}

local budget = 200e6 -- instructions between two waits: about two seconds

local function sorted_pairs(t)
  local meta = getmetatable(t)
  if type(meta) == "table" and meta.__pairs then return meta.__pairs(t) end
  local keys = {}
  for key in next, t do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
    return type(a) < type(b)
  end)
  local i = 0
  return function()
    i = i + 1
    if keys[i] ~= nil then return keys[i], t[keys[i]] end
  end, t, nil
end

local function copy(library, without)
  local out = {}
  for name, value in pairs(library) do
    if not (without and without[name]) then out[name] = value end
  end
  return out
end

--- A fresh environment. `modules` are what its require knows.
---@param modules table<string, any>
---@param print_line fun(text: string)
---@return table
function sandbox.environment(modules, print_line)
  local env = {
    assert = assert, error = error, ipairs = ipairs, pairs = sorted_pairs, pcall = pcall, xpcall = xpcall, select = select,
    tonumber = tonumber, tostring = tostring, type = type, rawequal = rawequal, rawget = rawget, rawlen = rawlen, rawset = rawset,
    setmetatable = setmetatable, _VERSION = _VERSION, string = copy(string, { dump = true }), table = copy(table),
    math = copy(math, { random = true, randomseed = true }), utf8 = copy(utf8), coroutine = copy(coroutine),
  }
  env.next = function(t, key)
    local take = key == nil
    for each in sorted_pairs(t) do
      if take then return each, t[each] end
      take = rawequal(each, key)
    end
  end
  env.getmetatable = function(value) return type(value) == "table" and getmetatable(value) or nil end
  env.print = function(...)
    local words = table.pack(...)
    for i = 1, words.n do words[i] = tostring(words[i]) end
    print_line(table.concat(words, "\t"))
  end
  env.require = function(name)
    if modules[name] == nil then
      error(("a strategy cannot require '%s': it may use deployrt.strategy and what the API gives it"):format(tostring(name)), 2)
    end
    return modules[name]
  end
  env._G = env
  return env
end

--- Loads and runs a chunk in an environment, under the instruction limit.
---@async
---@param text string
---@param name string  of the file, for messages
---@param env table
function sandbox.run(text, name, env)
  local chunk, err = load(text, "@" .. name, "t", env)
  if not chunk then errors.raise("strategy", err) end
  local task = core.spawn(function()
    core.budget(budget)
    return chunk()
  end)
  local ok, result = task:wait()
  if ok then return result end
  error(errors.wrap(result), 0)
end

sandbox.budget = budget
return sandbox
