-- sandbox_spec.lua -- Scripts that attack the runtime: each ends with one clear error, in bounded memory, within seconds.
-- weight: 20
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fixture = require "spec.support.fixture"
local pattern = require "deployrt.sandbox.pattern"
local sandbox = require "deployrt.sandbox"
local sim = require "deployrt.sim"
local strategy = require "deployrt.strategy"

local header = [[
local strategy = require "deployrt.strategy"
local s = strategy.define { name = "attack", api = 1 }
function s:deploy() end
]]

local endless, memory = "is this an endless loop?", "MB of memory, and may not"

--- What a script does while it is loaded, and a part of the one error that ends it.
local attacks = {
  { "a loop", "while true do end", endless },
  { "a loop of goto", "::again:: goto again", endless },
  { "recursion without end", "local function f() return 1 + f() end f()", "" },
  { "tail calls without end", "local function f() return f() end f()", endless },
  { "pcall around a loop", "while true do pcall(function() while true do end end) end", endless },
  { "pcall as the last call", "do return pcall(function() while true do end end) end", endless },
  { "pcall in pcall", "local function f() pcall(f) pcall(f) while true do end end f()", endless },
  { "an error handler that loops", "xpcall(function() while true do end end, function() while true do end end)", endless },
  { "an error handler for every error", "while true do xpcall(error, function() end) end", endless },
  { "a handler that raises", "local function h() error(h) end while true do pcall(xpcall, error, h, h) end", endless },
  { "an error with a __tostring that loops", "error(setmetatable({}, { __tostring = function() while true do end end }))", "raised a table" },
  { "an error whose message is computed", "error(setmetatable({}, { __index = function() while true do end end }))", "raised a table" },
  { "an error whose message is a table", "error({ message = {} })", "without a text" },
  { "a __close that loops", "local x <close> = setmetatable({}, { __close = function() while true do end end }) while true do end", endless },
  { "a finalizer", "setmetatable({}, { __gc = function() while true do end end })", "cannot have __gc" },
  { "a weak table", "local t = setmetatable({}, { __mode = 'v' })", "attack.lua:4: a script's metatable cannot have __mode" },
  { "a table that is made weak", "local m = {} local t = setmetatable({}, m) m['__' .. 'mode'] = 'k'", "attack.lua:4: a script's metatable cannot have __mode" },
  { "a class that is made weak", "local m = setmetatable({}, { __index = {} }) local t = setmetatable({}, m) m.__mode = 'k'", "cannot have __mode" },
  { "a class that is made weak later", "local m = {} local t = setmetatable({}, m) setmetatable(m, {}) setmetatable(m, nil) m.__mode = 'k'", "cannot have __mode" },
  { "a table that is made weak behind its metatable", "local m = {} local t = setmetatable({}, m) rawset(m, '__mode', 'k')", "cannot have __mode" },
  { "a metamethod that loops", "local t = setmetatable({}, { __index = function(t, k) return t[k + 1] end }) local x = t[1]", "overflow" },
  { "__index on itself", "local t = {} setmetatable(t, { __index = t }) local x = t.x", "loop" },
  { "a coroutine that loops", "coroutine.wrap(function() while true do end end)()", endless },
  { "coroutines without number", "while true do coroutine.wrap(function() for _ = 1, 200 do end end)() end", endless },
  { "coroutines that are resumed on and on", [[
    local co = coroutine.create(function() while true do coroutine.yield() end end)
    while true do coroutine.resume(co) end]], endless },
  { "a coroutine that is caught", "while true do coroutine.resume(coroutine.create(function() while true do end end)) end", endless },
  { "a coroutine that closes in a loop", [[
    local co = coroutine.create(function()
      local x <close> = setmetatable({}, { __close = function() while true do end end })
      while true do end
    end)
    coroutine.resume(co)
    coroutine.close(co)]], endless },
  { "a coroutine in a coroutine", "local function f() coroutine.wrap(f)() end f()", "overflow" },
  { "a yield that nobody resumes", "coroutine.yield()", "coroutines of your own" },
  { "resuming the task itself", "coroutine.resume(coroutine.running())", "its own coroutines" },
  { "string.rep", "local t = ('x'):rep(1e9)", "and may not" },
  { "string.rep of nothing", "local t = (''):rep(1e15)", endless },
  { "string.rep that is caught", "while true do pcall(string.rep, 'x', 1e9) end", "and may not" },
  { "texts that double", "local t = 'x' while true do t = t .. t end", "attack.lua:4: made a text of more than" },
  { "many texts", "local t = {} while true do t[#t + 1] = ('x'):rep(1e6) .. #t end", memory },
  { "many tables", "local t = {} while true do t = { t } end", "attack.lua:4: " },
  { "memory that is caught", "local t = {} while true do pcall(function() while true do t = { t, ('x'):rep(1000) .. #t } end end) end", "attack.lua:4: " },
  { "memory that C asks for once, and that is caught", "local s, t = ('x'):rep(9e5), {} for i = 1, 1000 do t[i] = s end pcall(table.concat, t)", memory },
  { "a pattern that tries everything", "local x = (('a'):rep(30000)):find(('.-'):rep(20) .. 'b')", endless },
  { "a pattern that is short", "local x = (('a'):rep(1e6)):match('.-.-.-b')", endless },
  { "gsub with itself", "local t = 'aa' for _ = 1, 100 do t = t:gsub('a', '%0%0') end", "attack.lua:4: " },
  { "gsub of much", "while true do local t = (('a'):rep(1e6)):gsub('.', 'bb') end", endless },
  { "gmatch of much", "for _ in (('a'):rep(1e6)):gmatch('.-.-b') do end", endless },
  { "%b of much", "local x = (('('):rep(1e6)):match('%b()%b()')", endless },
  { "a plain find of much", "local x = (('a'):rep(9e5)):find(('a'):rep(4e5) .. 'b', 1, true)", endless },
  { "a wide format", "local t = {} while true do t[#t + 1] = ('%99s'):rep(50):format(table.unpack({ 1, 2 }, 1, 50)) end", nil },
  { "a long format", "local f = ('% 0'):rep(3e5) .. 'p' while true do pcall(string.format, f) end", endless },
  { "packing much", "local x = string.pack('c1000000000', '')", "and may not" },
  { "table.move without end", "table.move({}, 1, math.maxinteger - 1, 2)", endless },
  { "table.unpack that wraps around", "while true do pcall(table.unpack, {}, -1, math.maxinteger) end", "million instructions" },
  { "table.unpack of numbers as texts", "while true do pcall(table.unpack, {}, '1', '90000') pcall(table.unpack, {}, 1.0, 9e4) end", "million instructions" },
  { "other ranges that wrap around", [[
    local least, most = math.mininteger, math.maxinteger
    while true do
      for _, fn in ipairs { table.unpack, table.concat, string.sub, string.byte, utf8.codepoint } do
        for _, what in ipairs { {}, 'x' } do pcall(fn, what, least, most) pcall(fn, what, -1, most) pcall(fn, what, most, least) end
      end
      pcall(table.move, {}, least, most, 1) pcall(table.move, {}, most, least, 1) pcall(table.move, {}, 1, 2, most)
      pcall(string.rep, 'x', least) pcall(string.rep, '', least) pcall(string.rep, '', most) pcall(string.find, 'x', 'x', least, true)
      pcall(string.gsub, 'x', 'x', 'x', least) pcall(utf8.len, 'x', least, most) pcall(utf8.offset, 'x', least) pcall(string.format, '%99.99f', most)
    end]], endless },
  { "table.concat without end", "table.concat(setmetatable({}, { __index = function() return '' end, __len = function() return 1e15 end }))", endless },
  { "table.insert without end", "table.insert(setmetatable({}, { __len = function() return 1e15 // 1 | 0 end }), 1, 1)", endless },
  { "table.remove without end", "table.remove(setmetatable({}, { __len = function() return 1e15 // 1 | 0 end }), 1)", endless },
  { "a comparison that lies", "local t = {} for i = 1, 1e5 do t[i] = i end while true do table.sort(t, function() return true end) end", endless },
  { "a comparison in C", "local t = {} for i = 1, 1e5 do t[i] = i end while true do table.sort(t, rawequal) end", endless },
  { "long texts that are compared", "local a, b = ('x'):rep(9e5) .. 1, ('x'):rep(9e5) .. 1 while true do if a ~= b then break end end", endless },
  { "bytecode", "load('\\27Lua')", "nil value (global 'load')" },
  { "string.dump", "('').dump(function() end)", "nil value" },
  { "the debug library", "debug.getregistry()", "nil value (global 'debug')" },
  { "the metatable of strings", "getmetatable('').__index = nil", "nil value" },
  { "what all strategies inherit", "getmetatable(s).__index.step = error", "index" },
  { "a metatable of the runtime", "setmetatable(s, {})", "protected" },
  { "the metatable of errors", "local _, e = pcall(strategy.define, {}) getmetatable(e).__tostring = error e.x.y = 1", "index" },
  { "other modules", "require 'deployrt.core'", "cannot require 'deployrt.core'" },
  { "modules with odd names", "require(setmetatable({}, { __tostring = function() while true do end end }))", endless },
  { "options that compute", "s.options = setmetatable({}, { __index = error, __pairs = error }) s.options.x = function() end", "not a function" },
  { "options without end", "local o = {} o.o = o s.options = o", "levels deep" },
  { "no strategy at all", "s = setmetatable({}, { __index = function() return s end })", "deploy" },
  { "inheriting from itself", "strategy.extend('attack', { name = 'x' })", "inherits from itself" },
}

