-- deploy_spec.lua -- The shipped strategies on this machine, behind a real HAProxy, under load.
-- weight: 18
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

local options = {
  rolling = "{settle: 100ms, batch: 50%}", in_place = "{settle: 100ms}", blue_green = "{settle: 100ms}",
  canary = "{hold: 600ms, latency: 1000, steps: [10%, 50%, 100%]}", canary_blue_green = "{settle: 100ms, hold: 600ms, latency: 1000, steps: [10%, 50%, 100%]}",
}

-- Each strategy with a last line that fails, so that everything before is rolled back.
local failing = [[
local strategy = require "deployrt.strategy"
local failing = strategy.extend("%s", { name = "failing" })
function failing:deploy()
  self.super.deploy(self)
  self:fail("the last step fails")
end
return failing
]]

describe("deploying under load", function()
  local app

  before_each(function() app = fixture.app { instances = 2 } end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  for _, name in ipairs { "rolling", "blue_green", "canary", "canary_blue_green", "in_place" } do
    it(name .. " goes from one release to the next without a failed request", function()
      app.opts.yaml = "strategy: " .. options[name]
      local first = app:deploy(name, "1.0")
      assert.equal(0, first.exit, first.stderr)
      local load = app:load()
      local run = app:deploy(name, "2.0")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 50 end)
      local numbers = load:stop()
      assert.same({}, numbers.errors)
      assert.is_true(numbers.versions["1.0"] > 50)
      assert.same({ "2.0", "2.0" }, app:serving())
    end)

    it(name .. " that fails at its last step goes back without a failed request", function()
      app.opts.yaml = "strategy: " .. options[name]
      assert.equal(0, app:deploy(name, "1.0").exit)
      local load = app:load()
      fixture.write(app.dir .. "/failing.lua", failing:format(name))
      local run = app:deploy("./failing.lua", "2.0")
      local numbers = load:stop()
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stdout:find("the last step fails", 1, true))
      assert.same({}, numbers.errors)
      assert.is_true(numbers.versions["2.0"] > 0)
      assert.same({ "1.0", "1.0" }, app:serving())
      assert.equal(cjson.null, app:status().lock)
    end)
  end

  it("leaves nothing behind once it is stopped", function()
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "strategy.settle=0" }).exit)
    assert.same({}, app:stop())
  end)

  it("says that there is nothing to change, and replaces all the same with --force", function()
    app.opts.yaml = "strategy: {settle: 0}"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local before = app:status().instances[1].pid
    local again = app:command { "rolling", "app.yml" }
    assert.equal(0, again.exit)
    assert.truthy(again.stdout:find("nothing to change", 1, true))
    assert.equal(before, app:status().instances[1].pid)
    assert.equal(0, app:command({ "rolling", "app.yml", "--force" }).exit)
    assert.not_equal(before, app:status().instances[1].pid)
  end)

  it("takes a changed environment for a change", function()
    app.opts.yaml = "strategy: {settle: 0}"
    local path = fixture.release("1.0")
    assert.equal(0, app:deploy("rolling", "1.0", { path = path }).exit)
    local before = app:status().instances[1].pid
    assert.equal(0, app:deploy("rolling", "1.0", { path = path }, { "--set", "process.env.COLOR=red" }).exit)
    assert.not_equal(before, app:status().instances[1].pid)
  end)

  it("refuses the same version with other content", function()
    app.opts.yaml = "strategy: {settle: 0}"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:deploy("rolling", "1.0", { fault = "slow" })
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("other content", 1, true))
  end)

  it("rolls back to what served before the last successful run, and to a named release", function()
    app.opts.yaml = "strategy: {settle: 0}"
    for _, version in ipairs { "1.0", "2.0", "3.0" } do assert.equal(0, app:deploy("rolling", version).exit) end
    local load = app:load()
    assert.equal(0, app:command({ "rollback", "app.yml" }).exit)
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.equal(0, app:command({ "rollback", "app.yml", "--to", "1.0" }).exit)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, load:stop().errors)
    local unknown = app:command { "rollback", "app.yml", "--to", "9.9" }
    assert.equal(2, unknown.exit)
    assert.truthy(unknown.stderr:find("9.9", 1, true))
  end)

  for _, name in ipairs { "blue_green", "canary_blue_green" } do
    it("keeps the old set of " .. name .. " idle, so that rollback is one switch to the same processes", function()
      app.opts.yaml = "strategy: " .. options[name]
      assert.equal(0, app:deploy(name, "1.0").exit)
      local pids = {}
      for _, each in ipairs(app:status().instances) do pids[each.pid] = true end
      local load = app:load { rate = 500 }
      local run = app:deploy(name, "2.0")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.equal(name == "canary_blue_green", run.stdout:find("== 10% of the traffic", 1, true) ~= nil)
      assert.equal(4, #app:status().instances)
      run = app:command { "rollback", "app.yml", "--json" }
      assert.equal(0, run.exit, run.stderr)
      local shares = {}
      for line in run.stdout:gmatch("[^\n]+") do
        local event = cjson.decode(line)
        if event.event == "traffic" and not event.requests then shares[#shares + 1] = event.share end
      end
      assert.same({ ["1.0"] = 100 }, shares[1]) -- the first change is all of it
      assert.same({}, load:stop().errors)
      assert.same({ "1.0", "1.0" }, app:serving())
      for _, each in ipairs(app:status().instances) do assert.is_true(pids[each.pid] or false) end
    end)
  end

  it("has both sets of blue-green serve for as long as they overlap", function()
    app.opts.yaml = "strategy: {settle: 0, overlap: 800ms}"
    assert.equal(0, app:deploy("blue_green", "1.0").exit)
    local run = app:deploy("blue_green", "2.0", nil, { "--json" })
    assert.equal(0, run.exit, run.stderr)
    local began, ended
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      local share = event.event == "traffic" and event.share["2.0"]
      if share == 50 then began = began or event.time end
      if share == 100 then ended = ended or event.time end
    end
    local function seconds(time) return tonumber(time:match(":(%d+%.?%d*)Z?$") or time:match("(%d%d%.%d+)")) end
    assert.truthy(began and ended)
    assert.is_true((seconds(ended) - seconds(began)) % 60 >= 0.8)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("keeps as many releases as it is told, never losing the one to go back to", function()
    app.opts.yaml, app.opts.keep = "strategy: {settle: 0}", 1
    for _, version in ipairs { "1.0", "2.0", "3.0" } do assert.equal(0, app:deploy("rolling", version).exit) end
    local left = fixture.sh(("ls %s/home/.deployrt/shop/releases"):format(app.dir))
    assert.equal("2.0\n3.0\n", left)
    assert.equal("releases/3.0\n", fixture.sh(("readlink %s/home/.deployrt/shop/current"):format(app.dir)))
  end)

  it("is told by status to be in vain while the balancer finds down all that runs, and mended by --force", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local hung = app:status().instances
    for _, each in ipairs(hung) do fixture.signal(each.pid, "STOP") end
    local words = "2 instances run, and the balancer finds down all that it would send traffic to, so no request gets through: "
      .. "see `deployrt logs app.yml` for why; `deployrt rolling app.yml --force` starts anew what runs"
    fixture.eventually(function() return app:command({ "status", "app.yml" }).exit == 2 end, 15, "the exit code")
    assert.truthy(app:command({ "status", "app.yml" }).stdout:find(words, 1, true))
    assert.truthy(app:command({ "status", "app.yml", "--json" }).stdout:find('"balancer":{"message":"' .. words .. '","state":"idle"}', 1, true))
    fixture.signal(hung[1].pid, "CONT")
    fixture.eventually(function() return app:command({ "status", "app.yml" }).exit == 0 end, 15, "the exit code when one answers")
    fixture.signal(hung[1].pid, "STOP")
    local run = app:command { "rolling", "app.yml", "--force" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("gives a canary exactly its share", function()
    app.opts.yaml = "strategy: {hold: 1500ms, latency: 1000, steps: [20%]}"
    assert.equal(0, app:deploy("canary", "1.0").exit)
    fixture.write(app.dir .. "/watched.lua", [[
      local strategy = require "deployrt.strategy"
      local watched = strategy.extend("canary", { name = "watched" })
      function watched:replace_rest() self:fail("enough seen") end
      return watched
    ]])
    local load = app:load { rate = 2000 }
    app:deploy("./watched.lua", "2.0", nil, { "--json" })
    local numbers = load:stop()
    assert.same({}, numbers.errors)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.is_true(numbers.versions["2.0"] > 100)
  end)

  it("says beforehand that in_place of a single instance leaves a gap", function()
    app:stop()
    app = fixture.app { instances = 1, slots = 1, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("in_place", "1.0").exit)
    local refused = app:deploy("in_place", "2.0")
    assert.equal(2, refused.exit)
    assert.truthy(refused.stderr:find("allow_gap", 1, true))
    assert.equal(0, app:deploy("in_place", "2.0", nil, { "--set", "strategy.allow_gap=true" }).exit)
    assert.same({ "2.0" }, app:serving())
  end)

  it("refuses on a first run what check refuses from app.yml alone, and leaves nothing behind", function()
    app:stop()
    app = fixture.app { instances = 1, slots = 1, balancer = false, yaml = "strategy: {settle: 0}" }
    local function refused(strategy, says, ...)
      local looked = app:command { "check", strategy, "app.yml", ... }
      assert.truthy(looked.stderr:find(says, 1, true), looked.stderr)
      for _, argv in ipairs { { strategy, "app.yml", ... }, { "plan", strategy, "app.yml", ... }, { "check", strategy, "app.yml", "--connect", ... } } do
        local run = app:command(argv)
        assert.same({ 2, looked.stderr, "" }, { run.exit, run.stderr, run.stdout }, table.concat(argv, " "))
      end
    end
    refused("blue_green", "needs a full second set")
    refused("canary", "canary splits traffic: app.yml needs a balancer")
    refused("ab", "ab splits traffic: app.yml needs a balancer")
    assert.same({}, app:serving())
    assert.equal(0, app:command({ "plan", "in_place", "app.yml" }).exit, "nobody misses what never was")
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:command { "stop", "app.yml" }
    refused("blue_green", "needs a full second set")
  end)
end)
