-- haproxy_checks_spec.lua -- HAProxy's own health checks, of which app.yml knows nothing: who gets traffic has passed one.
-- weight: 10
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("an own check of HAProxy's", function()
  local app

  --- An application behind an own HAProxy, which passes no release 2: with servers in its configuration, or added at runtime.
  local function begin(opts, check)
    app = fixture.app { instances = opts.instances or 1, slots = opts.slots or 2, health = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 3s}", yaml = opts.yaml or "strategy: {settle: 0}" }
    local servers = {}
    for i, port in ipairs(opts.fall and app.ports or {}) do
      servers[i] = ("s%d 127.0.0.1:%d check inter 200ms fall %d rise 2 disabled"):format(i, port, opts.fall)
    end
    local proxy = fixture.haproxy { servers = servers, check = check or { "option httpchk GET /", "http-check expect ! rstring 2.0" } }
    app.opts.balancer, app.port = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket), proxy.port
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return proxy
  end

  local function under_load(action)
    local load = app:load { rate = 200, keepalive = false, port = app.port }
    local run = action()
    fixture.sh "sleep 1"
    assert.same({}, load:stop().errors)
    return run
  end

  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  for name, opts in pairs {
    ["of servers added at runtime"] = {}, ["that must fail three times"] = { fall = 3 }, ["that must fail once"] = { fall = 1 },
  } do
    it(name .. " keeps out what does not pass it, and the old release serves on", function()
      begin(opts)
      local run = under_load(function() return app:deploy("rolling", "2.0") end)
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      contains(run.stdout, "waiting   before traffic: HAProxy at ", "does not pass the check of its server ")
      contains(run.stderr, "does not pass the check of its server ", "after 3s: traffic stays where it is")
      assert.same({ "1.0" }, app:serving())
      run = under_load(function() return app:deploy("rolling", "1.1") end)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same({ "1.1" }, app:serving())
    end)
  end

  for strategy, options in pairs { blue_green = "{}", canary = "{steps: [50%, 100%], hold: 500ms}", in_place = "{}" } do
    it("keeps out what does not pass it, by " .. strategy, function()
      begin { instances = 2, slots = 4, yaml = "strategy: {}" }
      app.opts.yaml = "strategy: " .. options
      local run = under_load(function() return app:deploy(strategy, "2.0") end)
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      assert.same({ "1.0", "1.0" }, app:serving())
    end)
  end

  --- Deploys a release that passes every check, and whose answers are failures from a second after its start.
  local function deploy_fading(strategy)
    return app:deploy(strategy, "2.0", { conf = "fades=1s" })
  end

  local answers = { "option httpchk GET /" }

  it("that what serves fails later ends a run that watches it", function()
    begin({ instances = 2, fall = 2 }, answers)
    app.opts.yaml = "strategy: {settle: 5s}"
    local run = deploy_fading "in_place"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "release 2.0 did not stay healthy: balancer 1 (haproxy) finds it down by its own check, and sends it nothing")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("leaves the last that it finds up its traffic", function()
    begin({ fall = 2 }, answers)
    app.opts.yaml = "strategy: {settle: 0, overlap: 2s}"
    local run = deploy_fading "blue_green"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "it finds down all that would be left to serve (local-", "so traffic stays where it is")
    assert.same({ "1.0" }, app:serving())
  end)

  it("that all fail at the end is no success", function()
    begin({ fall = 2 }, answers)
    fixture.write(app.dir .. "/late.lua", [[
      local late = require("deployrt.strategy").extend("rolling", { name = "late" })
      function late:deploy()
        self.super.deploy(self)
        self:sleep(2)
      end
      return late]])
    local run = deploy_fading "./late.lua"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "finds it down by its own check, and sends it nothing: none of what this run has deployed would serve")
    assert.same({ "1.0" }, app:serving())
  end)

  it("that all of the old release fail keeps nobody from replacing it", function()
    begin({ instances = 2, fall = 2 }, answers)
    assert.equal(0, app:deploy("in_place", "1.1", { conf = "fades=1500ms" }).exit)
    fixture.eventually(function() return app:command({ "status", "app.yml" }).exit == 2 end, 10)
    local run = app:deploy("in_place", "1.2")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.2", "1.2" }, app:serving())
  end)

  it("that fails once, before there is traffic, is of no consequence", function()
    begin({}, { "option httpchk GET /healthz" })
    local run = under_load(function() return app:deploy("rolling", "2.0", { fault = "stumbles" }) end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
  end)

  it("that only connects is not waited for once HAProxy has made one: deployrt connects itself", function()
    local proxy = begin({ instances = 2, slots = 4 }, {})
    app:write(fixture.release "2.0", "2.0")
    local log = fixture.dir() .. "/states"
    local seen = fixture.start({ "sh", "-c", ("while sleep 0.02; do printf 'show servers state shop\\n' | socat - UNIX-CONNECT:%s; done"):format(proxy.socket) }, { log = log })
    local run = under_load(function() return app:deploy("blue_green", "2.0") end)
    fixture.stop(seen)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local states, drained = fixture.read(log), {} -- srv_op_state, srv_admin_state 8: drain
    for server in states:gmatch("shop %d+ (%S+) %S+ %d 8 ") do drained[server] = true end
    local serving = 0
    for server in proxy:command("show servers state shop"):gmatch("shop %d+ (%S+) %S+ %d 0 ") do
      assert.is_nil(drained[server])
      serving = serving + 1
    end
    assert.equal(2, serving)
    assert.matches("shop %d+ %S+ %S+ %d 1 ", states) -- srv_admin_state 1: maintenance, as all began
  end)

  for _, fall in ipairs { 3, 1 } do
    it(("keeps out what does not pass it, though HAProxy is restarted meanwhile, with fall %d"):format(fall), function()
      local proxy = begin { fall = fall }
      app:write(fixture.release "2.0", "2.0")
      local log = app.dir .. "/log"
      local pid = app:begin({ "rolling", "app.yml" }, log)
      fixture.eventually(function()
        local states = proxy:command("show servers state shop") -- srv_admin_state: 8 drain, 4 disabled by its configuration
        return states:find(" %d 8 ") or states:find(" %d 12 ")
      end, 10, "the check")
      proxy:restart()
      fixture.eventually(function() return not fixture.alive(pid) end, 30, "the end")
      contains(fixture.read(log), "1.0 serves as before")
      fixture.eventually(function() return fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.port)):find("1.0", 1, true) end, 5, "1.0")
    end)
  end

  it("keeps out what began without a share", function()
    begin { yaml = "strategy: {settle: 0}" }
    app.opts.yaml = "strategy: {steps: [0%, 100%], hold: 300ms}"
    local run = under_load(function() return app:deploy("canary", "2.0") end)
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
  end)

  it("is waited for at all balancers at once, and nobody takes that for somebody else's change", function()
    begin({}, { "option httpchk GET /healthz" })
    local other = fixture.haproxy { servers = {} }
    app.opts.balancer = ("[%s, {type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}]"):format(app.opts.balancer, other.socket)
    assert.equal(0, app:deploy("rolling", "1.1").exit)
    for _, version in ipairs { "1.2", "1.3" } do
      local run = under_load(function() return app:deploy("rolling", version) end)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.falsy((run.stdout .. run.stderr):find("set right again", 1, true), run.stdout .. run.stderr)
    end
  end)

  it("of the server that another one tracks is waited for, too, whatever that knows of the process before", function()
    app = fixture.app { instances = 2, slots = 2, health = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 4s}", yaml = "strategy: {settle: 0}" }
    local servers, after = {}, { "backend probe", "  option httpchk GET /", "  http-check expect ! rstring 2.0" }
    for i, port in ipairs(app.ports) do
      servers[i] = ("s%d 127.0.0.1:%d track probe/p%d"):format(i, port, i)
      after[#after + 1] = ("  server p%d 127.0.0.1:%d check inter 500ms fall 4 rise 1"):format(i, port)
    end
    local proxy = fixture.haproxy { servers = servers, after = after }
    app.opts.balancer, app.port = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket), proxy.port
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = under_load(function() return app:deploy("in_place", "1.1") end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    run = under_load(function() return app:deploy("in_place", "2.0") end)
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "the server that it tracks is down")
    assert.same({ "1.1", "1.1" }, app:serving())
  end)

  it("of a managed HAProxy that fails once, when there is traffic, takes it from nobody", function()
    app = fixture.app { health = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 3s, successes: 2}", yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = under_load(function() return app:deploy("rolling", "2.0", { fault = "stumbles" }) end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
  end)

  it("is waited for no longer than until somebody stops the run", function()
    begin({}, nil)
    app:write(fixture.release "2.0", "2.0")
    app.opts.health = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 60s}"
    app:write(fixture.release "2.0", "2.0")
    local log = app.dir .. "/log"
    local pid = app:begin({ "rolling", "app.yml" }, log)
    fixture.eventually(function() return app:status().instances[2] and app:status().instances[2].healthy end, 10, "the new instance")
    fixture.sh "sleep 0.5"
    fixture.signal(pid, "INT")
    fixture.eventually(function() return not fixture.alive(pid) end, 10, "the end")
    assert.same({ "1.0" }, app:serving())
  end)
end)
