-- world/simulated.lua -- The real world's operations on simulated hosts and balancers: the very code that deploys, except
-- for what moves real bytes or runs commands of the controller.
local world = require "deployrt.world"

local simulated = {}

local rooms = {
  ["release.upload"] = function(host, args)
    host:call("release_receive", { args.release, args.sha256 }, 3600)
    return { bytes = 0 }
  end,
  ["host.hook"] = function() return { output = "" } end,
  ["host.stop_hook"] = function() return {} end,
  ["metric.read"] = function() return { problem = "only the balancer counts in a simulation" } end,
}

--- A world on a site whose links and drivers are simulated.
---@param context table  as for world.real
---@return deployrt.World
function simulated.new(context)
  local made = world.real(context)
  local perform = made.perform
  function made:perform(spec, id)
    local own = rooms[spec.name]
    if own then return own(spec.host and context.connections[spec.host.name], spec.args) end
    return perform(self, spec, id)
  end
  return made
end

return simulated
