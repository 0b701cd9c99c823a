--- Blue-green: a full second set without traffic, then one switch.
local strategy = require "deployrt.strategy"

---@class deployrt.BlueGreen: deployrt.Strategy
local blue_green = strategy.define {
  name = "blue_green", api = 1, groups = true,
  summary = "Start a full second set, check it, and switch all traffic at once.",
  options = {
    overlap = { type = "duration", default = "0s", doc = "time in which both sets serve" },
    settle  = { type = "duration", default = "5s", doc = "time the new set must stay healthy with traffic" },
    keep    = { type = "boolean",  default = true, doc = "keep the old set up, idle, so that rollback is one switch" },
  },
}

--- A second set needs a free slot for each instance, or hosts of another group.
function blue_green:check()
  self.fleet:use_groups()
  local missing, remedy = self.fleet:lacking_slots()
  if missing then
    self:fail(("%s needs a full second set: %s; %s"):format(self.name, missing, remedy), "process.ports")
  end
end

--- Starts one instance of the second set.
---@param new deployrt.Instance
function blue_green:prepare(new)
  new:start(); new:await_healthy()
end

--- Gives the new set all traffic at once.
---@param old deployrt.Instance[]
---@param new deployrt.Instance[]
function blue_green:take_over(old, new)
  self:step("switch", function()
    self.balancer:switch(old, new, self.options.overlap)
    self:observe(self.options.settle, new)
  end)
end

function blue_green:deploy()
  local old = self.fleet:old()
  if #old == 0 then return end
  local new = self.fleet:second_set(old)
  self:step("start the second set", function()
    self:each(new, self.prepare)
    self:hook("before_traffic")
  end)
  self:take_over(old, new)
  if self.options.keep and self.balancer:exists() then
    self:keep(old)
  else
    self:step("stop the old set", function() self:each(old, self.retire) end)
  end
end

--- Stops one instance of the old set.
---@param old deployrt.Instance
function blue_green:retire(old)
  old:stop()
end

return blue_green
