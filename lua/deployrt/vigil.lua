-- vigil.lua -- Instances that must stay healthy while something else is waited for.
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"

---@class deployrt.Vigil
---@field strikes table<deployrt.Instance, integer>  probes that failed in a row
local Vigil = {}
Vigil.__index = Vigil

local vigil = {}

local allowed = 2 -- probes that fail in a row: one alone may be chance

---@return deployrt.Vigil
function vigil.new()
  return setmetatable({ strikes = {} }, Vigil)
end

--- One probe of each, and one look at the balancer, which may have checks of its own.
---@async
---@param instances deployrt.Instance[]
---@return boolean well  false: one of them is in doubt
--- Raises deployrt.Error: "unhealthy".
function Vigil:look(instances)
  local well, down = true, operation.current().balancer:down_among(instances)
  for _, member in ipairs(instances) do
    local healthy, reason = member:is_healthy()
    if healthy and down[member.slot] then healthy, reason = false, down[member.slot] end
    self.strikes[member] = healthy and 0 or (self.strikes[member] or 0) + 1
    well = well and healthy
    if self.strikes[member] >= allowed then
      errors.raise("unhealthy", ("%s: release %s did not stay healthy: %s"):format(member.label, member.release, reason), { host = member.host.name })
    end
  end
  return well
end

return vigil
