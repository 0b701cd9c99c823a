-- weight: 17
local shares = require "deployrt.balancer.shares"
local world_balancer = require "deployrt.world.balancer"
local stand = require "spec.support.plain_shop"

local contains = require("spec.support.fixture").contains
local inside, await, refused, serve = stand.inside, stand.await, stand.refused, stand.serve
local fetch, answers, open = stand.fetch, stand.answers, stand.open

local users_config = [[
global
    master-worker
    stats socket %s/admin.sock mode 600 level admin expose-fd listeners
    stats socket %s/operator.sock mode 600 level operator
    stats socket ipv4@127.0.0.1:%d level admin
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend web
    bind 127.0.0.1:%d
    default_backend shop
backend shop
    balance roundrobin
    server anything 127.0.0.1:%d check inter 100ms
    server web2 127.0.0.1:%d check inter 100ms disabled
backend fixed
    balance static-rr
    server anything 127.0.0.1:%d
backend hashed
    balance source
    server anything 127.0.0.1:%d
backend twice
    server first 127.0.0.1:%d
    server second 127.0.0.1:%d
backend templated
    balance roundrobin
    server-template app 1-2 127.0.0.1:1 check inter 100ms disabled
    server other 127.0.0.1:2 disabled
backend sidecar
    server web1-8080 127.0.0.1:%d disabled
    server web2-8080 localhost:%d disabled
    server web3-8080 127.0.0.2:%d disabled
backend spare
    server anything 127.0.0.1:%d backup
backend reserve
    server-template r 1-2 127.0.0.1:1 check backup disabled
backend agents
    server anything 127.0.0.1:%d agent-check agent-port %d agent-inter 10s
]]

