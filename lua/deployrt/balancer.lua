-- balancer.lua -- The verbs of traffic: attach, drain, detach, swap, switch, share.
local errors = require "deployrt.errors"
local hooks = require "deployrt.hooks"
local operation = require "deployrt.operation"
local options = require "deployrt.options"
local route = require "deployrt.balancer.route"
local shares = require "deployrt.balancer.shares"
local signature = require "deployrt.signature"
local weights = require "deployrt.balancer.weights"

---@class deployrt.Balancer
---@field slots table<string, {state: string, weight: integer, up: boolean, sessions: integer, disputed?: boolean}>  as last read;
---  disputed: only some of several balancers use it
---@field down? boolean  it does not run: the slots are what it comes up with
---@field others deployrt.OtherServer[]  who gets traffic besides the slots, as last read
---@field weights deployrt.Weights  those of this run
---@field halted? boolean  one of several does not run: a run starts it
---@field differ? string  which of several has other states than this, or is away
---@field outdated? boolean  it is set up otherwise than app.yml says
---@field lenient? boolean  its health checks are not those of the new release yet, which what serves may fail
---@field unknown? boolean  it is away, and nobody knows the states
---@field route? deployrt.Route  who gets which slots, where requests are told apart
local Balancer = { kind = "balancer", takes = signature.of {
  is_serving = "instance: instance", is_routed = "instance: instance", attach = "instances: some", drain = "instances: some",
  detach = "instances: some", swap = "old: some, new: some", switch = "old: some, new: some, overlap: seconds?",
  share = "percent: any, new: instances, old: instances, opts: table?, leaving: instances?",
} }
Balancer.__index = Balancer

local balancer = {}

local heaviest = 256 -- what HAProxy takes

--- The balancers of the application as one; without any, instances serve as soon as they run.
---@param count integer
---@param drain? {timeout: number, long?: number}
function balancer.new(count, drain)
  return setmetatable({
    configured = count > 0, several = count > 1, drain_timeout = drain and drain.timeout or 30, drain_long = drain and drain.long, slots = {}, others = {},
    leaving = {}, weights = { full = weights.usual, odd = {} },
  }, Balancer)
end

--- Reads the states of the slots.
---@async
function Balancer:refresh()
  if not self.configured then return end
  local found = operation.observe { name = "balancer.read", args = {} }
  self.slots, self.route, self.down, self.halted, self.differ, self.outdated = found.slots, found.route, found.down, found.halted, found.differ, found.outdated
  self.others = found.others or {}
end

--- The same for who takes away only, and need not know: a balancer that is away keeps nobody from that.
---@async
---@return deployrt.Error? away
function Balancer:look()
  local there, err = pcall(self.refresh, self)
  self.unknown = not there
  if not there and not errors.is_away(err) then error(err, 0) end
  return not there and err or nil
end

--- Balancers that differ: a slot of which only some say that it serves does so if something runs there.
---@param members deployrt.Instance[]  all that run
function Balancer:settle(members)
  if not self.differ then return end
  local runs = {}
  for _, member in ipairs(members) do runs[member.slot] = true end
  for name, slot in pairs(self.slots) do
    if slot.disputed and not runs[name] then slot.state = "maint" end
  end
end

local function is_open(state, weight)
  return state == "ready" and weight > 0
end

