-- address_spec.lua -- A host that keeps its name and gets another address: what was at the old one has left app.yml.
-- weight: 12
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local nginx = require "spec.support.nginx"
local contains = fixture.contains

if not hosts.possible() then
  print("address_spec: skipped, because test hosts need root, iproute2 and sshd")
  return
end

describe("a host that has another address in app.yml", function()
  local app, bed

  setup(function() bed = hosts.up(3) end)
  teardown(function() bed:down() end)

  before_each(function()
    app = fixture.app { slots = 2, instances = 1, yaml = "strategy: {settle: 0}" }
    app.ports = { 8080, 8081 }
    for i = 1, 3 do bed:ssh(i, "rm -rf .deployrt") end
  end)

  --- What is at an address that app.yml does not name is not stopped.
  local function stop_all()
    for i = 1, 3 do
      app.opts.hosts = bed:yaml { bed.hosts[i] }
      app:write(fixture.release "1.0", "1.0")
      assert.same({}, app:stop())
    end
  end

  after_each(function()
    stop_all()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  --- app.yml names as many hosts as there are numbers: web1, web2, ... are these machines of the bed.
  local function use(...)
    local list = {}
    for i, index in ipairs { ... } do list[i] = setmetatable({ name = "web" .. i }, { __index = bed.hosts[index] }) end
    app.opts.hosts = bed:yaml(list)
  end

  local function former()
    return ("web1-8080:%s"):format(bed.hosts[1].address)
  end

  local function answers_only(version)
    for _ = 1, 10 do assert.equal(("hello from %s\n"):format(version), fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.listen))) end
  end

  --- What the old address gets of the traffic.
  local function share() return app:left_share(former()) end

  local function own()
    local proxy = fixture.haproxy { servers = {} }
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
  end

  local function managed()
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(app.listen)
  end

  local function upstream()
    local ng = nginx.start { style = "upstream", port = 1 }
    fixture.write(ng.file, "upstream shop {\n    server 127.0.0.1:1 down;\n}\n")
    ng:reload()
    app.listen, app.opts.balancer = ng.port, ng:yaml()
  end

  local function variable()
    local ng = nginx.start { style = "variable", port = 1 }
    app.listen, app.opts.balancer = ng.port, ng:yaml()
  end

  local balancers = {
    { "HAProxy of one's own", own, many = true }, { "managed HAProxy", managed, many = true }, { "nginx, style upstream", upstream, many = true },
    { "nginx, style variable", variable },
  }

  for _, start in ipairs { own, managed, upstream } do
    it("goes on without a gap where that is another address of the same machine", function()
      start()
      local address = bed.hosts[1].address:gsub("%.%d+$", ".99")
      local device = bed:exec(1, "ip -o -4 addr show scope global"):match("^%d+: (%S+)")
      bed:exec(1, ("ip addr add %s/24 dev %s"):format(address, device))
      local known = fixture.read(bed.hosts[1].known_hosts)
      local keys = known:match(bed.hosts[1].address:gsub("%.", "%%.") .. "( [^\n]+\n)")
      fixture.write(bed.hosts[1].known_hosts, known .. address .. keys)
      use(1, 2)
      app:roll("1.0", 0)
      local load = app:load { rate = 100, keepalive = false }
      use(1, 2)
      app.opts.hosts = app.opts.hosts:gsub(bed.hosts[1].address:gsub("%.", "%%."), address)
      local said = app:roll("1.9", 1, { fault = "dies" })
      contains(said, "back into service")
      assert.is_nil(said:find("make room", 1, true), said) -- by stopping what serves
      answers_only "1.0"
      app:roll("2.0", 0)
      answers_only "2.0"
      assert.is_nil(share())
      assert.same({}, load:stop().errors)
    end)
  end

  local function templated()
    local proxy = fixture.haproxy { servers = {} }
    fixture.write(proxy.config, fixture.read(proxy.config) .. "  server-template srv 1-6 127.0.0.1:1 check inter 200ms disabled\n")
    proxy:restart()
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, template: srv, drain: {timeout: 5s}}"):format(proxy.socket)
  end

  for name, start in pairs { ["HAProxy of one's own"] = own, ["a server-template"] = templated } do
    it("goes on at the old one while a run is limited to other hosts: " .. name, function()
      start()
      use(1, 2)
      app:roll("1.0", 0)
      local load = app:load { rate = 100, keepalive = false }
      use(3, 2)
      local run = app:deploy("rolling", "2.0", nil, { "--host", "web2" })
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.is_nil(run.stdout:find("leave", 1, true), run.stdout)
      assert.is_nil((run.stdout .. run.stderr):find("any more", 1, true), run.stdout)
      assert.near(0.5, app:left_share(start == own and former() or ("srv1@%s:8080"):format(bed.hosts[1].address)), 0.01)
      contains(app:command({ "rolling", "app.yml", "--host", "web2" }).stdout, "nothing to change")
      contains(app:roll("2.0", 0), "== leave")
      answers_only "2.0"
      assert.same({}, load:stop().errors)
    end)
  end

  it("is deployed with a warning where HAProxy's configuration has its servers, by their names, at another port", function()
    local address = bed.hosts[1].address
    local proxy = fixture.haproxy { servers = { ("web1-8080 %s:9999 disabled"):format(address) } }
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    use(1)
    local words = ("server web1-8080 of backend 'shop' is at %s:9999, and app.yml has that slot at %s:8080: clients get no answer unless something there passes "
      .. "their requests on; if nothing does, write `server web1-8080 %s:8080 check disabled` instead of its line"):format(address, address, address)
    local said = app:roll("1.0", 0)
    contains(said, words)
    assert.equal(1, select(2, said:gsub("is at " .. address:gsub("%.", "%%."), "")), said)
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "warning: HAProxy at " .. proxy.socket .. ": " .. words)
  end)

  it("is refused where HAProxy's configuration has its servers, by their names, at the old one", function()
    local proxy = fixture.haproxy { servers = { ("web1-8080 %s:8080 check inter 200ms disabled"):format(bed.hosts[1].address) } }
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    use(1)
    app:roll("1.0", 0)
    use(3)
    contains(app:roll("2.0", 2), ("server web1-8080 of backend 'shop' is at %s:8080, and app.yml has that slot at %s:8080"):format(bed.hosts[1].address, bed.hosts[3].address),
      ("server web1-8080 %s:8080 check disabled"):format(bed.hosts[3].address))
    assert.equal(2, app:command({ "check", "app.yml", "--connect" }).exit)
    answers_only "1.0"
    local named = fixture.haproxy { servers = { ("web1 %s:8080 check inter 200ms disabled"):format(bed.hosts[1].address) } }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop}"):format(named.socket)
    contains(app:roll("2.0", 2), ("server web1 of backend 'shop' is at %s:8080"):format(bed.hosts[1].address))
  end)

  for place, each in ipairs(balancers) do
    local name, start = each[1], each[2]

    if each.many then
      it("serves at the old one until another does, and again if the run fails: " .. name, function()
        start()
        use(1, 2)
        app:roll("1.0", 0)
        local load = app:load { rate = 100, keepalive = false }
        use(3, 2)
        local note = ("app.yml does not name %s any more: it gets no traffic from now on, and what runs there goes on until somebody stops it"):format(former())
        local said = app:roll("1.9", 1, { fault = "dies" })
        contains(said, note, "1.0 serves as before")
        assert.is_nil(said:find("also sends traffic", 1, true), said)
        assert.near(0.5, share(), 0.01)
        said = app:roll("2.0", 0)
        contains(said, note, "== leave", "other hosts 33%", "traffic   2.0 100%")
        assert.is_true(said:find("start     web1", 1, true) < said:find("== leave", 1, true), said)
        answers_only "2.0"
        assert.is_nil(share())
        assert.same({}, load:stop().errors)
        contains(app:roll("2.0", 0), "nothing to change")
      end)
    end

    it("serves at the old one until another does, and again if the run fails, as the only host: " .. name, function()
      start()
      use(1)
      app:roll("1.0", 0)
      local load = app:load { rate = 100, keepalive = false }
      use(3)
      contains(app:roll("1.9", 1, { fault = "dies" }), former() .. " serves as before")
      assert.equal(1, share())
      answers_only "1.0"
      app:extend_rolling "self:fill(); self:fail('now')"
      app:write(fixture.release "1.9", "1.9")
      local run = app:command { "./own.lua", "app.yml" }
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      contains(run.stdout, "start     web1")
      answers_only "1.0"
      app:roll("2.0", 0)
      answers_only "2.0"
      app:roll("2.1", 0)
      local before = load:numbers().versions["1.0"]
      use(1) -- where 1.0 runs still
      app:roll("2.9", 1, { fault = "dies" })
      answers_only "2.1"
      app:roll("3.0", 0)
      answers_only "3.0"
      local numbers = load:stop()
      assert.same({}, numbers.errors)
      assert.equal(before, numbers.versions["1.0"])
    end)

    it("is given its traffic back when the controller died after a change of traffic: " .. name, function()
      start()
      local function begin()
        use(1)
        app:roll("1.0", 0)
        use(3)
        app:write(fixture.release "2.0", "2.0")
      end
      begin()
      local _, _, list = app:mortal("count", nil, { "rolling", "app.yml" })
      local changes = {} -- traffic for the new one, none for the old one, and that one drained
      for n, operation in ipairs(list) do
        if operation.name == "balancer.apply" then changes[#changes + 1] = n end
      end
      assert.equal(3, #changes)
      stop_all()
      begin()
      local load = app:load { rate = 100, keepalive = false }
      assert.equal(137, app:mortal("after", changes[place % 3 + 1], { "rolling", "app.yml" }).exit) -- another one for each balancer
      local run = app:command { "abort", "app.yml", "--yes" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.equal(1, share())
      answers_only "1.0"
      assert.same({}, load:stop().errors)
    end)
  end
end)
