-- strategy.lua -- What a strategy is: define, extend, find and load, and make one ready to run.
local core = require "deployrt.core"
local declaration = require "deployrt.config.declaration"
local analysis_options = require "deployrt.analysis.options"
local errors = require "deployrt.errors"
local read = require("deployrt.file").read
local library = require "deployrt.library"
local membrane = require "deployrt.membrane"
local permission = require "deployrt.permission"
local route = require "deployrt.balancer.route"
local sandbox = require "deployrt.sandbox"
local suggest = require "deployrt.suggest"
local trace = require "deployrt.trace"
local verbs = require "deployrt.verbs"

local strategy = {}

local api = 1
local function options_of_all()
  return { timeout = { type = "duration", default = "1h", doc = "the whole run; past it everything is rolled back" } }
end

local function text_of(value)
  return type(value) == "string" and value or nil
end

local places = setmetatable({}, { __mode = "k" }) -- what define and extend gave -> the line of the script that called them

--- Refuses what was asked for, at the line of the script that did so, if one did.
---@param problem string
---@param place? string  default: where the running script is
local function refuse(problem, place)
  place = place or trace.place()
  errors.raise("strategy", place and place .. ": " .. problem or problem)
end

local function check_api(name, given, place)
  if type(given) == "string" then declaration.refuse(name, ("api is a number: say api = %d"):format(api), place) end
  if given ~= api then
    refuse(("strategy '%s' is written for api %s; this deployrt has api %d: %s"):format(name,
      tostring(given), api, (tonumber(given) or 0) > api and "use a newer deployrt" or "say api = 1 once you have read the guide"), place)
  end
end

local longest_name = 100 -- bytes

