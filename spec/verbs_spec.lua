-- verbs_spec.lua -- Verbs that a script calls wrongly, and what it makes of errors: one clear error, and all is as before.
-- weight: 12
local fixture = require "spec.support.fixture"

local function contains(text, ...)
  for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), ("expected %q in:\n%s"):format(part, text)) end
end

describe("a script that is wrong about its verbs", function()
  local app, before

  setup(function()
    app = fixture.app { instances = 2, slots = 3, yaml = "strategy: {settle: 0}\nhooks: {before_traffic: 'true'}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  teardown(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  local function state()
    return (app:command({ "status", "app.yml" }).stdout:gsub("pid %d+", ""):gsub("last run.*", ""))
  end
  before_each(function() before = state() end)

  --- Runs a script with these functions; it fails with these texts, and leaves everything as it was.
  local function fails(exit, code, ...)
    fixture.write(app.dir .. "/own.lua", ('local strategy = require "deployrt.strategy"\nlocal s = strategy.extend("rolling", { name = "own" })\n%s\nreturn s\n'):format(code))
    local run = app:deploy("./own.lua", "2.0")
    assert.equal(exit, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, ...)
    assert.equal(before, state())
    assert.same({ "1.0", "1.0" }, app:serving())
  end

  it("cannot change anything in check", function()
    fails(2, "function s:check() self.balancer:drain(self.fleet:old()[1]) end", "own.lua:3", "check runs before anything is touched, and balancer.apply changes something")
    fails(2, 'function s:check() self.fleet.hosts[1]:run { "true" } end', "own.lua:3", "host.run changes something")
    fails(2, "function s:check() self:approve() end", "approve changes something")
  end)

  it("sends nothing but states to a balancer", function()
    for changes, what in pairs {
      ['{ { slot = slot, state = "ready\\nshow env" } }'] = "a state is ready, drain or maint",
      ['{ { slot = slot, state = "ready", weight = "1;show info" } }'] = "a weight is a whole number from 0 to 256",
      ["{ { slot = slot, weight = 257 } }"] = "a weight is a whole number from 0 to 256",
      ['{ { slot = "nope", state = "ready" } }'] = 'no slot is called "nope"',
      ["{ {} }"] = "it names no slot",
      ["5"] = "set takes a list",
    } do fails(1, ("function s:deploy() local slot = self.fleet:old()[1].slot; self.balancer:set(%s) end"):format(changes), "own.lua:3", what) end
  end)

  it("is told that a verb cannot wait in a coroutine of its own, and the run goes back", function()
    fails(1, [[function s:deploy()
      local new = self:successor(self.fleet:old()[1])
      coroutine.wrap(function() new:start() end)()
    end]], "own.lua:5", "this call waits, and cannot do so inside a coroutine of your own")
    fails(1, [[function s:deploy()
      local new = self:successor(self.fleet:old()[1])
      pcall(coroutine.wrap(function() new:start() end))
      new:start()
      self:fail("enough")
    end]], "enough")
  end)

  it("may raise errors of any shape", function()
    for _, code in ipairs { 'error { message = "m", detail = {} }', 'error { message = "m", code = "interrupted" }', 'error { message = "m", code = {}, host = {}, detail = 5, errors = "x" }',
      "local _, e = pcall(self.fail, self, 'm') e.detail, e.host, e.errors = {}, {}, { 5 } error(e)" } do
      fails(1, ("function s:deploy() local new = self:successor(self.fleet:old()[1]); new:start(); %s end"):format(code), "m")
    end
  end)

  it("is told what each, hooks, commands and candidates take", function()
    for code, what in pairs {
      ["self:each({ 1 }, print, { max = 0 })"] = "a whole number from 1 on, not 0",
      ["self:each(5, print)"] = "each takes a list, not 5",
      ['self:hook("before_traffic", { A = {} })'] = "A is a table",
      ['self:hook("before_traffic", 5)'] = "an environment is a table",
      ['self.fleet.hosts[1]:run({ "ls" }, { timeout = "x" })'] = "a timeout is a number of seconds, not x",
      ['self.fleet.hosts[1]:run({ "ls" }, { env = { [1] = "x" } })'] = "an environment has names and texts",
      ["self.fleet:candidate(self.fleet.hosts[1], -1)"] = "process.ports has no port -1",
      ["self:each({ 1 }, print, { tolerat = 1 })"] = "each has no option 'tolerat' (did you mean 'tolerate'?); there are: max, tolerate",
      ["self:each({ 1 }, print, { tolerate = -1 })"] = "each tolerates an amount of failures: expected an amount such as 2 or 25%, got '-1'",
      ["self:each({ 1 }, print, 2)"] = "each takes its options in a table, not 2",
      ['self.fleet.hosts[1]:run({ "ls" }, { time = 5 })'] = "run has no option 'time'; there are: cwd, env, stdin, timeout",
      ["self:analyse { second = 5, new = {}, old = {} }"] = "analyse has no option 'second' (did you mean 'seconds'?)",
    } do fails(1, ("function s:deploy() %s end"):format(code), "own.lua:3", what) end
  end)

  it("tolerates no failure where none is allowed, nor what ends the run on purpose", function()
    fails(1, 'function s:deploy() self:each({ 1 }, function(s) s:fail("one") end, { tolerate = 0 }) end', "one")
    fails(1, 'function s:deploy() self:each(self.fleet:old(), function(s) s:fail("one") end, { tolerate = "100%" }) end', "nothing was deployed: on every host it failed")
    fails(0, 'function s:deploy() self:each({ 1 }, function(s) s:withdraw("no more") end, { tolerate = 1 }) self:fail("on") end', "no more")
  end)

  it("runs no code of its own where its limits do not hold", function()
    fails(1, [[function s:deploy()
      self:hook("before_traffic", setmetatable({ A = "b" }, { __pairs = function() while true do end end, __index = error }))
      self:fail("went on")
    end]], "went on")
  end)

  it("has what it did one after the other undone the other way round, also within each", function()
    fails(1, [[function s:deploy()
      self:each(self.fleet:old(), self.replace, { max = 1 })
      self:fail("changed my mind")
    end]], "changed my mind")
  end)
end)
