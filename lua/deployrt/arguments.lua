-- arguments.lua -- The command line: flags stand anywhere, the rest is a command and its operands.
local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"

local arguments = {}

---@class deployrt.Flag
---@field value? string   what it takes, for help; nil: nothing
---@field list? boolean   may be repeated
---@field doc string

---@type table<string, deployrt.Flag>
arguments.flags = {
  set = { value = "KEY=VALUE", list = true, doc = "override a key of app.yml, dotted" },
  release = { value = "VERSION", doc = "override release.version" },
  host = { value = "NAME", list = true, doc = "limit to this host" },
  json = { doc = "one JSON object a line on standard output" },
  quiet = { doc = "say only what went wrong" },
  verbose = { doc = "show observations too, and all frames of a script's mistake" },
  ["no-color"] = { doc = "no colours (also: NO_COLOR)" },
  yes = { doc = "do not ask" },
  state = { value = "DIR", doc = "where runs are remembered" },
  force = { doc = "replace even what is unchanged; abort: undo from the journal alone; unlock: also a live run" },
  failed = { doc = "run: only the hosts that the last run went on without" },
  run = { value = "ID", doc = "resume, abort: which run" },
  to = { value = "VERSION", doc = "rollback: which release" },
  connect = { doc = "check: try hosts and balancer too" },
  offline = { doc = "plan: from app.yml alone; another release is taken to serve on the first ports of each host" },
  follow = { doc = "logs: wait for more" },
  lines = { value = "N", doc = "logs: how many of the last lines of each instance" },
  seeds = { value = "N", doc = "test: how many seeds; default 100" },
  seed = { value = "S", doc = "test: one seed, with all that happens" },
  time = { value = "DURATION", doc = "test: as many seeds as fit into it" },
  fault = { value = "NAME", doc = "test: only faults of this kind, or none" },
  fleet = { value = "N", doc = "test: so many simulated hosts with one instance each" },
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
        value = argv[i] or errors.raise("usage", ("--%s needs a value: %s"):format(name, flag.value))
      elseif not flag.value and value then
        errors.raise("usage", ("--%s takes no value"):format(name))
      end
      if flag.list then
        flags[name] = flags[name] or {}
        table.insert(flags[name], value)
      else
        flags[name] = flag.value and value or true
      end
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
