-- testbed_spec.lua -- The test bed itself: hosts that fail as real ones do, and that leave nothing behind.
-- weight: 5
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

--- What a bed would leave on this machine: links, namespaces, mounts and processes.
local function traces(name, dir)
  return fixture.sh(("ip -br link | grep -F %s; ip netns list | grep -F %s; grep -F %s /proc/self/mounts; "
    .. "ls -d %s 2>/dev/null; pgrep -fa 'testbed.sh [i]nside %s'; true"):format(name, name, dir, dir, dir))
end

describe("the fixture", function()
  after_each(function()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local function get(port, path)
    return fixture.sh(("curl -s -i --max-time 2 http://127.0.0.1:%d%s"):format(port, path or "/"))
  end

  --- Starts a release as deployrt would: in its directory, by its own configuration.
  local function start(version, opts, env)
    local path, port = fixture.release(version, opts), fixture.free_port()
    local log = path .. "/log"
    local pid = fixture.start({ "./server", "--port", port }, { cwd = path, log = log, env = env })
    return port, pid, log
  end

  local function start_ready(...)
    local port, pid, log = start(...)
    fixture.eventually(function() return fixture.is_listened(port) end)
    return port, pid, log
  end

  it("runs a command to its end, however that comes", function()
    local opts = { stdin = "it's", env = { A = "x 'y'" }, cwd = "/" }
    local run = fixture.run({ "sh", "-c", "cat; echo $A >&2; pwd; exit 3" }, opts)
    assert.same({ exit = 3, stdout = "it's/\n", stderr = "x 'y'\n" }, run)
    assert.equal(9, fixture.run({ "sh", "-c", "kill -KILL $$" }).signal)
    assert.equal(124, fixture.run({ "sleep", "60" }, { timeout = 0.1 }).exit)
  end)

  it("knows a zombie from the living, and what is left", function()
    local pid = fixture.start { "sleep", "60" }
    assert.is_true(fixture.alive(pid))
    assert.equal(1, #fixture.leftovers())
    fixture.stop(pid)
    assert.is_false(fixture.alive(pid))
    assert.is_false((pcall(fixture.eventually, function() return false end, 0)))
  end)

  it("gives each port once", function()
    assert.not_equal(fixture.free_port(), fixture.free_port())
  end)

  it("the service says its version, its environment and its health", function()
    local port = start_ready("1.4", nil, { COLOR = "red" })
    contains(get(port), "X-Version: 1.4\r\n")
    contains(get(port), "hello from 1.4\n")
    contains(get(port, "/env?COLOR"), "\r\nred\n")
    contains(get(port, "/healthz"), "HTTP/1.1 200 OK")
    local second = fixture.run { fixture.service(), "--port", tostring(port) }
    assert.equal(1, second.exit)
    contains(second.stderr, "address already in use")
  end)

  it("the service misbehaves as its release says", function()
    local _, pid, log = start("2", { fault = "dies" })
    fixture.eventually(function() return not fixture.alive(pid) end)
    contains(fixture.read(log), "fatal: cannot open database")
    contains(get(start_ready("2", { fault = "sick" }), "/healthz"), "503")
    local flap, errors = start_ready("2", { fault = "flap" }), start_ready("2", { fault = "errors" })
    assert.not_equal(get(flap, "/healthz"):sub(1, 12), get(flap, "/healthz"):sub(1, 12))
    local answers = get(errors) .. get(errors) .. get(errors)
    assert.equal(1, select(2, answers:gsub("HTTP/1.1 500", "")))
    local _, stubborn = start_ready("2", { fault = "stubborn" })
    fixture.signal(stubborn, "TERM")
    fixture.run { "sh", "-c", "sleep 0.2" }
    assert.is_true(fixture.alive(stubborn))
    fixture.signal(stubborn, "KILL")
  end)

  it("the service listens only after its start delay", function()
    local port, pid = start("2", { start_delay = "400ms" })
    assert.is_false(fixture.is_listened(port))
    fixture.eventually(function() return fixture.is_listened(port) end)
    assert.is_true(fixture.alive(pid))
  end)

  it("the service told to end answers what is in flight", function()
    local port, pid, log = start_ready("3")
    local answer = fixture.dir() .. "/answer"
    fixture.start({ "curl", "-s", "-i", ("http://127.0.0.1:%d/slow?ms=400"):format(port) }, { log = answer })
    fixture.eventually(function() return fixture.sh("ss -Htn state established sport = :" .. port) ~= "" end)
    fixture.signal(pid, "TERM")
    fixture.eventually(function() return not fixture.is_listened(port) end)
    fixture.eventually(function() return not fixture.alive(pid) end)
    contains(fixture.read(answer), "Connection: close")
    contains(fixture.read(answer), "hello from 3\n")
    contains(fixture.read(log), "GET /slow?ms=400 200")
  end)

  it("the service hears SIGTERM under full load, and its clients lose nothing but the listener", function()
    local port, pid = start_ready("4")
    local load = fixture.load { port = port, rate = 0, connections = 32 }
    fixture.eventually(function() return load:numbers().requests > 2000 end)
    fixture.signal(pid, "TERM")
    fixture.eventually(function() return not fixture.alive(pid) end, 2)
    fixture.eventually(function() return (load:numbers().errors.connect or 0) > 0 end)
    local numbers = load:stop()
    assert.same({ connect = numbers.failed }, numbers.errors)
  end)

  it("the load counts what clients would see", function()
    local port, pid = start_ready("5")
    local load = fixture.load { port = port, connections = 4 }
    fixture.eventually(function() return load:numbers().requests > 100 end)
    assert.equal(0, load:numbers().failed)
    fixture.stop(pid)
    fixture.eventually(function() return (load:numbers().errors.connect or 0) > 0 end)
    local numbers = load:stop()
    assert.same({ connect = numbers.failed }, numbers.errors)
    assert.equal(numbers.requests, numbers.failed + numbers.versions["5"])
    assert.is_true(numbers.p99_ms >= numbers.p50_ms and numbers.p50_ms > 0)
  end)

  it("the load takes an answer cut short for a failure, but not an orderly idle close", function()
    local port, script = fixture.free_port(), fixture.dir() .. "/serve.sh"
    --- A server that answers one request a connection, and closes it without having said so.
    local function serve(length, body)
      fixture.write(script, ('while read -r line && [ ${#line} -gt 1 ]; do :; done\n'
        .. 'printf "HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s"\n'):format(length, body))
      local pid = fixture.start { "socat", "TCP-LISTEN:" .. port .. ",fork,reuseaddr", "EXEC:sh " .. script }
      fixture.eventually(function() return fixture.is_listened(port) end)
      local load = fixture.load { port = port, connections = 1, rate = 50 }
      fixture.eventually(function() return load:numbers().requests > 10 end)
      local numbers = load:stop()
      fixture.stop(pid)
      fixture.eventually(function() return not fixture.is_listened(port) end)
      return numbers
    end
    local short = serve(9, "half")
    assert.same({ short.requests, { closed = short.requests } }, { short.failed, short.errors })
    assert.same({}, serve(2, "ok").errors)
  end)

  it("a user's own HAProxy is reloaded and restarted under load", function()
    local port = start_ready("6")
    local proxy = fixture.haproxy { servers = { "s1 127.0.0.1:" .. port }, master = true }
    contains(proxy:command("show servers state shop"), " s1 ")
    local load = fixture.load { port = proxy.port }
    fixture.eventually(function() return load:numbers().requests > 50 end)
    proxy:reload()
    local before = load:numbers().requests
    fixture.eventually(function() return load:numbers().requests > before + 50 end)
    assert.same({}, load:stop().errors)
    proxy:restart()
    contains(get(proxy.port), "hello from 6")
    proxy:stop()
    assert.is_false(fixture.is_listened(proxy.port))
  end)

  it("go when the specs that made them are killed", function()
    local path = os.tmpname()
    os.execute(("lua5.4 -e 'package.path = [[%s]] local bed = require(\"spec.support.hosts\").up(1) io.open(\"%s\", \"w\"):write(bed.dir):close() "
      .. "os.execute(\"kill -KILL $PPID\")' 2>/dev/null"):format(package.path, path))
    local file <close> = io.open(path)
    local dir = file:read("a")
    os.remove(path)
    assert.matches("^/tmp/deployrt%-bed", dir)
    for _ = 1, 100 do
      if not os.execute("test -d " .. dir) then break end
      os.execute("sleep 0.1")
    end
    assert.is_nil(os.execute("test -d " .. dir))
  end)
end)

if hosts.possible() then
  describe("a bed of hosts", function()
    local bed, name

    lazy_setup(function()
      bed = hosts.up(4)
      name = fixture.read(bed.dir .. "/bed"):match("bridge=(%S+)")
    end)
    lazy_teardown(function()
      local pids = fixture.sh(("cat %s/web*/pid %s/web*/init"):format(bed.dir, bed.dir))
      bed:down()
      assert.equal("", traces(name, bed.dir))
      for pid in pids:gmatch("%d+") do assert.is_false(fixture.alive(pid)) end
      bed:down()
    end)

    after_each(function()
      fixture.cleanup()
      assert.same({}, fixture.leftovers())
    end)

    it("answers each on its own address, as a user with a home, /bin/sh and no rights", function()
      for i, host in ipairs(bed.hosts) do
        local line = "hostname; echo $HOME; echo $0; id -u -n; test -w /etc || echo unprivileged"
        local output, status = bed:ssh(i, line)
        assert.equal(0, status, output)
        assert.equal(host.name .. "\n/home/deploy\nsh\ndeploy\nunprivileged\n", output)
      end
    end)

    it("shares no process, file, port nor temporary file with its neighbour", function()
      bed:ssh(1, "echo one > ~/file; echo one > /tmp/file; setsid sleep 321 >/dev/null 2>&1 </dev/null &")
      assert.equal("one\n", bed:ssh(1, "cat ~/file"))
      contains(bed:exec(1, "ps ax"), "sleep 321")
      contains(bed:ssh(2, "cat ~/file /tmp/file"), "No such file")
      assert.falsy(bed:exec(2, "ps ax"):find("sleep 321", 1, true))
      assert.equal(1, select(2, bed:exec(2, "exit 1")))
    end)

    it("runs a service that this machine reaches", function()
      local program = fixture.read(fixture.service())
      local file = fixture.write(bed.dir .. "/web2/home/deploy/service", program)
      fixture.sh("chmod 755 " .. file)
      bed:ssh(2, "VERSION=7 setsid ./service --port 8080 --address 0.0.0.0 >log 2>&1 </dev/null &")
      local url = ("curl -s --max-time 2 http://%s:8080/"):format(bed.hosts[2].address)
      fixture.eventually(function() return fixture.sh(url) == "hello from 7\n" end)
      bed:exec(2, "pkill service")
    end)

    it("power off ends everything in silence; power on keeps files and is another boot", function()
      bed:ssh(3, "echo kept > ~/kept; echo lost > /tmp/lost")
      local before = bed:ssh(3, "cat /proc/sys/kernel/random/boot_id")
      bed:off(3)
      assert.equal(255, select(2, bed:ssh(3, "true", 1)))
      contains(bed:exec(3, "true"), "web3 is off")
      bed:on(3)
      local output, status = bed:ssh(3, "cat ~/kept; ls /tmp; cat /proc/sys/kernel/random/boot_id")
      assert.equal(0, status, output)
      assert.equal("kept", output:match("%S+"))
      assert.falsy(output:find("lost", 1, true))
      assert.falsy(output:find(before, 1, true))
    end)

    it("a peer of a host that lost its power hears nothing", function()
      local log, address = fixture.dir() .. "/peer", bed.hosts[3].address .. ":9000"
      bed:exec(3, "setsid socat TCP-LISTEN:9000 SYSTEM:'echo hello; sleep 60' >/dev/null 2>&1 </dev/null &")
      fixture.eventually(function() return bed:exec(3, "ss -ltn"):find(":9000 ", 1, true) end)
      local peer = fixture.start({ "socat", "-u", "TCP:" .. address, "-" }, { log = log })
      fixture.eventually(function() return fixture.read(log) == "hello\n" end)
      bed:off(3)
      assert.is_true(fixture.alive(peer))
      contains(fixture.sh("ss -tn state established"), address)
      fixture.stop(peer)
      bed:on(3)
    end)

    it("a cut host is unreachable and runs on; mended, it answers at once", function()
      bed:exec(4, "setsid sleep 654 >/dev/null 2>&1 </dev/null &")
      bed:cut(4)
      assert.equal(255, select(2, bed:ssh(4, "true", 1)))
      contains(bed:exec(4, "ps ax"), "sleep 654")
      assert.equal(0, select(2, bed:ssh(1, "true")))
      bed:mend(4)
      contains(bed:ssh(4, "ps ax"), "sleep 654")
    end)

    it("a lossy host loses about as many packets as it is told, until that is ended", function()
      local function arrived()
        local function is_idle() return bed:exec(1, "ss -Hlun 'sport = :9001'"):find("^%S+%s+0 ") end
        local send = "bash -c 'for i in {1..200}; do printf x; done >/dev/udp/%s/9001'"
        bed:exec(1, "setsid socat -u UDP-RECV:9001 CREATE:/tmp/got >/dev/null 2>&1 </dev/null &")
        fixture.eventually(is_idle)
        fixture.sh(send:format(bed.hosts[1].address))
        fixture.eventually(is_idle)
        bed:exec(1, "pkill socat")
        return #bed:exec(1, "cat /tmp/got")
      end
      bed:lossy(1, 20)
      local count = arrived()
      assert.is_true(count > 125 and count < 190, ("about 160 of 200 are expected, not %d"):format(count))
      bed:lossy(1, 0)
      assert.equal(200, arrived())
    end)

    it("stands beside another bed, and a misuse says what is wrong", function()
      local other = hosts.up(1)
      assert.not_equal(bed.hosts[1].address, other.hosts[1].address)
      assert.equal(0, select(2, other:ssh(1, "true")))
      contains(select(2, pcall(other.off, other, 2)), "there is no host 2; the bed has 1")
      contains(select(2, pcall(other.lossy, other, 1, "many")), "'many' is not a percentage")
      other:down()
      assert.equal(0, select(2, bed:ssh(1, "true")))
    end)

    it("that fails half way up leaves nothing", function()
      local path = fixture.dir()
      local bed_dir = path .. "/bed"
      local run = fixture.run { "unshare", "--mount", "sh", "-c",
        "mount --bind /bin/false /usr/sbin/sshd; exec sh -x spec/support/testbed.sh up " .. bed_dir .. " 2" }
      assert.equal(1, run.exit)
      contains(run.stderr, "did not start")
      assert.equal("", traces(run.stderr:match("bridge=(dr%x+)"), bed_dir))
    end)

    it("that is interrupted on its way up leaves nothing", function()
      local bed_dir = fixture.dir() .. "/bed"
      local pid = fixture.start { "sh", "spec/support/testbed.sh", "up", bed_dir, "6" }
      local note = fixture.eventually(function()
        return (fixture.read(bed_dir .. "/bed") or ""):match("bridge=(dr%x+)")
      end)
      fixture.signal(pid, "TERM")
      fixture.eventually(function() return not fixture.alive(pid) end, 10)
      assert.equal("", traces(note, bed_dir))
    end)

    it("does not touch a directory that holds something else", function()
      local path = fixture.dir()
      fixture.write(path .. "/id_ed25519", "precious")
      contains(fixture.run({ "sh", "spec/support/testbed.sh", "up", path, "1" }).stderr, "is not empty")
      fixture.run { "sh", "spec/support/testbed.sh", "down", path }
      assert.equal("precious", fixture.read(path .. "/id_ed25519"))
    end)
  end)

  describe("the loopback bed", function()
    it("answers for many addresses and ends with everything that was started there", function()
      local bed = hosts.loopback(3)
      for i = 1, 3 do
        assert.same({ "/home/deploy deploy\n", 0 }, { bed:ssh(i, "echo $HOME $(id -un)") })
      end
      bed:ssh(1, "setsid sleep 987 >/dev/null 2>&1 </dev/null &")
      local pid
      fixture.eventually(function()
        pid = fixture.sh("pgrep -x -f 'sleep 987' || true"):match("%d+")
        return pid
      end, 10, "what was started there")
      bed:down()
      assert.is_false(fixture.alive(pid))
      assert.is_false(fixture.is_listened(bed.hosts[1].port))
      assert.equal("", traces("no-links", bed.dir))
      assert.equal("", fixture.sh("grep ^deploy: /etc/passwd || true"))
    end)
  end)
else
  print("testbed_spec: no hosts: they need root, iproute2, util-linux and sshd")
end
