--- Rolling: replace the instances a batch at a time, behind a health gate.
local strategy = require "deployrt.strategy"

---@class deployrt.Rolling: deployrt.Strategy
local rolling = strategy.define {
  name = "rolling", api = 1, may_lack = "batch",
  summary = "Replace instances a batch at a time.",
  options = {
    batch     = { type = "amount",   default = "25%", doc = "instances replaced together" },
    settle    = { type = "duration", default = "5s",  doc = "time a batch must stay healthy" },
    allow_gap = { type = "boolean",  default = false, doc = "accept that nothing serves while all instances are replaced together" },
  },
}

--- Says beforehand when there would be a moment without service.
function rolling:check()
  local batch = self:batches(self.fleet:old(), self.options.batch)()
  local gap = batch and not self.options.allow_gap and self.fleet:gap(batch)
  if gap then self:fail(("nothing would serve meanwhile: %s; add ports to process.ports, or set strategy.allow_gap: true to accept it"):format(gap), "process.ports") end
end

--- Replaces one instance. Override this to change what that means.
---@param old deployrt.Instance
function rolling:replace(old)
  local new = self:successor(old)      -- a free slot on the host, else the same one
  if new.port ~= old.port then
    new:start(); new:await_healthy()
    self.balancer:swap(old, new)       -- drains old
    old:stop()
  else
    self.balancer:drain(old)
    old:stop()
    new:start(); new:await_healthy()
    self.balancer:attach(new)
  end
end

function rolling:deploy()
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

return rolling
