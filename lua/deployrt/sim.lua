-- sim.lua -- The simulator: a strategy is run thousands of times in worlds with faults, and held to invariants.
-- A spec calls it as it is; inside core.run it is called by a task like anything else that waits.
local core = require "deployrt.core"
local declaration = require "deployrt.config.declaration"
local errors = require "deployrt.errors"
local faults = require "deployrt.sim.faults"
local fleet = require "deployrt.sim.fleet"
local invariants = require "deployrt.sim.invariants"
local options = require "deployrt.options"
local report = require "deployrt.sim.report"
local scenario = require "deployrt.sim.scenario"
local schema = require "deployrt.schema"
local shrink = require "deployrt.sim.shrink"
local signature = require "deployrt.signature"
local strategy = require "deployrt.strategy"
local suggest = require "deployrt.suggest"
local trace = require "deployrt.trace"

local sim = {}

---@class deployrt.sim.Options
---@field app? deployrt.App      from config.load; default: a fleet drawn from each seed
---@field seeds? integer         how many; default 100
---@field first? integer         the first seed; default 1
---@field seconds? number        stop after so much real time
---@field fault? string          only faults of this kind; "none": none at all
---@field faults? deployrt.sim.Fault[]  these and no others
---@field fleet? integer         so many hosts with one instance each
---@field options? table         the strategy's own options, as app.yml has them
---@field invariants? table<string, fun(view: deployrt.sim.View): boolean?, string?>  false, and why, when it does not hold
---@field on_seed? fun(result: deployrt.sim.Result)

---@class deployrt.sim.Summary
---@field seeds integer          that were played
---@field outcomes table<string, integer>
---@field violation? deployrt.sim.Result  shrunk; the first one ends the simulation
---@field shape {horizon: number, records: integer}

local own = {} -- invariants of all strategies, as long as this program runs

local function check_invariant(name, fn)
  local problem = declaration.invariant_problem(name, fn)
  if problem then errors.raise("usage", problem) end
end

--- Adds an invariant of one's own: `fn(view)` returns false, and why, when it does not hold.
---@param name string
---@param fn fun(view: deployrt.sim.View): boolean?, string?
--- Raises deployrt.Error: "usage".
function sim.invariant(name, fn)
  check_invariant(name, fn)
  own[name] = fn
end

local function all_invariants(loaded, more)
  local all = {}
  for _, set in ipairs { own, loaded.invariants, more or {} } do
    for name, fn in pairs(set) do all[name] = fn end
  end
  return all
end

--- Durations of the default fleet: long enough to matter, short enough for thousands of runs.
local short = { hold = "2s", settle = "2s" }

local function values_of(loaded, opts)
  local given, known = {}, loaded.options
  if not opts.app then
    for name, value in pairs(short) do given[name] = known[name] and value or nil end
  end
  for name, value in pairs(opts.app and opts.app.strategy or {}) do given[name] = value end
  for name, value in pairs(opts.options or {}) do given[name] = value end
  return (schema.validate_options(known, given, opts.app and opts.app.place or function() return loaded.name end, loaded.name, opts.app and strategy.is_option))
end

local function app_of(seed, opts)
  if opts.app then return opts.app end
  return opts.fleet and fleet.build(opts.fleet, 1, 1) or fleet.draw(seed)
end

local function host_names(app)
  local names = {}
  for i, entry in ipairs(app.hosts) do names[i] = entry.name end
  return names
end

--- How long a run takes, and how many records it has, when nothing goes wrong: faults are to fall into that time.
local function measure(plan, opts)
  plan.app, plan.faults, plan.seed = opts.app or fleet.build(opts.fleet and math.min(opts.fleet, 4) or 2, 2, 2), {}, 0
  plan.agreeable = true
  local result = scenario.play(plan)
  plan.agreeable = nil
  if result.violation or result.outcome == "succeeded" then return { horizon = result.seconds, records = result.records } end
  errors.raise("strategy", ("%s does not even succeed without any fault: %s"):format(plan.strategy.name,
    result.reason or result.outcome))
end

local function check_kind(kind)
  if kind == nil or kind == "none" then return end
  local names = faults.names()
  for _, name in ipairs(names) do
    if name == kind then return end
  end
  local close = suggest.closest(kind, names)
  errors.raise("usage", ("no fault is named '%s'%s; there are: none, %s"):format(kind,
    close and (" (did you mean '%s'?)"):format(close) or "", table.concat(names, ", ")))
