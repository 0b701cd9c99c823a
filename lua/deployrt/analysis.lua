-- analysis.lua -- Is the new release worse than the old one? Thresholds on the balancer's own counters.
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"

local analysis = {}

local look_every = 0.5 -- seconds

local function sum(stats, list)
  local total = { requests = 0, errors = 0, latency = 0 }
  for _, member in ipairs(list) do
    local slot = stats[member.slot]
    if slot then
      total.requests, total.errors = total.requests + slot.requests, total.errors + slot.errors
      total.latency = math.max(total.latency, slot.latency)
    end
  end
  return total
end

--- What came in since `before`; counters that went backwards mean that the balancer was restarted.
local function since(before, now)
  local requests, failed = now.requests - before.requests, now.errors - before.errors
  if requests < 0 or failed < 0 then requests, failed = now.requests, now.errors end
  return { requests = requests, errors = failed, latency = now.latency, rate = requests > 0 and failed / requests or 0 }
end

--- Compares two sides: "pass", "fail" with a reason, or "waiting" when there is too little to tell.
---@param new {requests: integer, rate: number, latency: number}
---@param old {requests: integer, rate: number, latency: number}
---@param limits {errors: number, latency: number, minimum: integer}  errors: percentage points above the old side; latency: a factor
---@return "pass"|"fail"|"waiting" verdict
---@return string? reason
function analysis.compare(new, old, limits)
  if new.requests < limits.minimum then return "waiting" end
  local excess = 100 * (new.rate - old.rate)
  if excess > limits.errors then
    return "fail", ("the new release fails %.1f%% of its requests, the old one %.1f%% (%d of %d; allowed: %g points more)"):format(
      100 * new.rate, 100 * old.rate, new.errors or 0, new.requests, limits.errors)
  end
  if old.requests >= limits.minimum and old.latency > 0 and new.latency > limits.latency * old.latency and new.latency > 0.005 then
    return "fail", ("the new release takes %.0f ms, the old one %.0f ms (allowed: %g times as long)"):format(
      1000 * new.latency, 1000 * old.latency, limits.latency)
  end
  return "pass"
end

--- Watches for `seconds`; raises as soon as the new side is too bad.
---@async
---@param balancer deployrt.Balancer
---@param opts {seconds: number, new: deployrt.Instance[], old: deployrt.Instance[], errors: number, latency: number, minimum?: integer}
---@return "pass"|"waiting" verdict  waiting: there were too few requests to tell
function analysis.watch(balancer, opts)
  local run = operation.current()
  local limits = { errors = opts.errors, latency = opts.latency, minimum = opts.minimum or 20 }
  local stats, deadline = balancer:stats(), operation.now() + opts.seconds
  local old_before, new_before = sum(stats, opts.old), sum(stats, opts.new)
  local verdict, reason
  repeat
    operation.sleep(math.min(look_every, math.max(0, deadline - operation.now())))
    stats = balancer:stats()
    local new, old = since(new_before, sum(stats, opts.new)), since(old_before, sum(stats, opts.old))
    verdict, reason = analysis.compare(new, old, limits)
    run.emit { event = "analysis", verdict = verdict, reason = reason, new = new, old = old }
    if verdict == "fail" then errors.raise("analysis", reason) end
  until operation.now() >= deadline
  if verdict == "waiting" then
    run.emit { event = "warning", message = "too few requests to judge the new release by its traffic" }
  end
  return verdict
end

return analysis
