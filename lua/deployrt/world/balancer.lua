-- world/balancer.lua -- All balancers of the application, kept alike.
local core = require "deployrt.core"

local balancer = {}

--- States of the slots: {slots = {name -> {state, weight, up, sessions}}}, of the first balancer.
function balancer.read(context)
  return { slots = context.drivers[1]:read().slots }
end

--- The state that slots should have now, as changes that would bring it back. What the run wants of a slot counts more
--- than what is seen there: an earlier life of the run may have begun to change it.
function balancer.find(context, _, args)
  local slots, found = context.drivers[1]:read().slots, {}
  for i, change in ipairs(args.changes) do
    local slot = context.wanted[change.slot] or slots[change.slot]
    found[i] = { slot = change.slot, state = slot and slot.state or "maint", weight = slot and slot.weight or 0 }
  end
  return found
end

--- Lets one task at a time change the balancers: an operation, or the monitor that mends them.
function balancer.exclusively(context, action)
  while context.changing do context.changing:wait() end
  context.changing = core.event()
  local ok, err = pcall(action)
  context.changing:set()
  context.changing = nil
  if not ok then error(err, 0) end
end

local function want(context, changes)
  for _, change in ipairs(changes) do
    local wanted = context.wanted[change.slot] or {}
    context.wanted[change.slot] = { state = change.state or wanted.state, weight = change.weight or wanted.weight }
  end
end

--- The states that the run begins with: what is to be kept, and brought back when others change it.
function balancer.adopt(context, _, args)
  want(context, args.changes)
  context.unsaved = true
  return {}
end

--- Has balancers know the wanted states over a restart of theirs: soon after a change, and at the end of a run.
---@async
function balancer.save(context)
  if not context.unsaved then return end
  context.unsaved = false
  for _, driver in ipairs(context.drivers) do driver:persist(context.wanted) end
end

balancer.remember = {
  adopt = function(context, args) want(context, args.changes) end,
  apply = function(context, args) want(context, args.changes) end,
  restore = function(context, args) want(context, args.changes) end,
}

local away = { refused = true, missing = true, lost = true, unreachable = true, timeout = true }

--- A balancer that is being restarted is given time to come back.
local function patiently(action)
  local deadline = core.now() + 15
  while true do
    local ok, err = pcall(action)
    if ok then return end
    if type(err) ~= "table" or not away[err.code] or core.now() > deadline then error(err, 0) end
    core.sleep(0.1)
  end
end

--- Sets states and weights; each driver sends them as one request and reads them back.
function balancer.apply(context, _, args)
  context.check_lock()
  balancer.exclusively(context, function()
    want(context, args.changes)
    context.unsaved = true
    for _, driver in ipairs(context.drivers) do
      patiently(function() driver:apply(args.changes) end)
    end
  end)
  return {}
end

local function busy_slot(context, names)
  for _, driver in ipairs(context.drivers) do
    local slots = driver:read().slots
    for _, name in ipairs(names) do
      local slot = slots[name]
      if slot and slot.sessions > 0 then return name, slot.sessions end
    end
  end
end

--- Waits until slots have no session left, or the time is over: long connections are then cut by the stop.
function balancer.await_drained(context, _, args)
  local deadline, pause = core.now() + args.timeout, 0.005
  while true do
    local name, sessions = busy_slot(context, args.slots)
    if not name then return { drained = true } end
    if core.now() > deadline then return { drained = false, slot = name, sessions = sessions } end
    context.check_stop()
    core.sleep(pause)
    pause = math.min(pause * 1.5, 0.1)
  end
end

--- Brings back states that were found: what gets no traffic any more is drained before the slot is closed.
function balancer.restore(context, _, args)
  local first, leaving = {}, {}
  for i, change in ipairs(args.changes) do
    local leaves = change.state ~= "ready"
    first[i] = { slot = change.slot, state = leaves and "drain" or "ready", weight = change.weight }
    if leaves then leaving[#leaving + 1] = change.slot end
  end
  balancer.apply(context, nil, { changes = first })
  balancer.await_drained(context, nil, { slots = leaving, timeout = args.timeout })
  return balancer.apply(context, nil, args)
end

--- Requests, errors and mean latency of slots, summed over the balancers: name -> {requests, errors, latency}.
function balancer.stats(context)
  local sums = {}
  for _, driver in ipairs(context.drivers) do
    for name, slot in pairs(driver:stats()) do
      local sum = sums[name] or { requests = 0, errors = 0, latency = 0 }
      sum.requests, sum.errors = sum.requests + slot.requests, sum.errors + slot.errors
      sum.latency = math.max(sum.latency, slot.latency or 0)
      sums[name] = sum
    end
  end
  return sums
end

--- Starts what deployrt manages itself, and adds the slots that a balancer does not know.
function balancer.prepare(context)
  for _, driver in ipairs(context.drivers) do driver:prepare() end
  return {}
end

--- Stops the balancers that deployrt itself started.
function balancer.stop(context)
  context.unsaved = false
  for _, driver in ipairs(context.drivers) do driver:stop() end
  return {}
end

return balancer
