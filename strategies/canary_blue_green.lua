--- Canary on a second set: a growing share goes to a complete new set, then all traffic in one switch.
local strategy = require "deployrt.strategy"

local canary = strategy.extend("canary", { name = "canary" })

---@class deployrt.CanaryBlueGreen: deployrt.BlueGreen
local both = strategy.extend("blue_green", {
  name = "canary_blue_green", needs = canary.needs, options = canary.options,
  summary = "Send a growing share to a full second set, then switch; the old set stays up for an instant rollback.",
})

--- Room for a second set, and a balancer that splits traffic.
function both:check()
  self.super.check(self)
  if #self.fleet:old() > 0 and not self.balancer:exists() then self:fail("canary_blue_green splits traffic: app.yml needs a balancer") end
end

--- The new set is complete from the beginning: at no share is anything added to it, or taken from the old one.
function both:grow() end

--- After the last share everything goes over in one change, and back in one.
---@param old deployrt.Instance[]
---@param new deployrt.Instance[]
function both:take_over(old, new)
  local places = {}
  for i = 1, math.max(#old, #new) do places[i] = { old = old[i], new = new[i] } end
  for _, share in ipairs(self.options.steps) do
    if share < 100 then
      self:step(("%g%% of the traffic"):format(share), function() canary.advance(self, share, places) end)
    end
  end
  self.super.take_over(self, old, new)
end

return both
