-- gate_spec.lua -- Questions that wait for people side by side, each for an answer of its own.
-- weight: 2
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a run", function()
  local app

  before_each(function()
    app = fixture.due()
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("that waits at several gates names them all to who asks, and each takes its answers", function()
    app:extend_rolling [[
      self:step('first', function()
        self:each({ 'a', 'b', 'c' }, function(s, x)
          local answer = s:approve('gate ' .. x, x == 'c' and { 'yes', 'no' } or { x, 'both' })
          s:log('gate ' .. x .. ' got ' .. answer)
          s:step('behind ' .. x, function() end)
        end)
      end)
      self.super.deploy(self)]]
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    local function await_step(step)
      fixture.eventually(function() return app:status().lock.step == step end, 10, step)
    end
    await_step "waits for approval (a|both): gate a; waits for approval (b|both): gate b; waits for approval (yes|no): gate c"
    local all = "`deployrt approve a app.yml` or `deployrt approve both app.yml` or `deployrt approve b app.yml` or `deployrt approve yes app.yml` or `deployrt approve no app.yml`"
    contains(app:command({ "status", "app.yml" }).stdout, "under way and waits for approval (a|both): gate a; waits", all .. " lets it go on")
    contains(app:command({ "approve", "maybe", "app.yml" }).stderr, "asks for an answer, and 'maybe' is none: " .. all)
    local run = app:command { "approve", "b", "app.yml" }
    assert.equal(0, run.exit, run.stderr)
    contains(run.stdout, "goes on, and waits elsewhere: `deployrt approve a app.yml` or `deployrt approve both app.yml` or `deployrt approve yes")
    await_step "waits for approval (a|both): gate a; waits for approval (yes|no): gate c"
    assert.equal(0, app:command({ "pause", "app.yml" }).exit)
    for _, answer in ipairs { "no", "both" } do
      assert.equal(0, app:command({ "approve", answer, "app.yml" }).exit)
      fixture.eventually(function() return fixture.read(log):find("got " .. answer, 1, true) end, 10, answer)
    end
    await_step "waits for approval: paused before 'behind c'; waits for approval: paused before 'behind a'"
    assert.equal("run goes on\n", (app:command({ "approve", "app.yml" }).stdout:gsub("run %S+", "run")))
    app:await_end(pid)
    contains(fixture.read(log), "gate a got both", "gate b got b", "gate c got no")
    assert.falsy(fixture.read(log):find("is no answer here", 1, true), fixture.read(log))
    assert.same({ "2.0" }, app:serving())
  end)

  it("that waits at a gate without answers, too, takes no answer to another one for it", function()
    app:extend_rolling [[
      self:each({ 'a', 'b' }, function(s, x)
        s:approve('gate ' .. x, x == 'a' and { 'yes' } or nil)
        s:log('behind ' .. x)
      end)
      self.super.deploy(self)]]
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return app:status().lock.step == "waits for approval (yes): gate a; waits for approval: gate b" end, 10, "both")
    contains(app:command({ "approve", "nonsense", "app.yml" }).stderr, "and 'nonsense' is none: `deployrt approve yes app.yml` or `deployrt approve app.yml`")
    contains(app:command({ "approve", "yes", "app.yml" }).stdout, "goes on, and waits elsewhere: `deployrt approve app.yml`")
    fixture.eventually(function() return app:status().lock.step == "waits for approval: gate b" end, 10, "the other one")
    assert.falsy(fixture.read(log):find("behind b", 1, true))
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    app:await_end(pid)
    assert.same({ "2.0" }, app:serving())
  end)
end)
