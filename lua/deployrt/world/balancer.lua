-- world/balancer.lua -- All balancers of the application, kept alike.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local route = require "deployrt.balancer.route"

local balancer = {}

local away = { refused = true, missing = true, lost = true, unreachable = true, timeout = true }

local function is_away(err)
  return type(err) == "table" and away[err.code] == true
end

--- What the first balancer that answers says.
local function read_one(context)
  local problem
  for _, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver)
    if ok then return seen end
    if not is_away(seen) then error(seen, 0) end
    problem = problem or seen
  end
  error(problem, 0)
end

--- States of the slots: {slots = {name -> {state, weight, up, sessions}}, route}. All balancers are kept alike, so one is
--- asked.
function balancer.read(context)
  local seen = read_one(context)
  return { slots = seen.slots, route = seen.route }
end

--- Who is told apart now: what the run wants counts more than what is seen.
function balancer.routed(context)
  if context.route ~= nil then return { route = context.route } end
  return { route = read_one(context).route or false }
end

--- The state that slots should have now, as changes that would bring it back. What the run wants of a slot counts more
--- than what is seen there: an earlier life of the run may have begun to change it.
function balancer.find(context, _, args)
  local slots, found = read_one(context).slots, {}
  for i, change in ipairs(args.changes) do
    local slot = context.wanted[change.slot] or slots[change.slot]
    found[i] = { slot = change.slot, state = slot and slot.state or "maint", weight = slot and slot.weight or 0 }
  end
  return found
end

--- Lets one task at a time do something of a kind.
local function alone(context, kind, action)
  while context[kind] do context[kind]:wait() end
  context[kind] = core.event()
  local ok, err = pcall(action)
  context[kind]:set()
  context[kind] = nil
  if not ok then error(err, 0) end
end

--- Lets one task at a time change the balancers: an operation, or what mends them.
local function exclusively(context, action)
  alone(context, "changing", action)
end

--- Lets one task at a time write the files of balancers. States change meanwhile.
local function writing(context, action)
  alone(context, "writing", action)
end

--- Both: for what may write files, and sets states.
local function reshaping(context, action)
  writing(context, function() exclusively(context, action) end)
end

local function want(context, changes)
  for _, change in ipairs(changes) do
    local wanted = context.wanted[change.slot] or {}
    context.wanted[change.slot] = { state = change.state or wanted.state, weight = change.weight or wanted.weight }
  end
end

--- The states that a balancer was last known to have, to be compared when it is away.
local function snapshot(context)
  local copy = {}
  for name, state in pairs(context.wanted) do copy[name] = { state = state.state, weight = state.weight } end
  return copy
end

--- The states that the run begins with: what is to be kept, and brought back when others change it.
function balancer.adopt(context, _, args)
  want(context, args.changes)
  context.unsaved = true
  for index in ipairs(context.drivers) do context.has[index] = snapshot(context) end
  return {}
end

--- Has balancers know the wanted states over a restart of theirs: soon after a change, and at the end of a run.
---@async
function balancer.save(context)
  if not context.unsaved then return end
  writing(context, function()
    context.unsaved = false
    for _, driver in ipairs(context.drivers) do
      local ok, err = pcall(driver.persist, driver, context.wanted)
      context.unsaved = context.unsaved or not ok
      if not ok and not is_away(err) then error(err, 0) end
    end
  end)
end

balancer.remember = {
  route = function(context, args) context.route = args.route end,
  adopt = function(context, args) want(context, args.changes) end,
  apply = function(context, args) want(context, args.changes) end,
  restore = function(context, args) want(context, args.changes) end,
}

local function changes_slot(name)
  return function(args)
    for _, change in ipairs(args.changes) do
      if change.slot == name then return true end
    end
    return false
  end
end

