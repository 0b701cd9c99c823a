-- trace_spec.lua -- A script that goes wrong says where: its own file, line and frames, none of the runtime's.
-- weight: 5
local fixture = require "spec.support.fixture"

local script = [[
local strategy = require "deployrt.strategy"

local own = strategy.extend("in_place", {
  name = "own", options = { where = { type = "string", default = "nowhere" }, allow_gap = { type = "boolean", default = true } },
})

local function field_of(x)
  return x.field
end

local function forever()
  return 1 + forever()
end

function own:check()
  if self.options.where == "check" then field_of(nil) end
end

function own:replace(old)
  if self.options.where == "each" then field_of(nil) end
  if self.options.where == "verb" then self:batches({}, { percent = {} }) end
  if self.options.where == "sleep" then self:sleep("5s") end
  if self.options.where == "took" then self.undo(self, "x") end
  if self.options.where == "share" then self.balancer:share(150, { old }, {}) end
  if self.options.where == "colon" then old.start() end
  if self.options.where == "set" then old.port = 1 end
  if self.options.where == "why" then self:fail() end
  if self.options.where == "super" then old = setmetatable({}, { __index = function() field_of(nil) end }) end
  self.super.replace(self, old)
end

function own:deploy()
  if self.options.where == "deploy" then field_of(nil) end
  if self.options.where == "deep" then forever() end
  if self.options.where == "undo" then
    self:undo(function() field_of(nil) end)
    self:fail("on purpose")
  end
  self:step("all", function()
    self:each(self.fleet:old(), self.replace)
  end)
end

return own
]]

--- The number of the line that has this text.
local function at(text)
  return select(2, script:sub(1, assert(script:find(text, 1, true), text)):gsub("\n", "")) + 1
end

