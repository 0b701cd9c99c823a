-- stop_spec.lua -- What keeps a deployment from beginning keeps no application from being stopped.
-- weight: 2
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("stop", function()
  local app

  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("ends what runs while the balancer is away, and says what that leaves undone", function()
    local proxy = fixture.haproxy { servers = {} }
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local pid = app:status().instances[1].pid
    proxy:kill()
    local run = app:command { "stop", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "nothing is taken out of service at the balancer, and requests in flight are not waited for, because it is away: ", proxy.socket)
    assert.is_false(fixture.alive(pid))
    proxy:start()
    run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0" }, app:serving())
  end)

  it("leaves alone what others run on its ports", function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local mine = app:status().instances[1]
    local spare = app.ports[1] == mine.port and app.ports[2] or app.ports[1]
    local stranger = fixture.start { "socat", ("TCP-LISTEN:%d,bind=127.0.0.1,reuseaddr,fork"):format(spare), "EXEC:cat" }
    fixture.eventually(function() return fixture.is_listened(spare) end, 5, "the stranger")
    local run = app:command { "stop", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, ("local: port %d is taken by pid %s (socat"):format(spare, stranger), "which deployrt did not start: it is left as it is")
    assert.is_false(fixture.alive(mine.pid))
    assert.is_true(fixture.alive(stranger))
    fixture.stop(stranger)
  end)
end)
