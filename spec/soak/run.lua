-- run.lua -- Deployments over and over on four hosts under load, while things go wrong: run.lua SECONDS [SEED]
-- The verdict of each: the exit code is true, the fleet is all-new or all-old, nothing is left, and requests failed only
-- where the process that served them ended.
local cjson = require "cjson"
local faults = require "spec.soak.faults"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

local seconds, seed = tonumber(arg[1]) or 600, tonumber(arg[2]) or os.time()
math.randomseed(seed)
if not hosts.possible() then
  print("soak: test hosts need root, iproute2 and sshd")
  os.exit(1)
end
print(("soak: %d s, SEED=%d"):format(seconds, seed))

local world = { bed = hosts.up(4) }
local strategies = { "rolling", "blue_green", "in_place", "canary" }
local options = {
  rolling = "{settle: 200ms, batch: 2}", blue_green = "{settle: 200ms}", in_place = "{settle: 200ms, batch: 1}",
  canary = "{hold: 300ms, latency: 1000, steps: [5%, 50%, 100%]}",
}

local function set_up()
  local app = fixture.app { slots = 2, instances = 1, health = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 5s, successes: 1}" }
  app.ports = { 8080, 8081 }
  local servers = {}
  for i, host in ipairs(world.bed.hosts) do
    for _, port in ipairs(app.ports) do servers[#servers + 1] = ("s%d-%d %s:%d check inter 200ms disabled"):format(i, port, host.address, port) end
  end
  world.proxy = fixture.haproxy { servers = servers, master = true }
  app.opts.hosts = world.bed:yaml()
  app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 2s}}"):format(world.proxy.socket)
  app.listen, world.app = world.proxy.port, app
  fixture.sh(("mkdir -p %s/state && mount -t tmpfs -o size=16m tmpfs %s/state"):format(app.dir, app.dir)) -- a disk that can be full
end

--- The library that lets a process have a clock of its own (Debian: libfaketime), and the file that sets it.
local faketime = fixture.sh("ls /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null"):match("%S+")

function world.set_clock(offset)
  if faketime then fixture.write(world.app.dir .. "/clock", offset .. "\n") end
end

local function clock_environment()
  if not faketime then return "A_CLOCK=real" end
  return ("LD_PRELOAD=%s FAKETIME_TIMESTAMP_FILE=%s/clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1"):format(faketime, world.app.dir)
end

local version, log = 0, nil

local function next_release(strategy, broken)
  version = version + 1
  world.app.opts.yaml = "strategy: " .. options[strategy]
  world.app:write(fixture.release(tostring(version), broken and { fault = "dies" } or nil), tostring(version))
  return tostring(version)
end

local function controller(strategy)
  log = world.app.dir .. "/log"
  os.remove(log)
  world.set_clock("+0")
  local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && env $1 "$2" "$3" --state "$4" "$5" app.yml; echo "exit $?"', "sh", world.app.dir,
    clock_environment(), "HOME=" .. world.app.dir .. "/home", fixture.deployrt(), world.app.dir .. "/state", strategy }, { log = log })
  local function child()
    return fixture.sh(("cat /proc/%s/task/%s/children 2>/dev/null"):format(pid, pid)):match("%d+")
  end
  function world.signal(name)
    local target = child()
    if target then fixture.signal(target, name) end
  end
  function world.kill() world.signal("KILL") end
  function world.second()
    local run = world.app:command { strategy, "app.yml" }
    world.second_exit, world.second_said = run.exit, run.stdout .. run.stderr
  end
  return pid
end

local function exit_of()
  return tonumber((fixture.read(log) or ""):match("exit (%d+)%s*$"))
end

