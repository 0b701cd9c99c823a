-- rollout.lua -- What the runtime does around a strategy: uploads, fills what is missing, retires what is surplus.
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local launch = require "deployrt.launch"
local operation = require "deployrt.operation"
local slot_name = require "deployrt.slot_name"
local verbs = require "deployrt.verbs"

local rollout = {}

--- What the balancer forgot gets its traffic back before anything else, and keeps it however the run ends.
---@async
function rollout.revive(self, run)
  local well, changes = {}, {}
  for _, member in ipairs(run.forgotten) do
    if member:is_healthy() then
      well[#well + 1] = member
      changes[#changes + 1] = { slot = member.slot, state = "ready", weight = self.balancer.weights.full }
    end
  end
  if #well == 0 then return end
  verbs.step(self, "back into service", function()
    self.balancer:set(changes, ("release %s, which the balancer had forgotten"):format(well[1].release), true)
    for _, member in ipairs(well) do member.state = "serving" end
  end)
end

--- What app.yml does not name any more loses its traffic, and gets it back if the run fails: at once, where it is down, serves by
--- another address, or as many others serve as are to; else when those do that come in its place.
---@async
---@param last? boolean  whoever serves by now
function rollout.leave(self, last)
  local left, serving = {}, 0
  for name, slot in pairs(self.balancer.slots) do
    if not slot.left and slot.up ~= false and self.balancer:is_serving { slot = name } then serving = serving + 1 end
  end
  local at_once = last or serving >= self.fleet:capacity()
  for name, slot in pairs(self.balancer.slots) do
    local successor = slot_name.successor(name)
    local is_replaced = slot.up == false or successor and self.balancer:is_serving { slot = successor }
    local leaves = slot.left and slot.state == "ready" and (at_once or is_replaced)
    if leaves then left[#left + 1] = { slot = name, label = name } end
  end
  if #left == 0 then return end
  table.sort(left, function(a, b) return a.slot < b.slot end)
  verbs.step(self, "leave", function() self.balancer:detach(left) end)
end

--- Brings the release to every host that does not have it; undone by removing it again. A strategy that may do without some
--- hosts says so with its option `tolerate`: those that are lost here are lost to all that follows.
---@async
function rollout.upload(self, run)
  if not run.has_archive then return end
  local missing = {}
  for _, host in ipairs(self.fleet.hosts) do
    local has = run.releases[host.name][run.target.release]
    if not has then missing[#missing + 1] = host end
  end
  if #missing == 0 then return end
  verbs.step(self, "upload", function()
    verbs.each(self, missing, function(_, host)
      local args = { release = run.target.release, sha256 = run.target.sha256 }
      operation.effect { name = "release.upload", host = host, args = args, undo = { name = "release.remove", args = args } }
    end, { tolerate = self.options.tolerate })
  end)
end

--- Slots that the balancer would use although nothing runs there: a process started there must not get traffic yet.
local function close_dead_slots(self)
  local changes, running = {}, {}
  for _, member in ipairs(self.fleet.members) do running[member.slot] = true end
  for _, host in ipairs(self.fleet.hosts) do
    for _, port in ipairs(self.fleet.process.ports) do
      local name = slot_name.of(host.name, port)
      local slot = self.balancer.slots[name]
      if slot and slot.state ~= "maint" and not running[name] then changes[#changes + 1] = { slot = name, state = "maint" } end
    end
  end
  self.balancer:set(changes, "slots without a process")
end

--- What an earlier run left without traffic makes room, unless it is what is wanted now, and healthy. A host that was given up
--- is left as it is.
local function clear_idle(self)
  local idle = {}
  for _, member in ipairs(self.fleet:idle()) do
    local wanted = self.fleet.given_up[member.host.name] or self.fleet:is_target(member) and member:is_healthy()
    if not wanted then idle[#idle + 1] = member end
  end
  if #idle == 0 then return end
  verbs.step(self, "make room", function()
    self.balancer:detach(idle)
    verbs.each(self, idle, function(_, member)
      member.was_healthy = false
      member:stop()
    end)
  end)
end

--- Before the strategy: dead slots closed, old idle instances gone.
---@async
function rollout.prepare(self)
  close_dead_slots(self)
  clear_idle(self)
end

--- What serves since before the run carries as much as all others, where a run that never ended had given it another weight.
---@async
function rollout.level(self)
  local changes = {}
  for _, member in ipairs(self.fleet.members) do
    local slot, odd = self.balancer.slots[member.slot], self.balancer.weights.odd[member.slot]
    local is_left_so = odd and slot and slot.state == "ready" and slot.weight == odd and self.fleet:is_target(member) and not self.fleet.given_up[member.host.name]
    if is_left_so then changes[#changes + 1] = { slot = member.slot, state = "ready", weight = self.balancer.weights.full } end
  end
  self.balancer:set(changes, "the weight of all others")
end

--- What had crashed before the run is not shown any more, once others serve in its place.
local function forget_crashed(self)
  local crashed = {}
  for _, member in ipairs(self.fleet.exited) do
    local slot = self.balancer.slots[member.slot]
    local open = slot and slot.state == "ready"
    if not (open or self.fleet.given_up[member.host.name] or self.fleet:at(member.host, member.port)) then crashed[#crashed + 1] = member end
  end
  verbs.each(self, crashed, function(_, member) member:stop() end)
end

--- Takes away what is no longer wanted: old instances that were not kept, and new ones above the number wanted.
---@async
function rollout.retire(self)
  forget_crashed(self)
  local surplus, count = {}, {}
  local active = {}
  for _, host in ipairs(self.fleet:active_hosts()) do active[host.name] = true end
  for _, member in ipairs(self.fleet:instances()) do
    local name = member.host.name
    if self.fleet.given_up[name] then
      count[name] = nil -- it is left as it is
    elseif self.fleet:is_target(member) and member.state == "serving" and active[name] then
      count[name] = (count[name] or 0) + 1
      if count[name] > self.fleet.process.instances then surplus[#surplus + 1] = member end
    elseif not (member.kept or member.postponed) and (self.fleet:is_target(member) or member.state ~= "down") then
      surplus[#surplus + 1] = member
    end
  end
  if #surplus == 0 then return end
  verbs.step(self, "retire", function()
    self.balancer:detach(surplus)
    verbs.each(self, surplus, function(_, member)
      member:stop()
    end)
  end)
end

--- Points `current` to the release on every host.
---@async
function rollout.activate(self, run)
  if not run.target.packed then return end
  fleet.together(self.fleet:kept_hosts(), function(host)
    if host.current == run.target.release then return end
    operation.effect {
      name = "release.activate", host = host, args = { release = run.target.release }, find = "release.current",
      undo = function(found) return { name = "release.activate", args = { release = found.release or nil } } end,
    }
  end)
end

--- Why a balancer that checked health as the new release says might take traffic from something that serves; nil: all of it
--- passes.
local function doubt(run)
  local looked, serving, settings = {}, {}, launch.health(run.app, run.target)
  for _, member in ipairs(run.fleet:instances()) do
    local asked = not run.fleet.given_up[member.host.name] and run.balancer:is_serving(member)
    if asked then serving[#serving + 1], looked[member.slot] = member, true end
  end
  for name in pairs(run.balancer.slots) do
    if run.balancer:is_serving { slot = name } and not looked[name] then return name .. " serves, too, and is not part of this run" end
  end
  local reasons = fleet.together(serving, function(member)
    local found = operation.observe {
      name = "instance.probe", host = member.host, instance = member.label,
      args = { port = member.port, release = member.release, launch = member.launch, health = settings },
    }
    return not found.healthy and ("%s does not pass it: %s"):format(member.label, found.reason)
  end)
  for _, reason in ipairs(reasons) do
    if reason then return reason end
  end
end

--- Balancers that have let everything pass that listens check health as the new release says, once all that serves passes.
---@async
---@param run table
function rollout.examine(run)
  if not run.balancer.lenient then return end
  local why = doubt(run)
  if why then
    run.emit { event = "warning", message = ("the balancer checks only whether something listens, and not yet the health of release %s: %s; "
      .. "the next deployment tries again"):format(run.target.release, why) }
    return
  end
  operation.effect {
    name = "balancer.examine", args = { strict = true }, undo = { name = "balancer.examine", args = { strict = false } },
    note = "the balancer, which checks health as the new release says from now on",
  }
end

--- A balancer that finds down all that it would send traffic to has a check of its own that the new release does not pass.
---@async
---@param run table
--- Raises deployrt.Error: "unhealthy".
function rollout.confirm(run)
  local serving, down = {}, {}
  for _, member in ipairs(run.fleet:instances()) do
    if not run.fleet.given_up[member.host.name] and run.balancer:is_serving(member) then serving[#serving + 1] = member end
  end
  local reasons = run.balancer:down_among(serving)
  if next(reasons) then
    operation.sleep(run.app.health.interval) -- one look alone may be chance
    reasons = run.balancer:down_among(serving)
  end
  for _, member in ipairs(serving) do down[#down + 1] = reasons[member.slot] and member or nil end
  if #down == 0 then return end
  local labels = {}
  for i, member in ipairs(down) do labels[i] = member.label end
  local message = ("%s: %s"):format(table.concat(labels, ", "), reasons[down[1].slot])
  if #down == #serving and run.kind == "deploy" then errors.raise("unhealthy", message .. ": none of what this run has deployed would serve") end
  run.emit { event = "warning", message = message }
end

--- Versions that may go: the oldest beyond `keep`, never one that runs, serves or can be rolled back to.
---@param releases table<string, {time: integer}>
---@param protected table<string, boolean>
---@param keep integer
---@return string[]
function rollout.prunable(releases, protected, keep)
  local list, out = {}, {}
  for version, entry in pairs(releases) do list[#list + 1] = { version = version, time = entry.time } end
  table.sort(list, function(a, b)
    if a.time ~= b.time then return a.time > b.time end
    return a.version > b.version
  end)
  for i, entry in ipairs(list) do
    if i > keep and not protected[entry.version] then out[#out + 1] = entry.version end
  end
  return out
end

--- After success: removes releases beyond `keep`, host by host.
---@async
function rollout.prune(self, run)
  if not run.target.packed then return end
  local protected = { [run.target.release] = true, [run.previous_launch and run.previous_launch.release or ""] = true }
  for _, member in ipairs(self.fleet.members) do protected[member.release] = true end
  for release in pairs(run.found_releases) do protected[release] = true end -- an abort would start them again
  fleet.together(self.fleet:kept_hosts(), function(host)
    local releases = operation.observe { name = "release.list", host = host, args = {} }
    for _, version in ipairs(rollout.prunable(releases, protected, run.app.release.keep)) do
      operation.effect { name = "release.remove", host = host, args = { release = version } }
    end
  end)
end

return rollout
