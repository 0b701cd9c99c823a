--- Canary: a growing share of the traffic goes to the new release, as long as it does no worse than the old one.
local strategy = require "deployrt.strategy"

---@class deployrt.Canary: deployrt.Strategy
local canary = strategy.define {
  name = "canary", api = 1, needs = { "share" },
  summary = "Send a growing share of traffic to the new release, as long as it does no worse than the old one.",
  options = strategy.with_routing(strategy.with_analysis {
    steps = { type = "list", of = "percent", least = 1, rising = true, default = { "1%", "5%", "25%", "50%", "100%" }, doc = "shares of the new release" },
    hold  = { type = "duration", default = "10s", doc = "longest time at each share; evidence that suffices ends it" },
  }),
}

--- Exact shares need a balancer, and full capacity needs room beside the old instances.
function canary:check()
  if #self.fleet:old() > 0 and not self.balancer:exists() then self:fail("canary splits traffic: app.yml needs a balancer") end
  local full = self.fleet:full_host()
  if full then self:fail(("canary needs a spare slot on %s: add a port to process.ports, or use in_place"):format(full), "process.ports") end
end

--- Both sides: what is healthy serves, and what is gone or about to leave carries nothing.
local function sides(places)
  local new, old = {}, {}
  for _, place in ipairs(places) do
    new[#new + 1], old[#old + 1] = place.new, not place.gone and place.old or nil
  end
  return new, old
end

--- Takes an old instance away where a host is full. Each side carries what it did, or what the other one cannot any more.
function canary:make_room(place, places)
  place.gone = true
  local new, old = sides(places)
  self.balancer:share(math.max(self.split or 0, 100 - 100 * #old / #places), new, old, self.options, { place.old })
  self.balancer:drain(place.old); place.old:stop()
end

--- Starts new instances until there are so many: together where hosts have room, then one by one where an old one must leave.
---@param places {old: deployrt.Instance, new: deployrt.Instance, gone: boolean}[]
function canary:grow(count, places)
  local function start(place, port)
    place.new = self.fleet:candidate(place.old.host, port)
    if place.new then place.new:start(); place.new:await_healthy() end
  end
  local missing = {}
  for i = 1, count do missing[#missing + 1] = not places[i].new and places[i] or nil end
  self:each(missing, function(_, place) start(place) end)
  for _, place in ipairs(missing) do
    if not place.new then self:make_room(place, places); start(place, place.old.port) end
  end
end

--- Lets the new side carry a share, and compares. However many steps there are, a release no worse fails with a chance of alpha.
function canary:advance(share, places)
  self:grow(math.max(1, math.ceil(share / 100 * #places)), places)
  local new, old = sides(places)
  self.balancer:share(share, new, old, self.options); self.split = share
  self:analyse { seconds = self.options.hold, new = new, old = old, alpha = self.options.alpha / #self.options.steps }
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
  self:grow(#places, places)
  local new, old = sides(places)
  self.balancer:switch(old, new)
  self:each(old, function(_, each) each:stop() end)
end

return canary