describe("a script that is loaded", function()
  local dir, before

  setup(function()
    before = sandbox.limits
    sandbox.limits = { instructions = 4e6, seconds = 1, memory = 12 << 20, text = 1 << 20, strings = before.strings }
    dir = fixture.dir()
  end)
  teardown(function()
    sandbox.limits = before
    fixture.cleanup()
  end)

  --- Loads a script; the error, or nil.
  local function load(code)
    local path = fixture.write(dir .. "/attack.lua", header .. code .. "\nreturn s\n")
    local ok, err
    core.run(function() ok, err = pcall(strategy.load, code:find("extend%('attack'") and path or path) end)
    return not ok and errors.wrap(err) or nil
  end

  for _, attack in ipairs(attacks) do
    local name, code, expected = table.unpack(attack)
    if name == "inheriting from itself" then code = ("strategy.extend(%q, { name = 'x' })"):format("DIR/attack.lua") end
    it("cannot escape with " .. name, function()
      local err = load((code:gsub("DIR", dir)))
      collectgarbage()
      if not expected then return end
      assert.truthy(err, "it went on")
      local either = expected == memory or os.getenv("ASAN_OPTIONS") -- looking for memory to free costs instructions, which may be over first
      assert.truthy(err.message:find(expected, 1, true) or either and err.message:find(endless, 1, true), err.message)
      assert.is_true(#err.message < 5000)
      assert.equal("x-x", ("x"):rep(2, "-")) -- the runtime's own strings are as before
      assert.equal("abc", tostring(errors.new("x", "abc")))
    end)
  end

  it("is not charged with what the runtime keeps of a large fleet", function()
    local result = sim.play("rolling", 1, { fleet = 400, faults = {} })
    assert.equal("succeeded", result.outcome, result.reason)
  end)

  it("is its source, and not what Lua makes of it", function()
    local path = fixture.write(dir .. "/compiled.lua", string.dump(function() end))
    local ok, err
    core.run(function() ok, err = pcall(strategy.load, path) end)
    assert.is_false(ok)
    assert.equal(path .. ": this is compiled Lua: a script is its source", err.message)
  end)

  it("is told the line", function()
    assert.truthy(load("\n\nwhile true do end").message:find("attack.lua:6: ran ", 1, true))
  end)

  it("may work a lot as long as it is within its limits", function()
    assert.is_nil(load [[
      local t = {}
      for i = 1, 1000 do t[i] = tostring(i * 7919 % 1000) end
      table.sort(t)
      table.sort(t, function(a, b) return #a < #b end)
      assert(t[1] == "0" and table.concat(t, ","):gsub("%d+", "x"):match("^x,x") and select("#", table.unpack(t)) == 1000)
      local gen = coroutine.wrap(function(...) coroutine.yield(...) error "end" end)
      assert(gen(5) == 5)
      local ok, err = pcall(gen)
      assert(not ok and err:find "end")
      assert(table.remove({ 1, 2, 3 }, 1) == 1 and table.concat(table.move({ 1, 2, 3 }, 1, 3, 2)) == "1123")
      local class = {} class.__index = class
      local sub = setmetatable({}, class) sub.__index = sub
      local one = setmetatable({ a = 1 }, sub)
      function class.hello() return "hello" end
      function sub:there() return self.hello() .. self.a end
      one.b = 2
      assert(one:there() == "hello1" and one.b == 2 and getmetatable(class) == nil and getmetatable(one) == sub and getmetatable(sub) == class)
      assert(rawset(one, "c", 3) == one and one.c == 3 and setmetatable(one, nil).hello == nil)
      local list = { 1, 2 } table.insert(list, 1, 0) table.insert(list, 3) assert(table.concat(list) == "0123")
    ]])
  end)
end)

describe("a script's next", function()
  it("is that of stock Lua, in order, also while fields are taken out", function()
    local env = sandbox.environment(function() end, print)
    local function take_all(following)
      local t, seen = { b = 2, a = 1, [3] = 3, [1] = 1, [true] = 0 }, {}
      for key in following, t do
        seen[#seen + 1] = tostring(key)
        t[key] = nil
      end
      return seen, t
    end
    local ordered, rest = take_all(env.next)
    assert.same({ "true", "1", "3", "a", "b" }, ordered)
    assert.is_nil(next(rest))
    for _, arguments in ipairs { { {} }, { { 1 } }, { { 1 }, 1 }, { { 1 }, "no" }, { {}, 0 / 0 }, { { a = 1 }, "b" }, {} } do
      local here, stock = table.pack(pcall(env.next, table.unpack(arguments, 1, 2))), table.pack(pcall(next, table.unpack(arguments, 1, 2)))
      assert.same({ stock[1], stock.n }, { here[1], here.n })
      if stock[1] then assert.same(stock, here) end
    end
    assert.matches("^[^\n]*invalid key to 'next'$", select(2, pcall(env.next, { a = 1 }, "b")))
  end)
end)

describe("the sandbox's patterns", function()
  local texts = { "", "a", "hello world", "key = value", "a,b,,c", "(x(y)z)", "THE (quick) fox", "aaaa", "%d", "x-y-z", "é\0ü", "  trim me  " }
  local patterns = { "", "a", ".", "a*", "a-b", "^a", "a$", "(%w+) = (%w+)", "%b()", "%f[%a]%a+", "()a()", "[^,]*", "[%a_][%w_]*", "(.)%1", "^%s*(.-)%s*$",
    "[a-c]+", "[]]", "[^]]", "%d+", "x?y?", "(a*(.)%w(%s*))", "%%", "[%-x]+", ".-$", "(.*)o(.*)", "\0", "^", "$", "[a-]" }

  --- The same functions, forced to match in Lua.
  local function results(module, name, ...)
    local list = table.pack(pcall(module[name], ...))
    if name == "gmatch" and list[1] then
      local found = {}
      for a, b, c in list[2] do found[#found + 1] = { a, b, c } end
      return found
    end
    if not list[1] then return "error" end
    return list
  end

  it("match as the string library does, also where they match in Lua", function()
    local filler = (" "):rep(20)
    for _, patt in ipairs(patterns) do
      assert.is_nil(pattern.problem(patt), patt)
      for _, each in ipairs(texts) do
        for _, long in ipairs { each, each .. filler:rep(6) .. each } do
          -- a pattern of more than a hundred bytes is never taken to be quick
          local slow = patt:sub(1, 1) == "^" and "^" .. patt:sub(2) or patt
          for _, name in ipairs { "find", "match", "gmatch" } do
            assert.same(results(string, name, long, patt), results(pattern, name, long, slow), ("%s(%q, %q)"):format(name, long, patt))
          end
          local function twice(whole) return whole .. whole end
          assert.same(results(string, "gsub", long, patt, twice), results(pattern, "gsub", long, patt, twice), ("gsub(%q, %q)"):format(long, patt))
          assert.same(results(string, "gsub", long, patt, "<%0>", 3), results(pattern, "gsub", long, patt, "<%0>", 3))
        end
      end
    end
  end)

  it("refuse what the string library refuses", function()
    local long = ("x"):rep(300000)
    for _, patt in ipairs { "%", "[a", "(", "%b", "%f", "(()", "%1", "[%" } do
      for _, name in ipairs { "find", "match" } do
        assert.is_false((pcall(string[name], long, patt)), patt)
        assert.is_false((pcall(pattern[name], long, patt)), patt)
      end
      assert.truthy(pattern.problem(patt), patt)
      assert.truthy(pattern.problem("a+b" .. patt), patt)
    end
  end)
end)

describe("a command with an attacking script", function()
  after_each(function() fixture.cleanup() end)

  it("ends with one line, exit 2 and bounded memory", function()
    local path = fixture.dir() .. "/attack.lua"
    for code, expected in pairs { ["while true do pcall(function() while true do end end) end"] = endless,
      ["local t = {} while true do pcall(function() while true do t = { t } end end) end"] = memory } do
      fixture.write(path, header .. code)
      local bound = os.getenv("ASAN_OPTIONS") and "" or "ulimit -v 1500000; " -- AddressSanitizer reserves terabytes
      local run = fixture.run({ "sh", "-c", bound .. 'exec "$0" help "$1"', fixture.deployrt(), path }, { timeout = 120 })
      assert.equal(2, run.exit, run.stderr)
      local stopped = run.stderr:find(expected, 1, true) or run.stderr:find(endless, 1, true) -- on a slow machine time is over first
      assert.truthy(run.stderr:find("^deployrt: [^\n]*attack.lua:%d+: ") and stopped, run.stderr)
      assert.equal("\n", run.stderr:match("\n.*"))
    end
  end)
end)

describe("a strategy that waits for nothing", function()
  after_each(fixture.cleanup)

  local loops = {
    { "begins tasks that begin tasks", "local function f() self:each({ 1, 2 }, f) end f()", "used more than 256 MB of memory" },
    { "does so again and again", "while true do self:each({ 1 }, function() end) end", "used more than 256 MB of memory" },
    { "does too much at once", "local list = {} for i = 1, 200000 do list[i] = i end self:each(list, function() end)", "used more than 256 MB of memory" },
    { "goes too far while others wait for a place beside it", 'self:each({ 1, 2 }, function() return ("x"):rep(1e9) end, { max = 1 })', "used more than 256 MB of memory" },
    { "sleeps for no time", "while true do self:sleep(0) end", "is there a loop that waits for nothing?" },
  }

  for _, loop in ipairs(loops) do
    it("ends in a simulation, in a plan and in a run when it " .. loop[1], function()
      local app = fixture.app { instances = 1, yaml = "strategy: {timeout: 4s}" }
      app:extend_rolling(loop[2])
      app:write(fixture.release("1.0"), "1.0")
      for _, words in ipairs { { "test", "./own.lua", "--seeds=1" }, { "plan", "./own.lua", "app.yml", "--offline" } } do
        local run = app:command(words, { timeout = 60 })
        assert.equal(2, run.exit, run.stdout)
        local slow = run.stderr:find("ran for 5 s without waiting", 1, true) -- a machine, or a build, that is slow comes to that limit first
        assert.truthy(slow or run.stderr:find(loop[3], 1, true), run.stderr)
      end
      local run = app:command({ "./own.lua", "app.yml" }, { timeout = 60 })
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find(loop[3], 1, true) or run.stderr:find("took longer than its timeout of 4s", 1, true), run.stderr)
      app:stop()
    end)
  end

  it("takes no longer in a plan than its timeout", function()
    local app = fixture.app { instances = 1, yaml = "strategy: {timeout: 4s}" }
    app:extend_rolling "while true do self:sleep(1) end"
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command({ "plan", "./own.lua", "app.yml", "--offline" }, { timeout = 20 })
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("the run would take longer than its timeout of 4s", 1, true), run.stderr)
  end)
end)

describe("a script in mid-run", function()
  local app

  setup(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 50ms}", process = "  stop: {timeout: 3s}\n  secrets: {TOKEN: hunter2-hunter2}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.yaml = ""
  end)
  teardown(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  --- Deploys with a strategy that does this first.
  local function deploy(code, version)
    fixture.write(app.dir .. "/attack.lua", ([[
      local strategy = require "deployrt.strategy"
      local s = strategy.extend("rolling", { name = "attack", options = { settle = { type = "duration", default = "50ms", doc = "" } } })
      %s
      return s]]):format(code))
    return app:deploy("./attack.lua", version)
  end

  it("is rolled back, undo functions that loop included", function()
    local run = deploy([[function s:deploy()
        self:undo(function() while true do pcall(function() while true do end end) end end)
        self.super.deploy(self)
        self:each({ 1, 2 }, function() xpcall(function() while true do end end, function() while true do end end) end)
      end]], "2.0")
    assert.equal(3, run.exit, run.stdout .. run.stderr) -- its own undo is what is left
    assert.truthy(run.stderr:find(endless, 1, true), run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(0, app:command({ "abort", "app.yml", "--force" }).exit)
  end)

  it("changes nothing of the runtime, whatever it writes", function()
    local run = deploy([[
      local function refused(fn, ...) assert(not pcall(fn, ...)) end
      function s:check()
        local old = self.fleet:old()[1]
        refused(function() old.port = 1 end)
        refused(function() self.fleet.target = {} end)
        refused(function() getmetatable(old).__index = nil end)
        refused(function() getmetatable(self.fleet).old = nil end)
        refused(function() self.fleet.old(nil) end)
        refused(self.sleep, self, 0 / 0)
        refused(self.sleep, self, math.huge)
        refused(self.balancer.set, self.balancer, { { slot = print } }, "x")
        assert(self.fleet.target == nil and self.fleet.process == nil and old.launch == nil and self.balancer.drain_timeout == nil)
        assert(self.app.files == nil and self.app.process.secrets.TOKEN == "(secret)")
        rawset(old, "port", 1)
        self.app.process.stop.timeout, self.app.hosts[1].name = 0, "other"
        self.balancer.slots = nil
      end]], "3.0")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stderr:find("cannot set slots of", 1, true), run.stderr)
    run = deploy([[
      function s:replace(old)
        self.app.process.stop = nil
        rawset(old, "slot", "none")
        self.step, self.each, self.hook = error, error, error
        self.options.timeout = 0
        local ok, err = pcall(old.stop, old)
        assert(not ok and err.code == "serving")
        err.code, err.message = nil, nil
        self.super.replace(self, old)
      end]], "3.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "3.0" }, app:serving())
  end)

  it("reads no secret, not even where a command prints it", function()
    local run = deploy([[
      function s:deploy()
        local result = self.fleet.hosts[1]:run { "sh", "-c", "echo hunter2-hunter2; echo hunter2-hunter2 >&2" }
        self:log("it says " .. result.stdout .. result.stderr .. #result.stdout)
        self.super.deploy(self)
      end]], "4.0")
    assert.equal(0, run.exit, run.stderr)
    assert.truthy(run.stdout:find("it says (secret)", 1, true), run.stdout)
    for path in fixture.sh("find " .. app.dir .. "/state -type f"):gmatch("[^\n]+") do
      local kept = fixture.read(path):gsub('"args":%b{}', "") -- what the script itself was given
      assert.is_nil(kept:find('"stdout":"hunter2', 1, true), path)
    end
  end)

  it("has nothing that is another one each time", function()
    local lines = {}
    local env = sandbox.environment(function() end, function(line) lines[#lines + 1] = line end)
    assert(load([==[
      print({}, print, coroutine.running(), tostring(print), string.format("%s %5.1f %q %%p", {}, 1.5, "a"), string.problem)
      print(select(2, pcall(string.format, "%p", {})))
      for _, t in ipairs { { [{}] = 1, [{}] = 2 }, { [print] = 1, [pcall] = 2 } } do
        print(select(2, pcall(pairs, t)))
        print(select(2, pcall(next, t)))
      end
      local list = {}
      for key in pairs { b = 1, a = 1, [true] = 1, [2] = 1, [1.5] = 1, [false] = 1 } do list[#list + 1] = tostring(key) end
      print(table.concat(list, " "))
    ]==], "own.lua", "t", env))()
    local order = "the order of keys that are %ss is another one each time: use texts, numbers, instances or hosts as keys"
    assert.same({ 'table\tfunction\tthread\tfunction\ttable   1.5 "a" %p\tnil', "a script cannot format with %p: an address is another one each time",
      order:format "table", order:format "table", order:format "function", order:format "function", "false true 1.5 2 a b" }, { lines[1], lines[2], table.unpack(lines, 3) })
  end)
end)