describe("HAProxy of one's own", function()
  local host, ports, listen, api_port

  before_each(inside(function()
    host, ports, listen, api_port = stand.start()
  end))

  after_each(inside(stand.finish))

  local config

  local function start()
    config = host.directory .. "/haproxy.cfg"
    local p = ports
    host:write(config, users_config:format(host.directory, host.directory, api_port, listen,
      p[1], p[2], p[1], p[1], p[1], p[1], p[4], p[4], p[4], p[1], p[1], p[2]))
    local master = host:spawn { "haproxy", "-W", "-f", config }
    local socket = host.directory .. "/admin.sock"
    await("haproxy", function() return pcall(host.talk, host, socket, "show info\n") end)
    return master
  end

  local function own(count, options)
    options = options or {}
    local socket = options.socket or host.directory .. "/admin.sock"
    return open({ type = "haproxy", socket = socket, backend = options.backend or "shop", template = options.template }, count)
  end

  --- Both services behind a HAProxy that knows two servers, the first of them in service.
  local function shop(count)
    serve(1)
    serve(2)
    start()
    local driver = own(count or 2)
    await("the first server", function() return driver:read().slots["web1-8080"].up end)
    return driver
  end

  local function state(driver, slot)
    local found = driver:read().slots[slot]
    return found and { found.state, found.weight, found.up }
  end

  it("is read in one round trip, its servers found by address whatever their names are", inside(function()
    local driver = shop()
    host.requests = 0
    local seen = driver:read()
    assert.equal(1, host.requests)
    assert.same({
      ["web1-8080"] = { server = "anything", state = "ready", up = true, weight = 1, sessions = 0, queue = 0 },
      ["web2-8080"] = { server = "web2", state = "maint", up = false, weight = 1, sessions = 0, queue = 0 },
    }, seen.slots)
    assert.equal(seen.instance, driver:read().instance)
  end))

  it("switches from one slot to another with one request, weights before traffic", inside(function()
    local driver = shop()
    driver:check()
    driver:apply {
      { slot = "web2-8080", state = "ready", weight = 100 },
      { slot = "web1-8080", state = "drain" },
    }
    assert.equal("set server shop/web2 weight 100;set server shop/web2 state ready;"
      .. "set server shop/web2 health up;set server shop/anything state drain", host.last_request:match("^(.-);show"))
    assert.same({ web2 = 20 }, (answers(20)))
    assert.same({ "ready", 100, true }, state(driver, "web2-8080"))
    assert.same({ "drain", 1, true }, state(driver, "web1-8080"))
  end))

  it("is sent nothing when all is as wanted already", inside(function()
    local driver = shop()
    driver:apply { { slot = "web1-8080", state = "ready", weight = 1 } }
    assert.is_nil(host.last_request:find("set server", 1, true))
  end))

  it("takes several changes of one slot in their order", inside(function()
    local driver = shop()
    driver:apply {
      { slot = "web1-8080", state = "maint" }, { slot = "web1-8080", state = "drain", weight = 5 },
    }
    assert.same({ "drain", 5 }, { table.unpack(state(driver, "web1-8080"), 1, 2) })
  end))

  it("moves traffic to a slot at once, and no request is lost", inside(function()
    local driver = shop()
    driver:apply { { slot = "web2-8080", state = "ready" }, { slot = "web1-8080", state = "maint" } }
    local _, failed = answers(20)
    assert.equal(0, failed)
  end))

  it("keeps traffic where it is when it cannot reach the slot that should take over", inside(function()
    serve(1)
    start()
    local driver = own(2)
    await("the first server", function() return driver:read().slots["web1-8080"].up end)
    local err = refused("balancer", driver.apply, driver, {
      { slot = "web2-8080", state = "ready" }, { slot = "web1-8080", state = "drain" },
    })
    assert.matches("cannot reach web2%-8080", err.message)
    assert.matches("refused", err.detail)
    assert.equal("maint", state(driver, "web2-8080")[1])
    assert.same({ web1 = 10 }, (answers(10)))
  end))

  it("lets requests in flight finish while a slot drains, and counts them", inside(function()
    local driver = shop()
    local url = ("http://127.0.0.1:%d/slow"):format(listen)
    host:spawn { "curl", "-s", "-o", host.directory .. "/slow", url }
    await("a session", function() return driver:read().slots["web1-8080"].sessions == 1 end)
    driver:apply { { slot = "web2-8080", state = "ready" }, { slot = "web1-8080", state = "drain" } }
    assert.same({ web2 = 5 }, (answers(5)))
    await("its end", function() return driver:read().slots["web1-8080"].sessions == 0 end)
    await("its answer", function() return host:read(host.directory .. "/slow") == "web1\n" end)
  end))

  for _, percent in ipairs { 1, 25, 60 } do
    it(("splits traffic exactly at %d percent"):format(percent), inside(function()
      local driver = shop()
      local new, old = shares.weights(percent, 1, 1)
      driver:apply {
        { slot = "web1-8080", state = "ready", weight = old[1] },
        { slot = "web2-8080", state = "ready", weight = new[1] },
      }
      local tally, failed = answers(1000)
      assert.equal(0, failed)
      assert.near(10 * percent, tally.web2, 1)
    end))
  end

  it("gets slots that it does not know as servers out of service, and then traffic like the others", inside(function()
    local driver = shop(3)
    serve(3)
    driver:check()
    driver:prepare()
    assert.same({ "maint", 100, false }, state(driver, "web3-8080"))
    assert.equal("deployrt-shop.web3-8080", driver:read().slots["web3-8080"].server)
    driver:apply { { slot = "web3-8080", state = "ready" }, { slot = "web1-8080", state = "drain" } }
    assert.same({ web3 = 10 }, (answers(10)))
    host.last_request = nil
    driver:prepare()
    assert.is_nil(host.last_request:find("add server", 1, true))
  end))

  it("gives slots the free servers of its server-template, and says when there are none left", inside(function()
    serve(1)
    serve(2)
    start()
    local driver = own(2, { backend = "templated", template = "app" })
    driver:check()
    driver:prepare()
    assert.same({ "maint", "app1", "app2" }, { driver:read().slots["web1-8080"].state,
      driver:read().slots["web1-8080"].server, driver:read().slots["web2-8080"].server })
    driver:apply { { slot = "web1-8080", state = "ready", weight = 10 }, { slot = "web2-8080", state = "ready", weight = 10 } }
    await("both", function()
      local slots = driver:read().slots
      return slots["web1-8080"].up and slots["web2-8080"].up
    end)
    driver = own(3, { backend = "templated", template = "app" })
    for _, method in ipairs { driver.check, driver.prepare } do
      local err = refused("balancer", method, driver)
      assert.matches("no server of its server%-template 'app' is free", err.message)
      assert.matches("server%-template app 1%-3", err.detail)
    end
    driver:apply { { slot = "web2-8080", state = "maint" } }
    driver.context.slots[2] = table.remove(driver.context.slots)
    serve(3)
    driver:check()
    driver:prepare() -- the server of a slot that is gone is free again
    assert.equal("app2", driver:read().slots["web3-8080"].server)
    driver:apply { { slot = "web3-8080", state = "ready" } }
    await("the third", function() return driver:read().slots["web3-8080"].up end)
  end))

  it("tells former servers of its server-template by what earlier runs have noted, and leaves all others alone", inside(function()
    for i = 1, 2 do serve(i) end
    start()
    local function template(count) return own(count, { backend = "templated", template = "app" }) end
    local other = ("app2@127.0.0.1:%d"):format(ports[2])
    local driver = template(2)
    driver:prepare()
    driver:apply { { slot = "web1-8080", state = "ready", weight = 10 }, { slot = "web2-8080", state = "ready", weight = 10 } }
    assert.is_nil(template(1):read().slots[other]) -- it may be of another application
    driver:conclude {}
    driver = template(1)
    assert.same({ true, "ready" }, { driver:read().slots[other].left, state(driver, other)[1] })
    driver:apply { { slot = other, state = "maint" } }
    assert.equal("maint", state(template(1), other)[1]) -- until the run is over, another life of it may have to bring it back
    driver:conclude { ["web1-8080"] = { state = "ready" }, [other] = { state = "ready" } } -- a way back that has failed will be gone again
    assert.is_true(template(1):read().slots[other].left)
    driver:conclude { [other] = { state = "maint" } }
    host:talk(driver.socket, "set server templated/app2 state ready\n")
    local seen = template(1):read()
    assert.is_nil(seen.slots[other])
    assert.equal("app2", seen.others[1].name)
  end))

  it("is checked with a warning where a server is named like a slot and has its address, but not its port", inside(function()
    start()
    local driver = own(3, { backend = "sidecar" })
    local notes = driver:check()
    assert.equal(2, #notes)
    for i, note in ipairs(notes) do
      contains(note, ("server web%d-8080 of backend 'sidecar' is at 127.0.0.1:%d, and app.yml has that slot at 127.0.0.1:%d"):format(i, ports[4], ports[i]),
        ("write `server web%d-8080 127.0.0.1:%d check disabled` instead of its line"):format(i, ports[i]))
    end
    assert.same({}, own(2):check())
  end))

  it("gets a server of its own anew when the slot moved to another port", inside(function()
    local driver = shop(3)
    driver:prepare()
    driver.context.slots[3].port = ports[4]
    serve(4)
    driver:prepare()
    driver:apply { { slot = "web3-8080", state = "ready" }, { slot = "web1-8080", state = "drain" } }
    assert.same({ web4 = 4 }, (answers(4)))
  end))

  it("is told apart after a reload, and gets forgotten slots back", inside(function()
    serve(1)
    serve(3)
    local master = start()
    local driver = own(3)
    driver:prepare()
    local before = driver:read().instance
    host:execute { "kill", "-USR2", master }
    await("the reload", function()
      local ok, seen = pcall(driver.read, driver)
      return ok and seen.instance ~= before
    end)
    assert.is_nil(driver:read().slots["web3-8080"])
    driver:apply { { slot = "web3-8080", state = "ready" }, { slot = "web1-8080", state = "maint" } }
    assert.same({ web3 = 4 }, (answers(4)))
  end))

  it("counts on a slot that drains what the workers of before a reload may still have there", inside(function()
    serve(1)
    serve(2)
    local master = start()
    local driver = own(2)
    driver:prepare()
    local before = driver:read().instance
    host:spawn { "curl", "-s", "-o", host.directory .. "/slow", ("http://127.0.0.1:%d/slow"):format(listen) }
    await("a session", function() return driver:read().slots["web1-8080"].sessions == 1 end)
    host:execute { "kill", "-USR2", master }
    await("the reload", function()
      local ok, seen = pcall(driver.read, driver)
      return ok and seen.instance ~= before
    end)
    driver:apply { { slot = "web2-8080", state = "ready" }, { slot = "web1-8080", state = "drain" } }
    assert.is_nil(host:read(host.directory .. "/slow"), "the request should outlast the reload")
    assert.equal(1, driver:read().slots["web1-8080"].sessions)
    await("its end", function() return driver:read().slots["web1-8080"].sessions == 0 end)
    assert.equal("web1\n", host:read(host.directory .. "/slow"))
  end))

  it("counts requests, errors and latency by slot", inside(function()
    local driver = shop()
    answers(10)
    fetch("/broken")
    fetch("/slow")
    local stats = driver:stats()["web1-8080"]
    assert.same({ 12, 1, 0 }, { stats.requests, stats.errors, stats.sessions })
    assert.is_true(stats.latency > 0.05 and stats.latency < 0.5)
    assert.equal(0, driver:stats()["web2-8080"].requests)
  end))

  it("is matched by host names too", inside(function()
    local driver = shop(3)
    for _, slot in ipairs(driver.context.slots) do slot.address = "localhost" end
    assert.equal("anything", driver:read().slots["web1-8080"].server)
    serve(3)
    driver:prepare()
    driver:apply { { slot = "web3-8080", state = "ready" }, { slot = "web1-8080", state = "drain" } }
    assert.same({ web3 = 2 }, (answers(2)))
  end))

  it("answers at a TCP address too", inside(function()
    shop()
    local driver = own(2, { socket = "127.0.0.1:" .. api_port })
    driver:check()
    assert.equal("ready", state(driver, "web1-8080")[1])
  end))

  it("is left as it is by persist and stop", inside(function()
    local driver = shop()
    driver:persist { ["web1-8080"] = { state = "maint" } }
    driver:stop()
    assert.same({ web1 = 3 }, (answers(3)))
  end))

  it("is refused, with what to do, where it would not do what a run asks of it", inside(function()
    start()
    local function message(options)
      local driver = own(1, options)
      return refused("balancer", driver.check, driver).message
    end
    assert.matches("no backend 'shp' %(did you mean 'shop'%?%); it has: shop, fixed, hashed, twice, templated, sidecar, spare, reserve, agents",
      message { backend = "shp" })
    assert.matches("level operator.*level admin", message { socket = host.directory .. "/operator.sock" })
    assert.matches("static%-rr.*no weights at runtime", message { backend = "fixed" })
    assert.matches("balance source.*hash%-type consistent", message { backend = "hashed" })
    assert.matches("first and second.*same instance", message { backend = "twice" })
    assert.matches("anything of backend 'spare' is `backup`.*take that off", message { backend = "spare" })
    assert.matches("r1, r2 of backend 'reserve' are `backup`", message { backend = "reserve", template = "r" })
    assert.matches("the agents %(`agent%-check`%) of anything of backend 'agents' may set weights.*`up` and `down`", own(1, { backend = "agents" }):check()[1])
  end))

  it("finds down what is in service, and not what its configuration has out of it", inside(function()
    local driver = shop()
    driver:apply { { slot = "web1-8080", state = "ready" } }
    local context = { drivers = { driver }, app = { balancers = { { type = "haproxy" } } } }
    local function down() return world_balancer.down(context, nil, { slots = { "web1-8080", "web2-8080" } }) end
    assert.same({}, down())
    host:talk(host.directory .. "/admin.sock", "set server shop/anything health down\n")
    assert.same({ ["web1-8080"] = "balancer 1 (haproxy) finds it down by its own check, and sends it nothing" }, down())
  end))

  it("changes nothing when it is checked", inside(function()
    local driver = shop(3)
    local before = driver:look()
    driver:check()
    assert.same(#before.rows, #driver:look().rows)
  end))

  it("is missed with a hint when nobody answers", inside(function()
    local driver = own(1)
    assert.matches("no such socket.*stats socket", refused("missing", driver.check, driver).message)
    driver = own(1, { socket = "127.0.0.1:" .. api_port })
    assert.matches("is HAProxy running", refused("refused", driver.read, driver).message)
  end))

  it("says what it refused when the level of its socket is too low for a change", inside(function()
    shop()
    local driver = own(2, { socket = host.directory .. "/operator.sock" })
    local err = refused("balancer", driver.apply, driver, { { slot = "web1-8080", state = "drain" } })
    assert.matches("level admin", err.message)
    assert.matches("Permission denied", err.detail)
  end))

  it("has no backend whose name would be a command", inside(function()
    local err = refused("balancer", own, 1, { backend = "shop;shutdown sessions" })
    assert.matches("no backend named", err.message)
  end))
end)
