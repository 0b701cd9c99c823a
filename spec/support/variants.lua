-- variants.lua -- Deliberately broken variants of each shipped strategy, which the simulator must catch.
-- Each: {parent, what, script = the text of a strategy}.
local variants = {}

--- What several of them do: take instances out of traffic without waiting for the requests that they still have.
local frame = [[
local strategy = require "deployrt.strategy"
local child = strategy.extend("PARENT", { name = "NAME" })
local function cut(self, list)
  local changes = {}
  for i, old in ipairs(list) do changes[i] = { slot = old.slot, state = "maint" } end
  self.balancer:set(changes, "cut")
end
local function rest(list) -- the runtime itself lets nobody take the last
  return table.move(list, 2, #list, 1, {})
end
BODY
return child
]]

local function variant(parent, what, body)
  local words = { PARENT = parent, NAME = ("%s_with_%s"):format(parent, (what:gsub("%W", "_"))), BODY = body }
  variants[#variants + 1] = { parent = parent, what = what, script = (frame:gsub("%u%u%u%u+", words)) }
end

variant("rolling", "no drain", [[
function child:replace(old)
  local new = self:successor(old)
  if new.port == old.port then return self.super.replace(self, old) end
  new:start(); new:await_healthy()
  self.balancer:attach(new)
  cut(self, { old })
  old:stop()
end
]])

variant("rolling", "no health wait", [[
function child:replace(old)
  local new = self:successor(old)
  if new.port == old.port then return self.super.replace(self, old) end
  new:start()
  self.balancer:swap(old, new)
  old:stop()
end
]])

variant("rolling", "the wrong order", [[
function child:replace(old)
  local new = self:successor(old)
  if new.port == old.port then return self.super.replace(self, old) end
  self.balancer:swap(old, new)
  new:start(); new:await_healthy()
  old:stop()
end
]])

variant("rolling", "a forgotten undo", [[
function child:replace(old)
  self.super.replace(self, old)
  self:commit()
end
]])

variant("in_place", "no drain", [[
function child:replace(old)
  cut(self, { old })
  old:stop()
  local new = self.fleet:candidate(old.host, old.port)
  new:start(); new:await_healthy()
  self.balancer:attach(new)
end
]])

variant("in_place", "no health wait", [[
function child:replace(old)
  self.balancer:drain(old)
  old:stop()
  local new = self.fleet:candidate(old.host, old.port)
  new:start()
  self.balancer:attach(new)
end
]])

variant("in_place", "the wrong order", [[
function child:replace(old)
  self.balancer:drain(old)
  old:stop()
  local new = self.fleet:candidate(old.host, old.port)
  self.balancer:attach(new)
  new:start(); new:await_healthy()
end
]])

variant("in_place", "a forgotten undo", [[
function child:replace(old)
  self.super.replace(self, old)
  self:commit()
end
]])

variant("blue_green", "no drain", [[
child.options.keep = { type = "boolean", default = false, doc = "the old set is stopped" }
function child:deploy()
  local old = self.fleet:old()
  local new = self.fleet:second_set(old)
  self:each(new, self.prepare)
  self.balancer:attach(new)
  cut(self, old)
  self:each(old, self.retire)
end
]])

variant("blue_green", "no health wait", [[
function child:prepare(new)
  new:start()
end
]])

variant("blue_green", "the wrong order", [[
function child:deploy()
  local old = self.fleet:old()
  local new = self.fleet:second_set(old)
  self.balancer:drain(rest(old))
  self:each(new, self.prepare)
  self.balancer:switch(old, new)
  self:keep(old)
end
]])

variant("blue_green", "a forgotten undo", [[
function child:prepare(new)
  self.super.prepare(self, new)
  self:commit()
end
]])

variant("canary", "no drain", [[
function child:deploy()
  local places = {}
  for i, old in ipairs(self.fleet:old()) do places[i] = { old = old } end
  self:grow(#places, places)
  local new, old = {}, {}
  for _, place in ipairs(places) do
    new[#new + 1] = place.new
    if not place.gone then old[#old + 1] = place.old end
  end
  self.balancer:attach(new)
  cut(self, old)
  self:each(old, function(_, each) each:stop() end)
end
]])

variant("canary", "no health wait", [[
function child:grow(count, places)
  for i = 1, count do
    local new = places[i].new or self.fleet:candidate(places[i].old.host)
    if not new then return self.super.grow(self, count, places) end
    new:start()
    places[i].new = new
  end
end
]])

variant("canary", "the wrong order", [[
function child:advance(share, places)
  self:grow(1, places)
  local new, old = { places[1].new }, {}
  for i, place in ipairs(places) do
    if not place.gone then old[i] = place.old end
  end
  self.balancer:share(share, new, old) -- one instance gets any share
  self:grow(math.max(1, math.ceil(share / 100 * #places)), places)
end
]])

variant("canary", "a forgotten undo", [[
function child:advance(share, places)
  self.super.advance(self, share, places)
  self:commit()
end
]])

for _, parent in ipairs { "canary", "canary_blue_green" } do
  variant(parent, "no judgement", "function child:analyse() end\n")
  variant(parent, "an ignored verdict", "function child:analyse(opts) pcall(self.super.analyse, self, opts) end\n")
  for _, judging in ipairs {
    { "old beside old", "opts.new = opts.old" }, { "sides that are swapped", "opts.new, opts.old = opts.old, opts.new" },
    { "limits of 100 %", 'opts.gate, opts.errors, opts.latency = "thresholds", 100, 1000' },
  } do variant(parent, judging[1], ("function child:analyse(opts)\n  %s\n  return self.super.analyse(self, opts)\nend\n"):format(judging[2])) end
end

variant("canary_blue_green", "a step without a verdict", [[
function child:take_over(old, new)
  self.balancer:share(1, new, old, self.options)
  self.balancer:switch(old, new)
end
]])

variant("canary_blue_green", "an undo that promotes", [[
function child:take_over(old, new)
  self.balancer:share(1, new, old, self.options)
  self:undo(function() self.balancer:share(100, new, old) end)
  self:analyse { seconds = self.options.hold, new = new, old = old }
  self.balancer:switch(old, new)
end
]])

variant("canary_blue_green", "no drain", [[
child.options.keep = { type = "boolean", default = false, doc = "the old set is stopped" }
function child:take_over(old, new)
  self.balancer:attach(new)
  cut(self, old)
end
]])

variant("canary_blue_green", "the wrong order", [[
function child:take_over(old, new)
  self.balancer:drain(rest(old))
  self.balancer:switch(old, new)
end
]])

variant("ab", "no drain", [[
function child:deploy()
  local old = self.fleet:old()
  local new = self.fleet:second_set(old)
  self:each(new, self.prepare)
  self.balancer:attach(new)
  cut(self, old)
  self:each(old, function(_, each) each:stop() end)
end
]])

variant("ab", "the wrong order", [[
function child:deploy()
  local old = self.fleet:old()
  local new = self.fleet:second_set(old)
  self.balancer:drain(rest(old))
  self:each(new, self.prepare)
  self.balancer:switch(old, new)
  self:each(old, function(_, each) each:stop() end)
end
]])

variant("ab", "an answer that is not heeded", [[
function child:approve(...)
  self.super.approve(self, ...)
  return "new"
end
]])

variant("ab", "a wrong way back", [[
function child:withdraw()
  local old, new = self.fleet:old(), {}
  for _, each in ipairs(self.fleet:instances()) do new[#new + 1] = self.fleet:is_target(each) and each or nil end
  self.balancer:switch(old, new)
  self:each(old, function(_, each) each:stop() end)
end
]])

for _, parent in ipairs { "rolling", "in_place", "blue_green", "canary", "canary_blue_green", "ab" } do
  variant(parent, "uneven weights", [[
function child:deploy()
  local changes = {}
  for i, old in ipairs(self.fleet:old()) do changes[i] = { slot = old.slot, weight = i > 1 and 1 or nil } end
  self.balancer:set(changes, "uneven")
  self.super.deploy(self)
end
]])
end

for _, parent in ipairs { "canary_blue_green", "ab" } do
  variant(parent, "no health wait", "function child:prepare(new) new:start() end\n")
  variant(parent, "a forgotten undo", [[
function child:prepare(new)
  self.super.prepare(self, new)
  self:commit()
end
]])
end

return variants
