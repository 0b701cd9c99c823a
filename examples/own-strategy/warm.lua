--- Warm: rolling, but each new instance answers some requests of ours before it gets those of others.
local strategy = require "deployrt.strategy"

local warm = strategy.extend("rolling", {
  name = "warm",
  summary = "Rolling; new instances are warmed up before they serve.",
  options = {
    requests = { type = "integer", default = 50, doc = "requests that warm up an instance" },
  },
})

--- Asks the instance from its own host, where its port can always be reached.
local function warm_up(self, instance)
  local url = ("http://127.0.0.1:%d/"):format(instance.port)
  instance.host:run({ "curl", "-sSf", "-o", "/dev/null", ("%s?[1-%d]"):format(url, self.options.requests) }, { timeout = 30 })
  self:log(("%s is warm"):format(instance.label))
end

--- The parent's way for an instance, with a warm-up between health and traffic.
function warm:replace(old)
  local new = self:successor(old)
  if new.port == old.port then return self.super.replace(self, old) end
  new:start(); new:await_healthy()
  warm_up(self, new)
  self.balancer:swap(old, new)
  old:stop()
end

return warm
