-- strategy.lua -- What a strategy is: define, extend, find and load, and make one ready to run.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local sandbox = require "deployrt.sandbox"
local suggest = require "deployrt.suggest"
local verbs = require "deployrt.verbs"

local strategy = {}

local api = 1
local options_of_all = { timeout = { type = "duration", default = "1h", doc = "the whole run; past it everything is rolled back" } }

local function check_definition(definition)
  if type(definition) ~= "table" then errors.raise("strategy", "strategy.define expects a table") end
  if type(definition.name) ~= "string" then errors.raise("strategy", "a strategy needs a name") end
  if definition.api ~= api then
    errors.raise("strategy", ("strategy '%s' is written for api %s; this deployrt has api %d: %s"):format(definition.name,
      tostring(definition.api), api, (tonumber(definition.api) or 0) > api and "use a newer deployrt" or "say api = 1 once you have read the guide"))
  end
end

--- Defines a strategy; add its methods to what is returned.
---@param definition {name: string, api: integer, summary?: string, options?: table<string, table>}
---@return deployrt.Strategy
function strategy.define(definition)
  check_definition(definition)
  definition.options = definition.options or {}
  for name, option in pairs(options_of_all) do definition.options[name] = definition.options[name] or option end
  definition.__index = definition
  return setmetatable(definition, { __index = verbs })
end

--- A method of an extension sees its own parent as self.super, however deep the inheritance goes.
local function with_super(parent, method)
  return function(self, ...)
    local view = setmetatable({ super = parent }, { __index = self, __newindex = self })
    return method(view, ...)
  end
end

--- Inherits from a strategy, given by name or as a value; methods defined on the result override it.
---@param parent string|deployrt.Strategy
---@param overrides {name: string, summary?: string, options?: table}
---@return deployrt.Strategy
function strategy.extend(parent, overrides)
  if type(parent) == "string" then parent = strategy.load(parent) end
  local options = {}
  for name, option in pairs(parent.options) do options[name] = option end
  for name, option in pairs(overrides.options or {}) do options[name] = option end
  local child = { name = overrides.name or parent.name, api = api, summary = overrides.summary or parent.summary, options = options, parent = parent }
  child.__index = child
  setmetatable(child, {
    __index = parent,
    __newindex = function(t, key, value)
      rawset(t, key, type(value) == "function" and with_super(parent, value) or value)
    end,
  })
  for key, value in pairs(overrides) do
    if child[key] == nil or type(value) == "function" then child[key] = value end
  end
  return child
end

local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

--- Sets where the built-in strategies are: a directory, and a function that gives embedded files.
function strategy.locate(share, embedded)
  strategy.share, strategy.embedded = share, embedded
end

local function built_in(name)
  local file = ("strategies/%s.lua"):format(name)
  local share = strategy.share
  if not share then
    local here = package.searchpath("deployrt.strategy", package.path)
    share = here and here:gsub("/?lua/deployrt/strategy.lua$", "")
    if share == "" then share = "." end
  end
  local path = share and share .. "/" .. file
  local text = path and read(path)
  if text then return text, path end
  return strategy.embedded and strategy.embedded(file), file
end

--- The names of the built-in strategies.
---@return string[]
function strategy.names()
  local seen, list = {}, {}
  local function add(name)
    if name and not seen[name] then list[#list + 1] = name end
    seen[name or ""] = true
  end
  for _, file in ipairs(strategy.embedded and strategy.embedded() or {}) do add(file:match("^strategies/([%w_]+)%.lua$")) end
  for _, file in ipairs(core.fs.list((strategy.share or ".") .. "/strategies") or {}) do add(file:match("^([%w_]+)%.lua$")) end
  table.sort(list)
  return list
end

--- Finds a strategy by path, in ./strategies, then among the built-in ones.
---@param name string
---@return string text
---@return string path
function strategy.find(name)
  if name:find("/", 1, true) or name:find("%.lua$") then
    local text = read(name)
    if not text and name:find("^strategies/") then text = strategy.embedded and strategy.embedded(name) end
    if text then return text, name end
    errors.raise("strategy", ("%s: no such file"):format(name))
  end
  local text, path = read(("strategies/%s.lua"):format(name)), ("strategies/%s.lua"):format(name)
  if not text then text, path = built_in(name) end
  if text then return text, path end
  local close = suggest.closest(name, strategy.names())
  errors.raise("strategy", ("no strategy is named '%s'%s; there are: %s"):format(name,
    close and (" (did you mean '%s'?)"):format(close) or "", table.concat(strategy.names(), ", ")))
end

--- Loads a strategy script in a sandbox, and those that it extends.
---@async
---@param name string  a path or a bare name
---@param print_line? fun(text: string)
---@param kept? table<string, {text: string, path: string}>  scripts that a run keeps, by name
---@return deployrt.Strategy  its `sources` are all the scripts, by name
function strategy.load(name, print_line, kept)
  local text, path
  if kept then
    if not kept[name] then errors.raise("strategy", ("the run kept no strategy '%s'"):format(name)) end
    text, path = kept[name].text, kept[name].path
  else
    text, path = strategy.find(name)
  end
  local sources = { [name] = { text = text, path = path } }
  local function extend(parent, overrides)
    if type(parent) == "string" then
      parent = strategy.load(parent, print_line, kept)
      for each, source in pairs(parent.sources) do sources[each] = source end
    end
    return strategy.extend(parent, overrides)
  end
  local modules = { ["deployrt.strategy"] = { define = strategy.define, extend = extend } }
  local loaded = sandbox.run(text, path, sandbox.environment(modules, print_line or function() end))
  if type(loaded) ~= "table" or type(loaded.deploy) ~= "function" then
    errors.raise("strategy", ("%s: a strategy script returns what strategy.define gave it, with a method `deploy`"):format(path))
  end
  loaded.path, loaded.given, loaded.sources = path, name, sources
  return loaded
end

return strategy
