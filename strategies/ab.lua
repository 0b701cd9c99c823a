--- A/B: two releases side by side, for as long as a person wants; `deployrt approve new` or `approve old` ends it.
local strategy = require "deployrt.strategy"

---@class deployrt.AB: deployrt.Strategy
local ab = strategy.define {
  name = "ab", api = 1, groups = true, needs = { "share" },
  summary = "Run two releases side by side until a person says which one stays.",
  options = strategy.with_routing {
    share  = { type = "percent", default = "50%", doc = "share of the new release" },
    sticky = { type = "boolean", default = true, doc = "a visitor stays on the release that he saw first" },
  },
  invariants = {
    ["the release that was chosen stays"] = function(view)
      return not (view.answer == "old" and view.outcome == "succeeded"), "the answer was 'old', and the new release serves"
    end,
  },
}

--- Shares need a balancer. Both sides are complete, so each instance needs a spare slot, or the hosts of another group.
function ab:check()
  if #self.fleet:old() > 0 and not self.balancer:exists() then self:fail("ab splits traffic: app.yml needs a balancer") end
  self.fleet:use_groups()
  local missing, remedy = self.fleet:lacking_slots()
  if missing then self:fail(("ab needs a full second set: %s; %s"):format(missing, remedy), "process.ports") end
end

--- Starts one instance of the new side.
---@param new deployrt.Instance
function ab:prepare(new)
  new:start(); new:await_healthy()
end

function ab:deploy()
  local old, answer = self.fleet:old(), nil
  if #old == 0 then return end
  local new = self.fleet:second_set(old)
  self:step("start the new side", function() self:each(new, self.prepare) end)
  self:step(("%g%% to the new side"):format(self.options.share), function()
    self.balancer:share(self.options.share, new, old, self.options)
    answer = self:approve("which release stays", { "new", "old" })
  end)
  if answer == "old" then return self:withdraw("the old release stays") end
  self:step("the new release stays", function()
    self.balancer:switch(old, new)
    self:each(old, function(_, each) each:stop() end)
  end)
end

return ab
