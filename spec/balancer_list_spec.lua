-- balancer_list_spec.lua -- Two balancers that are kept alike: down before a run, down in the middle of one, and back.
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

describe("a list of balancers", function()
  local app, proxies

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, timeout: 5s, deadline: 20s}" }
    proxies = {}
    local servers, list = {}, {}
    for _, port in ipairs(app.ports) do servers[#servers + 1] = ("local-%d 127.0.0.1:%d check inter 200ms disabled"):format(port, port) end
    for i = 1, 2 do
      proxies[i] = fixture.haproxy { servers = servers }
      list[i] = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 3s}}"):format(proxies[i].socket)
    end
    app.opts.balancer = ("[%s]"):format(table.concat(list, ", "))
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- The release that answers through a balancer.
  local function served_by(proxy)
    return fixture.sh(("curl -s -m 2 http://127.0.0.1:%d/"):format(proxy.port)):match("hello from (%S+)")
  end

  it("is brought to the same state by a run that has nothing else to do, whichever of them lost its own", function()
    for which, proxy in ipairs(proxies) do
      proxy:restart()
      assert.is_nil(served_by(proxy))
      local status = app:command { "status", "app.yml" }
      assert.truthy(status.stdout:find(("balancer %d (haproxy) has other states"):format(which), 1, true), status.stdout)
      local run = app:command { "rolling", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      fixture.eventually(function() return served_by(proxy) == "1.0" end, 5, "its health check")
      status = app:command { "status", "app.yml" }
      assert.is_nil(status.stdout:find("other states", 1, true), status.stdout)
      run = app:command { "rolling", "app.yml" }
      assert.truthy(run.stdout:find("nothing to change", 1, true), run.stdout .. run.stderr)
    end
  end)

  it("that one of them still sends to the wrong slots does not make instances idle that serve by the other", function()
    local at = {}
    for _, port in ipairs(app.ports) do at[fixture.is_listened(port)] = port end
    local function set(proxy, port, state)
      fixture.sh(("printf 'set server shop/local-%d state %s\\n' | socat - %s"):format(port, state, proxy.socket))
    end
    set(proxies[1], at[true], "maint")
    set(proxies[1], at[false], "ready")
    assert.same({ "1.0" }, app:serving())
    local watching = fixture.start({ "sh", "-c", ("while sleep 0.02; do curl -s -o /dev/null -w '%%{http_code}\n' http://127.0.0.1:%d/; done"):format(proxies[2].port) },
      { log = app.dir .. "/codes" })
    local run = app:deploy("rolling", "2.0", { start_delay = "500ms" })
    fixture.stop(watching)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil(fixture.read(app.dir .. "/codes"):find("503", 1, true), run.stdout)
    for _, proxy in ipairs(proxies) do assert.equal("2.0", served_by(proxy)) end
  end)

  it("is brought to the same state, and one that is down before a run is an error", function()
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    assert.equal("2.0", served_by(proxies[1]))
    assert.equal("2.0", served_by(proxies[2]))
    proxies[2]:kill()
    os.remove(proxies[2].socket)
    local run = app:deploy("rolling", "3.0")
    assert.equal(2, run.exit, run.stdout)
    contains(run.stderr, proxies[2].socket)
    assert.equal("2.0", served_by(proxies[1]))
    proxies[2]:start()
  end)

  for which = 1, 2 do
    it(("goes on without number %d that goes down in mid-run, and brings it up to date when it is back"):format(which), function()
      fixture.write(app.dir .. "/own.lua", 'local s = require "deployrt.strategy"\nlocal own = s.extend("rolling", { name = "own" })\n'
        .. "function own:deploy() self:log('now') self:sleep(1) self.super.deploy(self) self:approve('back?') end\nreturn own\n")
      app:write(fixture.release("2.0"), "2.0")
      local log = app.dir .. "/log"
      local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
      fixture.eventually(function() return (fixture.read(log) or ""):find("now\n", 1, true) end, 30, "the moment")
      proxies[which]:kill()
      fixture.eventually(function() return (fixture.read(log) or ""):find("back?", 1, true) end, 60, "the gate")
      assert.equal("2.0", served_by(proxies[3 - which]))
      proxies[which]:start()
      fixture.eventually(function() return served_by(proxies[which]) == "2.0" end, 20, "the balancer that came back")
      assert.equal(0, app:command({ "approve", "app.yml" }).exit)
      fixture.eventually(function() return not fixture.alive(pid) end, 30, "end of the run")
      contains(fixture.read(log), "deployed 2.0")
      assert.is_nil(fixture.read(log):find("has not come back", 1, true))
    end)
  end
end)

if not hosts.possible() then
  print("balancer_list_spec: skipped: over SSH, because test hosts need root, iproute2 and sshd")
  return
end

describe("a list of balancers that a run adds one to", function()
  local port = 8000
  local app, bed, release

  before_each(function()
    bed, app = hosts.up(1), fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    app.opts.hosts, app.ports = bed:yaml(), { 8080, 8081 }
    release = fixture.release "1.0"
    assert.equal(0, app:deploy("rolling", "1.0", { path = release }).exit)
    local managed = '{type: haproxy, managed: true, listen: "%s:%d", drain: {timeout: 3s}%s}'
    app.opts.balancer = ("[%s, %s]"):format(managed:format("127.0.0.1", app.listen, ""), managed:format("0.0.0.0", port, ", host: web1"))
  end)
  after_each(function()
    app:stop()
    bed:down()
    fixture.cleanup()
  end)

  --- The releases that answer, by the first balancer and by the one on the host.
  local function answers()
    local list = {}
    for i, at in ipairs { "127.0.0.1:" .. app.listen, bed.hosts[1].address .. ":" .. port } do
      list[i] = fixture.sh(("curl -s -m 2 http://%s/ || true"):format(at)):match("hello from (%S+)") or "none"
    end
    return list
  end

  local function assert_nothing_is_left()
    assert.same({ "1.0", "none" }, answers())
    assert.equal("", (bed:ssh(1, "ls .deployrt/shop/balancer 2>/dev/null; pgrep haproxy")))
  end

  it("is as it was when the run fails: what it has started is stopped, and nothing of it is left", function()
    local run = app:deploy("rolling", "2.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("by somebody", 1, true), run.stdout .. run.stderr)
    assert_nothing_is_left()
  end)

  it("is as it was when the run is aborted whose controller died", function()
    app:write(fixture.release("2.0", { start_delay = 2000 }), "2.0")
    app:kill_at({ "rolling", "app.yml" }, "== batch 1")
    fixture.eventually(function() return answers()[2] == "1.0" end, 5, "the new balancer")
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert_nothing_is_left()
  end)

  it("has that one do as the other, and blames nobody", function()
    local run = app:deploy("rolling", "1.0", { path = release })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("by somebody", 1, true), run.stdout .. run.stderr)
    contains(run.stdout, "balancer 2 (haproxy on web1) gets the states of the others: 1 slot")
    assert.same({ "1.0", "1.0" }, answers())
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    assert.same({ "2.0", "2.0" }, answers())
  end)
end)