end

local function faults_of(seed, app, shape, kind)
  if kind == "none" then return {} end
  return faults.draw(seed, { hosts = host_names(app), horizon = shape.horizon, records = shape.records }, kind)
end

local known = { app = "table?", seeds = "count?", first = "whole?", seconds = "seconds?", fault = "text?", faults = "list?", fleet = "count?", options = "table?",
  invariants = true, on_seed = "fn?" }

--- What is misspelt would be left out without a word, and a simulation that checks nothing passes.
local function check_options(opts)
  options.check("the simulator", opts, known)
  if opts.app and not (opts.app.hosts and opts.app.process and opts.app.health) then
    errors.raise("usage", "the simulator takes as `app` what config.load gave: require(\"deployrt.config\").load \"app.yml\"")
  end
  check_kind(opts.fault)
  for _, fault in ipairs(opts.faults or {}) do
    signature.check_value("a list of faults", "kind", "text", type(fault) == "table" and fault.kind or nil)
    check_kind(fault.kind)
  end
  for name, fn in pairs(options.check("the simulator's `invariants`", opts.invariants, opts.invariants or {})) do check_invariant(name, fn) end
end

local function is_strategy(value)
  return type(value) == "table" and type(value.deploy) == "function"
end

--- A strategy that is asked for by its name or path, or as it was loaded.
local function load(given)
  if is_strategy(given) then return given end
  signature.check_value("the simulator", "strategy", "text", given)
  return strategy.load(given)
end

--- A function that plays a seed.
local function player(loaded, opts)
  check_options(opts)
  loaded = load(loaded)
  if opts.app then fleet.adapt(opts.app) end
  local plan = { strategy = loaded, values = values_of(loaded, opts), check = invariants.checker(all_invariants(loaded, opts.invariants)) }
  local shape = measure(plan, opts)
  return function(seed, list)
    plan.seed, plan.app = seed, app_of(seed, opts)
    plan.faults = list or opts.faults or faults_of(seed, plan.app, shape, opts.fault)
    return scenario.play(plan)
  end, shape
end

--- Does it in the task that calls, or in one of its own where there is none; raises what it raises.
local function as_task(fn, ...)
  if core.locals() then return fn(...) end
  core.set_traceback(trace.handler)
  local ok, result = core.run(fn, ...)
  if ok then return result end
  error(errors.wrap(result), 0)
end

local function play_seeds(loaded, opts)
  local play, shape = player(loaded, opts)
  local summary, first, started = { seeds = 0, outcomes = {}, shape = shape }, opts.first or 1, core.now()
  for seed = first, first + (opts.seeds or 100) - 1 do
    local result = play(seed)
    summary.seeds = summary.seeds + 1
    summary.outcomes[result.outcome] = (summary.outcomes[result.outcome] or 0) + 1
    if opts.on_seed then opts.on_seed(result) end
    if result.violation then
      summary.violation = shrink.result(result, function(list) return play(seed, list) end)
      return summary
    end
    if opts.seconds and core.now() - started >= opts.seconds then return summary end
    core.sleep(0) -- what is real gets its turn
  end
  return summary
end

--- Plays seeds until one breaks an invariant.
---@param loaded string|deployrt.Strategy  a name, a path, or what strategy.load gave
---@param opts? deployrt.sim.Options
---@return deployrt.sim.Summary
--- Raises deployrt.Error: "strategy" when the script fails even without faults, "usage".
function sim.test(loaded, opts)
  return as_task(play_seeds, loaded, opts or {})
end

--- The same for a spec: raises a text with all that led to it when an invariant is broken.
---@param loaded string|deployrt.Strategy
---@param opts? deployrt.sim.Options
---@return deployrt.sim.Summary
function sim.check(loaded, opts)
  local ok, summary = pcall(sim.test, loaded, opts)
  if not ok then error(errors.text(errors.wrap(summary)), 0) end
  local found = summary.violation
  if not found then return summary end
  error(report.violation(found, ("sim.play(%q, %d, ...) with the same options"):format(found.strategy, found.seed)), 0)
end

--- One seed, with everything that happened.
---@param loaded string|deployrt.Strategy
---@param seed integer
---@param opts? deployrt.sim.Options
---@return deployrt.sim.Result
function sim.play(loaded, seed, opts)
  return as_task(function()
    signature.check_value("sim.play", "seed", "whole", seed)
    return player(loaded, opts or {})(seed)
  end)
end

sim.report = report

return sim
