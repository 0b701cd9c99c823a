--- NAME: replaces the instances a batch at a time. Change this into what your service needs.
--- It says only what happens when all goes well. The runtime takes everything back when something fails, carries on with
--- a run whose controller died, shows beforehand what would be done, and tests it on simulated fleets.
--- To change no more than a part of a shipped strategy: strategy.extend("rolling", { name = "NAME" }), and that method.
local strategy = require "deployrt.strategy"

---@class deployrt.NAME: deployrt.Strategy
local NAME = strategy.define {
  name = "NAME", api = 1, may_lack = "batch", -- so many instances may be missing meanwhile
  summary = "Replace instances a batch at a time.",
  options = { -- below `strategy:` in app.yml, or `--set strategy.batch=2`
    batch  = { type = "amount",   default = 1,    doc = "instances replaced together: a number, or a share such as 25%" },
    settle = { type = "duration", default = "5s", doc = "time a batch must stay healthy" },
  },
}

--- Runs before anything is touched: the place to refuse what cannot work.
function NAME:check()
  if #self.fleet:old() > 0 and not self.balancer:exists() then self:fail "NAME moves traffic: app.yml needs a balancer" end
end

--- Replaces one instance. Each verb knows how to take back what it did.
---@param old deployrt.Instance
function NAME:replace(old)
  local new = self:successor(old)      -- a free slot on its host, else the same one
  if new.port ~= old.port then
    new:start(); new:await_healthy()
    self.balancer:swap(old, new)       -- returns once old has answered what it had begun
    old:stop()
  else
    self.balancer:drain(old)
    old:stop()
    new:start(); new:await_healthy()
    self.balancer:attach(new)
  end
end

--- The whole deployment: what serves is replaced. The runtime starts what is missing, and stops what is left over.
function NAME:deploy()
  for batch in self:batches(self.fleet:old(), self.options.batch) do
    self:step(batch.label, function()
      self:each(batch, self.replace)   -- side by side
      self:observe(self.options.settle)
    end)
  end
end

return NAME
