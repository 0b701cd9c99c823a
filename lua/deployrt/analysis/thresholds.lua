-- analysis/thresholds.lua -- Fixed limits on what was counted in all: for who wants a rule that can be said in one sentence.
local thresholds = {}

---@class deployrt.ThresholdsJudge: deployrt.Judge
local Thresholds = {}
Thresholds.__index = Thresholds

--- Compares two sides: "pass", "fail" with a reason, or "waiting" when there is too little to tell.
---@param new {requests: number, errors: number, latency?: number}
---@param old {requests: number, errors: number, latency?: number}
---@param limits {errors: number, latency: number, minimum: integer}  errors: percentage points above the old side; latency: a factor
---@return deployrt.Verdict verdict
---@return string? reason
function thresholds.compare(new, old, limits)
  if new.requests < limits.minimum then return "waiting", ("%d requests of the new release are below the minimum of %d"):format(new.requests, limits.minimum) end
  local rate, past = new.errors / new.requests, old.requests > 0 and old.errors / old.requests or 0
  if 100 * (rate - past) > limits.errors then
    return "fail", ("the new release fails %.1f%% of its requests, the old one %.1f%% (%d of %d; allowed: %g points more)"):format(
      100 * rate, 100 * past, new.errors, new.requests, limits.errors)
  end
  local slow, before = new.latency or 0, old.latency or 0
  if old.requests >= limits.minimum and before > 0 and slow > limits.latency * before and slow > 0.005 then
    return "fail", ("the new release takes %.0f ms, the old one %.0f ms (allowed: %g times as long)"):format(1000 * slow, 1000 * before, limits.latency)
  end
  return "pass"
end

--- Judges by fixed limits.
---@param options deployrt.JudgeOptions
---@return deployrt.ThresholdsJudge
function thresholds.open(options)
  local function none() return { requests = 0, errors = 0, seconds = 0 } end
  return setmetatable({
    options = options, new = none(), old = none(),
    limits = { errors = 100 * options.margin, latency = options.latency, minimum = options.minimum },
  }, Thresholds)
end

--- Takes an interval.
---@param interval deployrt.Interval
---@param source deployrt.Source
function Thresholds:add(interval, source)
  for _, side in ipairs { "new", "old" } do
    local sum, counts = self[side], interval[side]
    for _, key in ipairs { "requests", "errors", "seconds" } do sum[key] = sum[key] + (counts[key] or 0) end
    sum.latency = counts.latency or (sum.requests > 0 and sum.seconds > 0 and sum.seconds / sum.requests) or sum.latency
  end
  self.past = source.past
end

---@return deployrt.Verdict
---@return string? reason
function Thresholds:verdict()
  local past = self.past and { requests = self.past.requests, errors = self.past.errors or 0 }
  return thresholds.compare(self.new, self.old.requests == 0 and past or self.old, self.limits)
end

--- No evidence: limits are met or not.
function Thresholds.log_e()
  return 0
end

return thresholds
