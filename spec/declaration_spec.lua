-- declaration_spec.lua -- What a script says of its strategy: shown by help, and refused in one line where it is wrong.
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("what a script declares", function()
  local dir

  setup(function() dir = fixture.dir() end)
  teardown(fixture.cleanup)

  --- `deployrt help` of a strategy whose definition has this.
  local function help(definition, more)
    fixture.write(dir .. "/own.lua", ("local strategy = require 'deployrt.strategy'\nlocal own = strategy.define { name = 'own', api = 1, %s }\n%s\n%s"):format(
      definition, more or "", "function own:deploy() end\nreturn own\n"))
    return fixture.run({ fixture.deployrt(), "help", "./own.lua" }, { cwd = dir })
  end

  --- It is refused where define was called, or extend.
  local function refused(says, definition, more)
    local run = help(definition, more)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    local line = more and more:find("strategy.extend", 1, true) and 3 or 2
    assert.equal(("deployrt: ./own.lua:%d: strategy 'own': %s\n"):format(line, says), run.stderr)
  end

  it("is shown with its defaults, nested ones too", function()
    local run = help "options = { a = { type = 'list', of = 'any', default = { { 1 }, { b = 2 } }, doc = 'some' } }"
    assert.equal(0, run.exit, run.stderr)
    assert.matches("a          list      default %[%[1%], {b: 2}%] +some\n", run.stdout)
  end)

  it("is shown with what an option takes", function()
    local options = "options = { a = { type = 'integer', required = true, min = 1, max = 5, doc = 'some' }, b = { type = 'number', min = 0.5, doc = 'more' } }"
    local run = help(options)
    assert.matches("\n  a          integer   required +some %(from 1 to 5%)\n  b          number    default none +more %(from 0%.5%)\n", run.stdout)
    local option = cjson.decode(fixture.run({ fixture.deployrt(), "help", "./own.lua", "--json" }, { cwd = dir }).stdout).options.a
    assert.same({ true, 1, 5 }, { option.required, option.min, option.max })
  end)

  it("lets an amount be none where `min` says so, and `tolerate` anyway", function()
    local run = help [[options = { tolerate = { type = "amount", default = 0, doc = "some" }, few = { type = "amount", default = 0, min = 0, max = 3, doc = "more" } }]]
    assert.matches("\n  few        amount    default 0 +more %(from 0 to 3%)\n", run.stdout)
    assert.matches("\n  tolerate   amount    default 0 +some %(from 0%)\n", run.stdout)
    refused("the default of option 'few': expected an amount such as 2 or 25%, got '0'", "options = { few = { type = 'amount', default = 0 } }")
    local function test(set)
      return fixture.run({ fixture.deployrt(), "test", "./own.lua", "--seeds=1", "--fault=none", "--set", set }, { cwd = dir })
    end
    help("", "own = strategy.extend('rolling', { name = 'own', options = { tolerate = { type = 'amount', default = 1 }, few = { type = 'amount', min = 0, max = 3 } } })\n"
      .. "function own:deploy() self:each(self.fleet:old(), self.replace, { max = 1, tolerate = self.options.tolerate }) self:each({ 1 }, print, { tolerate = self.options.few }) end\n"
      .. "do return own end --")
    for set, said in pairs { ["strategy.batch=0"] = "strategy.batch: expected an amount such as 2 or 25%, got '0'",
      ["strategy.few=4"] = "strategy.few: expected from 0 to 3, got 4" } do
      assert.equal(("deployrt: own: %s\n"):format(said), test(set).stderr)
    end
    assert.same({ 0, 0 }, { test("strategy.tolerate=0").exit, test("strategy.few=0%").exit })
  end)

  it("does nothing to a terminal", function()
    local run = help([[options = { a = { type = "string", default = "\27[31mx", doc = "one\27[2J\ntwo", values = { "\27[31mx" } } },
      summary = "\27]0;title\7 of\r\n  two lines"]], [[print("\27[2Jsaid", "more\nand more")]])
    assert.equal(0, run.exit, run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("[\0-\9\11-\31\127]"), run.stdout .. run.stderr)
    assert.equal("said more\nand more\n", run.stderr)
    assert.matches("^own: +of two lines\n\nOptions", run.stdout)
    assert.matches("\n  a          string    default x +one two %(x%)\n", run.stdout)
    local raised = help("", 'error("\27[2Jwrong")')
    assert.matches("^deployrt: %./own.lua:%d+: wrong\n", raised.stderr)
  end)

  it("has the timeout of every strategy, with a default of its own or without", function()
    assert.matches("timeout +duration  default 5m ", help("options = { timeout = { type = 'duration', default = '5m' } }").stdout)
    assert.matches("timeout +duration  default 1h ", help("", "own.options = {}").stdout)
  end)

  it("is refused where it is wrong, before anybody uses it", function()
    refused("option 'a': `values` is a list of texts, not 'abc'", "options = { a = { type = 'string', values = 'abc' } }")
    refused("option 'a': only numbers can be `rising`, and its items are not", "options = { a = { type = 'list', of = 'string', rising = true } }")
    refused("option 'a': `min` is a number, not 'x'", "", "own.options.a = { type = 'integer', min = 'x' }")
    refused("`options` is a table of declarations by name", "options = 5")
    refused("`options` is a table of declarations by name, not 5", "", "own.options = 5")
    refused("`needs` is a list such as { \"share\" }", "needs = 'share'")
    refused("option 'timeout' is the runtime's own, of type duration: it may have another default, but no other type",
      "options = { timeout = { type = 'string', default = 'never' } }")
    refused("option 'timeout' is the runtime's own, of type duration: it may have another default, but no other type", "",
      "own = strategy.extend('rolling', { name = 'own', options = { timeout = { type = 'any' } } })")
    refused("option 'route' is the runtime's own, of type list: it may have another default, but no other type", "options = { route = { type = 'string' } }")
    refused("option 'tolerate' is the runtime's own, of type amount: it may have another default, but no other type", "options = { tolerate = { type = 'integer' } }")
    refused("api is a number: say api = 1", "api = '1'")
    refused("`groups` is true or false, not 5", "groups = 5")
    refused("`summary` is a text, not 5", "summary = 5")
    refused("`summary` is a text, not a function", "", "own = strategy.extend('rolling', { name = 'own', summary = print })")
    refused("the invariant 'a' is a function of a view, not 1", "invariants = { a = 1 }")
    refused("an invariant has a name, and 1 is none", "invariants = { print }")
    refused("`invariants` is a table of functions by name, not a function", "invariants = print")
    refused("the invariant 'a' is a function of a view, not a table", "", "own.invariants = { a = {} }")
    local known = "; there are api, groups, invariants, may_lack, name, needs, options, summary"
    refused("a definition has no key 'option' (did you mean 'options'?)" .. known, "option = {}")
    refused("a definition has no key 'summry' (did you mean 'summary'?)" .. known, "", "own = strategy.extend('rolling', { name = 'own', summry = 'x' })")
  end)

  it("says how many instances may be missing meanwhile, and is refused where that is no amount", function()
    local says = "`may_lack` says how many instances may be missing meanwhile: an amount such as 1 or \"25%\", or the name of an option of type amount, and not "
    local batch = "options = { batch = { type = 'amount', default = 1 }, pause = { type = 'duration', default = '1s' } }, may_lack = "
    for _, right in ipairs { "1", "'25%'", "'batch'", "false" } do assert.equal(0, help(batch .. right).exit, right) end
    refused(says .. "'bach' (did you mean 'batch'?)", batch .. "'bach'")
    refused(says .. "'pause'", batch .. "'pause'")
    refused(says .. "0", batch .. "0")
    refused(says .. "true", batch .. "true")
    refused(says .. "a table", batch .. "{ 'batch' }")
    refused(says .. "'none'", "", "own = strategy.extend('rolling', { name = 'own', may_lack = 'none' })")
  end)

  it("may have fields of its own", function()
    local run = help("foo = 1, helper = function() end", "own.waves = { 1, 2 }")
    assert.equal(0, run.exit, run.stderr)
  end)

  it("is held to the api in an extension, too", function()
    local run = help("", "own = strategy.extend('rolling', { name = 'own', api = 2 })")
    assert.same({ 2, "deployrt: ./own.lua:3: strategy 'own' is written for api 2; this deployrt has api 1: use a newer deployrt\n" }, { run.exit, run.stderr })
    refused("api is a number: say api = 1", "", "own = strategy.extend('rolling', { name = 'own', api = '1' })")
    assert.equal(0, help("", "own = strategy.extend('rolling', { name = 'own', api = 1 })").exit)
  end)

  it("has a name in one line, or is refused at the line that gave it", function()
    local says = "the name of a strategy is of printable characters but /, at most 100 bytes, not "
    for more, name in pairs { ["own.name = 'Bad/Name'"] = "Bad/Name", ["own.name = 'o\\27[2Jwn\\n'"] = "o?[2Jwn?",
      ["strategy.define { name = '', api = 1 }"] = "", ["strategy.extend('rolling', { name = 'a/b' })"] = "a/b", ["own.name = ('x'):rep(101)"] = ("x"):rep(20) .. "..." } do
      local run = help("", more)
      assert.same({ 2, ("deployrt: ./own.lua:%d: %s'%s'\n"):format(more:find("^own") and 2 or 3, says, name) }, { run.exit, run.stderr })
    end
    for more, said in pairs { ["strategy.define()"] = "strategy.define expects a table", ["strategy.define {}"] = "a strategy needs a name",
      ["strategy.extend('nowhere', {})"] = "no strategy is named 'nowhere'", ["strategy.extend('./nowhere.lua', {})"] = "./nowhere.lua: no such file" } do
      local run = help("", "\n" .. more)
      assert.equal(2, run.exit)
      assert.truthy(run.stderr:find("deployrt: ./own.lua:4: " .. said, 1, true), run.stderr)
    end
  end)

  it("wins over what is inherited", function()
    refused("`needs` is a list such as { \"share\" }", "needs = { 'share' }", "own = strategy.extend(own, { name = 'own', needs = 'x' })")
  end)
end)
