-- layers_spec.lua -- Dependencies point down only, and there is one door to the world.

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

local function files(pattern)
  local pipe <close> = io.popen("ls " .. pattern)
  local found = {}
  for path in pipe:lines() do found[#found + 1] = path end
  assert.is_true(#found > 0, pattern)
  return found
end

local function code(path)
  return (read(path):gsub("%-%-[^\n]*", ""))
end

local function requires(path)
  local found = {}
  for name in code(path):gmatch("%f[%w_]require%s*%(?%s*[\"']([%w_.]+)[\"']") do found[name] = true end
  return found
end

local runtime = files("lua/deployrt/*.lua lua/deployrt/*/*.lua")

local function module_name(path)
  return (path:gsub("^lua/", ""):gsub("%.lua$", ""):gsub("/", "."))
end

local graph = {} -- module -> what it requires at load time or later
for _, path in ipairs(runtime) do graph[module_name(path)] = requires(path) end

--- Modules reached from `name` over `skip`-free edges, itself left out.
local function reached(name, skip)
  local seen, queue = {}, { name }
  while #queue > 0 do
    for other in pairs(graph[table.remove(queue)] or {}) do
      if not seen[other] and not (skip and skip[other]) then
        seen[other] = true
        queue[#queue + 1] = other
      end
    end
  end
  return seen
end

--- Names of a set that match, or do not match, a pattern.
local function matching(set, pattern)
  local found = {}
  for name in pairs(set) do
    if name:match(pattern) then found[#found + 1] = name end
  end
  table.sort(found)
  return table.concat(found, " ")
end

describe("strategies", function()
  it("require the authoring module and nothing else", function()
    for _, path in ipairs(files("strategies/*.lua")) do
      assert.same({ ["deployrt.strategy"] = true }, requires(path), path)
    end
  end)

  it("are short: at most 80 lines", function()
    for _, path in ipairs(files("strategies/*.lua")) do
      assert.is_true(select(2, read(path):gsub("\n", "")) <= 80, path)
    end
  end)

  it("use nothing but the sandbox offers", function()
    for _, path in ipairs(files("strategies/*.lua")) do
      local text = code(path)
      for _, name in ipairs { "os", "io", "debug", "coroutine", "package" } do
        assert.is_nil(text:match("%f[%w_.]" .. name .. "%."), path .. ": " .. name)
      end
      assert.is_nil(text:match("%f[%w_]load[%w]*%s*%("), path)
    end
  end)
end)

describe("the runtime", function()
  it("has no cycles", function()
    for name in pairs(graph) do assert.is_nil(reached(name)[name], name .. " requires itself in the end") end
  end)

  it("requires only modules that exist", function()
    local known = { ["deployrt.core"] = true, cjson = true, ["deployrt.cli."] = true } -- the last: a name is appended
    for name, others in pairs(graph) do
      for other in pairs(others) do
        assert.truthy(known[other] or graph[other] or other:match("^cjson"), name .. " requires " .. other)
      end
    end
  end)

  it("knows its commands only in the command line", function()
    for name, others in pairs(graph) do
      if not name:match("^deployrt%.cli") then assert.equal("", matching(others, "^deployrt%.cli"), name) end
    end
  end)

  it("reaches strategies by name, never by require", function()
    for _, path in ipairs(runtime) do
      for name in pairs(requires(path)) do
        assert.is_nil(io.open("strategies/" .. name .. ".lua"), path)
      end
    end
  end)

  it("never loads types.lua, which documents", function()
    for name, others in pairs(graph) do assert.is_nil(others["deployrt.types"], name) end
  end)

  it("has no globals of its own", function()
    for _, path in ipairs(runtime) do
      local text = code(path)
      for name in text:gmatch("\nfunction ([%l_]+)%(") do
        assert.truthy(text:match("\nlocal " .. name .. "\n"), path .. ": " .. name)
      end
      assert.is_nil(code(path):match("%f[%w_]_G%f[^%w_]%s*[.%[]"), path)
    end
  end)
end)

describe("the door", function()
  -- Verbs: what strategies hold in their hands. They name operations and leave the rest to operation.lua.
  local verbs = { "verbs", "instance", "host", "fleet", "balancer", "rollout", "analysis", "analysis.sources", "analysis.judge", "rollback" }
  -- Functions of the core that only look at time and tasks, or make text.
  local harmless = {
    now = true, time = true, sleep = true, spawn = true, locals = true, quote = true, event = true, confine = true, charge = true,
    sha256 = true, yaml = true, run = true, live_tasks = true, set_traceback = true, whoami = true,
  }

  it("is the only way from a verb to the world", function()
    for _, verb in ipairs(verbs) do
      local others = graph["deployrt." .. verb]
      assert.equal("", matching(others, "^deployrt%.world"), verb)
      assert.equal("", matching(others, "^deployrt%.connection"), verb)
      assert.equal("", matching(others, "^deployrt%.ssh"), verb)
    end
  end)

  it("leaves verbs no primitive that changes something", function()
    for _, verb in ipairs(verbs) do
      for name in code("lua/deployrt/" .. verb:gsub("%.", "/") .. ".lua"):gmatch("core%.([%l_]+)") do
        assert.is_true(harmless[name], ("%s.lua calls core.%s"):format(verb, name))
      end
    end
  end)

  it("does not know what lies behind it", function()
    assert.equal("", matching(reached("deployrt.operation"), "^deployrt%.world"))
    assert.equal("", matching(reached("deployrt.operation"), "^deployrt%.connection"))
  end)

  it("has worlds behind it that do not know who calls", function()
    for name in pairs(graph) do
      if name:match("^deployrt%.world") then
        for _, above in ipairs { "operation", "verbs", "strategy", "run", "session", "rollout", "undo", "cli" } do
          assert.is_nil(reached(name)["deployrt." .. above], name .. " reaches " .. above)
        end
      end
    end
  end)

  it("has balancer drivers behind it that know only themselves", function()
    for name, others in pairs(graph) do
      local is_driver = name:match("^deployrt%.balancer%.") and not name:match("conformance$") -- that one asks drivers as the world does
      if is_driver then
        for other in pairs(others) do
          local below = other:match("^deployrt%.balancer%.") or other == "deployrt.core" or other == "deployrt.errors"
            or other == "deployrt.file" or other == "deployrt.slot_name" or other == "deployrt.suggest" or other == "deployrt.template" or other == "cjson"
            or name == "deployrt.balancer.driver" and other == "deployrt.library" -- a library may bring one
          assert.truthy(below, name .. " requires " .. other)
        end
      end
    end
  end)

  it("is the same for the controller: only these files open links, requests and transfers", function()
    local openers = {}
    for _, path in ipairs(runtime) do
      local text = code(path)
      if not path:match("types%.lua$") and (text:match("core%.connect%f[^%w_]") or text:match("core%.pipe%f[^%w_]")) then
        openers[#openers + 1] = path:match("deployrt/(.*)%.lua$")
      end
    end
    table.sort(openers)
    assert.equal("archive ssh ssh_agent ssh_match world/release", table.concat(openers, " "))
  end)
end)

describe("the C core", function()
  -- The reactor and the transports: plain C that a C test could call.
  local below_lua = {
    "bridge", "http_client", "http_relay", "known_hosts", "local", "loop", "memory", "ssh", "ssh_channel", "ssh_connect",
  }

  it("keeps Lua out of what lies below the boundary", function()
    for _, name in ipairs(below_lua) do
      local text = read("src/" .. name .. ".c")
      assert.is_nil(text:match("lua_%l+%s*%("), name)
      assert.is_nil(text:match("#include <l%l+%.h>\n") and text:match("#include <lua"), name)
    end
  end)

  it("keeps libraries behind one file each", function()
    local homes = {
      ["curl"] = "^http", ["libssh2%.h"] = "^ssh", ["libssh2"] = "^[sk]", ["yaml%.h>"] = "^[yf]",
    }
    for _, path in ipairs(files("src/*.c src/*.h")) do
      local name = path:match("([^/]+)$")
      for library, home in pairs(homes) do
        if read(path):match("#include <[%w/]*" .. library) then
          assert.truthy(name:match(home), name .. " includes " .. library)
        end
      end
    end
  end)

  it("resumes Lua in one place", function()
    local places = {}
    for _, path in ipairs(files("src/*.c")) do
      local text = read(path):gsub("/%*.-%*/", "")
      for _ in text:gmatch("lua_resume%s*%(") do places[#places + 1] = path end
    end
    assert.same({ "src/task.c" }, places)
  end)

  it("quotes for the shell in one function", function()
    for _, path in ipairs(files("src/*.c")) do
      if path ~= "src/memory.c" then assert.is_nil(read(path):find([['\\'']], 1, true), path) end
    end
    for _, path in ipairs(runtime) do
      local other = path:match("haproxy_config") -- quotes words of HAProxy's language
      assert.is_true(other ~= nil or not read(path):find([['\\'']], 1, true), path)
    end
  end)

  it("is required by no strategy and by no example of one", function()
    for _, path in ipairs(files("strategies/*.lua examples/*/*.lua")) do
      assert.is_nil(requires(path)["deployrt.core"], path)
    end
  end)
end)
