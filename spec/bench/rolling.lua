-- rolling.lua -- Rolling deployments one instance at a time: what they take beyond the waits nobody can avoid.
local core = require "deployrt.core"
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

local interval = 0.05 -- seconds, between probes

local function health_of(successes)
  return ("{http: /healthz, interval: %dms, successes: %d, timeout: 1s, deadline: 10s}"):format(interval * 1000, successes)
end

local function deploy(app, version, release, fails)
  app:write(fixture.release(version, release), version)
  return bench.deployrt(app, { "rolling", "app.yml", "--quiet" }, { fails = fails })
end

local function must(condition, taken)
  if not condition then error("the deployment went otherwise than it should: " .. taken.stdout .. taken.stderr, 0) end
end

--- Four hosts behind an HAProxy of the user's own.
local function new_shop(bed)
  local app = fixture.app { slots = 2, instances = 1, health = health_of(1), yaml = "strategy: {batch: 1, settle: 0}" }
  app.ports = { 8080, 8081 }
  local servers = {}
  for i, host in ipairs(bed.hosts) do
    for _, port in ipairs(app.ports) do
      servers[#servers + 1] = ("s%d-%d %s:%d check inter 200ms disabled"):format(i, port, host.address, port)
    end
  end
  local proxy = fixture.haproxy { servers = servers }
  app.opts.hosts = bed:yaml()
  app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
  return app
end

--- The part of a run, in percent, in which the journal is written or somebody waits for its disk.
local function journal_share(app, prepare)
  local shares, file = {}, fixture.dir() .. "/share"
  for i = 1, 3 do
    prepare()
    local taken = fixture.run({ "lua5.4", "spec/bench/journaled.lua", file, "--state", app.dir .. "/state", "rolling", app.file, "--quiet" },
      { env = { HOME = app.dir .. "/home", TERM = "dumb", LUA_PATH = package.path, LUA_CPATH = package.cpath } })
    must(taken.exit == 0, taken)
    local spent, wall = fixture.read(file):match("(%S+) (%S+)")
    shares[i] = 100 * tonumber(spent) / tonumber(wall)
  end
  return bench.median(shares)
end

local function over_ssh(app)
  local version, delay = 1, 500
  must(deploy(app, "1.0", { start_delay = delay }).exit == 0)
  local measured = bench.interleave(5, {
    good = function()
      version = version + 1
      return deploy(app, version .. ".0", { start_delay = delay })
    end,
    dies = function()
      local taken = deploy(app, version .. ".1", { fault = "dies" }, true)
      must(taken.exit == 1, taken)
      return taken
    end,
  }, { "good", "dies" })
  local serving = app:serving()
  must(#serving == 4 and serving[1] == version .. ".0" and serving[4] == serving[1], { stdout = table.concat(serving, " "), stderr = "" })
  local good = measured.good
  bench.row("rolling over 4 SSH hosts, wall", good.wall, "%.2f s", "<=", 2.6,
    "median of 5; 2.0 s are the service's own starts; whole process, with the upload, healthy at the first good probe")
  bench.row("rolling over 4 SSH hosts, controller CPU", good.cpu, "%.2f s", "<=", 0.3)
  bench.row("rolling over 4 SSH hosts, peak", good.peak, "%.1f MB", "<=", 20)
  bench.row("rolling over 4 SSH hosts, its journal's share of the wall", journal_share(app, function()
    version = version + 1
    app:write(fixture.release(version .. ".0", { start_delay = delay }), version .. ".0")
  end), "%.1f %%", "<=", 5, "median of 3: time in which it was written, and waited for on the disk")
  bench.row("release that dies at start: detected, undone, reported", measured.dies.wall, "%.2f s", "<=", 1, "median of 5, whole process")
end

local local_count, successes = 8, 2 -- the default: two good probes in a row

local function healthy(port)
  local answer = core.http.request { url = ("http://127.0.0.1:%d/healthz"):format(port), timeout = 1 }
  return answer ~= nil and answer.status == 200
end

-- Starts the service by hand, and looks every millisecond: how long until it is healthy, and how long until it is gone.
local function own_waits(release)
  local port, starts, stops = fixture.free_port(), {}, {}
  for i = 1, 5 do
    local began = core.now()
    local pid = fixture.start({ release .. "/server", "--port", port }, { cwd = release })
    local _, up = core.run(function()
      while not healthy(port) do core.sleep(0.001) end
      return core.now()
    end)
    fixture.signal(pid, "TERM")
    core.run(function()
      while fixture.alive(pid) do core.sleep(0.001) end
    end)
    starts[i], stops[i] = up - began, core.now() - up
  end
  return bench.median(starts), bench.median(stops)
end

local function locally(app)
  local delay, version = 50, 1
  must(deploy(app, "1.0", { start_delay = delay }).exit == 0)
  local measured = bench.interleave(7, { own = function()
    version = version + 1
    return deploy(app, version .. ".0", { start_delay = delay })
  end }, { "own" }).own
  local start, stop = own_waits(fixture.release("0.1", { start_delay = delay }))
  local pause = (successes - 1) * interval
  local floor = local_count * (start + stop + pause)
  bench.row("rolling of 8 local instances, beside its waits", measured.wall / floor, "%.2fx", "<=", 1.3,
    ("median of 7: %.2f s; waits %.2f s = 8 x (%.0f ms start until healthy + %.0f ms between its %d probes + %.0f ms stop, as by hand); %.2f CPU s"):format(
      measured.wall, floor, start * 1000, pause * 1000, successes, stop * 1000, measured.cpu))
end

return function()
  bench.with_app(fixture.app { instances = local_count, health = health_of(successes), yaml = "strategy: {batch: 1, settle: 0}" }, locally)
  if not hosts.possible() then
    bench.note("rolling over SSH", "not measured", "needs root, iproute2 and sshd")
    return
  end
  local bed = hosts.up(4)
  local ok, err = xpcall(function() bench.with_app(new_shop(bed), over_ssh) end, debug.traceback)
  bed:down()
  if not ok then error(err, 0) end
end
