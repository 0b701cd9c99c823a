-- world.lua -- The real world: each operation of the runtime as a function on hosts and balancers.
-- Another world (recorded, pretended) answers the same names with the same shapes.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local world = {}

---@class deployrt.World
---@field context table  app, secrets, balancers, run id: what operations need besides their arguments
local Real = {}
Real.__index = Real

local rooms = {
  instance = require "deployrt.world.instance",
  release = require "deployrt.world.release",
  balancer = require "deployrt.world.balancer",
  host = require "deployrt.world.host",
  stranger = require "deployrt.world.stranger",
  metric = require "deployrt.world.metric",
}

---@param context table
---@return deployrt.World
function world.real(context)
  return setmetatable({ context = context }, Real)
end

--- Seconds that go on.
---@return number
function Real:now()
  return core.now()
end

--- Seconds since the epoch, by which a later life of the run goes too.
---@return number
function Real:wall()
  return core.time()
end

--- Lets time pass: so many seconds, or less when the event is set meanwhile.
---@async
---@param seconds number
---@param event? table
function Real:rest(seconds, event)
  if event then event:wait(math.min(seconds, 0.25)) else core.sleep(seconds) end
end

--- What a room has for an operation, besides doing it.
---@param aspect "remember"|"remainder"
local function aside(spec, aspect)
  local room, name = spec.name:match("^(%w+)%.([%w_]+)$")
  local all = room and rooms[room][aspect]
  return all and all[name]
end

--- What this world remembers of an operation that was done in an earlier life of the run.
---@param spec deployrt.Operation
function Real:recall(spec)
  local remember = aside(spec, "remember")
  if remember then remember(self.context, spec.args) end
end

--- What of an operation is still to be done when it is tried again, after others of its kind.
---@param spec deployrt.Operation
---@param is_overtaken fun(concerns: fun(args: table): boolean): boolean  by a later one that concerns the same thing
---@return table? args  nil: nothing
function Real:remainder(spec, is_overtaken)
  local remainder = aside(spec, "remainder")
  if not remainder then return spec.args end
  return remainder(spec.args, is_overtaken)
end

local enders = { ["host.run"] = "host.stop", ["host.hook"] = "host.stop_hook" }

--- Gives up an operation that may be under way: what is undone next must not be overtaken by it.
---@async
---@param spec deployrt.Operation
---@param id string
function Real:forsake(spec, id)
  local ender = enders[spec.name]
  if ender then self:perform({ name = ender, host = spec.host, args = spec.args }, id) end
end

--- Performs one operation and returns its result, plain data.
---@async
---@param spec deployrt.Operation
---@param id string  of the operation; with the run's id it is the key of its markers
function Real:perform(spec, id)
  local room, name = spec.name:match("^(%w+)%.([%w_]+)$")
  local act = room and rooms[room] and rooms[room][name]
  if not act then errors.raise("internal", "no such operation: " .. spec.name) end
  return act(self.context, spec.host and self.context.connections[spec.host.name], spec.args, self.context.run_id .. id:gsub("[/#]", "-"), id)
end

return world
