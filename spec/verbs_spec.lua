-- verbs_spec.lua -- Verbs that a script calls wrongly, and what it makes of errors: one clear error, and all is as before.
-- weight: 12
local fixture = require "spec.support.fixture"
local contains = fixture.contains

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
    local cannot = "this call waits, and cannot do so inside a coroutine of your own"
    fails(1, [[function s:deploy()
      local new = self:successor(self.fleet:old()[1])
      coroutine.wrap(function() new:start() end)()
    end]], "own.lua:5", cannot)
    fails(1, [[function s:deploy()
      local new = self:successor(self.fleet:old()[1])
      local _, err = pcall(coroutine.wrap(function() new:start() end))
      new:start()
      local _, other = coroutine.resume(coroutine.create(function()
        self.fleet:discover() end))
      self:fail(("enough, %s, %s"):format(err, other))
    end]], ("enough, ./own.lua:5: %s, ./own.lua:8: %s"):format(cannot, cannot))
  end)

  it("is told that a verb cannot wait in a callback of table.sort, and sorts as before", function()
    for _, wait in ipairs { "self:sleep(1)", "self.fleet:discover()", "pcall(self.sleep, self, 1) self:sleep(1)" } do
      fails(1, ("function s:deploy()\n table.sort({ 1, 2, 3 }, function(a, b)\n %s\n return a < b end) end"):format(wait),
        "own.lua:5: this call waits, and cannot do so inside a callback of table.sort", "own.lua:4: in method 'deploy'")
    end
    fails(1, [[function s:deploy()
      local list = { "b1", "a1", "b2", "a2" }
      table.sort(list, function(a, b) return a:sub(1, 1) < b:sub(1, 1) end)
      self:sleep(0)
      self:fail(table.concat(list, " "))
    end]], "a1 a2 b1 b2")
  end)

  it("has no command run elsewhere than it said", function()
    fails(1, [[function s:deploy() self.fleet.hosts[1]:run({ "rm", "-rf", "logs" }, { cwd = "/nonexistent" }) end]],
      "`'rm' '-rf' 'logs'` ended with status 126", "/nonexistent")
  end)

  it("has a command run below the application's directory where it says so, and a long one shown in part", function()
    fails(1, [[function s:deploy() self:fail(self.fleet.hosts[1]:run({ "pwd" }, { cwd = "shared" }).stdout) end]], "/.deployrt/shop/shared")
    fixture.write(app.dir .. "/own.lua", ('local s = require "deployrt.strategy".extend("rolling", { name = "own" })\n%s\nreturn s\n'):format(
      'function s:deploy() self.fleet.hosts[1]:run { "sh", "-c", "exit 1", ("x"):rep(100000) } end'))
    local run = app:deploy("./own.lua", "2.0")
    contains(run.stdout, "run ", "xxx...")
    contains(run.stderr, "xxx...` ended with status 1")
    assert.is_true(#run.stdout < 5000 and #run.stderr < 20000, #run.stdout .. " and " .. #run.stderr)
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
      ["self:each(5, print)"] = "each takes a list as `list`, not 5",
      ['self:hook("before_traffic", { A = {} })'] = "A is a table",
      ['self:hook("before_traffic", 5)'] = "an environment is a table",
      ['self.fleet.hosts[1]:run({ "ls" }, { timeout = "x" })'] = "a timeout is a number of seconds, not x",
      ['self.fleet.hosts[1]:run({ "ls" }, { env = { [1] = "x" } })'] = "an environment has names and texts",
      ["self.fleet:candidate(self.fleet.hosts[1], -1)"] = "process.ports has no port -1",
      ["self:each({ 1 }, print, { tolerat = 1 })"] = "each has no option 'tolerat' (did you mean 'tolerate'?); there are: max, tolerate",
      ["self:each({ 1 }, print, { tolerate = -1 })"] = "each tolerates an amount of failures: expected an amount such as 2 or 25%, got '-1'",
      ["self:each({ 1 }, print, 2)"] = "each takes its options in a table, not 2",
      ['self.fleet.hosts[1]:run({ "ls" }, { time = 5 })'] = "run has no option 'time'; there are: cwd, env, stdin, timeout",
      ['self:batches(self.fleet:old(), { count = "2" })'] = "batches takes an amount: its `count` is a whole number from 1 on, not 2",
      ["self:batches(self.fleet:old(), { count = -1 })"] = "its `count` is a whole number from 1 on, not -1",
      ["self:batches(self.fleet:old(), { count = 1.5 })"] = "its `count` is a whole number from 1 on, not 1.5",
      ['self:batches(self.fleet:old(), { percent = "x" })'] = "its `percent` is a number above 0 and at most 100, not x",
      ["self:batches(self.fleet:old(), { percent = -1 })"] = "its `percent` is a number above 0 and at most 100, not -1",
      ["self:batches(self.fleet:old(), { percent = 0 / 0 })"] = "its `percent` is a number above 0 and at most 100, not",
      ["self:batches(self.fleet:old(), {})"] = "batches takes an amount: expected an amount such as 2 or 25%, got a list or a mapping",
      ["self:analyse { seconds = 0 / 0, new = {}, old = {} }"] = "analyse takes a number of seconds as `seconds`, not",
      ["self:analyse { seconds = 1, new = {}, old = {}, metrics = { 1 } }"] = "analyse: metrics[1]: expected a mapping, got 1",
      ['self:analyse { seconds = 1, new = {}, old = {}, metrics = { "errors" } }'] = 'analyse: metrics[1]: expected a mapping, got "errors"',
      ["self:analyse { seconds = 1, new = {}, old = {}, metrics = {} }"] = "analyse: metrics: this list is empty",
      ["self:analyse { seconds = 1, new = {}, old = {}, metrics = { source = 'balancer' } }"] = "analyse: metrics: expected a list, got a mapping",
      ["self:analyse { seconds = 1, new = {}, old = {}, metrics = { { source = 'nowhere' } } }"] = "analyse: metrics[1].source: 'nowhere' is not one of",
      ['self:analyse { seconds = 1, new = {}, old = {}, alpha = "1%" }'] = 'analyse: alpha: expected a number, got "1%"',
      ["self:analyse { seconds = 1, new = {}, old = {}, alpha = -1 }"] = "analyse: alpha: expected from",
      ["self:analyse { seconds = 1, new = {}, old = {}, gate = 'open' }"] = "analyse: gate: 'open' is not one of evidence, thresholds",
      ["self:analyse { seconds = 1, new = {}, old = {}, errors = 0 / 0 }"] = "analyse: errors: expected a number, got",
      ["self.balancer:share(50, {}, {}, { route = 5 })"] = "share: route: expected a list, got 5",
      ["self.balancer:share(50, {}, {}, { route = { 5 } })"] = "share: route[1]: expected a mapping, got 5",
      ["self.balancer:share(50, {}, {}, { sticky = 'yes' })"] = 'share: sticky: expected true or false, got "yes"',
      ["self:analyse { second = 5, new = {}, old = {} }"] = "analyse has no option 'second' (did you mean 'seconds'?)",
    } do fails(1, ("function s:deploy() %s end"):format(code), "own.lua:3", what) end
  end)

  it("is told what each verb takes, argument by argument", function()
    for code, what in pairs {
      ['self.fleet.hosts[1]:run("ls")'] = "run takes a list of words, such as { \"ls\", \"-l\" }, as `argv`, not 'ls'",
      ["self.fleet.hosts[1]:run {}"] = "run takes a list of words, such as { \"ls\", \"-l\" }, as `argv`, not a table",
      ["self.fleet.hosts[1]:run { 'ls', {} }"] = "as `argv`, and item 2 is a table",
      ["self.fleet.hosts[1]:run { 'ls', 'a\\0b' }"] = "as `argv`, and item 2 is a text with a NUL byte, which no command line can hold",
      ["self.fleet.hosts[1]:run({ 'cat' }, { stdin = 'a\\0b' })"] = "run takes a text as `stdin`, not a text with a NUL byte, which no command line can hold",
      ["self.fleet.hosts[1]:run({ 'ls' }, { env = { A = 'a\\0b' } })"] = "an environment has no NUL byte, nor `=` in a name, and 'A' has",
      ["self.fleet.hosts[1]:run({ 'ls' }, { cwd = 5 })"] = "run takes a text as `cwd`, not 5",
      ["self.balancer:attach(nil)"] = "attach takes an instance or a list of them as `instances`, not nil",
      ['self.balancer:drain("x")'] = "drain takes an instance or a list of them as `instances`, not 'x'",
      ["self.balancer:switch(self.fleet:old(), { 5 })"] = "switch takes an instance or a list of them as `new`, and item 1 is 5",
      ["self.balancer:switch(self.fleet:old(), {}, -1)"] = "switch takes a number of seconds as `overlap`, not -1",
      ["self.balancer:share(50, self.fleet:old())"] = "share takes a list of instances as `old`, not nil",
      ["self.balancer:share(50, self.fleet:old()[1], {})"] = "share takes a list of instances as `new`, not an instance",
      ["self.balancer:is_serving(self.fleet.hosts[1])"] = "is_serving takes an instance as `instance`, not a host",
      ['self.fleet:candidate("x")'] = "candidate takes a host as `host`, not 'x'",
      ['self.fleet:candidate(self.fleet.hosts[1], "x")'] = "candidate takes a port as `port`, not 'x'",
      ['self.fleet:on("x")'] = "on takes a host as `host`, not 'x'",
      ["self.fleet:gap()"] = "gap takes a list of instances as `batch`, not nil",
      ["self:keep(nil)"] = "keep takes a list of instances as `instances`, not nil",
      ["self:analyse {}"] = "analyse takes a list of instances as `new`, not nil",
      ["self:analyse { new = {}, old = {} }"] = "analyse takes a number of seconds as `seconds`, not nil",
      ["self:successor(nil)"] = "successor takes an instance as `old`, not nil",
      ["self:observe(1, 5)"] = "observe takes a list of instances as `instances`, not 5",
      ["self:step('x')"] = "step takes a function as `fn`, not nil",
      ["self:each({ 1 })"] = "each takes a function as `fn`, not nil",
      ["self:hook(nil)"] = "hook takes a text as `name`, not nil",
      ['self:approve("go?", "yes")'] = "approve takes a list of texts that can be typed as `answers`, not 'yes'",
      ['self:approve("go?", { "yes", "-no" })'] = "as `answers`, and item 2 is '-no'",
    } do fails(1, ("function s:deploy() %s end"):format(code), "own.lua:3: ", what) end
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
