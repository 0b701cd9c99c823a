-- haproxy_health_spec.lua -- What a managed HAProxy checks, when app.yml's health changes together with the release.
-- weight: 18
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("HAProxy run by deployrt, when app.yml has another health check", function()
  local app, config

  -- 1.0 answers its check with 200, 2.0 with 503: neither passes the other's.
  local first = "{http: /healthz, interval: 50ms, timeout: 1s, deadline: 8s}"
  local second = "{http: /healthz, status: 503, interval: 50ms, timeout: 1s, deadline: 8s}"
  local late = { fault = "sick", start_delay = 2500 } -- HAProxy takes a server for dead after 1.5 s

  local function checks()
    return fixture.read(config):match("http%-check expect ([^\n]*)") or "none"
  end

  --- Runs something under load, that sees no error, for as long as HAProxy needs to notice.
  local function unnoticed(action)
    local load = app:load { rate = 200, keepalive = false }
    local run = action()
    fixture.sh "sleep 2"
    assert.same({}, load:stop().errors)
    return run
  end

  local function begin(opts)
    opts.yaml = opts.yaml or "strategy: {settle: 0}"
    opts.health = first
    app = fixture.app(opts)
    config = app.dir .. "/home/.deployrt/shop/balancer/haproxy.cfg"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.health = second
  end

  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  for _, strategy in ipairs { "rolling", "blue_green", "canary", "in_place" } do
    it("goes on with what serves until the new release does, by " .. strategy, function()
      begin { instances = 2 }
      if strategy == "canary" then app.opts.yaml = "strategy: {steps: [50%, 100%], hold: 2s}" end
      local run = unnoticed(function() return app:deploy(strategy, "2.0", late) end)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same({ "2.0", "2.0" }, app:serving())
      assert.equal("status 503", checks())
      contains(app:command({ strategy, "app.yml" }).stdout, "nothing to change")
    end)
  end

  it("goes on with what serves when nothing passes the new one, and checks as before again", function()
    begin { instances = 2 }
    app.opts.health = "{http: /healthz, status: 418, interval: 50ms, timeout: 1s, deadline: 2s}"
    local run = unnoticed(function() return app:deploy("rolling", "2.0") end)
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "1.0 serves as before")
    assert.equal("status 200-299", checks())
  end)

  it("goes back to the old release, which is checked as it was started to be", function()
    begin { instances = 1 }
    assert.equal(0, app:deploy("rolling", "2.0", late).exit)
    local run = unnoticed(function() return app:command { "rollback", "app.yml" } end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal("status 200-299", checks())
  end)

  it("takes it over without a new release once what serves passes it, and says so until then", function()
    local release = fixture.release "1.0"
    begin { instances = 1 }
    assert.equal(0, app:deploy("rolling", "2.0", { path = release }, { "--set", "health=" .. first }).exit)
    local run = unnoticed(function() return app:deploy("rolling", "2.0", { path = release }) end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "the balancer checks only whether something listens, and not yet the health of release 2.0: local:")
    assert.equal("none", checks())
    app.opts.health = "{http: /healthz, status: [200, 503], interval: 50ms, timeout: 1s, deadline: 8s}"
    run = unnoticed(function() return app:deploy("rolling", "2.0", { path = release }) end)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal("status 200,503", checks())
  end)

  it("is taken up where the controller died, and checks as app.yml says in the end", function()
    begin { instances = 1 }
    app:write(fixture.release("2.0", late), "2.0")
    for _, text in ipairs { "start     local", "traffic   2.0 100%" } do
      unnoticed(function()
        app:kill_at({ "rolling", "app.yml", "--force", "--set", "strategy.settle=3s" }, text)
        local run = app:command { "resume", "app.yml", "--yes" }
        assert.equal(0, run.exit, run.stdout .. run.stderr)
      end)
      assert.same({ "2.0" }, app:serving())
      assert.equal("status 503", checks())
    end
  end)

  it("loses no request, wherever the controller dies", function()
    begin { instances = 1 }
    app:extend_rolling "self.super.deploy(self) self:fail('now')"
    app:write(fixture.release("2.0", { fault = "sick" }), "2.0")
    local counting, count = app:mortal("count", nil, { "./own.lua", "app.yml" })
    assert.equal(1, counting.exit, counting.stdout .. counting.stderr)
    for n = 1, count, 4 do
      local killed = app:mortal(n % 2 == 0 and "before" or "after", n, { "./own.lua", "app.yml" })
      local load = app:load { rate = 200, keepalive = false }
      if killed.exit == 137 and app:status().lock ~= require("cjson").null then
        local run = app:command { "abort", "app.yml", "--yes" }
        assert.equal(0, run.exit, ("operation %d: "):format(n) .. run.stdout .. run.stderr)
      end
      assert.same({}, load:stop().errors, ("operation %d"):format(n))
      assert.equal("status 200-299", checks(), ("operation %d"):format(n))
      assert.same({ "1.0" }, app:serving())
    end
  end)
end)
