-- analysis_spec.lua -- From counters to a verdict: what may be concluded from good, bad, missing and nonsensical counts.
local judge = require "deployrt.analysis.judge"
local options = require "deployrt.analysis.options"
local sources = require "deployrt.analysis.sources"
local thresholds = require "deployrt.analysis.thresholds"

local function member(name, port)
  return { slot = ("%s-%d"):format(name, port), release = name, host = { name = name }, port = port }
end

local lists = { new = { member("new", 1) }, old = { member("old", 1), member("old", 2) } }

local function slot(requests, errors, latency)
  return { requests = requests, errors = errors, latency = latency or 0 }
end

--- A balancer's source whose answers are given one after the other; an error table is raised.
local function balancer_of(answers)
  local at = 0
  return sources.open({ source = "balancer" }, "errors", { balancer = { stats = function()
    at = at + 1
    if answers[at].code then error(answers[at], 0) end
    return answers[at]
  end } }, lists)
end

describe("the balancer's counters", function()
  local function stats(new, old1, old2)
    return { ["new-1"] = new, ["old-1"] = old1, ["old-2"] = old2 }
  end

  it("become what happened on both sides between two looks", function()
    local source = balancer_of { stats(slot(100, 5), slot(1000, 50), slot(2000, 60)), stats(slot(110, 6, 0.02), slot(1030, 50, 0.01), slot(2010, 63, 0.03)) }
    assert.is_nil(source:take())
    assert.same({ requests = 3000, errors = 110 }, source.past)
    local interval = source:take()
    assert.same({ requests = 10, errors = 1, latency = 0.02 }, interval.new)
    assert.same({ 40, 3 }, { interval.old.requests, interval.old.errors })
    assert.is_true(math.abs(interval.old.latency - 0.015) < 1e-9)
  end)

  it("tell how long requests took together, where all slots know it", function()
    local function timed(requests, seconds) return { requests = requests, errors = 0, seconds = seconds } end
    local source = balancer_of { stats(timed(1, 1), timed(1, 1), timed(1, 1)), stats(timed(5, 3), timed(3, 2), timed(3, 4)) }
    source:take()
    local interval = source:take()
    assert.same({ 2, 0.5, 4, 1 }, { interval.new.seconds, interval.new.latency, interval.old.seconds, interval.old.latency })
  end)

  it("tell the mean time of what came in between, though HAProxy keeps only a moving mean of whole milliseconds", function()
    local exact, requests = { new = 10, old = 10 }, 600
    local function serve(side, count, ms)
      for _ = 1, count do exact[side] = exact[side] + (ms - exact[side]) / 512 end
    end
    local function look(count)
      local function seen(side) return { requests = count, errors = 0, window = 512, latency = math.ceil(exact[side]) / 1000 } end
      return stats(seen "new", seen "old", seen "old")
    end
    local answers = { look(requests) }
    serve("new", 200, 40)
    answers[2] = look(requests + 200)
    serve("new", 200, 40)
    answers[3] = look(requests + 400)
    local source = balancer_of(answers)
    source:take()
    assert.is_nil(source:take().times)
    local times = source:take().times
    assert.is_true(times.new.low > 0.037 and times.new.low <= 0.040 and times.new.high >= 0.040 and times.new.high < 0.043)
    assert.is_true(times.old.low <= 0.010 and times.old.high >= 0.010 and times.old.high - times.old.low < 0.004)
  end)

  it("are taken for new only as a whole, where nobody knows what a mean is of", function()
    local function seen(count) return stats(slot(count, 0, 0.02), slot(count, 0, 0.01), slot(count, 0, 0.01)) end
    local source = balancer_of { seen(0), seen(1000), seen(1024) }
    source:take()
    assert.is_nil(source:take().times)
    assert.same({ low = 0.01, high = 0.01 }, (function(times) return { low = times.old.high, high = times.new.high - 0.01 } end)(source:take().times))
  end)

  it("say nothing of an interval in which the balancer was restarted, even when one side has caught up", function()
    local before, after = stats(slot(10, 1), slot(1000, 50), slot(2000, 60)), stats(slot(12, 1), slot(20, 20), slot(30, 0))
    local source = balancer_of { before, after, stats(slot(14, 1), slot(40, 21), slot(50, 0)) }
    source:take()
    local interval, problem = source:take()
    assert.is_nil(interval)
    assert.truthy(problem:find("began anew", 1, true))
    assert.same({ 2, 0, 40, 1 }, (function(i) return { i.new.requests, i.new.errors, i.old.requests, i.old.errors } end)(source:take()))
  end)

  it("say nothing while the balancer is away, and what they missed is counted once it is back", function()
    local source = balancer_of { stats(slot(0, 0), slot(0, 0), slot(0, 0)), { code = "refused", message = "nobody answers" }, {},
      stats(slot(5, 0), slot(5, 0), slot(5, 0)), stats(slot(9, 0), slot(6, 0), slot(6, 0)) }
    source:take()
    assert.same({ nil, "nobody answers" }, { source:take() })
    assert.truthy(select(2, source:take()):find("counts nothing", 1, true))
    assert.is_nil(source:take()) -- the slots were not counted before
    assert.equal(4, source:take().new.requests)
  end)

  it("of several balancers are not compared with those of others", function()
    local function seen(count, counted) return { requests = count, errors = 0, counted = counted } end
    local function look(count, counted) return stats(seen(count, counted), seen(count, counted), seen(count, counted)) end
    local source = balancer_of { look(10, 2), look(5000, 6), look(5001, 6) }
    source:take()
    assert.is_nil(source:take())
    assert.equal(1, source:take().new.requests)
  end)

  it("let other errors through", function()
    local source = balancer_of { { code = "interrupted", message = "stop" } }
    assert.has_error(function() source:take() end)
  end)
end)

