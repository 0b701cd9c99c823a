-- analysis.lua -- Is the new release worse than the old one? Both get a part of the same traffic; what was counted on both
-- sides is compared while it comes in.
local names_of = require("deployrt.config.check").names_of
local errors = require "deployrt.errors"
local judge = require "deployrt.analysis.judge"
local operation = require "deployrt.operation"
local options = require "deployrt.analysis.options"
local permission = require "deployrt.permission"
local sources = require "deployrt.analysis.sources"
local thresholds = require "deployrt.analysis.thresholds"
local verb_options = require "deployrt.options"
local vigil = require "deployrt.vigil"

local analysis = {}

local look_every = 0.5                 -- seconds
local beta = 0.05                      -- chance that a release that is too bad passes a look before the end
local slow_margin = 0.05               -- as many more requests may be slow, where hardly any of the old ones are
local by_default = { { source = "balancer" } }

---@class deployrt.AnalyseOptions
---@field new deployrt.Instance[]
---@field old deployrt.Instance[]
---@field seconds number       at most so long; evidence that suffices ends it earlier
---@field gate? "evidence"|"thresholds"
---@field errors? number       percentage points
---@field latency? number      a factor
---@field minimum? integer     requests
---@field alpha? number        shared by all metrics
---@field metrics? table[]     default: the balancer's counters
---@field inconclusive? "pass"|"hold"|"ask"|"fail"  default: nothing follows from it

local asks = { http = "http", prometheus = "http", command = "host.run" }

--- Metrics that app.yml names are the user's wish; for others a shared library needs the permission.
local function check_allowed(metrics, opts)
  local of_user = operation.current().app.strategy or {}
  if opts.metrics == nil and of_user.metrics ~= nil then return end
  for _, declared in ipairs(metrics or {}) do
    if asks[declared.source] then permission.check(asks[declared.source]) end
  end
end

local takes = { seconds = "seconds", new = "instances", old = "instances" }
for name in pairs(options.declared) do takes[name] = true end

--- Metrics, whoever gave them, as app.yml's are checked.
local function checked_metrics(list)
  local out = {}
  for i, declared in ipairs(list) do out[i] = verb_options.declared("analyse", ("metrics[%d]"):format(i), options.metric(declared), declared) end
  return out
end

--- What a call says, else the strategy's own options, else the defaults of the gate.
local function settings_of(script, opts)
  opts = verb_options.check("analyse", opts or {}, takes)
  local settings = { seconds = opts.seconds, new = opts.new, old = opts.old }
  for _, name in ipairs(names_of(options.declared)) do
    local value, spec = opts[name], options.declared[name]
    if value ~= nil then value = verb_options.declared("analyse", name, options.of_call[name], value) end
    if value == nil then value = (script.options or {})[name] end
    if value == nil and name ~= "inconclusive" then value = spec.default end
    settings[name] = value
  end
  settings.metrics = settings.metrics and checked_metrics(settings.metrics)
  check_allowed(settings.metrics, opts)
  return settings
end

local function judges_of(settings, declared, kind)
  local common = {
    name = declared.name or declared.source, kind = kind, beta = beta, latency = settings.latency, minimum = settings.minimum,
    margin = kind == "buckets" and slow_margin or settings.errors / 100, sampled = declared.source ~= "balancer",
  }
  if settings.gate == "thresholds" then return { thresholds.open(common) } end
  if declared.source ~= "balancer" then return { kind == "seconds" and judge.means(common) or judge.counts(common) } end
  local times = { name = "latency", advisory = true, beta = beta, latency = settings.latency, minimum = settings.minimum }
  common.name = "errors"
  return { judge.counts(common), judge.means(times) }
end

--- Sources with their judges, who share alpha.
local function convene(script, settings)
  local bench, count = {}, 0
  for i, declared in ipairs(settings.metrics or by_default) do
    local kind = options.kind(declared)
    bench[i] = { source = sources.open(declared, kind, script, settings), judges = judges_of(settings, declared, kind), name = declared.name or declared.source }
    count = count + #bench[i].judges
  end
  for _, seat in ipairs(bench) do
    for _, each in ipairs(seat.judges) do each.options.alpha = settings.alpha / count end
  end
  return bench
end

