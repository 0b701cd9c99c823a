-- evidence.lua -- How soon a bad canary is caught, beside a gate of fixed thresholds and intervals, on the same recorded traffic.
local bench = require "spec.bench.bench"
local evidence = require "deployrt.evidence"
local fixture = require "spec.support.fixture"
local judge = require "deployrt.analysis.judge"
local runtime = require "deployrt.balancer.haproxy_runtime"
local thresholds = require "deployrt.analysis.thresholds"

local look_every, rate, share = 0.5, 2000, 10 -- seconds, requests a second, percent of them for the canary
local interval, length = 10, 21               -- seconds: of the fixed gate, and of a recording
local alpha = 0.01 / 2                        -- the default, shared by errors and latency

local function start_service(conf, seed)
  local release, port = fixture.release("1", { conf = ("errors=%s\nseed=%d"):format(conf, seed) }), fixture.free_port()
  fixture.start({ release .. "/server", "--port", port }, { cwd = release })
  fixture.eventually(function() return fixture.is_listened(port) end, 10)
  return port
end

local function clock()
  return tonumber(fixture.read("/proc/uptime"):match("%S+"))
end

local function counters(proxy)
  local found = {}
  for _, row in ipairs(runtime.parse_stat(proxy:command("show stat shop 4 -1"))) do
    found[row.svname] = { requests = runtime.number(row, "stot"), errors = runtime.number(row, "hrsp_5xx") }
  end
  return found
end

--- Real traffic through HAProxy, as its counters tell of it: a list of {at, new, old}.
local function record(canary, seed)
  local new, old = start_service(canary, seed), start_service("0.5%", seed + 1000)
  local proxy = fixture.haproxy { servers = {
    ("new 127.0.0.1:%d weight %d"):format(new, share), ("old 127.0.0.1:%d weight %d"):format(old, 100 - share),
  } }
  local load = fixture.load { port = proxy.port, rate = rate, connections = 16 }
  local began, looks = clock(), {}
  repeat
    local found = counters(proxy)
    looks[#looks + 1] = { at = clock() - began, new = found.new, old = found.old }
    os.execute("sleep " .. look_every)
  until looks[#looks].at >= length
  load:stop()
  fixture.cleanup()
  return looks
end

local function between(one, other)
  return { requests = other.requests - one.requests, errors = other.errors - one.errors }
end

--- When evidence catches it: seconds and the canary's requests until then; nil when it does not.
local function by_evidence(looks)
  local each = judge.counts { name = "errors", kind = "errors", alpha = alpha, beta = 0.05, margin = 0.01 }
  for i = 2, #looks do
    each:add({ new = between(looks[i - 1].new, looks[i].new), old = between(looks[i - 1].old, looks[i].old) }, {})
    if each.failed then return looks[i].at - looks[1].at, each.new.requests end
  end
end

--- The same for limits on what each interval counted.
local function by_thresholds(looks, points)
  local first = 1
  for i = 2, #looks do
    if looks[i].at - looks[first].at >= interval - look_every / 2 then
      local new, old = between(looks[first].new, looks[i].new), between(looks[first].old, looks[i].old)
      if thresholds.compare(new, old, { errors = points, latency = 2, minimum = 20 }) == "fail" then
        return looks[i].at - looks[1].at, looks[i].new.requests - looks[1].new.requests
      end
      first = i
    end
  end
end

local function caught(recordings, gate, ...)
  local times, requests = {}, {}
  for _, looks in ipairs(recordings) do
    local seconds, count = gate(looks, ...)
    if seconds then times[#times + 1], requests[#requests + 1] = seconds, count end
  end
  return times, requests
end

local function describe(times, requests, total)
  if #times == 0 then return ("0 of %d"):format(total) end
  return ("%d of %d, after %.1f s and %.0f of its requests"):format(#times, total, bench.median(times), bench.median(requests))
end

local function compare()
  local bad, good = {}, {}
  for i = 1, 5 do bad[i] = record("1.5%", 7919 * i) end
  for i = 1, 2 do good[i] = record("0.5%", 104729 * i) end
  local times, requests = caught(bad, by_evidence)
  local setting = ("%d recordings of HAProxy's counters: %d requests/s, %d%% to a canary with 1.5%% errors beside 0.5%%; medians"):format(#bad, rate, share)
  bench.row("bad canary: caught by evidence", 100 * #times / #bad, "%.0f %%", ">=", 100, setting)
  bench.note("bad canary: by evidence", describe(times, requests, #bad), "as a canary's step of two metrics does: alpha 0.005 for errors")
  for _, points in ipairs { 1, 0.5 } do
    local fixed, count = caught(bad, by_thresholds, points)
    bench.note(("bad canary: by a fixed gate, %g points, %d s"):format(points, interval), describe(fixed, count, #bad), "the same recordings")
    if #fixed > 0 and #times > 0 and points == 1 then
      bench.row("bad canary: time, beside the fixed gate of 1 point", bench.median(times) / bench.median(fixed), "%.2fx", "<=", 1, "medians of those caught")
      bench.row("bad canary: its requests, beside the same", bench.median(requests) / bench.median(count), "%.2fx", "<=", 1, "medians of those caught")
    end
  end
  bench.row("healthy canary: failed by evidence", #caught(good, by_evidence), "%d", "<=", 0, ("of %d recordings with 0.5%% on both sides"):format(#good))
end

--- How many failures of both sides together until the evidence reaches 1/0.05 and 1/0.01, looking after each.
local function simulate(runs, ratio, most)
  local chance, needed, reached = 0.1 * ratio / (0.1 * ratio + 0.9), { math.log(20), math.log(100) }, { {}, {} }
  for _ = 1, runs do
    local test, level = evidence.ratio(), 1
    for failures = 1, most do
      local canary = math.random() < chance and 1 or 0
      test:add(1, canary, 9, 1 - canary)
      while needed[level] and canary == 1 and test:log_e() >= needed[level] do
        table.insert(reached[level], failures)
        level = level + 1
      end
      if level > 2 then break end
    end
  end
  return reached
end

local function mean(list)
  local sum = 0
  for _, value in ipairs(list) do sum = sum + value end
  return sum / #list
end

local function operating_figures()
  math.randomseed(1)
  local null, double, runs = simulate(20000, 1, 1000), simulate(20000, 2, 10000), 20000
  for i, level in ipairs { 0.05, 0.01 } do
    local known = ({ { 0.0336, 124 }, { 0.0058, 184 } })[i]
    bench.note(("false alarms by 1,000 errors, alpha %g"):format(level), ("%.4f"):format(#null[i] / runs),
      ("simulated, %d runs, 10%% of the traffic, a look after every error; known: %.4f"):format(runs, known[1]))
    bench.note(("errors until twice the rate is noticed, alpha %g"):format(level), ("%.0f"):format(mean(double[i])), ("mean of both sides' errors; known: %d"):format(known[2]))
  end
end

return function()
  operating_figures()
  if not bench.has("/usr/sbin/haproxy") then
    bench.note("evidence against a fixed gate", "not measured", "haproxy is not installed")
    return
  end
  compare()
end
