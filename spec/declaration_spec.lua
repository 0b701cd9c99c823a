-- declaration_spec.lua -- What a script says of its strategy: shown by help, and refused in one line where it is wrong.
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

  local function refused(says, definition, more)
    local run = help(definition, more)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    assert.equal(("deployrt: strategy 'own': %s\n"):format(says), run.stderr)
  end

  it("is shown with its defaults, nested ones too", function()
    local run = help "options = { a = { type = 'list', of = 'any', default = { { 1 }, { b = 2 } }, doc = 'some' } }"
    assert.equal(0, run.exit, run.stderr)
    assert.matches("a          list      default %[%[1%], {b: 2}%] +some\n", run.stdout)
  end)

  it("does nothing to a terminal", function()
    local run = help([[options = { a = { type = "string", default = "\27[31mx", doc = "one\27[2J\ntwo", values = { "\27[31mx" } } },
      summary = "\27]0;title\7 of\r\n  two lines"]], [[own.name = "o\27[2Jwn\n" print("\27[2Jsaid", "more\nand more")]])
    assert.equal(0, run.exit, run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("[\0-\9\11-\31\127]"), run.stdout .. run.stderr)
    assert.equal("said more\nand more\n", run.stderr)
    assert.matches("^own : +of two lines\n\nOptions", run.stdout)
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
  end)
end)
