-- balancer_list_spec.lua -- Two balancers that are kept alike: down before a run, down in the middle of one, and back.
local fixture = require "spec.support.fixture"

local function contains(text, ...)
  for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), ("expected %q in:\n%s"):format(part, text)) end
end

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