--- The releases that serve, once the fleet is at rest; and whether there is a lock.
local function state()
  local status
  fixture.eventually(function()
    local run = world.app:command { "status", "app.yml", "--json" }
    local ok, found = pcall(cjson.decode, run.stdout)
    local forgotten = ok and type(found.balancer) == "table" and found.balancer.state == "idle" -- what HAProxy does when it is restarted after the run
    status = ok and (run.exit == 0 or forgotten) and found or nil
    return status
  end, 60, "status")
  local serving, others = {}, 0
  for _, each in ipairs(status.instances) do
    if each.state == "serving" then serving[#serving + 1] = each.release else others = others + 1 end
  end
  return table.concat(serving, " "), status.lock ~= cjson.null
end

local function uniform(release)
  return ("%s %s %s %s"):format(release, release, release, release)
end

local problems = 0
local true_exits = { [0] = true, [1] = true, [2] = true, [3] = true, [4] = true, [130] = true }

local function complain(round, text)
  problems = problems + 1
  print(("  PROBLEM in round %d (SEED=%d): %s"):format(round, seed, text))
  print(((fixture.read(log) or ""):gsub("[^\n]+", "    | %0")))
end

--- Ends what the first controller left unfinished; returns the exit code of that.
local function finish(round, exit)
  local word = math.random(2) == 1 and "resume" or "abort"
  if exit == 3 then word = "abort" end
  local run = world.app:command({ word, "app.yml" }, { timeout = 150 })
  print(("    %s: exit %d"):format(word, run.exit))
  if run.exit == 2 and run.stderr:find("nothing to resume or abort", 1, true) then return nil end
  if run.exit ~= 0 and run.exit ~= 1 and run.exit ~= 130 then complain(round, word .. ": " .. run.stdout .. run.stderr) end
  return run.exit, word
end

local function round(number, before)
  local fault, host = faults[math.random(#faults)], math.random(4)
  local strategy, broken = strategies[math.random(#strategies)], math.random(6) == 1
  local release = next_release(strategy, broken)
  local load = world.app:load { rate = 200 }
  print(("round %d: %s to %s%s; %s (web%d)"):format(number, strategy, release, broken and ", which dies" or "", fault.name, host))
  local pid = controller(strategy)
  os.execute(("sleep %.2f"):format(0.05 + math.random() * 0.7))
  fault.strike(world, host)
  if fault.lasts then
    os.execute("sleep " .. fault.lasts)
    fault.mend(world, host)
  end
  if not faults.await(pid, 180) then complain(number, "the controller hangs") end
  if fault.mend and not fault.lasts then fault.mend(world, host) end
  local exit = exit_of()
  print(("    exit %s"):format(exit))
  if not true_exits[exit or -1] and not (exit == 137 and fault.controller) then complain(number, ("the controller ended with %s"):format(exit)) end
  if world.second_exit and world.second_exit ~= 4 and world.second_exit ~= 0 and world.second_exit ~= 1 then
    complain(number, ("the second controller ended with %d: %s"):format(world.second_exit, world.second_said))
  end
  world.second_exit = nil
  local ending, word
  if exit == 137 or exit == 3 then ending, word = finish(number, exit) end
  local serving, locked = state()
  local numbers = load:stop()
  if locked then complain(number, "the lock is left") end
  local all_new, all_old = serving == uniform(release), serving == uniform(before)
  local rebooted = fault.kills -- processes that a fault ended are nobody's to start again until the next run
  if not all_new and not all_old and not rebooted then complain(number, ("a mixture: '%s', before %s"):format(serving, before)) end
  if exit == 0 and not rebooted and not all_new then complain(number, ("exit 0, and not all-new: '%s'"):format(serving)) end
  if (exit == 1 or exit == 130 or exit == 2 or exit == 4) and not rebooted and not all_old then complain(number, ("exit %d, and not all-old: '%s'"):format(exit, serving)) end
  if word == "resume" and ending == 0 and not rebooted and not all_new then complain(number, "resumed, and not all-new: " .. serving) end
  if word == "abort" and ending == 0 and not rebooted and not all_old then complain(number, "aborted, and not all-old: " .. serving) end
  if numbers.failed > 0 and not fault.kills then complain(number, ("%d requests failed"):format(numbers.failed)) end
  return all_new and release or before
end

--- After a fault that ended processes, the next run brings everything back.
local function restore(number, before)
  local serving = state()
  if serving == uniform(before) then return before end
  local release = next_release "rolling"
  local run = world.app:command({ "rolling", "app.yml" }, { timeout = 120 })
  if run.exit ~= 0 then complain(number, "the fleet could not be brought back: " .. run.stdout .. run.stderr) end
  return release
end

set_up()
local ok, err = xpcall(function()
  local serving, started, count = restore(0, "none"), os.time(), 0
  while os.time() - started < seconds do
    count = count + 1
    serving = restore(count, round(count, serving))
  end
  print(("soak: %d rounds, %d problems, SEED=%d"):format(count, problems, seed))
end, debug.traceback)
pcall(world.app.stop, world.app)
fixture.sh(("umount -l %s/state"):format(world.app.dir))
fixture.cleanup()
world.bed:down()
if not ok then print(err) end
os.exit(ok and problems == 0)
