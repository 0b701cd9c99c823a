--- In place: replace each instance on its own port, a batch at a time. Needs no spare slot.
local strategy = require "deployrt.strategy"

---@class deployrt.InPlace: deployrt.Strategy
local in_place = strategy.define {
  name = "in_place", api = 1, may_lack = "batch",
  summary = "Stop and start instances on the same ports, a batch at a time.",
  options = {
    batch     = { type = "amount",   default = "50%", doc = "instances replaced together" },
    settle    = { type = "duration", default = "5s",  doc = "time a batch must stay healthy" },
    allow_gap = { type = "boolean",  default = false, doc = "accept that nothing serves while the only instance is replaced" },
  },
}

--- Says beforehand when there would be a moment without service.
function in_place:check()
  local batch = self:batches(self.fleet:old(), self.options.batch)()
  if not batch or self.options.allow_gap then return end
  local gap = not self.balancer:exists() and "without a balancer clients have no service while their instance restarts"
    or self.fleet:gap(batch, true)
  if gap then
    self:fail(("nothing would serve meanwhile: %s; set strategy.allow_gap: true to accept the gap, or use another strategy with a spare slot"):format(gap), "process.ports")
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
  local old = self.fleet:old()
  local first = self:batches(old, self.options.batch)()
  if first and #first == #old then self:fill(true) end -- what has died is replaced before the last is stopped
  for batch in self:batches(old, self.options.batch) do
    self:step(batch.label, function()
      self:each(batch, self.replace)
      self:observe(self.options.settle)
    end)
  end
end

return in_place
