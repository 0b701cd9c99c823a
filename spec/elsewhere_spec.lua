-- elsewhere_spec.lua -- Traffic that goes where app.yml names nothing is told, whoever sends it there.
-- weight: 8
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local nginx = require "spec.support.nginx"
local contains = fixture.contains

--- Caddy, with an upstream to begin with; returns its port, and the entry of app.yml.
local function start_caddy(upstream)
  local dir, admin, port = fixture.dir(), fixture.free_port(), fixture.free_port()
  fixture.write(dir .. "/caddy.json", ([[{"admin": {"listen": "127.0.0.1:%d"}, "apps": {"http": {"servers": {"shop": {
    "listen": ["127.0.0.1:%d"], "automatic_https": {"disable": true}, "routes": [{"handle": [{"@id": "shop", "handler": "reverse_proxy",
    "load_balancing": {"selection_policy": {"policy": "round_robin"}}, "upstreams": [%s]}]}]}}}}}]]):format(admin, port, upstream))
  fixture.start({ "caddy", "run", "--config", dir .. "/caddy.json" }, { log = dir .. "/log", env = { HOME = dir, XDG_DATA_HOME = dir, XDG_CONFIG_HOME = dir } })
  fixture.eventually(function() return fixture.is_listened(port) and fixture.is_listened(admin) end, 20, "caddy")
  return port, ("{type: caddy, admin: \"127.0.0.1:%d\", id: shop, drain: {timeout: 500ms}}"):format(admin)
end

describe("a server of the user's beside the slots", function()
  local app, port

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    port = fixture.free_port()
    local dir = fixture.dir()
    fixture.write(dir .. "/index.html", "somebody else\n")
    fixture.start { "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, tostring(port) }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "the other service")
  end)

  after_each(function()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  --- The run, the looks and the stop tell of it; it is left alone by all of them.
  local function is_told(words, share)
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "warning   " .. words, "other hosts " .. (share:gsub("%.0", "")))
    contains(app:command({ "plan", "rolling", "app.yml" }).stdout, words)
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "warning: " .. words)
    local status = app:command { "status", "app.yml" }
    contains(status.stdout, ("%s: %s"):format(words, share))
    assert.equal(0, status.exit, status.stderr)
    local said = app:status()
    assert.near(1, said.instances[1].share + said.elsewhere[1].share, 0.001)
    assert.is_false(said.elsewhere[1].left)
    run = app:command { "stop", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "warning   " .. words, "nothing of shop runs on its hosts any more")
    assert.same({}, app:leftovers())
    return said.elsewhere[1]
  end

  local function answers()
    local found = {}
    for _ = 1, 10 do found[fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.listen))] = true end
    return found
  end

  it("of HAProxy", function()
    local proxy = fixture.haproxy { servers = { ("s3 127.0.0.1:%d weight 100"):format(port), ("spare 127.0.0.1:%d backup"):format(port), "off 127.0.0.1:9 disabled" } }
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    local told = is_told(("backend 'shop' also sends traffic to s3 (127.0.0.1:%d), which app.yml does not name"):format(port), "50.0%")
    assert.same({ "s3", "127.0.0.1:" .. port }, { told.server, told.address })
    assert.same({ ["somebody else\n"] = true }, answers())
  end)

  --- Two applications in one backend, in which the other one is called so.
  local function are_left_alone(proxy, more, other)
    local cart = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    for _, each in ipairs { app, cart } do
      each.listen, each.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop%s, drain: {timeout: 5s}}"):format(proxy.socket, more)
    end
    local function deploy_cart(verb)
      cart:write(fixture.release("cart"), "cart")
      fixture.write(cart.file, (fixture.read(cart.file):gsub("app: shop", "app: cart")))
      local run = cart:command({ table.unpack(verb) })
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.is_nil(run.stdout:find("any more: it gets no traffic", 1, true), run.stdout)
    end
    deploy_cart { "rolling", "app.yml" }
    local load = app:load { port = proxy.port }
    app:roll("1.0", 0)
    contains(app:roll("2.0", 0), "backend 'shop' also sends traffic to " .. other)
    fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 10 end)
    local before = load:numbers().versions.cart
    fixture.eventually(function() return load:numbers().versions.cart > before + 10 end, 10, "the other application's part")
    deploy_cart { "rolling", "app.yml", "--force" }
    before = load:numbers().versions["2.0"]
    fixture.eventually(function() return load:numbers().versions["2.0"] > before + 10 end, 10, "the first application's part")
    assert.same({}, load:stop().errors)
    app:stop()
    deploy_cart { "stop", "app.yml" }
  end

  it("that another application added to the same backend is left alone", function()
    are_left_alone(fixture.haproxy { servers = {} }, "", "deployrt-cart.local-")
  end)

  it("of a server-template that another application has is left alone", function()
    local proxy = fixture.haproxy { servers = {} }
    fixture.write(proxy.config, fixture.read(proxy.config) .. "  server-template srv 1-6 127.0.0.1:1 check inter 200ms disabled\n")
    proxy:restart()
    are_left_alone(proxy, ", template: srv", "srv")
  end)

  it("of nginx", function()
    local ng = nginx.start { style = "upstream", port = port, upstream = ("  server 127.0.0.1:%d backup;\n  server 127.0.0.2:9 down;\n"):format(port) }
    fixture.write(ng.file, (fixture.read(ng.file):gsub("127.0.0.1:%d+;", "127.0.0.1:" .. port .. " weight=100;")))
    app.listen, app.opts.balancer = ng.port, ng:yaml()
    local words = ("upstream 'shop' also sends traffic to 127.0.0.1:%d, which app.yml does not name"):format(port)
    assert.equal("127.0.0.1:" .. port, is_told(words, "50.0%").server)
    assert.same({ ["somebody else\n"] = true }, answers())
  end)

  it("of Caddy", function()
    app.listen, app.opts.balancer = start_caddy(('{"dial": "localhost:%d"}'):format(port))
    local words = ("reverse_proxy 'shop' also sends traffic to 127.0.0.1:%d, which app.yml does not name"):format(port)
    assert.equal("127.0.0.1:" .. port, is_told(words, "50.0%").server)
    assert.same({ ["somebody else\n"] = true }, answers())
  end)
