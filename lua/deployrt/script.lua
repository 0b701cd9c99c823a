-- script.lua -- A strategy at work in a run: its `self`, and its functions called under the limits of the sandbox.
local core = require "deployrt.core"
local membrane = require "deployrt.membrane"
local sandbox = require "deployrt.sandbox"
local verbs = require "deployrt.verbs"

local script = {}

local hidden = { files = true, settings = true, place = true, process = true, groups = true, site = true } -- none of app.yml's keys

--- app.yml as a script may see it: of secrets only the names.
local function visible(app)
  local copy = {}
  for key, value in pairs(app) do
    if not hidden[key] then copy[key] = membrane.export(value) end
  end
  copy.process = {}
  for key, value in pairs(app.process or {}) do copy.process[key] = membrane.export(value) end
  for name in pairs(copy.process.secrets or {}) do copy.process.secrets[name] = "(secret)" end
  return copy
end

--- What the runtime itself calls verbs on: the real fleet and balancer, and no method of a script.
---@param run table
---@param values table  the strategy's options
---@return deployrt.Strategy
function script.trusted(run, values)
  return setmetatable({
    app = run.app, release = { version = run.target.release, sha256 = run.target.sha256 }, options = values,
    fleet = run.fleet, balancer = run.balancer,
  }, { __index = verbs })
end

--- The `self` of a script's methods.
local function new_self(run, strategy, values)
  return setmetatable({
    app = visible(run.app), release = { version = run.target.release, sha256 = run.target.sha256 }, options = membrane.export(values),
    fleet = membrane.export(run.fleet), balancer = membrane.export(run.balancer),
  }, { __index = strategy.body, __metatable = "deployrt.Strategy" })
end

--- Calls a method of the run's strategy; one of the runtime's own needs no sandbox.
---@async
---@param run table
---@param name "check"|"deploy"
function script.call(run, name)
  local strategy = run.strategy
  local method = strategy[name]
  if not method then return end
  if not strategy.body then
    local own = {}
    for key, value in pairs(run.script) do own[key] = value end
    return method(setmetatable(own, { __index = strategy }))
  end
  run.script_self = run.script_self or new_self(run, strategy, run.script.options)
  return sandbox.call(function()
    core.locals().grant = strategy.grant
    return method(run.script_self)
  end)
end

return script
