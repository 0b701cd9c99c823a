-- analysis/judge.lua -- What a series of intervals says of the new release: worse, no worse, or too little to tell.
local evidence = require "deployrt.evidence"

local judge = {}

---@alias deployrt.Verdict "pass"|"fail"|"waiting"

---@class deployrt.JudgeOptions
---@field name string
---@field kind "errors"|"buckets"
---@field alpha number      chance that a release that is no worse fails, of this judge
---@field beta number       chance that one that is too bad passes
---@field margin number     how much more often it may fail without being called bad, as a share of the requests
---@field latency number    a factor: slower than that is too slow to pass
---@field minimum integer   requests of an interval of means
---@field advisory? boolean can fail, and is needed for an early pass only
---@field sampled? boolean  both sides are counted at different moments: what one interval says must be confirmed by the next

---@class deployrt.Judge
---@field options deployrt.JudgeOptions
---@field add fun(self, interval: deployrt.Interval, source: deployrt.Source)
---@field verdict fun(self, over?: boolean): deployrt.Verdict, string?  over: there is no more time
---@field log_e fun(self): number  the evidence that the new release is worse

local function percent(part, whole)
  return ("%.3g%%"):format(whole > 0 and 100 * part / whole or 0)
end

local function odds(log_e)
  return log_e > 13.8 and "over 1000000" or ("%.3g"):format(math.exp(log_e))
end

local function add_to(sum, counts)
  for key in pairs(sum) do sum[key] = sum[key] + (counts[key] or 0) end
end

local function nothing()
  return { requests = 0, errors = 0, seconds = 0 }
end

--- Whether evidence has been enough at one closed interval, or at two in a row where the source is sampled.
local function strike(self, enough)
  self.strikes = enough and (self.strikes or 0) + 1 or 0
  return self.strikes >= (self.options.sampled and 2 or 1)
end

---@class deployrt.CountsJudge: deployrt.Judge
local Counts = {}
Counts.__index = Counts

--- Judges counts of failures, or of requests that took too long.
---@param options deployrt.JudgeOptions
---@return deployrt.CountsJudge
function judge.counts(options)
  local m = options.margin
  return setmetatable({
    options = options, worse = evidence.ratio(), fine = evidence.ratio { than = 1.5, ratios = { 1 } },
    rare = evidence.rate { limit = m, rates = { 0, m / 4, m / 2 } }, dispersion = evidence.dispersion(),
    new = nothing(), old = nothing(), pending = { new = nothing(), old = nothing() },
    debts = { new = 0, old = 0 }, open_for = 0,
  }, Counts)
end

--- What the new side is held to once the old one gets no requests: its past rate, of few requests the cautious one.
local function alone(self, past)
  local rate = past and (past.errors + 1) / (past.requests + 1) or 1
  local limit = rate + self.options.margin
  if limit >= 0.9 then return nil end
  self.past, self.past_rate = past, past.errors / math.max(past.requests, 1)
  return evidence.rate { limit = limit, rates = { math.min(0.95, 1.5 * limit), math.min(0.95, 3 * limit), 0.95 } }
end

local patience = 4 -- looks that an interval may stay open because failures are ahead of their requests

--- An interval is closed once it makes sense: a request may fail in a later one than it began in, and sides that are
--- sampled at different moments both need to have been. Where everything fails, failures may be ahead for ever.
local function is_closed(self, pending)
  local ahead = pending.new.errors > pending.new.requests or pending.old.errors > pending.old.requests
  self.open_for = ahead and self.open_for + 1 or 0
  if ahead and self.open_for < patience then return false end
  return not self.options.sampled or (pending.new.requests > 0 and pending.old.requests > 0)
end

--- Failures that are ahead take their requests from those that are still to be counted, so that none is counted twice.
local function borrow(self, side, counts)
  local debt = self.debts[side]
  local requests = math.max(counts.errors, counts.requests - debt)
  self.debts[side] = debt + requests - counts.requests
  counts.requests = requests
end

--- Takes an interval.
function Counts:add(interval, source)
  local new, old = self.pending.new, self.pending.old
  add_to(new, interval.new)
  add_to(old, interval.old)
  self.edge = source.edge
  if not is_closed(self, self.pending) then return end
  self.pending = { new = nothing(), old = nothing() }
  borrow(self, "new", new)
  borrow(self, "old", old)
  if not self.alone and self.alone ~= false then self.alone = alone(self, source.past) or false end
  add_to(self.new, new)
  add_to(self.old, old)
  self.worse:add(new.requests, new.errors, old.requests, old.errors)
  self.fine:add(new.requests, new.errors, old.requests, old.errors)
  self.dispersion:add(old.requests, old.errors)
  -- While the old side itself fails that often, a failure of the new one says nothing about it.
  if old.requests == 0 or old.errors <= self.options.margin * old.requests then self.rare:add(new.requests, new.errors) end
  if self.alone then self.alone:add(new.requests, new.errors) end
  self.failed = strike(self, self:log_e() >= math.log(1 / self.options.alpha))
end

local function by_itself(self)
  return self.old.requests == 0 and self.alone
end

--- ln E that the new side is worse.
---@return number
function Counts:log_e()
  if by_itself(self) then return self.alone:log_e() end
  return self.worse:log_e(self.dispersion:value())
end

