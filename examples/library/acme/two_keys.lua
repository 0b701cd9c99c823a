--- Two keys: blue-green, but a second person turns the traffic over, once the new set is up.
local strategy = require "deployrt.strategy"

local two_keys = strategy.extend("blue_green", {
  name = "two_keys",
  summary = "Blue-green; somebody approves the switch.",
})

function two_keys:take_over(old, new)
  self:approve(("release %s is up without traffic. Switch?"):format(self.release.version))
  self.super.take_over(self, old, new)
end

return two_keys