describe("a metric of the strategy's own", function()
  local function source_of(readings, declared, kind)
    local at = 0
    declared = declared or {}
    declared.source, declared.method = "function", "count"
    return sources.open(declared, kind or "errors", { count = function(_, list, side)
      if side == "new" then at = at + 1 end
      assert.equal(lists[side], list)
      return readings[at] and readings[at][side] or nil
    end }, lists)
  end

  local function reading(new, new_errors, old, old_errors)
    return { new = { requests = new, errors = new_errors }, old = { requests = old, errors = old_errors } }
  end

  it("is asked for both sides, and counts what came in between", function()
    local source = source_of { reading(10, 1, 100, 2), reading(20, 2, 200, 2) }
    assert.is_nil(source:take())
    assert.same({ new = { requests = 10, errors = 1 }, old = { requests = 100, errors = 0 } }, source:take())
  end)

  it("gives no interval for NaN, negative, missing or texts for counts, nor when a counter went back", function()
    local nonsense = { reading(0 / 0, 0, 1, 0), reading(-1, 0, 1, 0), reading(5, nil, 1, 0), reading("5", 0, 1, 0), reading(math.huge, 0, 1, 0), {} }
    for i, each in ipairs(nonsense) do
      local source = source_of { reading(1, 0, 1, 0), each, reading(9, 0, 9, 0) }
      source:take()
      local interval, problem = source:take()
      assert.is_nil(interval, "reading " .. i)
      assert.is_string(problem)
      assert.same({ 8, 8 }, (function(found) return { found.new.requests, found.old.requests } end)(source:take()))
    end
    local source = source_of { reading(10, 1, 100, 2), reading(2, 0, 200, 3) }
    source:take()
    assert.is_nil(source:take())
  end)

  it("may count by interval", function()
    local source = source_of({ reading(10, 1, 100, 2), reading(5, 1, 50, 0) }, { counts = "interval" })
    assert.is_nil(source:take())
    assert.same(reading(5, 1, 50, 0), source:take())
  end)

  it("of a histogram is counted above one edge, chosen from what the old side did before", function()
    local function histogram(fast, slow)
      return { requests = fast + slow, buckets = { { 0.1, fast // 2 }, { 0.5, fast } } }
    end
    local source = source_of({ { new = histogram(0, 0), old = histogram(92, 8) }, { new = histogram(10, 5), old = histogram(192, 16) } }, nil, "buckets")
    source:take()
    assert.equal(0.5, source.edge)
    assert.same(reading(15, 5, 108, 8), source:take())
  end)

  it("of a histogram without requests says nothing yet", function()
    local empty = { requests = 0, buckets = { { 0.1, 0 } } }
    local source = source_of({ { new = empty, old = empty } }, nil, "buckets")
    assert.truthy(select(2, source:take()):find("no requests", 1, true))
  end)
end)

describe("the judge of errors", function()
  local function judge_of(more)
    local o = { name = "errors", kind = "errors", alpha = 0.005, beta = 0.05, margin = 0.01, latency = 2, minimum = 20 }
    for key, value in pairs(more or {}) do o[key] = value end
    return judge.counts(o)
  end

  --- Intervals {new requests, errors, old requests, errors} until the judge decides; how many it took.
  local function hear(each, intervals, past)
    for i, n in ipairs(intervals) do
      each:add({ new = { requests = n[1], errors = n[2] }, old = { requests = n[3], errors = n[4] } }, { past = past })
      local verdict, reason = each:verdict()
      if verdict ~= "waiting" then return verdict, reason, i end
    end
    return each:verdict()
  end

  local function times(count, ...)
    local list = {}
    for i = 1, count do list[i] = { ... } end
    return list
  end

  it("knows nothing without requests, however long it looks", function()
    for _, idle in ipairs { { 0, 0, 0, 0 }, { 0, 0, 1000, 5 }, { 0, 0, 1000, 1000 } } do
      local verdict, reason = hear(judge_of(), times(100, table.unpack(idle)))
      assert.equal("waiting", verdict)
      assert.equal("no request reached the new release", reason)
    end
  end)

  it("passes a release without errors once a percent of them would have shown", function()
    local verdict, _, count = hear(judge_of(), times(20, 50, 0, 450, 0))
    assert.equal("pass", verdict)
    assert.is_true(count >= 6 and count <= 12, "after " .. count)
    assert.equal("waiting", (hear(judge_of(), times(5, 50, 0, 450, 0))))
  end)

  it("passes a release that fails as often as the old one, be that seldom or often", function()
    assert.equal("pass", (hear(judge_of(), times(60, 200, 1, 1800, 9))))
    assert.equal("pass", (hear(judge_of(), times(60, 200, 20, 1800, 180))))
  end)

  it("fails one that has a percent more errors than half a percent", function()
    local verdict, reason = hear(judge_of(), times(60, 200, 3, 800, 4))
    assert.equal("fail", verdict)
    assert.truthy(reason:find("fails 1.5% of its requests, the old one 0.5%", 1, true), reason)
  end)

  it("fails one that fails always, after a handful of requests", function()
    local verdict, _, count = hear(judge_of(), times(50, 1, 1, 9, 0))
    assert.equal("fail", verdict)
    assert.is_true(count <= 6, "after " .. count)
  end)

  it("passes one that shares an outage with the old side", function()
    local intervals = times(4, 200, 1, 800, 4)
    for _ = 1, 4 do intervals[#intervals + 1] = { 200, 120, 800, 480 } end
    for _ = 1, 30 do intervals[#intervals + 1] = { 200, 1, 800, 4 } end
    assert.equal("pass", (hear(judge_of(), intervals)))
  end)

  it("is not misled by failures that come in clusters", function()
    local calm, clustered = judge_of(), judge_of()
    hear(calm, times(4, 200, 20, 800, 25))
    assert.equal("fail", (calm:verdict()))
    hear(clustered, { { 200, 0, 800, 0 }, { 200, 0, 800, 100 }, { 200, 40, 800, 0 }, { 200, 40, 800, 0 } })
    assert.is_true(clustered.dispersion:value() > 10)
  end)

  it("never counts a failure before its request", function()
    local each = judge_of()
    assert.equal("waiting", (hear(each, { { 10, 0, 90, 0 }, { 0, 8, 0, 0 } })))
    assert.equal(0, each.new.errors)
  end)

  it("judges an outage of everything, though the failures stay ahead of their requests", function()
    local each = judge_of()
    local verdict, reason = hear(each, { { 90, 100, 95, 100 }, table.unpack(times(40, 100, 100, 100, 100)) })
    assert.equal("pass", verdict, reason)
    assert.equal(each.new.requests, each.new.errors)
    each = judge_of()
    for _, n in ipairs { { 90, 100 }, { 100, 100 }, { 100, 100 }, { 100, 100 }, { 100, 100 }, { 100, 0 }, { 100, 0 } } do
      each:add({ new = { requests = n[1], errors = n[2] }, old = { requests = n[1], errors = n[2] } }, {})
    end
    assert.same({ 690, 500 }, { each.new.requests, each.new.errors })
  end)

  it("holds the new side to the old one's past once that gets no requests", function()
    local past = { requests = 20000, errors = 100 }
    assert.equal("fail", (hear(judge_of(), times(60, 200, 8, 0, 0), past)))
    assert.equal("pass", (hear(judge_of(), times(60, 200, 1, 0, 0), past)))
    assert.equal("waiting", (hear(judge_of(), times(5, 200, 100, 0, 0))))
    assert.equal("waiting", (hear(judge_of(), times(5, 200, 100, 0, 0), { requests = 0, errors = 0 })))
  end)

  it("wants to hear it twice where both sides are counted at different moments", function()
    local outage = { { 100, 80, 1000, 5 }, { 100, 5, 1000, 800 } }
    assert.equal("fail", (hear(judge_of(), outage)))
    assert.equal("waiting", (hear(judge_of { sampled = true }, outage)))
    assert.equal("fail", (hear(judge_of { sampled = true }, times(3, 100, 80, 1000, 5))))
    local each = judge_of { sampled = true }
    hear(each, { { 100, 2, 0, 0 }, { 0, 0, 1000, 5 } })
    assert.same({ 100, 1000 }, { each.new.requests, each.old.requests })
  end)
end)

describe("the judge of times", function()
  local function judge_of()
    return judge.means { name = "latency", alpha = 0.005, beta = 0.05, latency = 2, minimum = 20 }
  end

  local function hear(each, count, new, old, source)
    for i = 1, count do
      local wobble = 1 + 0.05 * math.sin(7 * i)
      local seconds = not source -- a balancer's means are not of the interval
      each:add({ new = { requests = 30, seconds = seconds and 30 * new * wobble, latency = new },
        old = { requests = 30, seconds = seconds and 30 * old, latency = old } }, source or {})
      local verdict, reason = each:verdict()
      if verdict ~= "waiting" then return verdict, reason, i end
    end
    return each:verdict()
  end

  it("fails what is slower, and passes what is not twice as slow", function()
    assert.equal("fail", (hear(judge_of(), 40, 0.15, 0.1)))
    assert.equal("pass", (hear(judge_of(), 40, 0.1, 0.1)))
    assert.equal("waiting", (hear(judge_of(), 4, 0.15, 0.1)))
  end)

  it("does not fail what is slower by less than anybody would notice, nor what takes no time at all", function()
    assert.not_equal("fail", (hear(judge_of(), 200, 0.103, 0.1)))
    assert.equal("waiting", (hear(judge_of(), 50, 0, 0)))
  end)

  it("gives the new side the benefit of what a balancer's mean leaves open", function()
    local function judged(new, old)
      local each = judge_of()
      for _ = 1, 30 do
        each:add({ new = { requests = 300 }, old = { requests = 300 }, times = { new = new, old = old } }, { balancer = {} })
        if each:verdict() ~= "waiting" then break end
      end
      return (each:verdict())
    end
    assert.equal("fail", judged({ low = 0.018, high = 0.02 }, { low = 0.01, high = 0.012 }))
    assert.not_equal("fail", judged({ low = 0.011, high = 0.02 }, { low = 0.01, high = 0.015 }))
    assert.equal("waiting", judged({ low = 0.011, high = 0.03 }, { low = 0.01, high = 0.015 }))
    assert.equal("pass", judged({ low = 0.001, high = 0.002 }, { low = 0.0001, high = 0.001 }))
  end)

  it("holds a balancer's means to the limit when there is no more time for evidence", function()
    local source, advisory = { balancer = {}, new = { 1 }, old = { 1 } }, judge.means { name = "latency", advisory = true, alpha = 0.005, beta = 0.05, latency = 2, minimum = 20 }
    assert.equal("waiting", (hear(advisory, 2, 0.2, 0.01, source)))
    assert.equal("waiting", (advisory:verdict(false)))
    local verdict, reason = advisory:verdict(true)
    assert.equal("fail", verdict)
    assert.equal("the new release takes 200 ms, the old one 10 ms (allowed: 2 times as long)", reason)
    for _, times in ipairs { { 0.019, 0.01 }, { 0.004, 0.001 }, { 0.2, nil } } do
      local each = judge.means { name = "latency", advisory = true, alpha = 0.005, beta = 0.05, latency = 2, minimum = 20 }
      hear(each, 2, times[1], times[2] or 0, times[2] and source or { balancer = {}, new = { 1 }, old = {} })
      each.latest.old = times[2]
      assert.equal("waiting", (each:verdict(true)))
    end
  end)

  it("gives the new side the millisecond by which a balancer's mean may be off", function()
    local source = { balancer = {}, new = { 1 }, old = { 1 } }
    assert.not_equal("fail", (hear(judge_of(), 2000, 0.002, 0.001, source)))
  end)
end)

describe("thresholds", function()
  local limits = { errors = 1, latency = 2, minimum = 20 }

  it("fail what is above them, and only that", function()
    local function verdict(new, old) return (thresholds.compare(new, old, limits)) end
    assert.equal("waiting", verdict({ requests = 19, errors = 19 }, { requests = 100, errors = 0 }))
    assert.equal("pass", verdict({ requests = 100, errors = 2 }, { requests = 100, errors = 1 }))
    assert.equal("fail", verdict({ requests = 100, errors = 3 }, { requests = 100, errors = 1 }))
    assert.equal("fail", verdict({ requests = 100, errors = 0, latency = 0.3 }, { requests = 100, errors = 0, latency = 0.1 }))
    assert.equal("pass", verdict({ requests = 100, errors = 0, latency = 0.003 }, { requests = 100, errors = 0, latency = 0.001 }))
  end)
end)

describe("the declaration of a metric", function()
  it("is refused when it cannot be counted, with the reason", function()
    local wrong = {
      { { source = "prometheus", requests = "a", errors = "b" }, "needs `url`" },
      { { source = "prometheus", url = "u" }, "needs queries" },
      { { source = "prometheus", url = "u", errors = "b" }, "needs `requests`" },
      { { source = "http" }, "needs `url`" },
      { { source = "command" }, "needs `command`" },
      { { source = "function" }, "needs `method`" },
      { { source = "balancer", url = "u" }, "`url` has no place" },
      { { source = "prometheus", url = "u", buckets = "b", requests = "r" }, "`requests` has no place" },
      { { source = "http", url = "u", errors = "e", seconds = "s" }, "no place" },
    }
    for _, each in ipairs(wrong) do assert.truthy((options.problem(each[1]) or "nothing"):find(each[2], 1, true), options.problem(each[1]) or each[2]) end
  end)

  it("says what is counted", function()
    assert.equal("errors", options.kind { source = "command", command = { "c" } })
    assert.equal("seconds", options.kind { source = "http", url = "u", seconds = "s" })
    assert.is_nil(options.problem { source = "http", url = "u", seconds = "s" })
    assert.is_nil(options.problem { source = "prometheus", url = "u", buckets = "b" })
    assert.is_nil(options.problem { source = "balancer", name = "x" })
  end)
end)