local function complaint(self)
  local new, old, o = self.new, self.old, self.options
  local what = self.edge and ("takes longer than %g s for %s of its requests"):format(self.edge, percent(new.errors, new.requests))
    or ("fails %s of its requests"):format(percent(new.errors, new.requests))
  local rest = by_itself(self) and ("the old one, which gets none any more, %s before (allowed: %s more)"):format(
      percent(self.past_rate, 1), percent(o.margin, 1))
    or ("the old one %s (%d of %d, beside %d of %d)"):format(percent(old.errors, old.requests), new.errors, new.requests, old.errors, old.requests)
  return ("the new release %s, %s: %s to 1 against chance, %s are enough"):format(what, rest, odds(self:log_e()), odds(math.log(1 / o.alpha)))
end

local function lack(self)
  local new = self.new
  if new.requests == 0 then return "no request reached the new release" end
  return ("%d requests of the new release, %d of them %s, are too few to tell"):format(new.requests, new.errors, self.edge and "slow" or "failed")
end

--- No worse: failures are at most half as frequent again as the old side's, or rare in themselves; and nothing points the other way.
---@return deployrt.Verdict
---@return string reason
function Counts:verdict()
  if self.failed then return "fail", complaint(self) end
  local enough, doubt = math.log(2 / self.options.beta), math.log(1 / self.options.alpha) / 2
  local fine = math.max(self.fine:log_e(self.dispersion:value()), self.rare:log_e())
  if fine >= enough and self:log_e() < doubt then return "pass" end
  return "waiting", lack(self)
end

---@class deployrt.MeansJudge: deployrt.Judge
local Means = {}
Means.__index = Means

local noticeable = 1.1 -- however sure, a smaller factor is no reason to roll back
local step = 0.001     -- of a balancer's mean, in seconds: the new side gets the benefit
local brief = 0.005    -- seconds: below that nobody notices a difference

--- Judges mean durations.
---@param options deployrt.JudgeOptions
---@return deployrt.MeansJudge
function judge.means(options)
  return setmetatable({
    options = options, slower = evidence.means(), quick = evidence.means(), new = nothing(), old = nothing(),
    pending = { new = nothing(), old = nothing() },
  }, Means)
end

local function mean_of(counts)
  if counts.requests == 0 then return nil end
  return counts.seconds / counts.requests
end

--- Both means of a pending interval, once it has enough requests.
---@return {low: number, high: number}? new
---@return {low: number, high: number}? old
local function means_of(self)
  local new, old = self.pending.new, self.pending.old
  if new.requests < self.options.minimum or old.requests < self.options.minimum then return nil end
  self.pending = { new = nothing(), old = nothing() }
  local one, other = mean_of(new), mean_of(old)
  return { low = one, high = one }, { low = other, high = other }
end

--- What nobody notices is not told apart.
local function coarse(times)
  return { low = math.max(brief, times.low), high = math.max(brief, times.high) }
end

local function seems_slower(self)
  return self.slower.sum > self.slower.count * math.log(noticeable)
end

--- Takes an interval.
function Means:add(interval, source)
  for _, side in ipairs { "new", "old" } do
    add_to(self.pending[side], interval[side])
    add_to(self[side], interval[side])
  end
  self.latest = { new = interval.new.latency or (self.latest or {}).new, old = interval.old.latency or (self.latest or {}).old }
  local summed, new, old = interval.new.seconds and interval.old.seconds, nil, nil
  if summed then new, old = means_of(self) elseif interval.times then new, old = interval.times.new, interval.times.old end
  if new and source.balancer then new, old = coarse(new), coarse(old) end
  if not new or new.low <= 0 or old.low <= 0 then return end
  self.last = { new = new.low, old = old.high }
  self.slower:add(math.log(new.low / old.high)) -- the new side has the benefit of what is not known exactly
  self.quick:add(math.log(new.high / old.low / self.options.latency))
  self.failed = strike(self, seems_slower(self) and self:log_e() >= math.log(0.5 / self.options.alpha))
end

--- ln E that the new side's means are others.
---@return number
function Means:log_e()
  return self.slower:log_e()
end

--- A balancer's moving means come too seldom for evidence in a short time. At its end they are held to the limit as they are.
local function is_beyond_limit(self)
  local latest, least = self.latest or {}, self.options.minimum
  if not latest.new or not latest.old or self.new.requests < least or self.old.requests < least then return false end
  return latest.new - step > self.options.latency * math.max(brief, latest.old)
end

--- No worse: shown not to be slower by the allowed factor, and nothing points the other way.
---@param over? boolean
---@return deployrt.Verdict
---@return string reason
function Means:verdict(over)
  if over and self.options.advisory and not self.failed and is_beyond_limit(self) then
    return "fail", ("the new release takes %.0f ms, the old one %.0f ms (allowed: %g times as long)"):format(
      1000 * self.latest.new, 1000 * self.latest.old, self.options.latency)
  end
  if self.failed then
    return "fail", ("the new release takes %.3g times as long as the old one (%.0f ms beside %.0f ms in the last of %d intervals): %s to 1 against chance, %s are enough")
      :format(math.exp(self.slower.sum / self.slower.count), 1000 * self.last.new, 1000 * self.last.old, self.slower.count,
        odds(self:log_e()), odds(math.log(0.5 / self.options.alpha)))
  end
  local doubt = seems_slower(self) and self:log_e() > 0
  if not doubt and self.quick.sum < 0 and self.quick:log_e() >= math.log(0.5 / self.options.beta) then return "pass" end
  return "waiting", ("%d intervals with requests on both sides are too few to compare their times"):format(self.slower.count)
end

return judge
