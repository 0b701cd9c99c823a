-- undo_spec.lua -- What a strategy has stopped is started again by a rollback, as far as that is needed, and can be done.
-- weight: 8
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a rollback, of what was stopped,", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, slots = 3, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, timeout: 1s, deadline: 1s}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    fixture.cleanup()
  end)

  --- Deploys 2.0 with a strategy whose deploy() has this text.
  local function run(text, release)
    app:extend_rolling(text)
    app:write(fixture.release("2.0", release), "2.0")
    return app:command { "./own.lua", "app.yml", "--json" }
  end

  --- Where a release is on its host.
  local function place_of(version)
    return ("%s/home/.deployrt/shop/releases/%s"):format(app.dir, version)
  end

  local retry = [[
    local old = self.fleet:old()[1]
    local new, ok, err = self:successor(old)
    for _ = 1, 2 do
      %s
      ok, err = pcall(new.await_healthy, new)
      if ok then break end
      new:stop()
    end
    if not ok then error(err, 0) end]]

  it("starts nothing again whose own start is taken back next", function()
    local done = run(retry:format "new:start()", { fault = "sick" })
    assert.equal(1, done.exit, done.stdout .. done.stderr)
    assert.falsy(done.stdout:find("instance.restore", 1, true), done.stdout)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("waits for no health that there never was", function()
    local done = run(retry:format 'self:step("start", new.start, new)', { fault = "sick" })
    assert.equal(1, done.exit, done.stdout .. done.stderr)
    contains(done.stdout, "instance.restore")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("does without what the run itself had started, once the release of the run is gone", function()
    local done = run(([[
      local new = self:successor(self.fleet:old()[1])
      self:step("start", function() new:start() new:await_healthy() end)
      new:stop()
      new.host:run { "rm", "-rf", "%s" }
      self:fail "enough"]]):format(place_of "2.0"))
    assert.equal(1, done.exit, done.stdout .. done.stderr)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("that lost its release says what helps, and another deployment ends the run", function()
    local done = run(([[
      local old = self.fleet:old()[1]
      self.balancer:drain(old)
      old:stop()
      old.host:run { "rm", "-rf", "%s" }
      self:fail "enough"]]):format(place_of "1.0"))
    assert.equal(3, done.exit, done.stdout .. done.stderr)
    contains(done.stdout, "1.0: no such directory", "deploy again, or bring the release back to its place, then: deployrt abort app.yml")
    assert.equal(3, app:command({ "abort", "app.yml" }).exit)
    assert.equal(0, app:deploy("rolling", "3.0").exit)
    assert.same({ "3.0", "3.0" }, app:serving())
    assert.equal(2, app:command({ "abort", "app.yml" }).exit)
  end)
end)
