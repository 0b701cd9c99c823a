-- exec.lua -- One command on 100 and on 1,000 hosts over SSH, beside a bare libssh2 client, parallel-ssh and Ansible.
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

local reference = (os.getenv("DEPLOYRT_BENCH_REF") or "") .. "/ssh_fan.c"

--- Address number i: those that the reference dials.
local function address(i)
  return ("127.0.%d.%d"):format(1 + i // 256, i % 256)
end

-- One sshd answers for all of 127.0.0.0/8; each address has its line of known_hosts, as in a real fleet.
local function prepare()
  local bed = hosts.loopback(1)
  local dir, port = fixture.dir(), bed.hosts[1].port
  local kind, key = fixture.read(bed.dir .. "/web1/etc/ssh/testbed_key.pub"):match("(%S+) (%S+)")
  local lines = {}
  for i = 1, 1000 do lines[i] = ("[%s]:%d %s %s"):format(address(i), port, kind, key) end
  local known = fixture.write(dir .. "/known_hosts", table.concat(lines, "\n") .. "\n")
  return { bed = bed, dir = dir, port = port, identity = bed.dir .. "/id_ed25519", known = known }
end

local function new_app(place, count)
  local list = {}
  for i = 1, count do
    list[i] = ("{name: web%d, address: %s, port: %d, user: deploy, identity: %s, known_hosts: %s}"):format(i, address(i), place.port,
      place.identity, place.known)
  end
  local app = fixture.app { hosts = "[" .. table.concat(list, ", ") .. "]", balancer = false }
  app:write(fixture.release("1.0"), "1.0")
  return app
end

local function check_answers(taken, count)
  local _, answers = taken.stdout:gsub("hello", "")
  if answers ~= count then error(("%d answers of %d hosts: %s"):format(answers, count, taken.stderr:sub(1, 500)), 0) end
  return taken
end

local function host_file(place, count, line)
  local lines = {}
  for i = 1, count do lines[i] = line:format(address(i), place.port) end
  return fixture.write(place.dir .. "/hosts", table.concat(lines, "\n") .. "\n")
end

local ssh_options = "-o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o BatchMode=yes"

local function pssh(place, count)
  local argv = { "parallel-ssh", "-i", "-l", "deploy", "-p", "64", "-t", "120", "-h", host_file(place, count, "%s:%d") }
  for _, option in ipairs { "IdentitiesOnly=yes", "IdentityFile=" .. place.identity, "UserKnownHostsFile=" .. place.known, "BatchMode=yes" } do
    argv[#argv + 1], argv[#argv + 2] = "-O", option
  end
  argv[#argv + 1], argv[#argv + 2] = "echo", "hello"
  return check_answers(bench.run(argv), count)
end

-- With its defaults (5 hosts at a time) or with as many forks as the others, but that its connections do not wait a minute
-- for the next round.
local function ansible(place, count, round, forks)
  local inventory = host_file(place, count, "%s ansible_port=%d")
  local common = ("-i %s -o UserKnownHostsFile=%s %s"):format(place.identity, place.known, ssh_options)
  local env = { ANSIBLE_LOCAL_TEMP = place.dir .. "/ansible", ANSIBLE_HOME = place.dir .. "/ansible",
    ANSIBLE_SSH_CONTROL_PATH_DIR = place.dir .. "/cp" .. round,
    ANSIBLE_SSH_ARGS = "-C -o ControlMaster=auto -o ControlPersist=1s", HOME = place.dir }
  local taken = check_answers(bench.run({ "ansible", "all", "-i", inventory, "-m", "raw", "-a", "echo hello", "-u", "deploy", "--forks", tostring(forks),
    "--ssh-common-args=" .. common }, { env = env }), count)
  fixture.eventually(function() return fixture.sh(("ls %s/cp%s 2>/dev/null"):format(place.dir, round)) == "" end, 10, "end of Ansible's connections")
  return taken
end

local function against_reference(count, rounds, own, fan)
  local name = ("exec on %d hosts"):format(count)
  local how = ("median of %d pairs with ssh_fan, 64 at once in both"):format(rounds)
  if not fan then
    bench.note(name, ("%.2f s, %.2f CPU s, %.1f MB"):format(own.wall, own.cpu, own.peak), "no reference: DEPLOYRT_BENCH_REF has no ssh_fan.c")
    return
  end
  bench.row(name .. ", wall", bench.ratio(own, fan, "wall"), "%.2fx", "<=", 1.15, ("%s; %.2f s against %.2f s"):format(how, own.wall, fan.wall))
  bench.row(name .. ", controller CPU", bench.ratio(own, fan, "cpu"), "%.2fx", "<=", 3, ("%.2f s against %.2f s"):format(own.cpu, fan.cpu))
  bench.row(name .. ", peak memory", bench.ratio(own, fan, "peak"), "%.2fx", "<=", 2, ("%.1f MB against %.1f MB"):format(own.peak, fan.peak))
end

local function measure(place, count, rounds)
  local app = new_app(place, count)
  local function own() return check_answers(bench.deployrt(app, { "exec", "app.yml", "--", "echo", "hello" }), count) end
  local contenders, order = { own = own }, { "own" }
  if fixture.read(reference) then
    local program = bench.compile(reference, "-lssh2")
    function contenders.fan()
      return bench.run({ program, tostring(count), "64", tostring(place.port), place.identity, "echo hello" }, { env = { U = "deploy" } })
    end
    order[2] = "fan"
  end
  own() -- whoever is first warms the caches
  local result = bench.interleave(rounds, contenders, order)
  against_reference(count, rounds, result.own, result.fan)
  return own
end

--- Pairs with a peer; without `times` there is no target.
local function against_peer(own, peer, times)
  if not bench.has(peer.program) then
    bench.note(("exec against %s"):format(peer.name), "not measured", peer.program .. " is not installed")
    return
  end
  local result = bench.interleave(2, { own = own, peer = peer.run }, { "own", "peer" })
  local name, ratio = ("exec on 100 hosts, faster than %s"):format(peer.name), bench.ratio(result.peer, result.own, "wall")
  local how = ("2 pairs, %s; %.2f s against %.2f s"):format(peer.how, result.own.wall, result.peer.wall)
  if times then bench.row(name, ratio, "%.1fx", ">=", times, how) else bench.note(name, ("%.1fx"):format(ratio), how) end
end

return function()
  if not hosts.possible() then
    bench.note("exec over SSH", "not measured", "needs root, iproute2 and sshd")
    return
  end
  local place = prepare()
  local ok, err = xpcall(function()
    local own = measure(place, 100, 5)
    against_peer(own, { name = "parallel-ssh", program = "parallel-ssh", how = "64 at once in both",
      run = function() return pssh(place, 100) end }, 4)
    against_peer(own, { name = "ansible", program = "ansible", how = "`ansible -m raw` with its default of 5 forks",
      run = function(round) return ansible(place, 100, "5-" .. round, 5) end }, 10)
    against_peer(own, { name = "ansible with 64 forks", program = "ansible", how = "64 at once in both; the hosts' sshd are on the same cores, see ssh_fan",
      run = function(round) return ansible(place, 100, "64-" .. round, 64) end })
    measure(place, 1000, 3)
  end, debug.traceback)
  place.bed:down()
  if not ok then error(err, 0) end
end
