-- commit_spec.lua -- What a strategy commits stays, what it does afterwards is undone, and a failure is told as it is.
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("what a strategy commits", function()
  local app

  --- Deploys 2.0 over 1.0 by a strategy whose deploy() is the text, under load that sees no error, and returns what it said.
  local function run_own(text, exit)
    app:extend_rolling(text)
    local load = app:load { rate = 200 }
    local run = app:deploy("./own.lua", "2.0")
    assert.same({}, load:stop().errors)
    assert.equal(exit, run.exit, run.stdout .. run.stderr)
    return run.stdout .. run.stderr
  end

  before_each(function()
    app = fixture.app { instances = 2, slots = 4, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)

  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    fixture.cleanup()
  end)

  it("is told as it is when the run fails", function()
    local said = run_own([[
      self:replace(self.fleet:old()[1])
      self:commit()
      self:fail "later"]], 3)
    local words = "`deployrt rollback app.yml` goes back to what served before, or deploy again"
    contains(said, "the strategy committed", "instance.start local:", "before it failed", "to mend it: " .. words, "needs attention: what was committed stays, ")
    assert.same({ "1.0", "2.0" }, app:serving())
    contains(app:command({ "status", "app.yml" }).stdout, "own of 2.0: all that is left of it was committed: " .. words)
    for _, verb in ipairs { "abort", "resume" } do
      local run = app:command { verb, "app.yml" }
      assert.equal(2, run.exit, run.stdout)
      contains(run.stderr, "there is nothing to resume or abort; all that is left of the last one was committed: " .. words)
    end
    assert.equal(0, app:deploy("rolling", "2.0").exit)
  end)

  it("in a step is told, too, and what the step did afterwards is undone", function()
    local said = run_own([[
      self:step("both", function()
        local old = self.fleet:old()
        self:replace(old[1])
        self:commit()
        self:replace(old[2])
        self:fail "later"
      end)]], 3)
    contains(said, "the strategy committed", "instance.start local:")
    assert.same({ "1.0", "2.0" }, app:serving())
    assert.equal(2, #app:status().instances)
  end)

  it("beside others is its own: what those did is undone", function()
    run_own([[
      local old = self.fleet:old()
      self:each(old, function(_, each)
        self:replace(each)
        if each ~= old[1] then self:sleep(0.5) self:fail "later" end
        self:commit()
      end)]], 3)
    assert.same({ "1.0", "2.0" }, app:serving())
    assert.equal(2, #app:status().instances)
  end)

  for verb, flags in pairs { abort = { "abort", "app.yml" }, ["abort --force"] = { "abort", "app.yml", "--force" } } do
    it("stays when the controller dies and the run is taken back: " .. verb, function()
      app:extend_rolling [[
        local old = self.fleet:old()
        self:each(old, function(_, each)
          self:replace(each)
          if each ~= old[1] then self:sleep(0.5) self:log "now" self:sleep(30) end
          self:commit()
        end)]]
      app:write(fixture.release "2.0", "2.0")
      app:kill_at({ "./own.lua", "app.yml" }, "now")
      local run = app:command(flags)
      assert.equal(3, run.exit, run.stdout .. run.stderr)
      contains(run.stdout .. run.stderr, "the strategy committed")
      assert.same({ "1.0", "2.0" }, app:serving())
    end)
  end

  it("is what a rollback takes back", function()
    assert.equal(0, app:deploy("rolling", "0.9").exit)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    run_own([[
      self:each(self.fleet:old(), self.replace)
      self:commit()
      self:fail "later"]], 3)
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.equal(0, app:command({ "rollback", "app.yml" }).exit)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)
end)