--- What a strategy is called stands in messages and in the history.
local function check_name(name, place)
  if #name <= longest_name and name:find("^[^%c/]+$") then return end
  refuse(("the name of a strategy is of printable characters but /, at most %d bytes, not '%s%s'"):format(longest_name,
    (name:sub(1, 20):gsub("%c", "?")), #name > 20 and "..." or ""), place)
end

local keys = { "api", "groups", "invariants", "may_lack", "name", "needs", "options", "summary" } -- of a definition, besides methods

--- What is nearly one of them was meant to be it; anything else is the strategy's own.
local function check_keys(name, definition, place)
  local known, wrong = {}, {}
  for _, key in ipairs(keys) do known[key] = true end
  for key, value in next, definition do
    if not known[key] and type(key) == "string" and type(value) ~= "function" and suggest.closest(key, keys) then wrong[#wrong + 1] = key end
  end
  table.sort(wrong)
  if wrong[1] then
    declaration.refuse(name, ("a definition has no key '%s'%s; there are %s"):format(
      wrong[1]:gsub("%c", "?"), suggest.hint(wrong[1], keys), table.concat(keys, ", ")), place)
  end
end

--- What define and extend are both given.
local function check_definition(name, definition, given_api, place)
  check_name(name, place)
  if type(definition.options or {}) ~= "table" then declaration.refuse(name, "`options` is a table of declarations by name", place) end
  check_api(name, given_api, place)
  check_keys(name, definition, place)
  declaration.check_fields(definition, name, place)
end

--- Defines a strategy; add its methods to what is returned.
---@param definition {name: string, api: integer, summary?: string, options?: table<string, table>, needs?: deployrt.Capability[], groups?: boolean, may_lack?: integer|string|false, invariants?: table<string, function>}
---@return deployrt.Strategy
--- Raises deployrt.Error: "strategy", with the line of the script that called it.
function strategy.define(definition)
  if type(definition) ~= "table" then refuse "strategy.define expects a table" end
  if type(definition.name) ~= "string" then refuse "a strategy needs a name" end
  places[definition] = trace.place()
  check_definition(definition.name, definition, definition.api, places[definition])
  definition.options = definition.options or {}
  for name, option in pairs(options_of_all()) do definition.options[name] = definition.options[name] or option end
  return setmetatable(definition, { __index = verbs, __metatable = "deployrt.Strategy" })
end

--- A strategy's own options and shared ones; its own win.
local function together(own, shared)
  local all = {}
  for name, spec in pairs(shared) do all[name] = spec end
  for name, spec in pairs(own or {}) do all[name] = spec end
  return all
end

--- The options of a strategy that judges the new release by its traffic: its own, and those that `self:analyse` looks for.
---@param own table<string, table>
---@return table<string, table>
function strategy.with_analysis(own)
  return together(own, analysis_options.declared)
end

--- The options of a strategy that tells requests apart: its own, and those that go to `balancer:share`.
---@param own table<string, table>
---@return table<string, table>
function strategy.with_routing(own)
  return together(own, route.options)
end

--- A method of an extension sees its own parent as self.super, however deep the inheritance goes.
local function with_super(parent, method)
  return function(self, ...)
    local view = setmetatable({ super = parent }, { __index = self, __newindex = self, __metatable = "deployrt.Strategy" })
    return method(view, ...)
  end
end

--- Inherits from a strategy, given by name or as a value; methods defined on the result override it.
---@param parent deployrt.Strategy
---@param overrides {name: string, api?: integer, summary?: string, options?: table<string, table>, needs?: deployrt.Capability[], groups?: boolean, may_lack?: integer|string|false, invariants?: table<string, function>}
---@return deployrt.Strategy
local function extend(parent, overrides)
  if type(parent) ~= "table" or type(parent.options) ~= "table" or type(overrides) ~= "table" or type(overrides.options or {}) ~= "table" then
    errors.raise("usage", "strategy.extend takes a strategy or its name, and a table with a name; its `options` are a table of declarations")
  end
  local name = text_of(overrides.name) or parent.name
  local place = trace.place()
  check_definition(name, overrides, overrides.api or api, place)
  local options = {}
  for key, option in pairs(parent.options) do options[key] = option end
  for key, option in pairs(overrides.options or {}) do options[key] = option end
  local child = { name = name, api = api, summary = overrides.summary or parent.summary, options = options, parent = parent }
  setmetatable(child, {
    __index = parent, __metatable = "deployrt.Strategy",
    __newindex = function(t, key, value)
      rawset(t, key, type(value) == "function" and with_super(parent, value) or value)
    end,
  })
  for key, value in pairs(overrides) do
    if rawget(child, key) == nil then child[key] = value end
  end
  places[child] = place
  return child
end

--- Sets where the built-in strategies are: a directory, and a function that gives embedded files.
function strategy.locate(share, embedded)
  strategy.share, strategy.embedded = share, embedded
end

--- Where the built-in strategies are; from plain Lua, beside the modules.
local function share_of()
  if strategy.share then return strategy.share end
  local here = package.searchpath("deployrt.strategy", package.path)
  local share = here and here:gsub("/?lua/deployrt/strategy.lua$", ""):gsub("/lua/5%.4/deployrt/strategy%.lua$", "/deployrt")
  return share == "" and "." or share
end

local function built_in(name)
  local file, share = ("strategies/%s.lua"):format(name), share_of()
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
  for _, file in ipairs(core.fs.list((share_of() or ".") .. "/strategies") or {}) do add(file:match("^([%w_]+)%.lua$")) end
  table.sort(list)
  return list
end

--- Whether a built-in strategy has an option of this name: one app.yml serves several of them.
---@async
---@param key string
---@return boolean
function strategy.is_option(key)
  for _, name in ipairs(strategy.names()) do
    if strategy.load(name).options[key] then return true end
  end
  return false
end

--- The options of all strategies that a name finds without libraries: those built in, and in ./strategies. A script that cannot
--- be loaded has none.
---@async
---@return table<string, true>
function strategy.all_options()
  local names, known = strategy.names(), {}
  for _, file in ipairs(core.fs.list("strategies") or {}) do names[#names + 1] = file:match("^(.+)%.lua$") end
  for _, name in ipairs(names) do
    local ok, loaded = pcall(strategy.load, name)
    for key in pairs(ok and loaded.options or {}) do known[key] = true end
  end
  return known
end

---@class deployrt.Source
---@field text string
---@field path string      as people are told of it
---@field library? string  the shared library that it is of

--- A script of the user's; a path may lead into a library.
local function own_source(path)
  local text = read(path)
  return text and { text = text, path = path, library = library.of_path(path) }
end

--- Finds a strategy by path, in ./strategies, in the shared libraries, then among the built-in ones.
---@param name string
---@param libraries? deployrt.Libraries
---@return deployrt.Source
--- Raises deployrt.Error: "strategy", "library".
function strategy.find(name, libraries)
  if name:find("/", 1, true) or name:find("%.lua$") then
    local own = own_source(name)
    if own then return own end
    local text = name:find("^strategies/") and strategy.embedded and strategy.embedded(name)
    if text then return { text = text, path = name } end
    refuse(("%s: no such file"):format(name))
  end
  local own = own_source(("strategies/%s.lua"):format(name)) or libraries and libraries:strategy(name)
  if own then return own end
  local text, path = built_in(name)
  if text then return { text = text, path = path } end
  local close = suggest.closest(name, strategy.names())
  refuse(("no strategy is named '%s'%s; there are: %s"):format(name,
    close and (" (did you mean '%s'?)"):format(close) or "", table.concat(strategy.names(), ", ")))
end

--- The script of a name: of the run, when it keeps any.
local function source_of(loading, name)
  if not loading.kept then return strategy.find(name, loading.libraries) end
  return loading.kept[name] or errors.raise("strategy", ("the run kept no strategy '%s'"):format(name))
end

--- The Lua file of a module: beside the script that asks for it, from the working directory on, or in a library.
local function module_source(loading, name, from)
  if not name:find("^[^%c/]+$") then return nil end
  if loading.kept then return loading.kept["module " .. name] end
  local path = name:gsub("%.", "/") .. ".lua"
  for _, place in ipairs(from.library and {} or { from.path:match("^(.*/)[^/]*$") or "", "" }) do
    local own = own_source(place .. path)
    if own then return own end
  end
  return loading.libraries and loading.libraries:module(name, from.library)
end

--- Functions by name, of what may be any table.
local function functions_of(value)
  local found = {}
  if type(value) ~= "table" then return found end
  for name, fn in next, value do
    if type(name) == "string" and type(fn) == "function" then found[name] = fn end
  end
  return found
end

local heeded = { tolerate = { type = "amount", min = 0 } } -- options that the runtime goes by where a strategy has them

--- Options that the runtime itself looks at: a strategy may declare them with another default, and not as something else.
local function keep_own(options, name, place)
  if type(options) ~= "table" then return end
  for key, spec in pairs(options_of_all()) do options[key] = options[key] or spec end
  for key, spec in pairs(together(together(options_of_all(), route.options), heeded)) do
    local option = options[key]
    if type(option) == "table" and option.type ~= spec.type then
      declaration.refuse(name, ("option '%s' is the runtime's own, of type %s: it may have another default, but no other type"):format(key, spec.type), place)
    end
    if type(option) == "table" then option.of, option.min = spec.of, option.min or spec.min end
  end
end

--- What it needs of the balancers.
local function needs_of(body, name, place)
  local needs = membrane.import(body.needs)
  if needs == nil then return nil end
  for _, each in ipairs(type(needs) == "table" and needs or { false }) do
    if type(each) ~= "string" then declaration.refuse(name, "`needs` is a list such as { \"share\" }", place) end
  end
  return needs
end

--- What the runtime needs to know of a script's strategy, read once, under the script's limits: all else stays in `body`.
local function describe(path)
  return function(body)
    if type(body) ~= "table" or type(body.deploy) ~= "function" then
      errors.raise("strategy", ("%s: a strategy script returns what strategy.define gave it, with a method `deploy`"):format(path))
    end
    local check, name, options, place = body.check, text_of(body.name) or path, membrane.import(body.options or {}), places[body] or path
    if text_of(body.name) then check_name(name, place) end
    keep_own(options, name, place)
    declaration.check(options, name, place)
    declaration.check_fields({ summary = body.summary, groups = body.groups, invariants = body.invariants }, name, place)
    return {
      body = body, name = name, summary = errors.clip(body.summary), options = options, needs = needs_of(body, name, place), groups = body.groups == true,
      may_lack = declaration.lack(membrane.import(body.may_lack), options, name, place), deploy = body.deploy, check = type(check) == "function" and check or nil,
      invariants = functions_of(body.invariants),
    }
  end
end

--- The same function, for scripts: what it gives them is their own.
local function copied(fn)
  membrane.trust(fn {})
  return function(own) return membrane.export(fn(membrane.import(own))) end
end

--- What scripts of one load share: each is loaded once, and none while it is being loaded.
---@class deployrt.Loading
---@field print_line fun(text: string)
---@field kept? table<string, deployrt.Source>
---@field libraries? deployrt.Libraries
---@field grant? deployrt.Grant            what all of them may do
---@field loaded table<string, deployrt.Loaded|false>
---@field modules table<string, any>       what they returned
---@field sources table<string, deployrt.Source>
---@field complete? boolean               all is loaded: what the run may do is settled, and what its journal keeps

local load_script

--- What is not loaded by now would be in no journal, and would escape what its library may do.
local function check_open(loading, call)
  if loading.complete then
    errors.raise("usage", ("%s loads something new while the strategy runs: put it at the top of the file"):format(call))
  end
end

--- What `require` gives to a script; each module is loaded once.
local function modules_for(loading, from)
  local own = { define = strategy.define, extend = function(parent, overrides)
    return extend(type(parent) == "string" and load_script(loading, parent).body or parent, overrides)
  end, with_analysis = copied(strategy.with_analysis), with_routing = copied(strategy.with_routing) }
  return function(name)
    if name == "deployrt.strategy" then return own end
    if loading.modules[name] == nil then
      local source = module_source(loading, name, from)
      if not source then return nil end
      check_open(loading, ("require \"%s\""):format(name))
      loading.modules[name] = false
      loading.modules[name] = loading:take("module " .. name, source, function(result) return result == nil and true or result end)
    end
    return loading.modules[name] or refuse(("the module '%s' requires itself"):format(name))
  end
end

local Loading = {}
Loading.__index = Loading

--- Runs a script of this load, keeps its text, and narrows what all may do to what its library may.
function Loading:take(key, source, use)
  self.sources[key] = source
  if self.libraries then self.grant = permission.both(self.grant, self.libraries:grant(source.library)) end
  return sandbox.run(source.text, source.path, sandbox.environment(modules_for(self, source), self.print_line), use)
end

function load_script(loading, name)
  if loading.loaded[name] then return loading.loaded[name] end
  if loading.loaded[name] == false then refuse(("the strategy '%s' inherits from itself"):format(name)) end
  check_open(loading, ("strategy.extend(\"%s\")"):format(name))
  loading.loaded[name] = false
  local source = source_of(loading, name)
  loading.loaded[name] = loading:take(name, source, describe(source.path))
  return loading.loaded[name]
end

---@class deployrt.Loaded   a strategy, ready to run
---@field name string
---@field summary? string
---@field options table<string, table>
---@field needs? deployrt.Capability[]  of the balancers
---@field groups boolean     it takes over to another group of hosts, where there is one
---@field may_lack? {option?: string, count?: integer, percent?: number}  instances that it may do without meanwhile
---@field deploy fun(self: deployrt.Strategy)
---@field check? fun(self: deployrt.Strategy)
---@field invariants table<string, fun(view: deployrt.sim.View): boolean?, string?>  its own, for the simulator
---@field body table        what the script made: only to be touched in the sandbox
---@field given string      the name or path that it was asked for by
---@field path string
---@field sources table<string, deployrt.Source>  all the scripts that it is made of, by name
---@field grant? deployrt.Grant  what it may do, when a part of it comes from a library; else everything

--- Loads a strategy script in a sandbox, and those that it extends.
---@async
---@param name string  a path or a bare name
---@param opts? {print_line?: fun(text: string), libraries?: deployrt.Libraries, kept?: table<string, deployrt.Source>}
---  kept: scripts that a run keeps, by name; nothing is looked up then
---@return deployrt.Loaded
--- Raises deployrt.Error: "strategy", "library", "script".
function strategy.load(name, opts)
  opts = opts or {}
  local loading = setmetatable({ print_line = opts.print_line or function() end, kept = opts.kept, libraries = opts.libraries,
    loaded = {}, modules = {}, sources = {} }, Loading)
  local loaded = load_script(loading, name)
  loading.complete = true
  loaded.path, loaded.given, loaded.sources, loaded.grant = loading.sources[name].path, name, loading.sources, loading.grant
  return loaded
end

return strategy
