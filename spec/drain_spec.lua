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

  it("waits for requests that a HAProxy of before a reload still has, which no counter shows", function()
    local app = fixture.app { yaml = "strategy: {settle: 0}", process = "  stop: {signal: KILL, timeout: 1s}" }
    local servers = {}
    for i, port in ipairs(app.ports) do servers[i] = ("s%d 127.0.0.1:%d disabled"):format(i, port) end
    local proxy = fixture.haproxy { servers = servers, master = true }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop}"):format(proxy.socket)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    fixture.write(proxy.config, (fixture.read(proxy.config):gsub("s1 ([^\n]*) disabled", "s1 %1"))) -- as it serves now
    fixture.write(app.dir .. "/own.lua", [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:replace(old)
        self:log("now")
        self:approve("reloaded?")
        self.super.replace(self, old)
      end
      return own]])
    app:write(fixture.release("2.0"), "2.0")
    local log, slow = app.dir .. "/log", app.dir .. "/slow"
    local run = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log):find("now", 1, true) end, 10, "the run")
    fixture.start({ "curl", "-s", "-w", "%{http_code}", "-o", "/dev/null", ("http://127.0.0.1:%d/slow?ms=4000"):format(proxy.port) }, { log = slow })
    fixture.eventually(function() return proxy:command("show stat shop 4 -1"):find("shop,s1,0,0,1,", 1, true) end, 5, "the request")
    proxy:reload()
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    fixture.eventually(function() return not fixture.alive(run) end, 20, "end of the run")
    fixture.eventually(function() return fixture.read(slow) ~= "" end, 5, "the answer")
    assert.equal("200", fixture.read(slow))
    assert.same({ "2.0" }, app:serving())
    assert.same({}, app:stop())
  end)
end)
