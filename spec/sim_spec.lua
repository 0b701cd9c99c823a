-- sim_spec.lua -- The simulator: shipped strategies hold, broken ones are caught, and a seed is always the same.
-- weight: 25
local config = require "deployrt.config"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fixture = require "spec.support.fixture"
local sim = require "deployrt.sim"
local variants = require "spec.support.variants"

--- Runs as a task, and raises what it raises.
local function inside(fn)
  local ok, result = core.run(fn)
  if not ok then error(type(result) == "table" and errors.text(result) or result, 0) end
  return result
end

local shipped = { "rolling", "blue_green", "in_place", "canary", "canary_blue_green", "ab" }

local function text_of(summary)
  return summary.violation and sim.report.violation(summary.violation, "") or ""
end

describe("the simulator", function()
  after_each(function()
    assert.equal(0, core.live_tasks())
    fixture.cleanup()
  end)

  local function script(text)
    return fixture.write(fixture.dir() .. "/own.lua", text)
  end

  for _, name in ipairs(shipped) do
    it("finds nothing wrong with " .. name .. ", whatever happens to it", function()
      local summary = inside(function() return sim.test(name, { seeds = 12 }) end)
      assert.equal("", text_of(summary))
      assert.equal(12, summary.seeds)
    end)
  end

  it("gives the same trace for the same seed, to the byte", function()
    local function trace() return table.concat(sim.report.trace(sim.play("canary", 7)), "\n") end
    local first = inside(trace)
    assert.equal(first, inside(trace))
    local lua = ("LUA_PATH='%s' LUA_CPATH='%s' lua5.4 -e \"local core = require 'deployrt.core'; core.run(function() local sim = "
      .. "require 'deployrt.sim'; io.write(table.concat(sim.report.trace(sim.play('canary', 7)), '\\n')) end)\""):format(package.path, package.cpath)
    local pipe <close> = io.popen(lua)
    assert.equal(first, pipe:read("a"))
  end)

  -- What was wrong once: a route that could not be ended while the balancer was away, a copy of the journal that lacked it,
  -- an interrupted run that could not be aborted, a compensation that was tried again after later ones, what a life that was
  -- killed had mended already, a rollback that began anew from a copy that lacked its end, a way back that led through a step
  -- with less traffic, or through one that gave the new release more again, or left nothing that serves, requests that came to a slot which somebody else had opened, what a copy of the journal lacked of releases and
  -- instances, a second resume after the first had started an instance again, a link `current` that the copy of the journal
  -- did not know of, a controller that slept between looking and taking the lock, while its run, or another one, came and
  -- went, and one that slept while it asked for the lock and never heard that it had it; and
  -- invariants that believed a controller which was overtaken, that a run mends what it found so, that it knows what it found before that is written down, and that a verdict is told
  -- before its controller dies, that a share is given after the one that makes room for it has left, or that what has died is old; and an operator who
  -- tried only once to take a run up.
  for _, found in ipairs { { "canary", 54, { sticky = true } }, { "canary", 1539, { sticky = true } }, { "canary_blue_green", 3915, { sticky = true } },
    { "rolling", 1738 }, { "ab", 1095 }, { "in_place", 5160 }, { "canary", 1963 }, { "in_place", 1091 }, { "in_place", 1330 },
    { "rolling", 12705 }, { "in_place", 13856 }, { "in_place", 23726 }, { "in_place", 30100 }, { "canary", 29020 },
    { "in_place", 47323 }, { "in_place", 48501 }, { "rolling", 48414 }, { "canary", 86225 }, { "ab", 84477 }, { "ab", 102440 }, { "ab", 111110 },
    { "canary", 45, { sticky = true } }, { "canary", 254, { steps = { "1%", "3%", "7%", "12.5%", "33%", "41%", "66%", "77%", "93%", "97%" } } },
    { "canary", 1711 }, { "canary", 10654 }, { "canary", 2967 }, { "canary", 2308 }, { "rolling", 33613 }, { "blue_green", 20505 }, { "blue_green", 17891 },
    { "in_place", 61116 }, { "in_place", 23380 }, { "ab", 88791 }, { "rolling", 21017 }, { "canary", 2815 },
    { "in_place", 14482 }, { "rolling", 15705 }, { "rolling", 33555 }, { "rolling", 105375 }, { "blue_green", 107252 },
    { "blue_green", 11, nil, { { kind = "crash", record = 20, when = "before", elsewhere = true, pause = 40, verb = "abort" } } },
    { "rolling", 1, nil, { { kind = "frozen", at = 0.07, seconds = 70, verb = "abort" }, { kind = "reply-lost", at = 0.5, seconds = 0, host = "web1" } } } } do
    it(("holds what it once found broken: %s, seed %d"):format(found[1], found[2]), function()
      local result = inside(function() return sim.play(found[1], found[2], { options = found[3], faults = found[4] }) end)
      assert.is_nil(result.violation, result.violation and sim.report.violation(result, ""))
    end)
  end

  it("takes counters that are no numbers for missing ones", function()
    local result = inside(function()
      return sim.play("canary", 4, { fleet = 2, faults = { { kind = "metrics-nan", at = 2, seconds = 60 } } })
    end)
    assert.is_nil(result.violation, result.violation and result.violation.message)
    assert.equal("succeeded", result.outcome)
  end)

  for verb, outcome in pairs { resume = "succeeded", abort = "rolled_back" } do
    it(("takes up at once what died before it could say that all was done: %s"):format(verb), function()
      local last
      for record = 60, 90 do
        local fault = { kind = "crash", record = record, when = "before", pause = 40, verb = verb }
        local result = inside(function() return sim.play("rolling", 1, { fleet = 2, faults = { fault } }) end)
        assert.is_nil(result.violation, result.violation and result.violation.message)
        if result.events[#result.events].at < 30 then break end -- there are fewer records, so it did not die
        last = result
      end
      assert.equal(outcome, last.outcome)
      assert.is_true(last.events[#last.events].at < 300, "it waited for the run's timeout")
    end)
  end

  for _, fault in ipairs { "host-off", "never-ready" } do
    it("holds where a strategy tolerates failures, whatever becomes of the hosts it goes on without: " .. fault, function()
      local file = script [[
        local strategy = require "deployrt.strategy"
        local own = strategy.extend("rolling", { name = "own", options = { tolerate = { type = "amount", default = "50%" } } })
        function own:deploy() self:each(self.fleet:old(), self.replace, { max = 1, tolerate = self.options.tolerate }) end
        return own]]
      local summary = inside(function() return sim.test(file, { seeds = 100, fault = fault }) end)
      assert.equal("", text_of(summary))
      assert.is_true(summary.outcomes.succeeded > 20) -- what fails on every host is no success
    end)
  end

  it("counts a host once that is tolerated, however many of its instances fail", function()
    local file = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("blue_green", { name = "own" })
      function own:deploy()
        local old = self.fleet:old()
        local new = self.fleet:second_set(old)
        self:each(new, self.prepare, { tolerate = 1 })
        self.balancer:switch(old, new)
      end
      return own]]
    local faults = { { kind = "never-ready", host = "web1" } }
    local outcomes = {}
    for seed = 1, 30 do
      local result = inside(function() return sim.play(file, seed, { faults = faults }) end)
      local outcome = result.outcome
      if outcome == "rolled_back" then assert.matches("nothing was deployed", result.reason) end -- web1 is alone there
      outcomes[outcome] = (outcomes[outcome] or 0) + 1
    end
    assert.is_true(outcomes.succeeded > 15) -- others have no room for a second set
  end)

  it("holds where a run fails after it tolerated something", function()
    local file = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy()
        self:each(self.fleet:old(), self.replace, { max = 1, tolerate = "50%" })
        if #self.fleet:kept_hosts() < #self.fleet.hosts then self:fail "enough" end
      end
      return own]]
    local summary = inside(function() return sim.test(file, { seeds = 100, fault = "host-off" }) end)
    assert.equal("", text_of(summary))
    assert.is_true(summary.outcomes.rolled_back > 20)
  end)

  it("takes back what a tolerated failure has done, though another one passes a limit meanwhile", function()
    local file = script [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy()
        local old, failed = self.fleet:old(), nil
        self:each(old, function(_, each)
          if each == old[1] then
            failed = not pcall(self.replace, self, each)
            if failed then self:fail "one" end
          end
          while failed == nil do self:sleep(0.05) end
          return failed and ("x"):rep(1e9)
        end, { tolerate = 1 })
      end
      return own]]
    local result = inside(function() return sim.play(file, 2, { fleet = 2, faults = { { kind = "never-ready", host = "web1" } } }) end)
    local stopped = {}
    for _, event in ipairs(result.events) do stopped[#stopped + 1] = event.kind == "op" and event.text == "instance.stop" and event.ok or nil end
    assert.matches("used more than 256 MB", result.reason)
    assert.same({ "rolled_back", { true } }, { result.outcome, stopped })
  end)

  it("lets nobody begin a second run beside the first", function()
    local result = inside(function() return sim.play("rolling", 5, { fleet = 2, faults = { { kind = "second-run", at = 3, seconds = 0 } } }) end)
    assert.is_nil(result.violation, result.violation and result.violation.message)
    local refused = false
    for _, event in ipairs(result.events) do refused = refused or event.kind == "refused" and event.text:find("under way", 1, true) ~= nil end
    assert.is_true(refused)
    assert.equal("succeeded", result.outcome)
  end)

  it("finds nothing wrong with requests that are told apart", function()
    local summary = inside(function() return sim.test("canary", { seeds = 40, options = { sticky = true } }) end)
    assert.equal("", text_of(summary))
  end)

  --- An application with two instances on each host, as YAML says the rest.
  local function application(hosts, slots, more)
    local text = ([[
app: own
release: {version: "2.0"}
hosts: %s
process: {command: [./serve, "${port}"], ports: %s, instances: 2}
health: {tcp: true, interval: 500ms, deadline: 60s}
strategy: {settle: 1s}
%s]]):format(hosts, slots, more or "")
    return config.load("own.yml", { kept = { ["own.yml"] = text } })
  end

  --- One that clients reach by themselves.
  local function without_balancer()
    return application("[{name: web1, address: web1}, {name: web2, address: web2}]", "8080-8083")
  end

  it("has one group of hosts serve, where the strategy takes over to another one", function()
    local app = application("[{name: a, address: a, group: blue}, {name: b, address: b, group: green}, {name: c, address: c, group: green}]", "8080-8081",
      "balancer: {type: haproxy, socket: /sim, backend: own, drain: {timeout: 5s}}")
    for _, name in ipairs { "blue_green", "canary_blue_green" } do
      local summary = inside(function() return sim.test(name, { seeds = 30, app = app, options = { hold = name ~= "blue_green" and "1s" or nil } }) end)
      assert.equal("", text_of(summary))
    end
    local result = inside(function() return sim.play("blue_green", 1, { fault = "none", app = app }) end)
    assert.truthy(result.ending:find("a-8080 1.0 -, ", 1, true) and result.ending:find("b-8080 2.0 100", 1, true), result.ending)
  end)

  for name, options in pairs { rolling = {}, blue_green = {}, in_place = { allow_gap = true } } do
    it(("finds nothing wrong with %s without a balancer"):format(name), function()
      local summary = inside(function() return sim.test(name, { seeds = 60, app = without_balancer(), options = options }) end)
      assert.equal("", text_of(summary))
      assert.is_true((summary.outcomes.succeeded or 0) > 20)
    end)
  end

  it("notices without a balancer when too few are left to serve", function()
    local own = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("blue_green", { name = "own" })
      function own:deploy() self:each(self.fleet:old(), function(_, old) old:stop() end) end
      return own]]
    local summary = inside(function() return sim.test(own, { seeds = 1, fault = "none", app = without_balancer() }) end)
    assert.equal("capacity", summary.violation and summary.violation.violation.invariant)
  end)

  it("has a person give each of a gate's answers, and an invariant see it with the outcome", function()
    local seen = {}
    local summary = inside(function()
      return sim.test("ab", { seeds = 30, fault = "none", invariants = { seen = function(view)
        if view.outcome then seen[#seen + 1] = view.answer .. " " .. view.outcome end
      end } })
    end)
    assert.equal("", text_of(summary))
    local outcomes = { ["new succeeded"] = 0, ["old rolled_back"] = 0 }
    for _, each in ipairs(seen) do outcomes[each] = outcomes[each] + 1 end
    assert.is_true(outcomes["new succeeded"] > 5 and outcomes["old rolled_back"] > 5)
  end)

  it("notices when requests are routed to what is not ready", function()
    local own = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("ab", { name = "own" })
      function own:prepare(new) new:start() end
      return own]]
    local summary = inside(function() return sim.test(own, { seeds = 20, fault = "none" }) end)
    assert.truthy(summary.violation, "not one of 20 seeds caught it")
  end)

  for _, variant in ipairs(variants) do
    it(("catches %s with %s"):format(variant.parent, variant.what), function()
      local summary = inside(function() return sim.test(script(variant.script), { seeds = 100 }) end)
      assert.truthy(summary.violation, "not one of 100 seeds caught it")
      assert.is_true(summary.violation.violation.message ~= "")
    end)
  end

  for what, code in pairs {
    ["once all is new"] = { "self.super.deploy(self) self:commit() self:sleep(10)", "needs_attention" },
    ["before it begins"] = { "self:commit() self.super.deploy(self)", "rolled_back" },
  } do
    it("lets a strategy commit " .. what, function()
      local file = script(('local own = require("deployrt.strategy").extend("rolling", { name = "own" })\nfunction own:deploy() %s end\nreturn own\n'):format(code[1]))
      local ends = 0
      for fault, first in pairs { ["host-off"] = 1, crash = 15 } do
        local summary = inside(function() return sim.test(file, { first = first, seeds = 20, fault = fault }) end)
        assert.equal("", text_of(summary))
        ends = ends + (summary.outcomes[code[2]] or 0)
      end
      assert.is_true(ends > 0)
    end)
  end

  it("holds a strategy to the capacity that it declares, and says how that is done", function()
    local one_by_one = [[
      local strategy = require "deployrt.strategy"
      local own = strategy.define { name = "own", api = 1, options = { few = { type = "amount", default = 1 } }, may_lack = %s }
      function own:deploy()
        for _, old in ipairs(self.fleet:old()) do
          self.balancer:drain(old); old:stop()
          local new = self.fleet:candidate(old.host, old.port)
          new:start(); new:await_healthy(); self.balancer:attach(new)
        end
      end
      return %s]]
    for _, lack in ipairs { "1", '"50%"', '"few"' } do
      inside(function() return sim.check(script(one_by_one:format(lack, "own")), { seeds = 20 }) end)
      inside(function() return sim.check(script(one_by_one:format(lack, 'strategy.extend(own, { name = "child" })')), { seeds = 20 }) end)
    end
    inside(function() return sim.check(script((one_by_one:format("nil", "own"):gsub("few =", "batch ="))), { seeds = 20 }) end)
    for _, returned in ipairs { "own", 'strategy.extend("rolling", { name = "all", deploy = own.deploy, may_lack = false })' } do
      local found = inside(function() return sim.test(script(one_by_one:format("nil", returned)), { seeds = 1, fault = "none" }) end).violation
      assert.equal("capacity", found.violation.invariant)
      assert.truthy(found.violation.message:find("is declared in strategy.define, as `may_lack = 1`, another amount, or the name of an option", 1, true))
    end
  end)

  it("blames no verdict for what few requests could not show", function()
    for _, options in ipairs { { gate = "thresholds", errors = 20, minimum = 1 }, { errors = 30 } } do
      inside(function() return sim.check("canary_blue_green", { seeds = 40, first = 5000, fault = "bad-release", options = options }) end)
    end
  end)

  it("sees what each did in turn undone in the other order", function()
    local own = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy() self:each(self.fleet:old(), self.replace, { max = 1 }) end
      return own]]
    inside(function() return sim.check(own, { seeds = 30 }) end)
  end)

  it("sees a start that is tried again go back, whatever it was that failed", function()
    local own = script [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:replace(old)
        local new = self:successor(old)
        if new.port == old.port then return self.super.replace(self, old) end
        new:start()
        if not pcall(new.await_healthy, new) then
          new:stop()
          new:start(); new:await_healthy()
        end
        self.balancer:swap(old, new); old:stop()
      end
      return own]]
    inside(function() return sim.check(own, { seeds = 60 }) end)
    inside(function() return sim.check(own, { seeds = 20, fault = "never-ready" }) end)
  end)

  for _, name in ipairs { "blue_green", "canary" } do
    it("kills the controller around every record of a run, and what is resumed ends as if it had lived: " .. name, function()
      inside(function()
        local whole = sim.play(name, 3, { fault = "none", fleet = 2 })
        for record = 1, whole.records do
          for _, when in ipairs { "before", "after" } do
            local result = sim.play(name, 3, { fleet = 2, faults = { { kind = "crash", record = record, when = when, pause = 35, verb = "resume" } } })
            assert.is_nil(result.violation, result.violation and sim.report.violation(result, ""))
            if result.outcome ~= "refused" then assert.equal(whole.ending, result.ending) end
          end
        end
      end)
    end)
  end

  it("holds a strategy to the author's own invariants, and shrinks what breaks them to what is needed", function()
    local summary = inside(function()
      return sim.test("rolling", { seeds = 20, invariants = { ["never two of a kind"] = function(view)
        local count = 0
        for _, each in ipairs(view.instances) do
          if each.new and each.weight > 0 then count = count + 1 end
        end
        return count < 2, count .. " new instances serve"
      end } })
    end)
    assert.equal("never two of a kind", summary.violation.violation.invariant)
    assert.same({}, summary.violation.faults)
    assert.truthy(text_of(summary):find("2 new instances serve", 1, true))
  end)

  it("holds a script's own invariants to the limits of scripts, and keeps the simulation out of their hands", function()
    for _, case in ipairs {
      { "while true do end", "it fails: .*is this an endless loop" },
      { "local t = {} while true do t = { t } end", "it fails: .*used more than 256 MB of memory" },
      { "return nil + 1", "it fails: .*attempt to perform arithmetic" },
      { "return false, setmetatable({}, { __tostring = function() while true do end end })", "it does not hold" },
      { "coroutine.wrap(function() while true do end end)()", "it fails: .*is this an endless loop" },
      { "for _, each in ipairs(view.instances) do if each.slot or each.process then return false, 'it reaches in' end each.host = 'none' end" },
    } do
      local own = script(([[
        local strategy = require "deployrt.strategy"
        local own = strategy.extend("rolling", { name = "own" })
        own.invariants = setmetatable({ mine = function(view) %s end }, { __pairs = function() while true do end end })
        return own]]):format(case[1]))
      local summary = inside(function() return sim.test(own, { seeds = 1, fault = "none" }) end)
      local found = summary.violation and summary.violation.violation
      assert.same({ case[2] and "mine", true }, { found and found.invariant, not case[2] or found.message:find(case[2]) ~= nil }, found and found.message)
    end
  end)

  it("says what is wrong with a script's own undo, and where", function()
    local own = script [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy()
        self:undo(function() error "my undo is broken" end)
        self.super.deploy(self)
      end
      return own]]
    local summary = inside(function() return sim.test(own, { seeds = 20, fault = "host-cut" }) end)
    local words = "; left: strategy: the strategy's own undo: " .. own .. ":3: my undo is broken"
    fixture.contains(summary.violation.violation.message, "after 6 attempts: needs_attention" .. words)
    fixture.contains(text_of(summary), "finished needs_attention, exit 3" .. words)
  end)

  it("says what is wrong with a script that does not work at all", function()
    local broken = script [[
      local strategy = require "deployrt.strategy"
      local broken = strategy.define { name = "broken", api = 1 }
      function broken:deploy() self.no_such_verb() end
      return broken]]
    local ok, err = core.run(function() return sim.test(broken, { seeds = 1 }) end)
    assert.is_false(ok)
    assert.equal("strategy", err.code)
    assert.truthy(err.message:find("no_such_verb", 1, true), err.message)
  end)