--- One look at each source, whose interval goes to its judges.
local function look(bench)
  for _, seat in ipairs(bench) do
    local interval, problem = seat.source:take()
    seat.problem = problem
    if interval then
      seat.last = interval
      for _, each in ipairs(seat.judges) do each:add(interval, seat.source) end
    end
  end
end

local function named(bench, seat, reason)
  if #bench == 1 or not reason then return reason end
  return ("%s: %s"):format(seat.name, reason)
end

--- What all of them say together: one that fails is enough, and all must pass; once the time is over, those that are
--- only advisory need not.
---@return deployrt.Verdict verdict
---@return string? reason
---@return table[] metrics  each with name, verdict and evidence, for who watches
local function agree(bench, over)
  local metrics, failure, lacking = {}, nil, nil
  for _, seat in ipairs(bench) do
    for _, each in ipairs(seat.judges) do
      local verdict, reason = each:verdict(over)
      metrics[#metrics + 1] = { name = each.options.name, verdict = verdict, evidence = math.exp(math.min(each:log_e(), 13.8)) }
      if verdict == "fail" then failure = failure or named(bench, seat, reason) end
      if verdict == "waiting" and not (over and each.options.advisory) then lacking = lacking or named(bench, seat, seat.problem or reason) end
    end
  end
  return failure and "fail" or lacking and "waiting" or "pass", failure or lacking, metrics
end

local function shown(seat, side)
  local sum, last = seat.judges[1][side], seat.last and seat.last[side] or {}
  return {
    requests = sum.requests, errors = sum.errors, rate = sum.requests > 0 and sum.errors / sum.requests or 0,
    latency = last.latency or (sum.requests > 0 and sum.seconds / sum.requests) or 0,
  }
end

local function tell(bench, settings, verdict, reason, metrics)
  operation.current().emit {
    event = "analysis", verdict = verdict, reason = reason, new = shown(bench[1], "new"), old = shown(bench[1], "old"),
    metrics = settings.gate == "evidence" and metrics or nil,
  }
end

--- What follows from an end without enough evidence.
local function go_on(script, consequence, reason)
  local run = operation.current()
  if consequence == "pass" then
    run.emit { event = "warning", message = ("too little evidence to judge the new release: %s; going on all the same (inconclusive: pass)"):format(reason) }
  elseif consequence == "fail" then
    errors.raise("analysis", ("too little evidence to judge the new release: %s (inconclusive: fail)"):format(reason))
  elseif consequence == "ask" then
    script:approve(("too little evidence to judge the new release: %s. Go on?"):format(reason))
  end
end

--- Whether to look on after the time is over. A rehearsal has no traffic to wait for.
local function holds(settings, verdict)
  return settings.inconclusive == "hold" and verdict == "waiting" and not operation.current().rehearsing
end

local function announce_hold(run, reason)
  run.emit { event = "log", message = ("too little evidence so far (%s): looking on, until there is enough or the run's timeout (inconclusive: hold)"):format(reason) }
end

--- Watches until the evidence suffices or the time is over; raises when the new side is worse, or one of it does not stay
--- healthy: a balancer sends nothing to what is dead, and its counters have nothing to say then.
---@async
---@param script deployrt.Strategy
---@param opts deployrt.AnalyseOptions
---@return "pass"|"inconclusive" verdict
--- Raises deployrt.Error: "analysis", "unhealthy".
function analysis.watch(script, opts)
  local settings, run = settings_of(script, opts), operation.current()
  local bench, held, watch, well = convene(script, settings), false, vigil.new(), true
  look(bench)
  local deadline = operation.now() + settings.seconds
  while true do
    local left = deadline - operation.now()
    operation.sleep((held or not well) and look_every or math.min(look_every, math.max(0, left)))
    look(bench)
    well = run.rehearsing or watch:look(settings.new)
    local over = well and operation.now() >= deadline
    local verdict, reason, metrics = agree(bench, over)
    if verdict == "waiting" and over and not holds(settings, verdict) then
      tell(bench, settings, "inconclusive", reason, metrics)
      go_on(script, settings.inconclusive, reason)
      return "inconclusive"
    end
    tell(bench, settings, verdict, verdict ~= "waiting" and reason or nil, metrics)
    if verdict == "fail" then errors.raise("analysis", reason) end
    if verdict == "pass" and well and (over or settings.gate == "evidence") then return "pass" end
    if over and not held then announce_hold(run, reason) end
    held = held or over
  end
end

return analysis