describe("an error in a script", function()
  local app

  setup(function()
    app = fixture.app { instances = 1, slots = 1, yaml = "strategy: {allow_gap: true, settle: 0}" }
    assert.equal(0, app:deploy("in_place", "1.0").exit)
    app:write(fixture.release("2.0"), "2.0")
    fixture.write(app.dir .. "/strategies/own.lua", script)
    app.opts.yaml = "strategy: {allow_gap: true}"
    app:write(fixture.release("2.0"), "2.0")
  end)
  teardown(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  local function run(where, ...)
    local result = app:command { "own", "app.yml", "--set", "strategy.where=" .. where, ... }
    return result.exit, result.stderr
  end

  --- Whether the error output shows these lines one after the other, however they are indented.
  local function assert_shows(lines, text)
    local plain = "\n" .. text:gsub("[| ]*([^\n]+)", "%1")
    local wanted = "\n" .. table.concat(lines, "\n") .. "\n"
    assert.truthy(plain:find(wanted, 1, true), ("wanted:%s\ngot:\n%s"):format(wanted, text))
  end

  local what = "attempt to index a nil value (local 'x')"
  local place = "strategies/own.lua:%d: "
  local first = place:format(at "return x.field") .. what
  local helper = place:format(at "return x.field") .. "in function 'field_of'"

  local function frame(line, name)
    return place:format(at(line)) .. name
  end

  it("in deploy shows the line and who called", function()
    local exit, said = run "deploy"
    assert.equal(1, exit)
    assert_shows({ helper, frame('"deploy" then', "in method 'deploy'") }, said)
    assert.truthy(said:find("error: " .. first, 1, true), said)
    assert.is_nil(said:find("deployrt/[%w_]+%.lua:%d"), said)
    assert.is_nil(said:find("[C]", 1, true), said)
  end)

  it("in a child of each, below a step, goes on with the script's frames of its parents", function()
    local exit, said = run "each"
    assert.equal(1, exit)
    local step = place:format(at "self:each(") .. ("in function <strategies/own.lua:%d>"):format(at "self:step(")
    assert_shows({ helper, frame('"each" then', "in method 'replace'"), step, frame("self:step(", "in method 'deploy'") }, said)
    assert.is_nil(said:find("deployrt/[%w_]+%.lua:%d"), said)
  end)

  it("in what the parent's method calls shows that method too", function()
    local exit, said = run "super"
    assert.equal(1, exit)
    assert.truthy(said:find("strategies/in_place%.lua:%d+: in method 'replace'"), said)
    assert.truthy(said:find(frame("self.super.replace", "in method 'replace'"), 1, true), said)
    assert.is_nil(said:find("lua/deployrt/", 1, true), said)
  end)

  it("that a verb raises, because it was called wrongly, is at the line of the call", function()
    local exit, said = run "verb"
    assert.equal(1, exit)
    assert.truthy(said:find("error: strategies/own.lua:" .. at "self:batches({}" .. ":" .. " batches takes an amount: its `percent` is a number above 0 and at most 100, not a table\n", 1, true), said)
    assert.is_nil(said:find("verbs.lua", 1, true), said)
  end)

  it("that a verb refuses is at the line of the call too, and says what it takes", function()
    for where, says in pairs {
      sleep = { 'self:sleep("5s")', "a time is a number of seconds from 0 to 31622400, not 5s" }, took = { 'self.undo(self, "x")', "undo takes a function, not a string" },
      share = { "self.balancer:share(150", "a share is a percentage from 0 to 100, not 150" }, colon = { "old.start()", "call it with a colon: object:start(...)" },
      set = { "old.port = 1", "a script cannot set port" },
    } do
      local exit, said = run(where)
      assert.equal(1, exit)
      local line = ("strategies/own.lua:%d"):format(at(says[1]))
      assert.truthy(said:find(line .. ": " .. says[2], 1, true), said)
      assert.truthy(said:find(line .. ": in method 'replace'", 1, true), said)
      assert.equal(1, select(2, said:gsub("own.lua:%d+: [^i]", "")), said)
    end
    local _, said = run "why"
    assert.truthy(said:find("the strategy ended the run, and did not say why", 1, true), said)
  end)

  it("in an undo function is told with what is left to do", function()
    local exit, said = run "undo"
    assert.equal(3, exit)
    assert.truthy(said:find("the strategy's own undo: " .. first, 1, true), said)
    assert.truthy(said:find("to mend it: by hand, then end the run: deployrt abort app.yml --run " .. app:status().run.id .. " --force\n", 1, true), said)
    assert.truthy(said:find(frame("self:undo(", ("in function <strategies/own.lua:%d>"):format(at "self:undo(")), 1, true), said)
    assert.is_nil(said:find("deployrt/[%w_]+%.lua:%d"), said)
    assert.equal(0, app:command({ "abort", "app.yml", "--force" }).exit)
  end)

  it("in check stops the run before anything is changed", function()
    local exit, said = run "check"
    assert.equal(2, exit)
    assert_shows({ "deployrt: " .. first, helper, frame('"check" then', "in method 'check'") }, said)
    assert.is_nil(said:find("deployrt/[%w_]+%.lua:%d"), said)
  end)

  it("while it is loaded has its place as well", function()
    fixture.write(app.dir .. "/strategies/early.lua", "local x\n\nreturn x.field\n")
    local result = app:command { "early", "app.yml" }
    assert.equal(2, result.exit)
    assert_shows({ "deployrt: strategies/early.lua:3: " .. what, "strategies/early.lua:3: in main chunk" }, result.stderr)
  end)

  --- What a strategy of such a text is refused with.
  local function said_of(text)
    fixture.write(app.dir .. "/strategies/early.lua", 'local strategy = require "deployrt.strategy"\n' .. text)
    local result = app:command { "help", "early" }
    assert.equal(2, result.exit, result.stderr)
    return result.stderr
  end

  it("is as long as a message may be, and its further lines look like none of ours", function()
    for text, shown in pairs {
      ['error(("x"):rep(8e6))'] = "deployrt: strategies/early.lua:2: xxx", ['error { message = ("x"):rep(8e6) }'] = "deployrt: xxx",
      ['strategy.define { api = 7, name = ("x"):rep(8e6) }'] = "the name of a strategy is of printable characters",
      ['return strategy.extend("rolling", { name = ("x"):rep(8e6) })'] = "the name of a strategy is of printable characters",
      ['local s = strategy.extend("rolling", {}) rawset(s, "name", ("x"):rep(8e6)) return s'] = "the name of a strategy is of printable characters",
    } do
      local said = said_of(text)
      assert.truthy(said:find(shown, 1, true), said:sub(1, 300))
      assert.is_true(#said < 5000, text)
    end
    for _, text in ipairs { 'error("\\27[2J...\\ndeployrt: all good")', 'error({ message = "...\\ndeployrt: all good" })', 'error("...\\ndeployrt: all good", 0)' } do
      local said = said_of(text)
      assert.truthy(said:find("...\n  | deployrt: all good\n", 1, true), said)
      assert.is_nil(said:find("\ndeployrt:", 1, true), said)
    end
  end)

  it("that says nothing says where it is", function()
    for text, kind in pairs { ["error()"] = "nil", ["error(42)"] = "number", ["error({})"] = "table", ["error(setmetatable({}, { __tostring = function() return 'x' end }))"] = "table" } do
      local said = said_of(text)
      assert_shows({ ("deployrt: strategies/early.lua:2: a script raised a %s, and no text or error: raise a text, or call self:fail"):format(kind),
        "strategies/early.lua:2: in main chunk" }, said)
    end
    assert.truthy(said_of("error({ message = 5 })"):find("strategies/early.lua:2: a script raised an error without a text", 1, true))
  end)

  it("that comes from below many calls of the runtime's own has its frames, and none of those", function()
    for _, text in ipairs { "local t = setmetatable({}, { __tostring = function(t) return tostring(t) end }) tostring(t)",
      "local function f() coroutine.wrap(f)() end f()" } do
      local said = said_of(text)
      assert.truthy(said:find("C stack overflow", 1, true), said)
      assert.truthy(said:find("  | strategies/early.lua:2: in main chunk", 1, true), said)
      assert.is_nil(said:find("lua/deployrt/", 1, true), said)
    end
  end)

  it("that never ends to call itself shows some frames, and ends", function()
    local exit, said = run "deep"
    assert.equal(1, exit)
    assert.truthy(said:find("stack overflow", 1, true), said)
    assert.is_true(select(2, said:gsub("\n", "")) < 40, said)
  end)

  it("never stops what serves", function()
    assert.same({ "1.0" }, app:serving())
  end)

  it("shows the runtime's frames too with --verbose", function()
    local exit, said = run("each", "--verbose")
    assert.equal(1, exit)
    assert.truthy(said:find("all frames:", 1, true), said)
    assert.truthy(said:find("deployrt/verbs%.lua:%d+: in "), said)
    exit, said = run("check", "--verbose")
    assert.equal(2, exit)
    assert.truthy(said:find("deployrt/sandbox%.lua:%d+: in "), said)
  end)
end)
