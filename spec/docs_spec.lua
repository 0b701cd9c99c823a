-- docs_spec.lua -- What the documents say is what the program does: their examples run, their tables are complete.
-- weight: 3
local fixture = require "spec.support.fixture"

local documents = { "README.md", "lua/README.md", "strategies/README.md", "examples/README.md" }

--- The blocks of a document in a language.
local function blocks(document, language)
  local list = {}
  for text in fixture.read(document):gmatch("\n```" .. language .. "\n(.-)\n```") do list[#list + 1] = text end
  return list
end

local function each_block(language, fn)
  for _, document in ipairs(documents) do
    for i, text in ipairs(blocks(document, language)) do fn(text, ("%s, %s block %d"):format(document, language, i)) end
  end
end

--- Whether a block of Lua is a spec, and no strategy.
local function is_spec(text)
  return text:find('require "deployrt.sim"', 1, true) ~= nil
end

--- The guide's blocks of Lua of one kind.
local function guide_blocks(specs)
  local list = {}
  for _, text in ipairs(blocks("strategies/README.md", "lua")) do
    if is_spec(text) == specs then list[#list + 1] = text end
  end
  return list
end

describe("the documents", function()
  after_each(function() fixture.cleanup() end)

  it("show configurations that are right", function()
    local count = 0
    each_block("yaml", function(text, where)
      local dir = fixture.dir()
      fixture.write(dir .. "/app.yml", text .. "\n")
      fixture.write(dir .. "/build/server", "")
      local run = fixture.run({ fixture.deployrt(), "check", "app.yml" }, { cwd = dir, env = { HOME = dir } })
      assert.equal(0, run.exit, where .. ": " .. run.stderr)
      count = count + 1
    end)
    assert.is_true(count >= 1)
  end)

  it("show strategies that deploy", function()
    local app = fixture.app { instances = 2, yaml = "strategy: {settle: 50ms}" }
    assert.equal(0, app:deploy("rolling", "1").exit)
    app.opts.yaml = ""
    local shown = guide_blocks(false)
    assert.is_true(#shown >= 4)
    for i, text in ipairs(shown) do
      fixture.write(app.dir .. "/strategies/shown.lua", text .. "\n")
      local extended = text:find('extend("rolling"', 1, true)
      local run = app:deploy("shown", tostring(i + 1), nil, extended and { "--set", "strategy.settle=50ms" } or {})
      assert.equal(0, run.exit, ("block %d: %s%s"):format(i, run.stdout, run.stderr))
      assert.same({ tostring(i + 1), tostring(i + 1) }, app:serving())
    end
    app:stop()
  end)

  it("show specs that pass", function()
    local dir = fixture.dir()
    local function run(...)
      local result = fixture.run({ ... }, { cwd = dir, env = { HOME = dir, TERM = "dumb" } })
      assert.equal(0, result.exit, result.stdout .. result.stderr)
    end
    run(fixture.deployrt(), "new", "strategy", "begun") -- writes .busted
    for _, text in ipairs(guide_blocks(false)) do
      fixture.write(("%s/strategies/%s.lua"):format(dir, text:match('name = "([%w_]+)"')), text .. "\n")
    end
    local shown = guide_blocks(true)
    assert.equal(1, #shown)
    run("busted", fixture.write(dir .. "/spec/shown_spec.lua", shown[1] .. "\n"))
  end)

  it("show a program for plain Lua that runs", function()
    local shown = blocks("lua/README.md", "lua")
    assert.equal(1, #shown)
    local cpath = package.cpath:match("([^;]*lib/%?%.so)")
    local text = shown[1]:gsub('"build/lib/%?%.so;"', ("%q"):format(cpath .. ";"))
    local run = fixture.run { "lua5.4", fixture.write(fixture.dir() .. "/shown.lua", text) }
    assert.equal("0\tLinux\n", (run.stdout:gsub("\n+", "\n")), run.stderr)
  end)

  it("name commands and options that exist", function()
    local help = fixture.run({ fixture.deployrt(), "help" }).stdout
    each_block("sh", function(text, where)
      for line in text:gmatch("[^\n]+") do
        line = line:gsub("%s+#.*", "")
        local first = line:match("^deployrt (%S+)")
        if first and not first:find("%.lua$") then
          local known = help:find("deployrt " .. first, 1, true) or fixture.run({ fixture.deployrt(), "help", first }).exit == 0
          assert.truthy(known, where .. ": " .. line)
        end
        for flag in line:gmatch(" (%-%-[%w-]+)") do
          assert.truthy(not first or help:find(flag, 1, true), where .. ": " .. line)
        end
        local target = line:match("^make (%l+)")
        assert.truthy(not target or fixture.run({ "make", "-n", target }).exit == 0, where .. ": " .. line)
      end
    end)
  end)

  it("link to files that are there", function()
    for _, document in ipairs(documents) do
      local folder = document:match("^(.*/)") or ""
      for target in fixture.read(document):gmatch("%]%(([^)#]+)%)") do
        if not target:find("^%l+:") then assert.truthy(os.execute("test -e " .. fixture.quote(folder .. target)), document .. ": " .. target) end
      end
    end
  end)
end)

describe("the API reference", function()
  local text = fixture.read("lua/README.md")
  local modules = {
    { "self", "verbs", "verbs" }, { "instance", "instance", "Instance" }, { "host", "host", "Host" },
    { "balancer", "balancer", "Balancer" }, { "fleet", "fleet", "Fleet" },
  }
  local internal = { -- what the runtime itself calls on these objects
    fleet = { add = true, elsewhere = true, exchange = true, check_ports = true, discover_hosts = true, renew = true, forgotten = true, is_idle = true, forget = true, release_slots = true },
    balancer = { settle = true, has_left = true, look = true, down_among = true }, instance = {}, host = {}, self = {},
  }

  for _, module in ipairs(modules) do
    local object, file, class = table.unpack(module)

    it("has all verbs of " .. object .. ", and no others", function()
      local defined = {}
      for name in fixture.read("lua/deployrt/" .. file .. ".lua"):gmatch("\nfunction " .. class .. ":([%w_]+)%(") do defined[name] = true end
      for name in fixture.read("lua/deployrt/" .. file .. ".lua"):gmatch("\n" .. class .. "%.(%l[%w_]*) = " .. class) do defined[name] = true end
      local documented = {}
      for name in text:gmatch("`" .. object .. ":([%w_]+)%(") do documented[name] = true end
      for name in pairs(defined) do assert.truthy(documented[name] or internal[object][name], "not documented: " .. name) end
      for name in pairs(documented) do assert.truthy(defined[name], "documented, but not there: " .. name) end
      assert.truthy(next(documented))
    end)
  end

  it("has all fields that a script sees", function()
    local count = 0
    for kind, fields in fixture.read("lua/deployrt/membrane.lua"):gmatch('\n  (%l+) = { fields = set "([^"]*)"') do
      local section = text:match("\nFields: ([^\n]*\n[^\n]*)", text:find(kind == "instance" and "## Instances" or "## Hosts", 1, true))
      for field in fields:gmatch("%S+") do
        local known = text:find(("`%s.%s`"):format(kind, field), 1, true) or (kind == "instance" or kind == "host") and section:find("`" .. field .. "`", 1, true)
        assert.truthy(known, kind .. "." .. field)
        count = count + 1
      end
    end
    assert.equal(12, count)
  end)

  it("the guide describes each shipped strategy", function()
    local guide = fixture.read("strategies/README.md")
    local listing = fixture.sh("ls strategies/*.lua")
    for name in listing:gmatch("strategies/([%w_]+)%.lua") do assert.truthy(guide:find(("[%s](%s.lua)"):format(name, name), 1, true), name) end
  end)
end)
