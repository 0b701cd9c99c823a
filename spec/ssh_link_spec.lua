-- ssh_link_spec.lua -- A link over SSH with a peer that is slow, wrong or only partly there: it fails alone, and in time.
-- weight: 3
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("ssh_link_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("a link over SSH", function()
  local bed, host

  setup(function()
    bed = hosts.loopback(1)
    host = bed.hosts[1]
  end)
  teardown(function() bed:down() end)
  after_each(function() fixture.cleanup() end)

  local function options(more)
    local all = {
      transport = "ssh", name = "web1", address = host.address, port = host.port, user = host.user,
      identities = { host.identity }, known_hosts = { host.known_hosts }, agent = false,
    }
    for key, value in pairs(more or {}) do all[key] = value end
    return all
  end

  local function run(body)
    return function()
      local ok, err = core.run(body)
      if not ok then error(err, 0) end
    end
  end

  --- Listens, and takes no connection: the kernel drops whoever still tries once its queue is full.
  local silent = [[
import socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(0)
clients = []
for _ in range(4):
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex((sys.argv[1], int(sys.argv[2])))
    clients.append(client)
print("full", flush=True)
time.sleep(600)
]]

  --- Connects to a name that stands for these addresses, in this order; returns what the program prints and its seconds.
  local function connect_to(addresses, port)
    local dir = fixture.dir()
    local lines = {}
    for i, address in ipairs(addresses) do lines[i] = address .. " shop.test\n" end
    fixture.write(dir .. "/hosts", table.concat(lines))
    fixture.write(dir .. "/known_hosts", ("[shop.test]:%d %s\n"):format(port, fixture.read(host.known_hosts):match(" ([^\n]+)")))
    fixture.write(dir .. "/program.lua", [[
      local core = require "deployrt.core"
      local port, identity, known = table.unpack(arg)
      assert(core.run(function()
        local began = core.now()
        local link, err = core.connect { transport = "ssh", address = "shop.test", port = tonumber(port), user = "deploy", agent = false,
          identities = { identity }, known_hosts = { known }, timeout = 6 }
        print(link and link:exec({ "echo", "here" }).stdout or err.code .. " " .. err.message)
        print(core.now() - began)
        if link then link:close() end
      end))]])
    local line = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    local answer = fixture.run({ "unshare", "-m", "sh", "-c", line, "sh", dir .. "/hosts", "lua5.4", dir .. "/program.lua", port, host.identity,
      dir .. "/known_hosts" }, { env = fixture.modules() })
    assert.equal(0, answer.exit, answer.stderr)
    local said, seconds = answer.stdout:match("^(.-)\n+([%d.]+)\n$")
    return said, tonumber(seconds)
  end

  it("is tried by each address of a name, one that refuses and one that is silent before the one that answers", function()
    local port = fixture.free_port()
    bed:exec(1, ("{ sed '/^Port /d; /^PidFile/d' /etc/ssh/testbed_config; echo Port %d; echo ListenAddress 127.0.1.2; } > /run/second && "
      .. "/usr/sbin/sshd -f /run/second"):format(port))
    local log = fixture.dir() .. "/log"
    fixture.start({ "python3", "-c", silent, "127.0.1.3", port }, { log = log })
    fixture.eventually(function() return fixture.read(log) == "full\n" and fixture.is_listened(port) end, 10, "the listeners")
    for _, first in ipairs { "127.0.1.4", "127.0.1.3", "127.0.1.2" } do
      local others = { first }
      for _, address in ipairs { "127.0.1.4", "127.0.1.3", "127.0.1.2" } do
        if address ~= first then others[#others + 1] = address end
      end
      local said, seconds = connect_to(others, port)
      assert.equal("here", said, first)
      assert.is_true(seconds < 5, first .. " took " .. seconds)
    end
    local said, seconds = connect_to({ "127.0.1.4", "127.0.1.5" }, port)
    assert.matches("^unreachable shop.test:%d+: Connection refused %(the last of its addresses%)", said)
    assert.is_true(seconds < 2)
    said, seconds = connect_to({ "127.0.1.4", "127.0.1.3" }, port)
    assert.matches("^unreachable shop.test:%d+: ", said)
    assert.is_true(seconds < 7, "as long as it may, and no longer: " .. seconds)
  end)

  it("refuses a command that no packet holds, and goes on", run(function()
    local link <close> = assert(core.connect(options()))
    local function exec(length, opts) return link:exec({ "true", ("x"):rep(length) }, opts) end
    for _, length in ipairs { 32700, 35000, 100000, 3000000 } do
      local result, err = exec(length)
      assert.is_nil(result)
      assert.equal("spawn", err.code)
      assert.matches("the command has %d+ bytes, and SSH carries at most 32700: pass the rest on standard input", err.message)
    end
    assert.equal("spawn", select(2, exec(1, { env = { LONG = ("x"):rep(40000) } })).code)
    assert.equal("spawn", select(2, link:stream({ "true", ("x"):rep(40000) }):read(5)).code)
    local sink = { link = link, command = { "cat", ("x"):rep(40000) } }
    assert.equal("spawn", select(2, core.pipe { from = { file = "/dev/null" }, to = sink, timeout = 5 }).code)
    assert.equal(0, exec(32000).status)
    assert.equal(0, exec(1, { stdin = ("x"):rep(3000000) }).status)
    assert.same({ ("x"):rep(100000), 0 }, { link:call("printf", { "%s", ("x"):rep(100000) }) })
    assert.equal("open", (link:state()))
  end))

  --- Sends one text, and then another one without an end, to whoever connects.
  local flood = [[
import socket, sys
head, more = (bytes.fromhex(word) for word in sys.argv[2:])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client = listener.accept()[0]
    try:
        client.sendall(head)
        while True: client.sendall(more * (65536 // len(more)))
    except OSError: pass
]]

  local function hex(text)
    return (text:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
  end

  --- Connects to somebody who floods, and does what others do meanwhile; returns the error, and the longest that the loop was away.
  local function flooded(head, more)
    local port = fixture.free_port()
    local pid = fixture.start { "python3", "-c", flood, port, hex(head), hex(more) }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "the flood")
    local task = core.spawn(core.connect, options { address = "127.0.0.1", port = port, timeout = 1.5 })
    local longest, last, other = 0, core.now(), core.spawn(function()
      local link <close> = assert(core.connect(options()))
      return link:exec({ "echo", "here" }).stdout
    end)
    repeat
      local ended = task:wait(0.01)
      longest, last = math.max(longest, core.now() - last), core.now()
    until ended ~= nil
    assert.same({ true, "here\n" }, { other:wait() })
    fixture.stop(pid)
    return select(3, task:wait()), longest
  end

  it("with a peer that sends and sends holds up nobody else, and ends at its deadline at the latest", run(function()
    local ignored = string.pack(">I4BBI4", 12, 5, 2, 1) .. "x" .. ("\0"):rep(5) -- SSH_MSG_IGNORE
    local cases = {
      { "", "x", "not an SSH server: it sends something else without an end" },
      { "", "line\r\n", "not an SSH server: it sends something else without an end" },
      { "SSH-2.0-flood\r\n", ignored, "no answer within 1.5s while logging in" },
      { "SSH-2.0-flood\r\n", "x", "not an SSH server, or it refuses us" },
    }
    for i, case in ipairs(cases) do
      local err, longest = flooded(case[1], case[2])
      assert.equal("unreachable", err.code)
      assert.matches(case[3], err.message, 1, true)
      assert.is_true(longest < 0.7, ("%d: nobody had a turn for %g s"):format(i, longest))
    end
  end))

  it("still hears a server that says something before its name", run(function()
    local port = fixture.free_port()
    local script = fixture.write(fixture.dir() .. "/welcome", ("printf 'welcome\\r\\nto the host\\r\\n'\nexec socat - TCP:%s:%d\n"):format(host.address, host.port))
    fixture.start { "socat", ("TCP-LISTEN:%d,bind=127.0.0.1,reuseaddr,fork"):format(port), "EXEC:sh " .. script }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "the listener")
    local link <close> = assert(core.connect(options { address = "127.0.0.1", port = port, known_as = ("[%s]:%d"):format(host.address, host.port) }))
    assert.equal("here\n", link:exec({ "echo", "here" }).stdout)
    assert.equal(5000000, #link:exec({ "head", "-c", "5000000", "/dev/zero" }).stdout)
  end))
end)
