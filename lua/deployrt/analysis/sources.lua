-- analysis/sources.lua -- Where counts come from, as intervals: what happened on both sides since the last look.
-- Counters that began anew give no interval, and neither does an answer that is missing or makes no sense.
local errors = require "deployrt.errors"
local evidence = require "deployrt.evidence"
local operation = require "deployrt.operation"

local sources = {}

---@class deployrt.Counts
---@field requests number
---@field errors? number   requests that failed, or took too long
---@field seconds? number  that the requests took together
---@field latency? number  mean of the last requests, in seconds, for who watches

---@class deployrt.Interval
---@field new deployrt.Counts
---@field old deployrt.Counts
---@field times? table<"new"|"old", {low: number, high: number}>  a balancer's mean times since it last gave some, in seconds

---@class deployrt.Source
---@field take fun(self): deployrt.Interval?, string?  what happened since the last take; nil and why where nobody knows
---@field past? deployrt.Counts  what the old side did before the first look
---@field edge? number     seconds above which a request is slow

--- Sums of a side's slots, what they were before taken off. Nil when a slot is not counted, or its counters began anew.
local function side_of_balancer(stats, before, list)
  local sum, weighted, seconds = { requests = 0, errors = 0 }, 0, 0
  for _, member in ipairs(list) do
    local now, was = stats[member.slot], before[member.slot]
    if not now or not was or now.counted ~= was.counted or now.requests < was.requests or now.errors < was.errors then return nil end
    local requests = now.requests - was.requests
    sum.requests, sum.errors = sum.requests + requests, sum.errors + now.errors - was.errors
    weighted = weighted + requests * (now.latency or 0)
    seconds = seconds and now.seconds and was.seconds and seconds + now.seconds - was.seconds
  end
  sum.seconds = seconds or nil
  sum.latency = sum.requests > 0 and (seconds or weighted) / sum.requests or nil
  return sum
end

local step = 0.001                   -- seconds: a balancer's mean is rounded up to it
local new_for, all_new = 256, 1024 -- requests that a slot must have had: where its mean can be taken apart, and else

--- The mean time of the requests between two looks, as bounds: an exponential mean keeps a known part of what it was, and
--- is a plain one until its window is full. A mean of which no more is known is all new after so many requests.
local function times_of_slot(now, was)
  local count, window = now.requests - was.requests, now.window
  if not window then return count >= all_new and { low = now.latency - step, high = now.latency } or nil end
  if count < new_for then return nil end
  if now.requests <= window then
    local sum = now.latency * now.requests - was.latency * was.requests
    return { low = (sum - step * now.requests) / count, high = (sum + step * was.requests) / count }
  end
  local kept = (1 - 1 / window) ^ count
  local mean = (now.latency - kept * was.latency) / (1 - kept)
  return { low = mean - step / (1 - kept), high = mean + kept * step / (1 - kept) }
end

--- The same of a side: slots by their requests. Nil until each that has any can tell.
local function times_of_side(stats, before, list)
  local requests, low, high = 0, 0, 0
  for _, member in ipairs(list) do
    local now, was = stats[member.slot], before[member.slot]
    local count = now.requests - was.requests
    local times = times_of_slot(now, was)
    if count > 0 and not times then return nil end
    if count > 0 then requests, low, high = requests + count, low + count * times.low, high + count * times.high end
  end
  return requests > 0 and { low = math.max(0, low / requests), high = math.max(0, high / requests) } or nil
end

local Balancer = {}
Balancer.__index = Balancer

local function look_at(self)
  local ok, stats = pcall(self.balancer.stats, self.balancer)
  if ok then return stats end
  if errors.is_away(stats) or type(stats) == "table" and stats.code == "balancer" then return nil, errors.text(stats) end
  error(stats, 0)
end

local function lifetime(stats, list)
  local sum = { requests = 0, errors = 0 }
  for _, member in ipairs(list) do
    local slot = stats[member.slot]
    if slot then sum.requests, sum.errors = sum.requests + slot.requests, sum.errors + slot.errors end
  end
  return sum
end

--- Whether a slot's mean has become an exponential one in between: its time is counted from here on.
local function becomes_exponential(stats, before)
  for name, now in pairs(stats) do
    local was = before[name]
    if now.window and was and was.requests < now.window and now.requests > now.window then return true end
  end
  return false
end

--- Times of both sides, once there are enough requests since those before.
---@private
function Balancer:times(stats)
  if becomes_exponential(stats, self.timed) then
    self.timed = stats
    return nil
  end
  local new, old = times_of_side(stats, self.timed, self.new), times_of_side(stats, self.timed, self.old)
  if not new or not old then return nil end
  self.timed = stats
  return { new = new, old = old }
