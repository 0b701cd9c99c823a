--- In place: replace each instance on its own port, a batch at a time. Needs no spare slot.
local strategy = require "deployrt.strategy"

---@class deployrt.InPlace: deployrt.Strategy
local in_place = strategy.define {
  name = "in_place", api = 1,
  summary = "Stop and start instances on the same ports, a batch at a time.",
  options = {
    batch     = { type = "amount",   default = "50%", doc = "instances replaced together" },
    settle    = { type = "duration", default = "5s",  doc = "time a batch must stay healthy" },
    allow_gap = { type = "boolean",  default = false, doc = "accept that nothing serves while the only instance is replaced" },
  },
}

--- Says beforehand when there would be a moment without service.
function in_place:check()
  local old, only = self.fleet:old(), self.fleet:capacity() == 1
  local gap = only or not self.balancer:exists()
  if #old > 0 and gap and not self.options.allow_gap then
    self:fail(only and "in_place stops the only instance before its successor starts: nothing serves meanwhile; "
        .. "set strategy.allow_gap: true to accept the gap, or use another strategy with a spare slot"
      or "in_place without a balancer leaves clients without service while their instance restarts; "
        .. "set strategy.allow_gap: true to accept the gap")
  end
end

--- Replaces one instance on its own port.
---@param old deployrt.Instance
function in_place:replace(old)
  self.balancer:drain(old)
  old:stop()
  local new = self.fleet:candidate(old.host, old.port)
  new:start(); new:await_healthy()
  self.balancer:attach(new)
end

function in_place:deploy()
  if #self.fleet:old() < self.fleet:capacity() then self:fill() end -- what has died is replaced before anything is stopped
  for batch in self:batches(self.fleet:old(), self.options.batch) do
    self:step(batch.label, function()
      self:each(batch, self.replace)
      self:observe(self.options.settle)
    end)
  end
end

return in_place