--- Traffic that was set later is as it should be.
balancer.remainder = {
  route = function(args, is_overtaken)
    return not is_overtaken(function() return true end) and args or nil
  end,
  restore = function(args, is_overtaken)
    local changes = {}
    for _, change in ipairs(args.changes) do
      if not is_overtaken(changes_slot(change.slot)) then changes[#changes + 1] = change end
    end
    return changes[1] and setmetatable({ changes = changes }, { __index = args })
  end,
}

--- Tries until it succeeds, or a balancer that is being restarted has had its time to come back.
---@return deployrt.Error? err  of one that is away
local function patiently(seconds, action)
  local deadline = core.now() + seconds
  while true do
    local ok, err = pcall(action)
    if ok then return nil end
    if not is_away(err) then error(err, 0) end
    if core.now() >= deadline then return err end
    core.sleep(0.1)
  end
end

local patience_alone, patience_beside, patience_at_end = 15, 2, 15 -- seconds

local function name_of(context, index)
  local entry = context.app.balancers[index]
  return ("balancer %d (%s%s)"):format(index, entry.type, entry.host and " on " .. entry.host or "")
end

--- Changes one balancer. One that is away while others are there stays behind, and is brought up to date when it returns.
local function change_one(context, index, action)
  local behind = context.behind[index]
  local patience = #context.drivers == 1 and patience_alone or behind and 0 or patience_beside
  local err = patiently(patience, function()
    context.check_lock() -- each time: a balancer has no epoch to refuse who was superseded while it waited
    action(context.drivers[index])
  end)
  if not err and not behind then context.has[index] = snapshot(context) end
  if err and not behind then
    context.behind[index] = err
    context.warn(("%s is away, and will be brought up to date when it returns: %s"):format(name_of(context, index), err.message))
  end
  return err
end

--- Changes all of them; when none is there, that is an error.
local function change_all(context, action)
  local done, problem = false, nil
  for index in ipairs(context.drivers) do
    local err = change_one(context, index, action)
    done, problem = done or not err, err or problem
  end
  if not done and problem then error(problem, 0) end
end

--- Sets states everywhere; `look` has a last look while nobody else changes anything, and may raise.
local function set(context, changes, look)
  context.check_lock()
  exclusively(context, function()
    if look then look() end
    want(context, changes)
    context.unsaved = true
    change_all(context, function(driver) driver:apply(changes) end)
  end)
  return {}
end

--- Sets states and weights; each driver sends them as one request and reads them back.
function balancer.apply(context, _, args)
  return set(context, args.changes)
end

--- What a balancer does differently from what the run wants of it, as changes.
local function differences(seen, wanted)
  local slots, changes = seen.slots, {}
  for name, state in pairs(wanted) do
    local slot = slots[name]
    if not slot or slot.state ~= state.state or (state.weight and slot.state == "ready" and slot.weight ~= state.weight) then
      changes[#changes + 1] = { slot = name, state = state.state, weight = state.weight }
    end
  end
  table.sort(changes, function(a, b) return a.slot < b.slot end)
  return changes
end

local function mend_one(context, index)
  local driver = context.drivers[index]
  local seen = driver:read()
  local changes = differences(seen, context.wanted)
  local rerouted = driver.route and context.route ~= nil and not route.is_same(seen.route, context.route)
  if #changes > 0 then
    context.check_lock() -- a balancer has no epoch: who was superseded finds out by himself, before each change
    driver:prepare()
  end
  if #changes > 0 or rerouted then context.check_lock() end
  if rerouted then driver:route(context.route or nil) end
  for _, change in ipairs(changes) do
    local slot = seen.slots[change.slot]
    if change.state ~= "ready" and slot and slot.state == "ready" then context.closed_aside[change.slot] = true end
  end
  if #changes > 0 then driver:apply(changes) end
  if #changes > 0 or rerouted then
    context.warn(context.behind[index] and ("%s is back: %d slots brought up to date"):format(name_of(context, index), #changes)
      or ("the balancer was restarted or changed by somebody: %d slots set right again"):format(#changes))
  end
  context.behind[index], context.has[index] = nil, snapshot(context)
end

--- Brings each balancer that was restarted, changed by others, or away, to the wanted states. One that does not answer is
--- the operations' business.
---@async
function balancer.mend(context)
  if context.changing or context.writing then return end
  context.check_lock()
  reshaping(context, function()
    for index in ipairs(context.drivers) do pcall(mend_one, context, index) end
  end)
end

local function same(one, other)
  for name, state in pairs(other) do
    local has = one and one[name]
    if not has or has.state ~= state.state or has.weight ~= state.weight then return false end
  end
  return true
end

--- All balancers have the wanted states: one that is still away gets time to return, and is then an error. On the way back
--- it is none if it never heard of anything else.
---@async
function balancer.agree(context, _, args)
  local deadline = core.now() + (args.back and patience_beside or patience_at_end)
  while next(context.behind) and core.now() < deadline do
    balancer.mend(context)
    if next(context.behind) then core.sleep(0.2) end
  end
  for index, err in pairs(context.behind) do
    if not args.back or not same(context.has[index], context.wanted) then
      errors.raise("balancer", ("%s is away, and does not have the states of the others: %s"):format(name_of(context, index), err.message),
        { host = err.host, detail = err.detail })
    end
  end
  return {}
end

--- The first of the slots that has sessions, the long ones apart.
local function busy_slot(context, names)
  for index, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver)
    if not ok and not is_away(seen) then error(seen, 0) end
    if not ok and not context.behind[index] then return names[1], 1, 1 end -- nobody knows: it gets its time
    for _, name in ipairs(names) do
      local slot = ok and seen.slots[name]
      if slot and slot.sessions > 0 then return name, slot.sessions, slot.sessions - (slot.long or 0) end
    end
  end
end

--- Whether all balancers know the requests in flight; where one does not, a drain lasts its whole time.
local function knows_sessions(context)
  for _, driver in ipairs(context.drivers) do
    if driver.can and not driver.can.sessions then return false end
  end
  return true
end

--- Waits until slots have no session left, or the time is over: what is still open is then cut by the stop. Connections
--- that are long by nature have a time of their own.
function balancer.await_drained(context, _, args)
  local began, pause, can_tell = core.now(), 0.005, knows_sessions(context)
  while true do
    local name, sessions, short = busy_slot(context, args.slots)
    if not name and (can_tell or core.now() - began >= args.timeout) then return { drained = true } end
    local allowed = (short or 1) > 0 and args.timeout or math.max(args.timeout, args.long or 0)
    if name and core.now() - began > allowed then return { drained = false, slot = name, sessions = sessions, seconds = allowed } end
    context.check_stop()
    core.sleep(pause)
    pause = math.min(pause * 1.5, 0.1)
  end
end

--- Waits for what somebody else sent to a slot, which was closed again when that was seen; no operation waited for it.
---@async
---@param context table
---@param name string  of the slot
function balancer.await_strays(context, name)
  if not context.closed_aside[name] then return end
  local timeout = 0
  for _, entry in ipairs(context.app.balancers) do timeout = math.max(timeout, entry.drain.timeout) end
  balancer.await_drained(context, nil, { slots = { name }, timeout = timeout })
  context.closed_aside[name] = nil
end

--- The slots that get routed requests now, and not in what is wanted.
local function left_out(before, wanted)
  local kept, list = {}, {}
  for _, name in ipairs(wanted and wanted.slots or {}) do kept[name] = true end
  for _, name in ipairs(before and before.slots or {}) do
    if not kept[name] then list[#list + 1] = name end
  end
  return list
end

--- Has every balancer tell requests apart as wanted.
local function reroute(context, wanted)
  reshaping(context, function()
    context.route = wanted
    change_all(context, function(driver)
      if driver.route then driver:route(wanted or nil) end
    end)
  end)
end

--- Slots of a list that get no requests but routed ones.
local function only_routed(context, names)
  local slots, list = read_one(context).slots, {}
  for _, name in ipairs(names) do
    if not slots[name] or slots[name].state ~= "ready" then list[#list + 1] = name end
  end
  return list
end

--- Takes traffic from slots by an action. When it fails, they may get some still: what runs there is not stopped then.
---@param kind "kept_open"|"kept_routed"  which traffic: as one of all, or as one that routed requests go to
local function or_keep(context, kind, slots, action)
  local ok, err = pcall(action)
  for _, name in ipairs(slots) do context[kind][name] = not ok or nil end
  if not ok then error(err, 0) end
end

--- Who gets routed requests now; a balancer that is being restarted has its time to come back.
local function routed_now(context)
  local found
  local err = patiently(patience_alone, function() found = read_one(context).route end)
  if err then error(err, 0) end
  return found
end

--- Tells requests apart, or not any more (false). Slots that get none any more are drained first, while the balancer
--- still knows of what it sent them.
---@async
function balancer.route(context, _, args)
  context.check_lock()
  local wanted = args.route
  or_keep(context, "kept_routed", left_out(context.route, wanted), function()
    local leaving = left_out(routed_now(context), wanted)
    if #leaving > 0 then
      local closing = { rules = {} }
      for key, value in pairs(context.route or {}) do closing[key] = value end
      closing.slots, closing.percent = wanted and wanted.slots or {}, wanted and wanted.percent or 0
      reroute(context, closing)
      balancer.await_drained(context, nil, { slots = only_routed(context, leaving), timeout = args.timeout })
    end
    reroute(context, wanted)
  end)
  return {}
end

local function raise_held(slots)
  local names = {}
  for name in pairs(slots) do names[#names + 1] = name end
  table.sort(names)
  errors.raise("held", ("%s: no traffic goes there, because what ran there could not be started again"):format(table.concat(names, ", ")))
end

--- The name of an instance's slot.
---@param label string  "web1:8080"
---@return string
function balancer.slot_of(label)
  return (label:gsub(":(%d+)$", "-%1"))
end

--- Whether changes would leave nothing that serves, where something does.
local function ends_service(context, changes)
  local slots, before, after = read_one(context).slots, 0, 0
  local changed = {}
  for _, change in ipairs(changes) do changed[change.slot] = change end
  for name, slot in pairs(slots) do
    local change = changed[name] or slot
    if slot.state == "ready" and slot.weight > 0 then before = before + 1 end
    if change.state == "ready" and (change.weight or slot.weight) > 0 then after = after + 1 end
  end
  return before > 0 and after == 0
end

--- What serves instead of something that could not be put back goes on serving.
local function refuse(context, changes)
  for _, change in ipairs(changes) do
    if change.state ~= "ready" then context.kept_open[change.slot] = true end
  end
  raise_held(context.held_back)
end

--- Changes without those that would send traffic to a slot whose process could not be put back. When nothing else would
--- open, the change is refused.
local function without_held_back(context, changes)
  local kept, held, opening = {}, {}, 0
  for _, change in ipairs(changes) do
    local holds = change.state == "ready" and context.held_back[change.slot]
    if holds then held[change.slot] = true elseif change.state == "ready" then opening = opening + 1 end
    local shut = context.gone[change.slot] or context.closed[change.slot]
    kept[#kept + 1] = (holds or change.state == "ready" and shut) and { slot = change.slot, state = "maint" } or change
  end
  if next(held) and opening == 0 then refuse(context, changes) end
  return kept, held
end

--- Brings back states that were found: who gets traffic comes first, so that at no instant nobody does, and what gets none
--- any more is drained before the slot is closed.
function balancer.restore(context, _, args)
  local changes, held = without_held_back(context, args.changes)
  if next(context.gone) and ends_service(context, changes) then return { skipped = true } end -- a step on the way back to what is there already
  local first, drains, leaving = {}, {}, {}
  for _, change in ipairs(changes) do
    local leaves = change.state ~= "ready"
    table.insert(leaves and drains or first, { slot = change.slot, state = leaves and "drain" or "ready", weight = change.weight })
    if leaves then leaving[#leaving + 1] = change.slot end
  end
  table.move(drains, 1, #drains, #first + 1, first)
  or_keep(context, "kept_open", leaving, function()
    set(context, first, function()
      if next(context.held_back) and ends_service(context, first) then refuse(context, first) end
    end)
    balancer.await_drained(context, nil, { slots = leaving, timeout = args.timeout, long = args.long })
    balancer.apply(context, nil, { changes = changes })
  end)
  if next(held) then raise_held(held) end
  return {}
end

--- Requests, errors and mean latency of slots, summed over the balancers: name -> {requests, errors, latency}. `counted`
--- tells which balancers are in a sum, a bit each: sums of others cannot be compared.
function balancer.stats(context)
  local sums = {}
  for i, driver in ipairs(context.drivers) do
    local ok, stats = pcall(driver.stats, driver)
    if not ok and (#context.drivers == 1 or not is_away(stats)) then error(stats, 0) end
    for name, slot in pairs(ok and stats or {}) do
      local sum = sums[name] or { requests = 0, errors = 0, latency = 0 }
      sum.requests, sum.errors = sum.requests + slot.requests, sum.errors + slot.errors
      sum.latency = math.max(sum.latency, slot.latency or 0)
      sum.seconds = slot.seconds and (sum.seconds or 0) + slot.seconds
      sum.window = #context.drivers == 1 and slot.window or nil
      sum.counted = (sum.counted or 0) | 1 << i
      sums[name] = sum
    end
  end
  return sums
end

--- Starts what deployrt manages itself, and adds the slots that a balancer does not know.
function balancer.prepare(context)
  writing(context, function()
    for _, driver in ipairs(context.drivers) do driver:prepare() end
  end)
  return {}
end

--- Stops the balancers that deployrt itself started.
function balancer.stop(context)
  writing(context, function()
    context.unsaved = false
    for _, driver in ipairs(context.drivers) do driver:stop() end
  end)
  return {}
end

return balancer
