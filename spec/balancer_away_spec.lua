-- balancer_away_spec.lua -- The only balancer goes away after the last change of traffic, while the run only waits.
-- weight: 6
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a balancer that goes away in mid-run", function()
  local app, proxy, log

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    log = app.dir .. "/log"
    proxy = fixture.haproxy { servers = { ("a 127.0.0.1:%d check"):format(app.ports[1]) } }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 3s}}"):format(proxy.socket)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:extend_rolling "self.super.deploy(self) self:log 'now' self:sleep(4)"
    app:write(fixture.release("2.0"), "2.0")
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Begins a run whose balancer ends once all traffic is where it is to be.
  local function begin()
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log):find("now", 1, true) end, 20, "the last change")
    proxy:kill()
    return pid
  end

  it("and does not come back fails the run: what it would come back with nobody knows", function()
    local pid = begin()
    fixture.eventually(function() return fixture.read(log):find("balancer 1 (haproxy) does not answer", 1, true) end, 10, "a warning")
    fixture.eventually(function() return not fixture.alive(pid) end, 120, "the end")
    contains(fixture.read(log), "balancer 1 (haproxy) does not have the states that the run wants", "deployrt abort app.yml")
    assert.is_nil(fixture.read(log):find("deployed 2.0", 1, true))
    proxy:start()
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    local load = app:load { port = proxy.port }
    fixture.eventually(function() return (load:numbers().versions["1.0"] or 0) > 10 end)
    load:stop()
  end)

  it("and comes back before the end has the wanted states then", function()
    local pid = begin()
    fixture.eventually(function() return fixture.read(log):find("does not answer", 1, true) end, 10, "a warning")
    os.execute("sleep 3") -- it is over but for the balancer
    proxy:start()
    fixture.eventually(function() return not fixture.alive(pid) end, 60, "the end")
    contains(fixture.read(log), "set right again", "deployed 2.0")
    local load = app:load { port = proxy.port }
    fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 10 end)
    assert.same({}, load:stop().errors)
  end)
end)
