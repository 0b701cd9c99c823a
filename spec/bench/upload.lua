-- upload.lua -- A release of 200 MB to one host and to eight over SSH, beside scp in the same run.
local cjson = require "cjson"
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

local rounds = 3

--- A release of so many MB that do not compress.
local function release_of(megabytes)
  local path = fixture.release("1.0")
  assert(os.execute(("head -c %d /dev/urandom > %s/payload"):format(megabytes * 1000000, path)))
  return path
end

local function new_app(bed, count)
  local all = bed.hosts
  bed.hosts = table.move(all, 1, count, 1, {})
  local app = fixture.app { instances = 1, balancer = false, hosts = bed:yaml(), yaml = "strategy: {settle: 0}" }
  bed.hosts, app.ports = all, { 8080, 8081 }
  return app
end

--- The seconds of the upload alone, as the run itself reports them: until all is unpacked, checked and in place.
local function upload_seconds(stdout)
  for line in stdout:gmatch("[^\n]+") do
    local event = cjson.decode(line)
    if event.event == "step.finished" and event.step == "upload" then return event.seconds end
  end
  error("no upload in: " .. stdout:sub(1, 1000), 0)
end

local function deploy(app, path, version)
  app:write(path, version)
  local taken = bench.deployrt(app, { "rolling", "app.yml", "--json" })
  taken.wall = upload_seconds(taken.stdout)
  return taken
end

--- The same files by scp, to all hosts side by side.
local function copy(bed, count, path)
  local lines = {}
  for i = 1, count do
    local host = bed.hosts[i]
    lines[i] = ("scp -q -r -F none -i %s -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=%s %s %s@%s:copy &"):format(
      host.identity, host.known_hosts, path, host.user, host.address)
  end
  local taken = bench.run { "sh", "-c", table.concat(lines, "\n") .. "\nwait" }
  for i = 1, count do bed:exec(i, "rm -rf /home/deploy/copy") end
  return taken
end

--- Uploads to the first `count` hosts; every round is a release of its own, the old ones are removed.
local function measure(bed, count, path, peer)
  local app, version, result = new_app(bed, count), 0, nil
  local contenders = {
    own = function()
      version = version + 1
      local taken = deploy(app, path, version .. ".0")
      for i = 1, count do bed:exec(i, "rm -rf /home/deploy/.deployrt/shop/releases/*/payload; sync") end
      return taken
    end,
    scp = function() return copy(bed, count, path) end,
  }
  bench.with_app(app, function() result = bench.interleave(rounds, contenders, peer and { "own", "scp" } or { "own" }) end)
  for i = 1, count do bed:exec(i, "rm -rf /home/deploy/.deployrt") end
  return result
end

local function compare(bed, count, path)
  local result = measure(bed, count, path, true)
  bench.row(("200 MB to %d host%s, against scp"):format(count, count > 1 and "s" or ""), bench.ratio(result.scp, result.own, "wall"), "%.2fx", ">=", 1.1,
    ("median of %d pairs; %.2f s until unpacked and checked by SHA-256, against %.2f s"):format(rounds, result.own.wall, result.scp.wall))
  return result.own.peak
end

return function()
  if not hosts.possible() then
    bench.note("upload over SSH", "not measured", "needs root, iproute2 and sshd")
    return
  end
  local bed = hosts.up(8)
  local ok, err = xpcall(function()
    local small, large = release_of(20), release_of(200)
    local peak = compare(bed, 1, large)
    compare(bed, 8, large)
    local base = measure(bed, 1, small).own.peak
    bench.row("peak memory, 200 MB beside 20 MB", peak / base, "%.2fx", "<=", 1.1, ("%.1f MB and %.1f MB"):format(peak, base))
  end, debug.traceback)
  bed:down()
  if not ok then error(err, 0) end
end
