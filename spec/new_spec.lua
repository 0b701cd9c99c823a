-- new_spec.lua -- deployrt new strategy: what it writes works at once, from the sources and from where it is installed.
-- weight: 6
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("deployrt new strategy", function()
  local dir

  before_each(function() dir = fixture.dir() end)
  after_each(function() fixture.cleanup() end)

  local function run(argv, opts)
    opts = opts or {}
    opts.cwd, opts.env = dir, opts.env or { HOME = dir, TERM = "dumb" }
    return fixture.run(argv, opts)
  end

  local function deployrt(...)
    return run { fixture.deployrt(), ... }
  end

  local function ok(result)
    assert.equal(0, result.exit, result.stdout .. result.stderr)
    return result.stdout
  end

  local function listing()
    return (fixture.sh(("cd %s && find . -type f | sort"):format(dir)):gsub("%./", ""):gsub("\n", " "))
  end

  it("writes a script, its spec, and what an editor and busted need", function()
    local said = ok(deployrt("new", "strategy", "careful"))
    assert.equal(".busted .luarc.json spec/careful_spec.lua strategies/careful.lua ", listing())
    for _, next_command in ipairs { "deployrt help careful", "deployrt test careful", "busted spec/careful_spec.lua" } do
      assert.truthy(said:find(next_command, 1, true), said)
    end
    for _, path in ipairs { "strategies/careful.lua", "spec/careful_spec.lua" } do
      local text = fixture.read(dir .. "/" .. path)
      assert.is_nil(text:find("%f[%w]%u%u%u%u+%f[%W]"), path .. " has a word of its template left")
      assert.is_true(select(2, text:gsub("\n", "")) < 60, path)
    end
    local settings = cjson.decode(fixture.read(dir .. "/.luarc.json"))
    assert.truthy(fixture.read(settings["workspace.library"][1] .. "/deployrt/types.lua"))
    assert.equal("Lua 5.4", settings["runtime.version"])
  end)

  it("writes a strategy that passes check and test, and deploys; its spec passes, and fails when the strategy is broken", function()
    ok(deployrt("new", "strategy", "careful", "--quiet"))
    assert.truthy(ok(deployrt("test", "careful", "--seeds", "20")):find("20 seeds, every invariant holds", 1, true))
    assert.truthy(ok(run { "busted", "spec/careful_spec.lua" }):find("3 successes / 0 failures / 0 errors", 1, true))
    local app = fixture.app { instances = 2, yaml = "strategy: {settle: 50ms}" }
    ok(run { "cp", "-r", dir .. "/strategies", app.dir })
    ok(app:command { "check", "careful", "app.yml" })
    for _, version in ipairs { "1.0", "2.0" } do
      ok(app:deploy("careful", version))
      assert.same({ version, version }, app:serving())
    end
    assert.same({}, app:stop())
    local path = dir .. "/strategies/careful.lua"
    fixture.write(path, (fixture.read(path):gsub("self:each%(batch, ", "self:each(self.fleet:old(), ")))
    local broken = run { "busted", "--filter=starts", "spec/careful_spec.lua" }
    assert.is_true(broken.exit > 0)
    assert.truthy(broken.stdout:find("breaks '[^\n]+'"), broken.stdout)
    assert.truthy(broken.stdout:find('again: sim.play("careful", ', 1, true), broken.stdout)
  end)

  it("does the same where deployrt is installed, also for a script that inherits", function()
    local prefix = fixture.dir()
    local argv = { "env", "-u", "MAKEFLAGS", "-u", "MFLAGS", "-u", "MAKELEVEL", "make", "--no-print-directory", "-o", "build/deployrt",
      "-o", "build/lib/deployrt/core.so", "install", "PREFIX=" .. prefix }
    ok(fixture.run(argv))
    local clean = { "env", "-i", "HOME=" .. dir, "PATH=/usr/bin:/bin" }
    local function installed(...)
      return ok(run(table.move({ ... }, 1, select("#", ...), #clean + 1, { table.unpack(clean) })))
    end
    installed(prefix .. "/bin/deployrt", "new", "strategy", "careful")
    installed(prefix .. "/bin/deployrt", "test", "careful", "--seeds", "5")
    fixture.write(dir .. "/strategies/calm.lua", [[
      local strategy = require "deployrt.strategy"
      return strategy.extend("careful", { name = "calm" })]])
    fixture.write(dir .. "/strategies/slow.lua", [[
      local strategy = require "deployrt.strategy"
      return strategy.extend("rolling", { name = "slow" })]])
    fixture.write(dir .. "/spec/more_spec.lua", [[
      local sim = require "deployrt.sim"
      it("inherits from a script beside it", function() sim.check("calm", { seeds = 2 }) end)
      it("inherits from what is installed", function() sim.check("slow", { seeds = 2 }) end)]])
    assert.truthy(installed("busted"):find("5 successes / 0 failures / 0 errors", 1, true))
    assert.truthy(fixture.read(dir .. "/.busted"):find(prefix .. "/share/deployrt/lua/?.lua", 1, true))
    os.remove(dir .. "/.busted")
    local by_hand = fixture.read(dir .. "/spec/careful_spec.lua"):match("without it: ([^\n]+)%)\n")
    assert.truthy(installed("sh", "-c", by_hand .. " --filter=back"):find("1 success", 1, true))
    local stock = { "LUA_PATH=" .. prefix .. "/share/lua/5.4/?.lua;;", "LUA_CPATH=" .. prefix .. "/lib/lua/5.4/?.so;;" }
    installed("env", stock[1], stock[2], "lua5.4", "-e", "require 'deployrt.sim'.check('slow', {seeds = 2})")
  end)

  it("overwrites nothing", function()
    fixture.write(dir .. "/strategies/careful.lua", "mine")
    local run_ = deployrt("new", "strategy", "careful")
    assert.equal(2, run_.exit)
    assert.truthy(run_.stderr:find("strategies/careful.lua is there already, and nothing was written", 1, true), run_.stderr)
    assert.equal("strategies/careful.lua ", listing())
    os.remove(dir .. "/strategies/careful.lua")
    fixture.write(dir .. "/spec/careful_spec.lua", "mine")
    assert.equal(2, deployrt("new", "strategy", "careful").exit)
    assert.equal("spec/careful_spec.lua ", listing())
    os.remove(dir .. "/spec/careful_spec.lua")
    fixture.write(dir .. "/.busted", "mine")
    fixture.write(dir .. "/.luarc.json", "mine too")
    ok(deployrt("new", "strategy", "careful"))
    assert.same({ "mine", "mine too" }, { fixture.read(dir .. "/.busted"), fixture.read(dir .. "/.luarc.json") })
  end)

  it("refuses names that would not work, and says which do", function()
    for name, why in pairs {
      Careful = "lower-case", ["two words"] = "lower-case", ["a/b"] = "lower-case", ["9th"] = "lower-case", [""] = "lower-case",
      [("x"):rep(41)] = "at most 40", plan = "is a command", ["end"] = "has a meaning", strategy = "has a meaning",
      rolling = 'strategy.extend("rolling"',
    } do
      local refused = deployrt("new", "strategy", name)
      assert.equal(2, refused.exit, name)
      assert.truthy(refused.stderr:find(why, 1, true), refused.stderr)
    end
    assert.equal(2, deployrt("new", "strategy").exit)
    assert.equal(2, deployrt("new", "balancer", "edge").exit)
    assert.equal("", listing())
  end)
end)
