-- evidence.lua -- How strongly counts of two sides speak for a difference: tests that may be looked at at any time.
-- Each test is a bet against a hypothesis, and its evidence E the wealth that the bet has made. When the hypothesis is
-- true, the chance that E ever reaches 1/alpha is at most alpha, however often one looks and whenever one stops.
-- Background: Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data", arXiv 2011.03567 (counts whose split
-- changes); Lindon, Ham, Tingley and Bojinov, "Anytime-Valid Linear Models and
-- Regression Adjusted Causal Inference in Randomized Experiments", arXiv 2210.08589, and its package avlm (means).
local evidence = {}

local log, exp = math.log, math.exp

--- The logarithm of the mean of exp(values[i] / divisor), also where exp itself is out of range.
local function log_mean_exp(values, divisor)
  local most = -math.huge
  for _, value in ipairs(values) do most = math.max(most, value / divisor) end
  if most == -math.huge then return most end
  local sum = 0
  for _, value in ipairs(values) do sum = sum + exp(value / divisor - most) end
  return most + log(sum / #values)
end

---@class deployrt.evidence.Ratio
---@field sums number[]  L_j: the logarithm of what each bet has made
local Ratio = {}
Ratio.__index = Ratio

--- Whether the canary fails more often than `than` times as often as the baseline, or less: against the hypothesis that it
--- does not, one bet on each of `ratios`. It looks only at how the failures of an interval are split between both sides, so
--- the number of them, an outage that both share, and the shares of the traffic may change from interval to interval.
---@param opts? {than?: number, ratios?: number[]}  default: 1, and ratios above it
---@return deployrt.evidence.Ratio
function evidence.ratio(opts)
  opts = opts or {}
  local self = setmetatable({ than = opts.than or 1, ratios = opts.ratios or { 1.25, 1.5, 2, 3, 5, 10 }, sums = {}, gains = {}, costs = {} }, Ratio)
  for j, r in ipairs(self.ratios) do self.sums[j], self.gains[j] = 0, log(r / self.than) end
  return self
end

--- Takes an interval.
---@param canary_requests number
---@param canary_failures number
---@param baseline_requests number
---@param baseline_failures number
function Ratio:add(canary_requests, canary_failures, baseline_requests, baseline_failures)
  if canary_requests + baseline_requests == 0 then return end
  local rho = canary_requests / (canary_requests + baseline_requests)
  if rho ~= self.rho then -- most of the work, and the same as long as the split is
    self.rho = rho
    for j, r in ipairs(self.ratios) do self.costs[j] = log((rho * r + 1 - rho) / (rho * self.than + 1 - rho)) end
  end
  local failures = canary_failures + baseline_failures
  for j in ipairs(self.ratios) do self.sums[j] = self.sums[j] + canary_failures * self.gains[j] - failures * self.costs[j] end
end

--- ln E.
---@param dispersion? number  what L_j is divided by where failures come in clusters; default 1
---@return number
function Ratio:log_e(dispersion)
  return log_mean_exp(self.sums, dispersion or 1)
end

---@class deployrt.evidence.Rate
local Rate = {}
Rate.__index = Rate

--- Whether one side fails less often than `limit`, by bets on rates below it; or more often, by bets on rates above it.
---@param opts {limit: number, rates: number[]}  shares of the requests, 0 to 1; all rates on the same side of the limit
---@return deployrt.evidence.Rate
function evidence.rate(opts)
  local self = setmetatable({ limit = opts.limit, rates = opts.rates, sums = {} }, Rate)
  for j in ipairs(self.rates) do self.sums[j] = 0 end
  return self
end

--- Takes an interval.
---@param requests number
---@param failures number
function Rate:add(requests, failures)
  for j, rate in ipairs(self.rates) do
    local sum = self.sums[j]
    if failures > 0 then sum = sum + failures * log(rate / self.limit) end -- a bet on no failure at all ends with the first one
    if requests > failures then sum = sum + (requests - failures) * log((1 - rate) / (1 - self.limit)) end
    self.sums[j] = sum
  end
end

--- ln E.
---@return number
function Rate:log_e()
  return log_mean_exp(self.sums, 1)
end

---@class deployrt.evidence.Means
---@field count integer
---@field sum number
local Means = {}
Means.__index = Means

--- Whether values such as ln(mean of the canary / mean of the baseline), one an interval, lie off zero. The test has two
--- sides: who asks for one of them looks at the sign of `sum`, and compares E with 1/(2 alpha).
---@param prior? number  g, how many intervals' worth of doubt one begins with; default 1
---@return deployrt.evidence.Means
function evidence.means(prior)
  return setmetatable({ prior = prior or 1, count = 0, sum = 0, squares = 0 }, Means)
end

--- Takes an interval's value.
---@param value number
function Means:add(value)
  self.count, self.sum, self.squares = self.count + 1, self.sum + value, self.squares + value * value
end

--- ln E.
---@return number
function Means:log_e()
  if self.squares == 0 then return 0 end
  local g, n = self.prior, self.count
  return log(g / (g + n)) / 2 - n / 2 * log(1 - self.sum ^ 2 / ((g + n) * self.squares))
end

---@class deployrt.evidence.Dispersion
local Dispersion = {}
Dispersion.__index = Dispersion

--- How much more the failures of intervals vary than independent ones would: Pearson's statistic per degree of freedom.
---@return deployrt.evidence.Dispersion
function evidence.dispersion()
  return setmetatable({ intervals = 0, requests = 0, failures = 0, weighted = 0 }, Dispersion)
end

--- Takes an interval.
---@param requests number
---@param failures number
function Dispersion:add(requests, failures)
  if requests <= 0 then return end
  self.intervals, self.requests, self.failures = self.intervals + 1, self.requests + requests, self.failures + failures
  self.weighted = self.weighted + failures ^ 2 / requests
end

--- At least 1: failures more even than chance are not held in anybody's favour.
---@return number
function Dispersion:value()
  local p = self.requests > 0 and self.failures / self.requests or 0
  if self.intervals < 2 or p <= 0 or p >= 1 then return 1 end
  local pearson = (self.weighted - 2 * p * self.failures + p * p * self.requests) / (p * (1 - p))
  return math.max(1, pearson / (self.intervals - 1))
end

local wanted_below = 0.925 -- of the requests: between the 90th and the 95th percentile

--- The edge of a histogram's bucket that is nearest to the old side's 90th to 95th percentile. What is slower than it is
--- counted like a failure. Chosen before a test begins, from requests that do not take part in it.
---@param buckets {[1]: number, [2]: number}[]  an edge, and how many requests took at most that long
---@param requests number                     all of them
---@return number? edge  nil: nothing was counted yet, or there are no buckets
function evidence.edge(buckets, requests)
  if requests <= 0 then return nil end
  local best, distance
  for _, bucket in ipairs(buckets) do
    local off = math.abs(bucket[2] / requests - wanted_below)
    if not distance or off < distance then best, distance = bucket[1], off end
  end
  return best
end

return evidence