end)

if not hosts.possible() then
  print("elsewhere_spec: skipped: hosts that app.yml names no more, because test hosts need root, iproute2 and sshd")
  return
end

describe("a host that app.yml does not name any more", function()
  local app, bed

  setup(function() bed = hosts.up(2) end)
  teardown(function() bed:down() end)

  before_each(function()
    app = fixture.app { slots = 2, instances = 1, yaml = "strategy: {settle: 0}" }
    app.ports, app.opts.hosts = { 8080, 8081 }, bed:yaml()
    for i = 1, 2 do bed:ssh(i, "rm -rf .deployrt") end
  end)

  after_each(function()
    app.opts.hosts = bed:yaml()
    app:write(fixture.release "1.0", "1.0")
    assert.same({}, app:stop())
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local function answers(port)
    local found = {}
    for _ = 1, 10 do found[fixture.sh(("curl -s http://127.0.0.1:%d/"):format(port))] = true end
    return found
  end

  --- What every balancer is held to, with the ports where its clients come.
  local function loses_its_traffic(name, ports)
    app:roll("1.0", 0)
    local load = app:load { port = ports[1], rate = 100, keepalive = false }
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    local note = ("app.yml does not name %s any more: it gets no traffic from now on, and what runs there goes on until somebody stops it"):format(name)
    contains(app:roll("1.9", 1, { fault = "dies" }), note, "== leave", "rolled back")
    assert.near(0.5, app:left_share(name), 0.01)
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "warning: " .. note)
    contains(app:command({ "status", "app.yml" }).stdout, ("%s gets 50.0%% of the traffic, and app.yml does not name it any more"):format(name))
    contains(app:roll("2.0", 0), note, "== leave", "traffic   2.0 100%")
    for _, port in ipairs(ports) do assert.same({ ["hello from 2.0\n"] = true }, answers(port)) end
    assert.is_nil(app:left_share(name))
    assert.same({}, load:stop().errors)
    contains(app:roll("2.0", 0), "nothing to change")
  end

  it("loses its traffic at HAProxy of one's own, and gets it back if the run fails", function()
    local proxy = fixture.haproxy { servers = {} }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    loses_its_traffic("web1-8080", { proxy.port })
  end)

  local function templated()
    local proxy = fixture.haproxy { servers = {} }
    fixture.write(proxy.config, fixture.read(proxy.config) .. "  server-template srv 1-4 127.0.0.1:1 check inter 200ms disabled\n")
    proxy:restart()
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, template: srv, drain: {timeout: 5s}}"):format(proxy.socket)
    return proxy
  end

  for name, start in pairs {
    ["HAProxy of one's own"] = function() return ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(fixture.haproxy({ servers = {} }).socket) end,
    ["a managed one"] = function() return ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(app.listen) end,
  } do
    it("keeps its traffic while a run is limited to other hosts, and loses it with the next that is not: " .. name, function()
      app.opts.balancer = start()
      app:roll("1.0", 0)
      app.opts.hosts = bed:yaml { bed.hosts[2], setmetatable({ name = "web3", address = "192.0.2.1" }, { __index = bed.hosts[1] }) }
      local run = app:deploy("rolling", "2.0", nil, { "--host", "web2" })
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.is_nil(run.stdout:find("any more", 1, true), run.stdout)
      app.opts.hosts = bed:yaml { bed.hosts[2] }
      app:write(fixture.release "2.0", "2.0")
      assert.near(0.5, app:left_share("web1-8080"), 0.01)
      contains(app:roll("2.0", 0), "== leave")
    end)
  end

  it("loses its traffic at HAProxy with a server-template, whose server is free again", function()
    local proxy = templated()
    loses_its_traffic(("srv1@%s:8080"):format(bed.hosts[1].address), { proxy.port })
    app.opts.hosts = bed:yaml()
    app:roll("3.0", 0)
    contains(proxy:command "show servers state shop", "srv1 " .. bed.hosts[1].address)
    proxy:command "set server shop/srv1 health down" -- as when the machine is off
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    contains(app:roll("4.0", 0), "== leave")
    local state = proxy:command("show servers state shop"):match("%d+ shop %d+ srv1 %S+ %d (%d)")
    assert.is_true(math.tointeger(state) & 1 == 1, "in maintenance, not " .. tostring(state))
  end)

  it("loses its traffic at nginx, and gets it back if the run fails; its line stays no longer than a run", function()
    local ng = nginx.start { style = "upstream", port = 1 }
    app.opts.balancer = ng:yaml()
    fixture.write(ng.file, "upstream shop {\n    server 127.0.0.1:1 down;\n}\n")
    ng:reload()
    loses_its_traffic("web1-8080", { ng.port })
    app:roll("3.0", 0)
    assert.is_nil(fixture.read(ng.file):find("web1", 1, true))
  end)

  it("loses its traffic at Caddy, and gets it back if the run fails", function()
    local port, entry = start_caddy ""
    app.opts.balancer = entry
    loses_its_traffic(bed.hosts[1].address .. ":8080", { port })
  end)

  it("loses its traffic at several balancers, also where one of them does not know it any more", function()
    local one, two = fixture.haproxy { servers = {} }, fixture.haproxy { servers = {} }
    app.opts.balancer = ("[{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}, {type: haproxy, socket: %s, backend: shop}]"):format(one.socket, two.socket)
    loses_its_traffic("web1-8080", { one.port, two.port })
    app.opts.hosts = bed:yaml()
    app:roll("2.0", 0)
    two:restart()
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    contains(app:roll("3.0", 0), "== leave")
    for _, proxy in ipairs { one, two } do assert.same({ ["hello from 3.0\n"] = true }, answers(proxy.port)) end
  end)

  it("loses its traffic with a stop, which says that something runs there", function()
    local proxy = fixture.haproxy { servers = {} }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    app:roll("1.0", 0)
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    app:write(fixture.release "1.0", "1.0")
    local run = app:command { "stop", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "app.yml does not name web1-8080 any more", "nothing of shop runs on its hosts any more")
    assert.is_nil(fixture.sh(("curl -s http://127.0.0.1:%d/"):format(proxy.port)):find("hello", 1, true))
  end)

  local function is_given_back(name)
    app:roll("1.0", 0)
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    app:write(fixture.release "2.0", "2.0")
    app:kill_at({ "rolling", "app.yml" }, "leave: done")
    local run = app:command { "abort", "app.yml", "--yes" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.near(0.5, app:left_share(name), 0.01)
  end

  it("is given its traffic back by HAProxy when the controller died", function()
    local proxy = fixture.haproxy { servers = {} }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    is_given_back "web1-8080"
  end)

  it("is given its traffic back by HAProxy with a server-template when the controller died", function()
    templated()
    is_given_back(("srv1@%s:8080"):format(bed.hosts[1].address))
  end)

  it("is given its traffic back by nginx when the controller died", function()
    local ng = nginx.start { style = "upstream", port = 1 }
    fixture.write(ng.file, "upstream shop {\n    server 127.0.0.1:1 down;\n}\n")
    app.opts.balancer = ng:yaml()
    is_given_back "web1-8080"
  end)

  it("is given its traffic back by Caddy when the controller died", function()
    app.opts.balancer = select(2, start_caddy "")
    is_given_back(bed.hosts[1].address .. ":8080")
  end)
end)
