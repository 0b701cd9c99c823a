-- arguments.lua -- The command line: flags stand anywhere, the rest is a command and its operands.
local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"

local arguments = {}

---@class deployrt.Flag
---@field value? string   what it takes, for help; nil: nothing
---@field list? boolean   may be repeated
---@field once? boolean   two of them would be taken for both; of others the last one counts
---@field values? fun(): string[]  what it takes, where that is one of a few
---@field of? string[]    the commands that know it; nil: all
---@field except? string[]  but for these
---@field instead? table<string, string>  commands that do not know it, and what they have instead
---@field doc string

local no_file = { "help", "new", "schema", "version" }        -- commands that read no app.yml
local no_host = { "help", "lib", "new", "schema", "version" } -- and that look at no host

---@type table<string, deployrt.Flag>
arguments.flags = {
  set = { value = "KEY=VALUE", list = true, except = no_file, doc = "override a key of app.yml, dotted; the value is YAML where it is a word, quoted, [a list] or {a: mapping}, else the text" },
  release = { value = "VERSION", except = no_host, instead = { rollback = "--to VERSION" }, doc = "override release.version" },
  host = { value = "NAME", list = true, except = no_host, doc = "limit to this host" },
  json = { except = { "repl" }, doc = "one JSON object a line on standard output" },
  quiet = { doc = "say only what went wrong" },
  verbose = { doc = "show observations too, and all frames of a script's mistake" },
  ["no-color"] = { doc = "no colours (also: NO_COLOR)" },
  yes = { except = no_host, doc = "do not ask" },
  state = { value = "DIR", doc = "where runs are remembered" },
  force = { except = no_host, doc = "replace even what is unchanged; abort: undo from the journal alone; unlock: also a live run" },
  failed = { of = { "run", "plan" }, doc = "only the hosts that the last run went on without" },
  run = { value = "ID", of = { "resume", "abort" }, doc = "which run" },
  to = { value = "VERSION", of = { "rollback" }, doc = "which release" },
  connect = { of = { "check" }, doc = "try hosts and balancer too" },
  offline = { of = { "plan" }, doc = "from app.yml alone; another release is taken to serve on the first ports of each host" },
  follow = { of = { "logs" }, doc = "wait for more" },
  lines = { value = "N", of = { "logs" }, doc = "how many of the last lines of each instance" },
  seeds = { value = "N", of = { "test" }, doc = "how many seeds; default 100" },
  seed = { value = "S", of = { "test" }, doc = "one seed, with all that happens" },
  time = { value = "DURATION", of = { "test" }, doc = "as many seeds as fit into it" },
  fault = { value = "NAME", once = true, of = { "test" }, values = function() return require("deployrt.sim.faults").names() end,
    doc = "only faults of this kind, or none" },
  fleet = { value = "N", of = { "test" }, doc = "so many simulated hosts with one instance each" },
  help = { doc = "explain" },
  version = { doc = "print the version" },
}

local function unknown(name)
  local close = suggest.closest(name, (function()
    local list = {}
    for each in pairs(arguments.flags) do list[#list + 1] = each end
    table.sort(list)
    return list
  end)())
  errors.raise("usage", ("unknown option --%s%s"):format(name, close and (" (did you mean --%s?)"):format(close) or ""))
end

local function has(list, word)
  for _, each in ipairs(list) do
    if each == word then return true end
  end
  return false
end

--- Whether a command knows a flag.
---@param flag deployrt.Flag
---@param command string
---@return boolean
function arguments.is_known(flag, command)
  if flag.of then return has(flag.of, command) end
  return not (flag.instead and flag.instead[command]) and not has(flag.except or {}, command)
end

local version_flags = { run = "release", plan = "release", rollback = "to" }

--- What a word that is too many may have been meant for.
local function hint_for(command, word)
  if command == "exec" then return "; the command stands behind --" end
  local flag = version_flags[command]
  if flag and not word:find("%.ya?ml$") then return ("; a version is --%s %s"):format(flag, word) end
  return ""
end

--- Refuses what a command would not heed: it was meant to do something.
---@param command string
---@param most integer      operands that it takes
---@param operands string[]
---@param flags table<string, any>
---@param rest? string[]
--- Raises deployrt.Error: "usage".
function arguments.check(command, most, operands, flags, rest)
  for name in pairs(flags) do
    local flag = arguments.flags[name]
    if not arguments.is_known(flag, command) then
      local instead = flag.instead and flag.instead[command]
      errors.raise("usage", ("`deployrt %s` has no option --%s%s; nothing was done"):format(command, name,
        flag.of and ": that is for " .. table.concat(flag.of, ", ") or instead and ": it is " .. instead or ""))
    end
  end
  local extra = operands[most + 1] or (command ~= "exec" and rest and "--")
  if not extra then return end
  errors.raise("usage", ("`deployrt %s` does not know what to do with '%s'%s; nothing was done (see `deployrt help %s`)"):format(
    command, extra, hint_for(command, extra), command))
end

--- Remembers a flag that was given.
local function take(flags, name, flag, value)
  if flag.list then
    flags[name] = flags[name] or {}
    table.insert(flags[name], value)
    return
  end
  if flag.once and flags[name] and flags[name] ~= value then
    errors.raise("usage", ("--%s takes one value, and is given '%s' and '%s'"):format(name, flags[name], value))
  end
  flags[name] = flag.value and value or true
end

--- Splits an argument vector.
---@param argv string[]
---@return string[] operands
---@return table<string, any> flags
---@return string[]? rest   what stood after "--"
function arguments.parse(argv)
  local operands, flags, i = {}, {}, 1
  while i <= #argv do
    local word = argv[i]
    local name, value = word:match("^%-%-([%w%-]+)=(.*)$")
    name = name or word:match("^%-%-([%w%-]+)$") or (word == "-h" and "help") or nil
    if word == "--" then return operands, flags, table.move(argv, i + 1, #argv, 1, {}) end
    if name then
      local flag = arguments.flags[name] or unknown(name)
      if flag.value and not value then
        i = i + 1
        value = argv[i]
      end
      if flag.value and (value or "") == "" then
        errors.raise("usage", ("--%s needs a value: %s"):format(name, flag.value))
      elseif not flag.value and value then
        errors.raise("usage", ("--%s takes no value"):format(name))
      end
      take(flags, name, flag, value)
    elseif word:find("^%-.") and word ~= "-o" then
      errors.raise("usage", ("unknown option %s"):format(word))
    else
      operands[#operands + 1] = word
    end
    i = i + 1
  end
  return operands, flags
end

return arguments