--- Begins a run: all slots are made known, and what is found is what the balancers shall keep.
---@async
function Balancer:adopt()
  if not self.configured then return end
  local prepared = operation.effect {
    name = "balancer.prepare", args = {}, undo = (self.outdated or self.halted) and { name = "balancer.unprepare", args = {} } or nil,
    note = self.outdated and "the balancer, anew: app.yml says otherwise than what runs" or "the balancer",
  }
  self.lenient = prepared.lenient
  self:refresh()
  self:settle(operation.current().fleet.members)
  local its = operation.current().fleet
  self.weights = weights.of(self, its:elsewhere(), its:capacity(), heaviest)
  local changes = {}
  for name, slot in pairs(self.slots) do changes[#changes + 1] = { slot = name, state = slot.state, weight = slot.weight } end
  table.sort(changes, function(a, b) return a.slot < b.slot end)
  local back = self.several and { name = "balancer.agree", args = { back = true } } or nil
  operation.effect { name = "balancer.adopt", quiet = true, args = { changes = changes }, undo = back }
end

--- Ends a run: one that was restarted meanwhile, or away, must have heard of everything.
---@async
function Balancer:agree()
  if self.configured then operation.observe { name = "balancer.agree", quiet = true, args = {} } end
end

--- Who of these is in service, and found down by a balancer: it gets nothing.
---@async
---@param instances deployrt.Instance[]
---@return table<string, string> down  why, by slot
function Balancer:down_among(instances)
  local names = {}
  for _, each in ipairs(instances) do names[#names + 1] = self:is_serving(each) and each.slot or nil end
  if #names == 0 then return {} end
  return operation.observe { name = "balancer.down", quiet = true, args = { slots = names } }
end

--- Whether there are balancers at all.
---@return boolean
function Balancer:exists()
  return self.configured
end

--- Whether the instance gets new requests.
---@param instance deployrt.Instance
---@return boolean
function Balancer:is_serving(instance)
  if self:is_routed(instance) then return true end
  local slot = self.slots[instance.slot]
  return self.configured and slot ~= nil and is_open(slot.state, slot.weight)
end

--- Whether something gets traffic that app.yml does not name any more.
function Balancer:has_left()
  for _, slot in pairs(self.slots) do
    if slot.left and slot.state == "ready" then return true end
  end
  return false
end

--- Whether the instance gets requests that are told apart.
---@param instance deployrt.Instance
---@return boolean
function Balancer:is_routed(instance)
  for _, name in ipairs(self.route and self.route.slots or {}) do
    if name == instance.slot then return true end
  end
  return false
end

--- Whether some slot serves once these changes are made, and others that are under way.
local function serves_after(self, changed)
  for name, slot in pairs(self.slots) do
    local change = changed[name] or slot
    local up = slot.up ~= false or change.state == "ready" and change ~= slot
    if up and is_open(change.state or slot.state, change.weight or slot.weight) and not self.leaving[name] then return true end
  end
  for name, change in pairs(changed) do
    if not self.slots[name] and is_open(change.state, change.weight or 0) then return true end
  end
  return false
end

--- Whether a change may leave nothing that serves: where the strategy's option `allow_gap` says so, in a rollback, and in what
--- people do by hand.
local function may_leave_gap()
  local run = operation.current()
  return run.kind ~= "deploy" or run.script.options.allow_gap or operation.is_undoing()
end

--- The last that serves keeps its traffic, unless it is broken.
local function check_last(self, changed)
  if may_leave_gap() or serves_after(self, changed) then return end
  local run = operation.current()
  for _, member in ipairs(run.fleet:instances()) do
    local change = changed[member.slot]
    if change and self:is_serving(member) and not is_open(change.state or "ready", change.weight or self.weights.full) and member:is_healthy()
      and not self:down_among({ member })[member.slot] then
      errors.raise("capacity", ("%s is the last that serves: without its traffic nothing would; give process.ports a spare slot%s"):format(
        member.label, run.script.options.allow_gap == false and ", or accept the gap with strategy.allow_gap: true" or ", or have the strategy give its new instances traffic first"),
        { host = member.host.name })
    end
  end
end

--- Side by side, the last two must not both leave because the other one is still there.
local function hold_leaving(self, changes)
  local changed = {}
  for _, change in ipairs(changes) do changed[change.slot] = change end
  check_last(self, changed)
  for name, change in pairs(changed) do self.leaving[name] = not is_open(change.state or "ready", change.weight or self.weights.full) or nil end
  return setmetatable({}, { __close = function()
    for name in pairs(changed) do self.leaving[name] = nil end
  end })
end

--- Sets states; `for_good`: nothing is to be put back, as at the end of a drain, where whoever took the traffic brings it back.
--- The note says what becomes of whom; what is put back is as it was found, so only who is concerned is said of that.
local function apply(self, changes, note, for_good, concerned)
  if not self.configured or #changes == 0 then return end
  local closing <close> = hold_leaving(self, changes)
  operation.effect {
    name = "balancer.apply", kind = "repeat", args = { changes = changes, forward = not for_good and (may_leave_gap() and "gap" or "serve") or nil }, find = not for_good and "balancer.find" or nil, note = note,
    undo = not for_good and function(found)
      return { name = "balancer.restore", args = { changes = found, timeout = self.drain_timeout, long = self.drain_long }, note = concerned or note }
    end or nil,
  }
  for _, change in ipairs(changes) do
    local slot = self.slots[change.slot] or { sessions = 0, up = true, weight = 0 }
    slot.state, slot.weight, slot.up = change.state or slot.state, change.weight or slot.weight, slot.up or change.state == "ready"
    self.slots[change.slot] = slot
  end
  local run = operation.current()
  run.report_traffic()
end

local function labels(list)
  local names = {}
  for i, instance in ipairs(list) do names[i] = instance.label end
  return table.concat(names, ", ")
end

local function slots_of(list)
  local names = {}
  for i, instance in ipairs(list) do names[i] = instance.slot end
  return names
end

--- Tells requests apart as wanted, or not any more (nil).
local function set_route(self, wanted, note)
  operation.effect {
    name = "balancer.route", find = "balancer.routed", args = { route = wanted or false, timeout = self.drain_timeout }, note = note,
    undo = function(found)
      return { name = "balancer.route", args = { route = found.route, timeout = self.drain_timeout }, note = note }
    end,
  }
  self.route = wanted
  for _, name in ipairs(wanted and wanted.slots or {}) do
    if self.slots[name] then self.slots[name].up = true end
  end
  operation.current().report_traffic()
end

--- Every instance is on its own again: called once those that were routed get their traffic as the others do.
local function end_route(self)
  if self.route then set_route(self, nil, "no request is told apart any more") end
end

local function set_state(list, state)
  for _, instance in ipairs(list) do instance.state = state end
end

local function ready(self, list, changes)
  for _, instance in ipairs(list) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = self.weights.full }
  end
end

local function close(list, changes)
  for _, instance in ipairs(list) do changes[#changes + 1] = { slot = instance.slot, state = "drain" } end
end

--- Gives traffic to some and takes it from others, in one change.
local function move(self, from, to)
  local changes, both = {}, table.move(from, 1, #from, #to + 1, table.move(to, 1, #to, 1, {}))
  ready(self, to, changes)
  close(from, changes)
  local note = #to == 0 and "away from " .. labels(from) or #from == 0 and "to " .. labels(to) or ("from %s to %s"):format(labels(from), labels(to))
  apply(self, changes, note, false, labels(both))
end

--- Waits for the requests in flight, then takes the slots out of service altogether.
local function await_drained(self, list)
  if self.configured and #list > 0 then
    local result = operation.observe {
      name = "balancer.await_drained", note = labels(list),
      args = { slots = slots_of(list), timeout = self.drain_timeout, long = self.drain_long },
      instance = #list == 1 and list[1].label or nil,
    }
    if not result.drained then
      operation.current().emit { event = "warning", message = ("%s still has %d sessions after %gs: they will be cut"):format(
        result.slot, result.sessions, result.seconds or self.drain_timeout) }
    end
    local changes = {}
    for _, instance in ipairs(list) do changes[#changes + 1] = { slot = instance.slot, state = "maint" } end
    apply(self, changes, labels(list) .. " out of service", true)
  end
  set_state(list, "idle")
end

local states = { ready = true, drain = true, maint = true }

--- Changes as they may be sent to a balancer.
local function checked(self, changes)
  if type(changes) ~= "table" then errors.raise("usage", ("set takes a list of changes, not %s"):format(tostring(changes))) end
  for i, change in ipairs(changes) do
    local function refuse(what) errors.raise("usage", ("change %d: %s"):format(i, what)) end
    if type(change) ~= "table" or type(change.slot) ~= "string" then refuse "it names no slot" end
    options.check("a change", change, { slot = true, state = true, weight = true })
    if self.configured and not self.slots[change.slot] then refuse(("no slot is called %q"):format(change.slot)) end
    if change.state ~= nil and not states[change.state] then refuse(("a state is ready, drain or maint, not %q"):format(tostring(change.state))) end
    local weight = math.tointeger(change.weight)
    if change.weight ~= nil and not (weight and weight >= 0 and weight <= heaviest) then
      refuse(("a weight is a whole number from 0 to %d, not %s"):format(heaviest, tostring(change.weight)))
    end
  end
  return changes
end

--- Sets states as given, without waiting for anything.
---@async
---@param changes {slot: string, state?: "ready"|"drain"|"maint", weight?: integer}[]  weight from 0 to 256
---@param note? string
---@param for_good? boolean  whatever becomes of the run
function Balancer:set(changes, note, for_good)
  apply(self, checked(self, changes), note, for_good)
end

--- Instances, without those on hosts that the run goes on without.
local function kept(list)
  local given_up, some = operation.current().fleet.given_up, {}
  for _, each in ipairs(list) do
    if not (each.host and given_up[each.host.name]) then some[#some + 1] = each end
  end
  return some
end

local function as_list(value)
  return kept(value.port and { value } or value)
end

--- Before the first of the new release gets requests, the user's hook has its say.
local function ask_before_traffic(list)
  local run = operation.current()
  if run.kind ~= "deploy" or operation.is_undoing() then return end
  for _, each in ipairs(list) do
    if run.fleet:is_target(each) then return hooks.once "before_traffic" end
  end
end

--- Sends traffic to an instance, or to a list of them, at full weight.
---@async
---@param instances deployrt.Instance|deployrt.Instance[]
function Balancer:attach(instances)
  local list = as_list(instances)
  ask_before_traffic(list)
  move(self, {}, list)
  set_state(list, "serving")
  end_route(self)
end

--- Takes traffic away and waits until the requests in flight have ended.
---@async
---@param instances deployrt.Instance|deployrt.Instance[]
function Balancer:drain(instances)
  local list = as_list(instances)
  move(self, list, {})
  set_state(list, "draining")
  await_drained(self, list)
end

--- The same as drain.
Balancer.detach = Balancer.drain

local function all_serve(self, list)
  for _, each in ipairs(list) do
    if not self:is_serving(each) then return false end
  end
  return true
end

--- Replaces one instance, or a list of them, by others in one change, and drains the replaced ones.
---@async
---@param old deployrt.Instance|deployrt.Instance[]
---@param new deployrt.Instance|deployrt.Instance[]
---@param overlap? number  seconds in which both serve, by the shares that they have, if they do so already
function Balancer:switch(old, new, overlap)
  local out, into = as_list(old), as_list(new)
  ask_before_traffic(into)
  if overlap and overlap > 0 then
    if not all_serve(self, into) then self:attach(into) end -- those that do keep their share
    operation.sleep(overlap)
  end
  move(self, out, into)
  set_state(into, "serving")
  set_state(out, "draining")
  end_route(self)
  await_drained(self, out)
end

--- The same for one instance.
---@async
---@param old deployrt.Instance
---@param new deployrt.Instance
function Balancer:swap(old, new)
  self:switch(old, new)
end

--- Has all others that may serve weigh so many times as much, in the same change: nobody's part changes by that. One that is down
--- now was not reckoned with, and may weigh too much for that.
local function raise(self, changes, times)
  local changed, names = {}, {}
  for _, change in ipairs(changes) do changed[change.slot] = true end
  for name, slot in pairs(self.slots) do
    if not changed[name] and is_open(slot.state, slot.weight) then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do changes[#changes + 1] = { slot = name, weight = math.min(self.slots[name].weight * times, heaviest) } end
end

--- Says once whose traffic a share takes.
local function warn_dwarfed(self)
  local other = self.weights.dwarfed
  self.weights.dwarfed = nil
  operation.current().emit { event = "warning", message = ("%s, which app.yml does not name, gets next to nothing while traffic is shared: it weighs %d, and no share can be "
    .. "told by weights so small; give it, and what serves, a weight of 100 in the balancer's configuration"):format(other.name, other.weight) }
end

--- Splits traffic exactly: `percent` of the requests go to the new instances, the rest to the old ones; who is neither gets as
--- much as before, unless app.yml does not name it, and weights are so small that the share could not be told. With `route`, those
--- that a rule fits go to the new ones whatever the percentage; with `sticky`, visitors stay on the side that they saw first.
---@async
---@param percent number  0 to 100
---@param new deployrt.Instance[]
---@param old deployrt.Instance[]
---@param opts? {route?: deployrt.RouteRule[], sticky?: boolean}  a strategy's options may be given as they are
---@param leaving? deployrt.Instance[]  they get no new requests from the same change on; drain() waits for them
function Balancer:share(percent, new, old, opts, leaving)
  if not self.configured then errors.raise("usage", "shares of traffic need a balancer: app.yml has none") end
  if type(percent) ~= "number" or not (percent >= 0 and percent <= 100) then
    errors.raise("usage", ("a share is a percentage from 0 to 100, not %s"):format(tostring(percent)))
  end
  for _, name in ipairs { "route", "sticky" } do -- the others are the strategy's own
    if opts and opts[name] ~= nil then options.declared("share", name, route.options[name], opts[name]) end
  end
  new, old, leaving = kept(new), kept(old), kept(leaving or {})
  ask_before_traffic(new)
  local note = ("%g%% to the new release"):format(percent)
  local changes = {}
  if route.is_wanted(opts) then
    set_route(self, route.next(self.route, percent, new, old, opts), note)
    close(leaving, changes)
    apply(self, changes, note)
    return set_state(new, "serving")
  end
  local scale = self.weights.raised or self.weights
  local most = scale.most and math.min(scale.most, scale.full * (#new + #old))
  local new_weights, old_weights = shares.weights(percent, #new, #old, heaviest, most)
  for i, instance in ipairs(new) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = new_weights[i] }
  end
  for i, instance in ipairs(old) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = old_weights[i] }
  end
  close(leaving, changes)
  if scale.times then raise(self, changes, scale.times) end
  if scale.dwarfed then warn_dwarfed(self) end
  apply(self, changes, note)
  self.weights.raised = nil
  self.weights.full, self.weights.most = scale.full, scale.most
  set_state(new, "serving")
end

--- Counters since the balancer started: slot -> {requests, errors, latency}.
---@async
---@return table<string, {requests: integer, errors: integer, latency: number}>
function Balancer:stats()
  if not self.configured then return {} end
  return operation.observe { name = "balancer.stats", args = {} }
end

return balancer
