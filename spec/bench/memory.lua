-- memory.lua -- A thousand runs of a strategy in one process: what stays behind of each.
local core = require "deployrt.core"
local config = require "deployrt.config"
local run = require "deployrt.run"
local state = require "deployrt.state"
local strategy = require "deployrt.strategy"
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"

local runs, settled = 1000, 200

-- Every effect that a strategy has, without the waits of a service's start: a step, tasks, a command, an undo.
local source = [[
local strategy = require "deployrt.strategy"
local own = strategy.extend("rolling", { name = "own" })
function own:deploy()
  self:step("work", function()
    self:each({ 1, 2, 3 }, function(_, item) self.fleet.hosts[1]:run { "true", tostring(item) } end)
  end)
  self:fail("and back again")
end
return own
]]

--- Resident memory of this process, in MB.
local function resident()
  collectgarbage()
  collectgarbage()
  return tonumber(fixture.read("/proc/self/status"):match("VmRSS:%s*(%d+)")) / 1024
end

local function prepare()
  local app = fixture.app { balancer = false, slots = 2, yaml = "strategy: {settle: 0}" }
  local first = app:deploy("rolling", "1.0")
  if first.exit ~= 0 then error(first.stderr, 0) end
  app:write(fixture.release("2.0"), "2.0")
  fixture.write(app.dir .. "/own.lua", source)
  return app
end

--- One whole run, with its upload, that is rolled back.
local function once(app)
  local ok, exit = core.run(function()
    local loaded = strategy.load(app.dir .. "/own.lua")
    local settings = config.load(app.file, { set = {}, environ = function(name) return name == "HOME" and app.dir .. "/home" or os.getenv(name) end })
    settings.hosts[1].dir = app.dir .. "/home/.deployrt"
    local values = { batch = "25%", settle = 0 }
    return run.execute(settings, { strategy = loaded, values = values, kind = "deploy", state = state.open("shop", app.dir .. "/runs"),
      emit = function() end, leave = function() end })
  end)
  if not ok then error(exit, 0) end
  if exit ~= 1 then error(("a run ended with %s"):format(exit), 0) end
end

local function measure(app)
  local before, seconds
  for i = 1, runs do
    once(app)
    if i % 50 == 0 then os.execute("rm -rf " .. app.dir .. "/runs") end
    if i == settled then before, seconds = resident(), core.now() end
  end
  seconds = (core.now() - seconds) / (runs - settled)
  local after = resident()
  bench.row(("memory after %d runs, above that after %d"):format(runs, settled), after - before, "%.2f MB", "<=", 0.5,
    ("%.1f MB and %.1f MB, after a collection; %.0f ms a run, each with an upload and a rollback"):format(after, before, seconds * 1000))
end

return function()
  bench.with_app(prepare(), measure)
end