end)

describe("a strategy that keeps instances in a set", function()
  it("goes through them in the same order each time, also when it is taken up again", function()
    local file = fixture.write(fixture.dir() .. "/own.lua", [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy()
        local todo = {}
        for _, old in ipairs(self.fleet:old()) do todo[old] = true end
        for old in pairs(todo) do self:step(tostring(old), self.replace, self, old) end
      end
      return own]])
    local ok, summary = core.run(sim.test, file, { seeds = 60, fault = "crash" })
    assert.is_true(ok, tostring(summary))
    assert.is_nil(summary.violation, summary.violation and summary.violation.violation.message)
    fixture.cleanup()
  end)
end)

describe("deployrt test", function()
  after_each(fixture.cleanup)

  local function test(argv)
    return fixture.run { fixture.deployrt(), table.unpack(argv) }
  end

  it("exits with 0 when all holds, 1 with a way to see it again when not, and 2 when the script is wrong", function()
    local directory = fixture.dir()
    local run = test { "test", "blue_green", "--seeds", "3" }
    assert.equal(0, run.exit, run.stderr)
    assert.truthy(run.stdout:find("blue_green: 3 seeds, every invariant holds", 1, true), run.stdout)
    fixture.write(directory .. "/hasty.lua", [[
      local strategy = require "deployrt.strategy"
      local hasty = strategy.extend("rolling", { name = "hasty" })
      function hasty:replace(old)
        local new = self:successor(old)
        new:start()
        self.balancer:swap(old, new)
        old:stop()
      end
      return hasty]])
    local caught = test { "test", directory .. "/hasty.lua", "--json" }
    assert.equal(1, caught.exit, caught.stderr)
    local found = require("cjson").decode(caught.stdout).violation
    local names = { ["traffic only to ready instances"] = true, capacity = true } -- both break at the same moment
    assert.is_true(names[found.invariant], found.invariant)
    local again = test { "test", directory .. "/hasty.lua", "--seed", tostring(math.tointeger(found.seed)) }
    assert.equal(1, again.exit)
    assert.truthy(again.stdout:find(found.message, 1, true), again.stdout)
    assert.truthy(again.stdout:find("again: 'deployrt' 'test' '" .. directory .. "/hasty.lua' '--seed=", 1, true), again.stdout)
    for _, flag in ipairs { "--json", "--verbose" } do
      local one, other = test { "test", "canary", "--seed", "7", flag }, test { "test", "canary", "--seed", "7", flag }
      assert.equal(one.stdout, other.stdout)
    end
    assert.equal(2, test({ "test", "nonesuch" }).exit)
    assert.equal(2, test({ "test", "rolling", "--fault", "gremlins" }).exit)
  end)

  it("refuses what it would not heed", function()
    local function refused(says, fn)
      local ok, err = pcall(fn)
      assert.is_false(ok)
      assert.equal("usage", err.code)
      assert.truthy(err.message:find(says, 1, true), err.message)
    end
    refused("the simulator has no option 'sedes' (did you mean 'seeds'?)", function() sim.test("rolling", { sedes = 1 }) end)
    refused("the invariant 'x' is a function of a view, not 3", function() sim.test("rolling", { invariants = { x = 3 } }) end)
    refused("the invariant 'x' is a function of a view, not 3", function() sim.invariant("x", 3) end)
    refused("an invariant has a name", function() sim.invariant(function() end) end)
    refused("the simulator takes its options in a table, not 5", function() sim.play("rolling", 1, 5) end)
    refused("sim.play takes a whole number as `seed`, not nil", function() sim.play("rolling") end)
    for _, strategy in ipairs { {}, 5 } do refused("the simulator takes a text as `strategy`", function() sim.test(strategy) end) end
    for says, opts in pairs {
      ["a whole number from 1 on as `seeds`, not 'x'"] = { seeds = "x" }, ["a whole number from 1 on as `seeds`, not 0"] = { seeds = 0 },
      ["a list as `faults`, not 7"] = { faults = 7 }, ["a list of faults takes a text as `kind`"] = { faults = { 7 } },
      ["no fault is named 'gremlins'"] = { faults = { { kind = "gremlins" } } }, ["a table as `app`, not 3"] = { app = 3 },
      ["as `app` what config.load gave"] = { app = {} }, ["a whole number as `first`"] = { first = "a" }, ["a function as `on_seed`"] = { on_seed = 1 },
      ["a table as `options`, not 5"] = { options = 5 }, ["a whole number from 1 on as `fleet`"] = { fleet = 1.5 },
    } do refused(says, function() sim.test("rolling", opts) end) end
  end)

  it("takes an app.yml that has options of other strategies, from wherever it is called", function()
    local file = fixture.write(fixture.dir() .. "/app.yml", 'app: shop\nprocess: {command: [a, "${port}"], ports: [8080, 8081]}\nhealth: {tcp: true}\nstrategy: {hold: 1s, settle: 0}\n')
    local program = ('print(require("deployrt.sim").test("rolling", { seeds = 1, app = require("deployrt.config").load(%q) }).seeds)'):format(file)
    local run = fixture.run({ "lua5.4", "-e", program }, { cwd = fixture.dir(), env = fixture.modules() })
    assert.same({ 0, "1\n" }, { run.exit, run.stdout }, run.stderr)
  end)
end)