end

--- What happened since the last take.
---@async
function Balancer:take()
  local stats, problem = look_at(self)
  if not stats then return nil, problem end
  local before = self.before
  self.before = stats
  self.past = self.past or lifetime(stats, self.old)
  if not before then
    self.timed = stats
    return nil
  end
  local new, old = side_of_balancer(stats, before, self.new), side_of_balancer(stats, before, self.old)
  if new and old then return { new = new, old = old, times = self:times(stats) } end
  self.timed = stats
  return nil, next(stats) and "the balancer's counters began anew" or "the balancer counts nothing"
end

local Metric = {}
Metric.__index = Metric

local function side_of(list)
  local instances = {}
  for i, member in ipairs(list) do instances[i] = { host = member.host.name, port = member.port } end
  return { release = list[1] and list[1].release or "", instances = instances }
end

--- Histograms become counts of requests and of those that took longer than the edge; nil when it is not among the buckets.
local function flatten(reading, edge)
  if not reading.buckets then return reading end
  for _, bucket in ipairs(reading.buckets) do
    if bucket[1] == edge then return { requests = reading.requests, errors = reading.requests - bucket[2] } end
  end
  return nil
end

--- What was counted in between; nil when a counter went back, or what is counted as a part is more than all.
local function since(now, before)
  local out = {}
  for key, value in pairs(now) do
    out[key] = value - (before and before[key] or 0)
    if out[key] < 0 then return nil end
  end
  return out
end

--- What a side has counted so far: by the source of the declaration, through the door, or by the strategy's own method.
local function read(self)
  if self.declared.source ~= "function" then
    return operation.observe { name = "metric.read", args = { metric = self.asked, sides = self.sides } }
  end
  local found = {}
  for _, side in ipairs { "new", "old" } do -- in this order in each life of the run
    local list = self.lists[side]
    local method = self.script[self.declared.method]
    if type(method) ~= "function" then errors.raise("strategy", ("the strategy has no method '%s' to count with"):format(self.declared.method)) end
    local reading = method(self.script, list, side)
    if type(reading) ~= "table" then return { problem = ("%s gives no counts of the %s side"):format(self.declared.method, side) } end
    found[side] = reading
  end
  return found
end

local function is_count(value)
  return type(value) == "number" and value >= 0 and value < math.huge
end

--- The readings of both sides as flat, finite counts; nil and why.
local function counts_of(self)
  local found = read(self)
  if found.problem or not (found.new and found.old) then return nil, found.problem or "nothing was counted" end
  if self.kind == "buckets" and not self.edge then
    self.edge = evidence.edge(found.old.buckets or {}, found.old.requests or 0)
    if not self.edge then return nil, "the old side has no requests in its histogram yet" end
  end
  local out = {}
  for _, side in ipairs { "new", "old" } do
    local flat = flatten(found[side], self.edge)
    if not flat then return nil, ("the %s side's histogram has no bucket %g"):format(side, self.edge) end
    local part = self.kind == "seconds" and "seconds" or "errors"
    if not is_count(flat.requests) or not is_count(flat[part]) then return nil, ("the %s side's counts are no numbers"):format(side) end
    out[side] = { requests = flat.requests, [part] = flat[part] }
  end
  return out
end

--- What happened since the last take.
---@async
function Metric:take()
  local now, problem = counts_of(self)
  if not now then return nil, problem end
  local before = self.before
  self.before = now
  self.past = self.past or (self.declared.counts ~= "interval" and now.old or nil)
  if not before then return nil end
  if self.declared.counts == "interval" then return now end
  local new, old = since(now.new, before.new), since(now.old, before.old)
  if new and old then return { new = new, old = old } end
  return nil, "its counters began anew"
end

--- Opens a source; its first take() marks where the counting begins.
---@param declared table  a metric of app.yml
---@param kind "errors"|"seconds"|"buckets"
---@param script deployrt.Strategy
---@param lists {new: deployrt.Instance[], old: deployrt.Instance[]}
---@return deployrt.Source
function sources.open(declared, kind, script, lists)
  if declared.source == "balancer" then
    return setmetatable({ balancer = script.balancer, new = lists.new, old = lists.old }, Balancer)
  end
  local asked = { kind = kind }
  for _, key in ipairs { "source", "url", "command", "requests", "errors", "seconds", "buckets", "timeout" } do asked[key] = declared[key] end
  return setmetatable({
    declared = declared, kind = kind, asked = asked, edge = declared.edge, script = script, lists = lists,
    sides = { new = side_of(lists.new), old = side_of(lists.old) },
  }, Metric)
end

return sources
