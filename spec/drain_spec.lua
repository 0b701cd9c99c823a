-- drain_spec.lua -- Upgraded connections have a time of their own while their slot drains.
-- weight: 8
local fixture = require "spec.support.fixture"
local connection = require "deployrt.connection"
local driver = require "deployrt.balancer.driver"
local stand = require "spec.support.plain_shop"
local world_balancer = require "deployrt.world.balancer"

local inside, await = stand.inside, stand.await

-- Answers an upgrade, and echoes from then on, as a WebSocket's server does.
local service = [[
import socket, sys, threading
def serve(c):
    c.recv(4096)
    c.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    while True:
        data = c.recv(4096)
        if not data: return
        c.sendall(data)
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
]]

-- Upgrades, says so in a file, and holds the connection until it is ended.
local client = [[
import socket, sys, time
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
c.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
while b"101" not in c.recv(4096): pass
c.sendall(b"ping")
c.recv(4)
open(sys.argv[2], "w").close()
time.sleep(60)
]]

describe("a drain", function()
  after_each(function()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  it("gives upgraded connections the time of `long`, and ends when they do", inside(function()
    local port, dir = fixture.free_port(), fixture.dir()
    fixture.start { "python3", "-c", service, port }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "service")
    local haproxy = fixture.haproxy { servers = { "web1 127.0.0.1:" .. port } }
    local pid = fixture.start { "python3", "-c", client, haproxy.port, dir .. "/upgraded" }
    fixture.eventually(function() return fixture.read(dir .. "/upgraded") end, 10, "upgrade")
    local host = connection.new({ name = "local", dir = dir }, "shop")
    host:connect()
    local shop = driver.open({ type = "haproxy", socket = haproxy.socket, backend = "shop", drain = { timeout = 0.1, long = 30 } },
      { app = "shop", host = host, slots = { { name = "web1", address = "127.0.0.1", port = port } } })
    shop:apply { { slot = "web1", state = "drain" } }
    local slot = shop:read().slots.web1
    assert.same({ 1, 1 }, { slot.sessions, slot.long })
    local context = { drivers = { shop }, behind = {}, check_stop = function() end }
    local short = world_balancer.await_drained(context, nil, { slots = { "web1" }, timeout = 0.1 })
    assert.same({ drained = false, slot = "web1", sessions = 1, seconds = 0.1 }, short)
    local result
    local core = require "deployrt.core"
    local task = core.spawn(function() result = world_balancer.await_drained(context, nil, { slots = { "web1" }, timeout = 0.1, long = 30 }) end)
    core.sleep(0.3)
    assert.is_nil(result)
    fixture.stop(pid)
    await("the end of the drain", function() return result end)
    task:wait()
    assert.same({ drained = true }, result)
    host:close()
  end))
end)
