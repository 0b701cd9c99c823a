-- cli/test.lua -- deployrt test STRATEGY [APP.yml]: simulate with faults and check the invariants.
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local config = require "deployrt.config"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local faults = require "deployrt.sim.faults"
local json = require "deployrt.progress.json"
local setting = require "deployrt.config.setting"
local sim = require "deployrt.sim"
local text = require "deployrt.progress.text"
local units = require "deployrt.units"

local function whole_number(flags, name, least)
  if flags[name] == nil then return nil end
  local number = math.tointeger(tonumber(flags[name]))
  if not number or number < least then errors.raise("usage", ("--%s needs a whole number from %d: '%s'"):format(name, least, flags[name])) end
  return number
end

--- Options of the strategy from `--set strategy.hold=1s`, where there is no app.yml.
local function options_from(set)
  local options = {}
  for _, given in ipairs(set or {}) do
    local name, value = given:match("^strategy%.([%w_]+)=(.*)$")
    if not name then errors.raise("usage", ("--set %s: without APP.yml only keys of the strategy can be set: strategy.NAME=VALUE"):format(given)) end
    options[name] = errors.check(setting.parse(value, "--set"))
  end
  return options
end

--- Refuses flags that would count for nothing beside what else is given.
local function check_flags(flags, path)
  local idle = path and { fleet = "the hosts are those of " .. path } or { host = "no app.yml names hosts", release = "no app.yml is given" }
  if flags.seed then idle.seeds, idle.time = "--seed plays one", "--seed plays one" end
  for _, name in ipairs { "fleet", "host", "release", "seeds", "time" } do
    if flags[name] and idle[name] then errors.raise("usage", ("--%s would change nothing: %s; leave it out"):format(name, idle[name])) end
  end
end

local function options_of(command)
  local flags, path = command.flags, command.operands[2]
  check_flags(flags, path)
  local seed = whole_number(flags, "seed", 0)
  local seconds, problem = units.duration(flags.time or 0)
  if problem then errors.raise("usage", "--time: " .. problem) end
  return {
    app = path and config.load(path, { set = flags.set, release = flags.release, hosts = flags.host }) or nil,
    options = not path and options_from(flags.set) or nil, first = seed or 1, fault = flags.fault, fleet = whole_number(flags, "fleet", 2), seconds = flags.time and seconds,
    seeds = seed and 1 or whole_number(flags, "seeds", 1) or (flags.time and math.maxinteger or 100),
  }
end

--- The command that plays one seed again.
local function replay(command, seed)
  local words = { "deployrt", "test", command.operands[1] }
  words[#words + 1] = command.operands[2]
  for _, name in ipairs { "fault", "fleet", "release" } do
    if command.flags[name] then words[#words + 1] = ("--%s=%s"):format(name, command.flags[name]) end
  end
  for _, name in ipairs { "set", "host" } do
    for _, value in ipairs(command.flags[name] or {}) do words[#words + 1] = ("--%s=%s"):format(name, value) end
  end
  words[#words + 1] = ("--seed=%d"):format(seed)
  return core.quote(words)
end

local function outcomes_text(outcomes)
  local parts = {}
  for name, count in pairs(outcomes) do parts[#parts + 1] = ("%s %d"):format(name:gsub("_", " "), count) end
  table.sort(parts)
  return table.concat(parts, ", ")
end

local function show(command, name, summary, seconds)
  if summary.violation then
    command.write(text.clean(sim.report.violation(summary.violation, replay(command, summary.violation.seed))))
  elseif not command.flags.quiet then
    command.write(("%s: %d seed%s, every invariant holds (%s%s)\n"):format(text.line(name), summary.seeds, summary.seeds == 1 and "" or "s",
      outcomes_text(summary.outcomes), seconds and ("; %.1fs"):format(seconds) or ""))
  end
end

local function encode(command, name, summary, seconds)
  local found, broken = summary.violation, nil
  if found then
    broken = { seed = found.seed, invariant = found.violation.invariant, message = found.violation.message, at = found.violation.at,
      replay = replay(command, found.seed), events = sim.report.trace(found), faults = {} }
    for i, fault in ipairs(found.faults) do broken.faults[i] = faults.describe(fault) end
  end
  local fields = { strategy = name, seeds = summary.seeds, outcomes = summary.outcomes, holds = found == nil, violation = broken, seconds = seconds }
  if command.flags.seed then fields.time = cjson.null end
  command.write(json.now("test.finished", fields))
end

return function(command)
  local name = command.operands[1]
  if not name then errors.raise("usage", "which strategy? For example: deployrt test canary") end
  local options, started = options_of(command), core.now()
  if options.app and options.app.inventory then
    errors.raise("usage", ("the hosts of %s come from a command, and none is touched here: leave the file out, or set hosts"):format(options.app.file))
  end
  local loaded = common.strategy(command, name, options.app)
  if command.flags.seed and not command.flags.json and not command.flags.quiet then
    function options.on_seed(result)
      for _, line in ipairs(sim.report.trace(result)) do command.write(text.line(line) .. "\n") end
    end
  end
  local summary = sim.test(loaded, options)
  local seconds = not command.flags.seed and core.now() - started or nil -- of one seed all is the same each time
  if command.flags.json then encode(command, loaded.name, summary, seconds) else show(command, loaded.name, summary, seconds) end
  return summary.violation and 1 or 0
end
