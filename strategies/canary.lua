--- Canary: a growing share of the traffic goes to the new release, as long as it does no worse than the old one.
local strategy = require "deployrt.strategy"

---@class deployrt.Canary: deployrt.Strategy
local canary = strategy.define {
  name = "canary", api = 1,
  summary = "Send a growing share of traffic to the new release, behind a gate on errors and latency.",
  options = {
    steps   = { type = "list", of = "percent", default = { "1%", "5%", "25%", "50%", "100%" }, doc = "shares of the new release" },
    hold    = { type = "duration", default = "10s", doc = "time at each share" },
    errors  = { type = "number", default = 1, doc = "failed requests allowed above the old release, in percentage points" },
    latency = { type = "number", default = 2, doc = "how many times as slow as the old release it may be" },
    minimum = { type = "integer", default = 20, doc = "requests below which a share is not judged" },
  },
}

--- Exact shares need a balancer, and full capacity needs room beside the old instances.
function canary:check()
  local old = self.fleet:old()
  if #old == 0 then return end
  if not self.balancer:exists() then self:fail("canary splits traffic: app.yml needs a balancer") end
  for _, member in ipairs(old) do
    if not self.fleet:free_port(member.host) and #self.fleet:idle() == 0 then
      self:fail(("canary needs a spare slot on %s: add a port to process.ports, or use in_place"):format(member.host.name))
    end
  end
end

--- Starts one new instance. When the host is full, an old one makes room: `serving` new ones carry its share by then.
---@param place {old: deployrt.Instance}
function canary:add(place)
  local new = self.fleet:candidate(place.old.host)
  if not new then
    self.balancer:drain(place.old)
    place.old:stop()
    place.gone = true
    new = self.fleet:candidate(place.old.host, place.old.port)
  end
  new:start(); new:await_healthy()
  place.new = new
end

--- Lets the new side grow until it can carry its share, then splits the traffic and watches both sides.
---@param share number  percent
---@param places {old: deployrt.Instance, new: deployrt.Instance, gone: boolean}[]
function canary:advance(share, places)
  local wanted, new, old = math.max(1, math.ceil(share / 100 * #places)), {}, {}
  for i, place in ipairs(places) do
    if i <= wanted and not place.new then self:add(place) end
    if place.new then new[#new + 1] = place.new end
    if not place.gone then old[#old + 1] = place.old end
  end
  self.balancer:share(share, new, old)
  self:analyse { seconds = self.options.hold, new = new, old = old, errors = self.options.errors,
    latency = self.options.latency, minimum = self.options.minimum }
end

function canary:deploy()
  local places = {}
  for i, old in ipairs(self.fleet:old()) do places[i] = { old = old } end
  if #places == 0 then return end
  for _, share in ipairs(self.options.steps) do
    self:step(("%g%% of the traffic"):format(share), function() self:advance(share, places) end)
  end
  self:step("replace the rest", function() self:replace_rest(places) end)
end

--- Brings the new side to full strength, gives it all traffic at normal weights, and stops the old side.
function canary:replace_rest(places)
  local new, old = {}, {}
  for _, place in ipairs(places) do
    if not place.new then self:add(place) end
    new[#new + 1] = place.new
    if not place.gone then old[#old + 1] = place.old end
  end
  self.balancer:switch(old, new)
  self:each(old, function(_, each) each:stop() end)
end

return canary
