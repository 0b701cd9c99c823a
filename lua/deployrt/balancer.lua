-- balancer.lua -- The verbs of traffic: attach, drain, detach, swap, switch, share.
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"
local shares = require "deployrt.balancer.shares"

---@class deployrt.Balancer
---@field slots table<string, {state: string, weight: integer, up: boolean, sessions: integer}>  as last read
local Balancer = {}
Balancer.__index = Balancer

local balancer = {}

local full_weight = 100

--- The balancers of the application as one; without any, instances serve as soon as they run.
function balancer.new(configured, drain_timeout)
  return setmetatable({ configured = configured, drain_timeout = drain_timeout, slots = {} }, Balancer)
end

--- Reads the states of the slots.
---@async
function Balancer:refresh()
  if not self.configured then return end
  self.slots = operation.observe({ name = "balancer.read", args = {} }).slots
end

function Balancer:exists()
  return self.configured
end

--- Whether the instance gets new requests.
---@param instance deployrt.Instance
---@return boolean
function Balancer:is_serving(instance)
  local slot = self.slots[instance.slot]
  return self.configured and slot ~= nil and slot.state == "ready" and slot.weight > 0
end

local function apply(self, changes, note)
  if not self.configured or #changes == 0 then return end
  operation.effect {
    name = "balancer.apply", kind = "repeat", args = { changes = changes }, find = "balancer.find", note = note,
    undo = function(found)
      return { name = "balancer.restore", args = { changes = found, timeout = self.drain_timeout }, note = note }
    end,
  }
  for _, change in ipairs(changes) do
    local slot = self.slots[change.slot] or { sessions = 0, up = true, weight = 0 }
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
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

local function set_state(list, state)
  for _, instance in ipairs(list) do instance.state = state end
end

local function ready(list, changes)
  for _, instance in ipairs(list) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = full_weight }
  end
end

local function close(list, changes)
  for _, instance in ipairs(list) do changes[#changes + 1] = { slot = instance.slot, state = "drain" } end
end

--- Waits for the requests in flight, then takes the slots out of service altogether.
local function await_drained(self, list)
  if self.configured and #list > 0 then
    local result = operation.observe {
      name = "balancer.await_drained", args = { slots = slots_of(list), timeout = self.drain_timeout }, note = labels(list),
      instance = #list == 1 and list[1].label or nil,
    }
    if not result.drained then
      operation.current().emit { event = "warning", message = ("%s still has %d sessions after %gs: they will be cut"):format(
        result.slot, result.sessions, self.drain_timeout) }
    end
    local changes = {}
    for _, instance in ipairs(list) do changes[#changes + 1] = { slot = instance.slot, state = "maint" } end
    apply(self, changes, labels(list))
  end
  set_state(list, "idle")
end

--- Sets states as given, without waiting for anything.
---@async
---@param changes {slot: string, state?: string, weight?: integer}[]
---@param note string
function Balancer:set(changes, note)
  apply(self, changes, note)
end

local function as_list(value)
  return value.port and { value } or value
end

--- Sends traffic to an instance, or to a list of them, at full weight.
---@async
---@param instances deployrt.Instance|deployrt.Instance[]
function Balancer:attach(instances)
  local list, changes = as_list(instances), {}
  ready(list, changes)
  apply(self, changes, labels(list))
  set_state(list, "serving")
end

--- Takes traffic away and waits until the requests in flight have ended.
---@async
---@param instances deployrt.Instance|deployrt.Instance[]
function Balancer:drain(instances)
  local list, changes = as_list(instances), {}
  close(list, changes)
  apply(self, changes, labels(list))
  set_state(list, "draining")
  await_drained(self, list)
end

--- The same as drain.
Balancer.detach = Balancer.drain

--- Replaces one instance, or a list of them, by others in one change, and drains the replaced ones.
---@async
---@param old deployrt.Instance|deployrt.Instance[]
---@param new deployrt.Instance|deployrt.Instance[]
---@param overlap? number  seconds in which both serve
function Balancer:switch(old, new, overlap)
  local out, into = as_list(old), as_list(new)
  if overlap and overlap > 0 then
    self:attach(into)
    operation.sleep(overlap)
  end
  local changes = {}
  ready(into, changes)
  close(out, changes)
  apply(self, changes, labels(into))
  set_state(into, "serving")
  set_state(out, "draining")
  await_drained(self, out)
end

--- The same for one instance.
---@async
function Balancer:swap(old, new)
  self:switch(old, new)
end

--- Splits traffic exactly: `percent` of the requests go to the new instances, the rest to the old ones.
---@async
---@param percent number  0 to 100
---@param new deployrt.Instance[]
---@param old deployrt.Instance[]
function Balancer:share(percent, new, old)
  if not self.configured then errors.raise("usage", "shares of traffic need a balancer: app.yml has none") end
  local new_weights, old_weights = shares.weights(percent, #new, #old, 256)
  local changes = {}
  for i, instance in ipairs(new) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = new_weights[i] }
  end
  for i, instance in ipairs(old) do
    changes[#changes + 1] = { slot = instance.slot, state = "ready", weight = old_weights[i] }
  end
  apply(self, changes, ("%g%% to the new release"):format(percent))
  set_state(new, "serving")
end

--- Counters since the balancer started: slot -> {requests, errors, latency}.
---@async
function Balancer:stats()
  if not self.configured then return {} end
  return operation.observe { name = "balancer.stats", args = {} }
end

return balancer
