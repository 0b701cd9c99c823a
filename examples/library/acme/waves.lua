--- Waves: one instance first, then two, four, eight, up to a batch: what is wrong shows while little is new.
local strategy = require "deployrt.strategy"
local growth = require "acme.growth"

local waves = strategy.extend("rolling", {
  name = "waves",
  summary = "Rolling, in waves that grow.",
  options = {
    batch  = { type = "amount", default = "25%", doc = "instances of the largest wave" },
    factor = { type = "integer", min = 1, default = 2, doc = "how many times as many the next wave replaces" },
  },
})

function waves:deploy()
  local old = self.fleet:old()
  local most = growth.resolve(self.options.batch, #old)
  for number, wave in ipairs(growth.waves(old, self.options.factor, most)) do
    self:step(("wave %d: %d"):format(number, #wave), function()
      self:each(wave, self.replace)
      self:observe(self.options.settle)
    end)
  end
end

return waves
