-- types_spec.lua -- types.lua documents what the C core exports: all of it, and nothing else.
local core = require "deployrt.core"

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

--- What the core exports: "core.run", "core.fs.stat", "Task:wait", "core.yaml.null".
local function exported()
  local names = {}
  local function walk(prefix, functions, separator)
    for name, value in pairs(functions) do
      if type(value) == "table" then walk(prefix .. "." .. name, value, ".")
      else names[prefix .. separator .. name] = type(value) end
    end
  end
  walk("core", core, ".")
  for name, metatable in pairs(debug.getregistry()) do
    local class = type(name) == "string" and type(metatable) == "table" and name:match("^deployrt%.(%u%w*)$")
    if class and type(rawget(metatable, "__index")) == "table" then walk(class, metatable.__index, ":") end
  end
  return names
end

--- What types.lua declares, in the same names; and the comment above each.
local function declared()
  local names, comment, fields = {}, {}, nil
  for line in read("lua/deployrt/types.lua"):gmatch("([^\n]*)\n") do
    local name = line:match("^function ([%w_.:]+)%(")
    local class, field = line:match("^%-%-%-@class deployrt%.core%.?(%w*)$"), line:match("^%-%-%-@field ([%w_]+) userdata")
    fields = class or (line:match("^%-%-%-@field") and fields) or nil
    if fields and field then names["core." .. fields .. "." .. field] = { kind = "userdata", comment = line } end
    if name then
      names[name] = {
        kind = "function", comment = table.concat(comment, "\n"), parameters = line:match("%((.*)%)"),
        forwards = line:find(":", 1, true) ~= nil,
      }
    end
    if line:match("^%-%-%-") then comment[#comment + 1] = line else comment = {} end
  end
  return names
end

local function missing(from, other)
  local names = {}
  for name in pairs(from) do
    if not other[name] then names[#names + 1] = name end
  end
  table.sort(names)
  return table.concat(names, " ")
end

describe("types.lua", function()
  it("declares every function and value that the core exports", function()
    assert.equal("", missing(exported(), declared()))
  end)

  it("declares nothing that the core does not export", function()
    assert.equal("", missing(declared(), exported()))
  end)

  it("sees functions, methods and values", function()
    local names = exported()
    for _, name in ipairs { "core.run", "core.fs.stat", "core.http.request", "Link:exec", "Task:wait", "Signals:next" } do
      assert.equal("function", names[name], name)
    end
    assert.equal("userdata", names["core.yaml.null"])
  end)

  it("documents each parameter, in order", function()
    for name, entry in pairs(declared()) do
      local documented = {}
      for parameter in entry.comment:gmatch("%-%-%-@param ([%w_.]+)") do documented[#documented + 1] = parameter end
      if entry.kind == "function" then assert.equal(entry.parameters, table.concat(documented, ", "), name) end
    end
  end)

  it("says of what can fail which codes it answers", function()
    for name, entry in pairs(declared()) do
      for line in entry.comment:gmatch("[^\n]*deployrt%.Error[^\n]*") do
        assert.truthy(line:find('"', 1, true), name .. ": " .. line)
      end
    end
  end)
end)

describe("annotations", function()
  it("use types that are defined somewhere", function()
    local used, defined = {}, {}
    for path in assert(io.popen("find lua strategies -name '*.lua' | sort")):lines() do
      for line in read(path):gmatch("%-%-%-@[^\n]*") do
        local kind, name = line:match("^%-%-%-@(%l+) (deployrt%.[%w_.]+)")
        if kind == "class" or kind == "alias" then defined[name] = true end
        for type_name in line:gmatch("deployrt%.[%l.]*%u%w*") do used[type_name] = path end
      end
    end
    assert.is_true(next(defined) ~= nil)
    assert.equal("", missing(used, defined))
  end)
end)
