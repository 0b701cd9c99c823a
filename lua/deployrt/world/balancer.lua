-- world/balancer.lua -- Operations on the balancers of an application.
local agreement = require "deployrt.world.agreement"
local checks = require "deployrt.world.checks"
local core = require "deployrt.core"
local names_of = require("deployrt.balancer.driver").names_of
local errors = require "deployrt.errors"

local balancer = {}

--- What a host that `--host` leaves out has left by getting another address is no business of this run.
local function leave_to_others(context, slots)
  local is_other = agreement.others(context)
  for name, slot in pairs(is_other and slots or {}) do slot.left = slot.left and not is_other(name) or nil end
end

--- States of the slots: {slots = {name -> {state, weight, up, sessions}}, route, others}, and which of several balancers differs,
--- and whether one does not run.
function balancer.read(context)
  local seen, differ, halted = agreement.read_all(context)
  local outdated
  leave_to_others(context, seen.slots)
  for _, driver in ipairs(context.drivers) do outdated = outdated or driver.outdated or nil end
  return { slots = seen.slots, route = seen.route, down = seen.down, others = seen.others, halted = halted, differ = differ, outdated = outdated }
end

--- Who is told apart now: what the run wants counts more than what is seen.
function balancer.routed(context)
  if context.route ~= nil then return { route = context.route } end
  return { route = agreement.read_one(context).route or false }
end

--- The state that slots should have now, as changes that would bring it back. What the run wants of a slot counts more
--- than what is seen there: an earlier life of the run may have begun to change it.
function balancer.find(context, _, args)
  local slots, found = nil, {}
  for i, change in ipairs(args.changes) do
    local slot = context.wanted[change.slot]
    if not slot then
      slots = slots or agreement.read_one(context, names_of(args.changes)).slots
      slot = slots[change.slot]
    end
    found[i] = { slot = change.slot, state = slot and slot.state or "maint", weight = slot and slot.weight or 0 }
  end
  return found
end

--- The states that the run begins with: what is to be kept, and brought back when others change it.
function balancer.adopt(context, _, args)
  agreement.want(context, args.changes)
  context.unsaved = true
  for index in ipairs(context.drivers) do agreement.note_reached(context, index) end
  if #context.drivers > 1 then agreement.begin(context) end
  return {}
end

balancer.remember = {
  route = function(context, args) context.route = args.route end,
  adopt = function(context, args) agreement.want(context, args.changes) end,
  apply = function(context, args) agreement.want(context, args.changes) end,
  restore = function(context, args) agreement.want(context, args.changes) end,
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

--- Slots that were closed already, and are to stay so.
local function closed_by(context, changes)
  local list = {}
  for _, change in ipairs(changes) do
    local wanted = context.wanted[change.slot]
    if change.state and change.state ~= "ready" and wanted and wanted.state ~= "ready" then list[#list + 1] = change.slot end
  end
  return list
end

--- Sets states everywhere; `look` has a last look while nobody else changes anything, and may raise. A slot that somebody
--- else had opened meanwhile may have got requests.
local function set(context, changes, look, forward)
  context.check_lock()
  agreement.exclusively(context, function()
    if look then look() end
    local closed = closed_by(context, changes)
    agreement.want(context, changes)
    context.unsaved = true
    agreement.change_all(context, function(driver)
      local found = agreement.apply(context, driver, changes, forward)
      for _, name in ipairs(closed) do
        if found[name] and found[name].state == "ready" then context.closed_aside[name] = true end
      end
    end)
  end)
  return {}
end

--- Sets states and weights; each driver sends them as one request and reads them back.
function balancer.apply(context, _, args)
  if args.forward then checks.pass(context, args.changes, set) end
  return set(context, args.changes, nil, args.forward)
end

--- All balancers have the states that the run wants; else an error.
function balancer.agree(context, _, args)
  agreement.reach(context, args.back)
  return {}
end

--- The first of the slots that has sessions, the long ones apart.
local function busy_slot(context, names)
  for index, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver, names)
    if not ok and not errors.is_away(seen) then error(seen, 0) end
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
  agreement.await_changes(context) -- what mends a balancer may just be closing it
  if not context.closed_aside[name] then return end
  local timeout = 0
  for _, entry in ipairs(context.app.balancers) do timeout = math.max(timeout, entry.drain.timeout) end
  balancer.await_drained(context, nil, { slots = { name }, timeout = timeout })
  context.closed_aside[name] = nil
end

--- Takes a slot out of traffic, whoever gave it any.
---@async
---@param context table
---@param name string
function balancer.take_out(context, name)
  local slot = #context.drivers > 0 and agreement.read_one(context, { name }).slots[name]
  if not slot or slot.state == "maint" then return end
  set(context, { { slot = name, state = "drain" } })
  balancer.await_drained(context, nil, { slots = { name }, timeout = context.app.balancers[1].drain.timeout })
  set(context, { { slot = name, state = "maint" } })
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

--- The names of two lists, each once.
local function with(list, more)
  local all, has = {}, {}
  for _, names in ipairs { list, more } do
    for _, name in ipairs(names) do
      all[#all + 1] = not has[name] and name or nil
      has[name] = true
    end
  end
  return all
end

--- Has every balancer tell requests apart as wanted.
local function reroute(context, wanted)
  agreement.reshaping(context, function()
    context.route = wanted
    agreement.change_all(context, function(driver)
      if driver.route then driver:route(wanted or nil) end
    end)
  end)
end

--- Slots of a list that get no requests but routed ones.
local function only_routed(context, names)
  local slots, list = agreement.read_one(context, names).slots, {}
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
  local err = agreement.patiently(agreement.patience, function() found = agreement.read_one(context).route end)
  if err then error(err, 0) end
  return found
end

--- Tells requests apart, or not any more (false). Slots that get none any more are drained first, while the balancer
--- still knows of what it sent them; also those that one which was just restarted does not route any more.
---@async
function balancer.route(context, _, args)
  context.check_lock()
  local wanted = args.route
  local known = left_out(context.route, wanted)
  or_keep(context, "kept_routed", known, function()
    local leaving = with(known, left_out(routed_now(context), wanted))
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
  errors.raise("held", ("%s: traffic was not put back there, because what was done there could not be undone"):format(table.concat(names, ", ")))
end

--- The weights that get traffic as it is now, and with changes: of all slots, and of those that have the new release.
---@return {all: integer, new: integer} now
---@return {all: integer, new: integer} after
local function weigh(context, changes)
  local now, after, changed = { all = 0, new = 0 }, { all = 0, new = 0 }, {}
  for _, change in ipairs(changes) do changed[change.slot] = change end
  local function add(sum, name, weight)
    sum.all = sum.all + weight
    if context.new[name] then sum.new = sum.new + weight end
  end
  for name, slot in pairs(agreement.read_one(context).slots) do
    local change = changed[name] or slot
    add(now, name, slot.state == "ready" and slot.weight or 0)
    add(after, name, change.state == "ready" and (change.weight or slot.weight) or 0)
  end
  return now, after
end

--- Whether changes would leave nothing that serves, where something does.
local function ends_service(context, changes)
  local now, after = weigh(context, changes)
  return now.all > 0 and after.all == 0
end

--- What is not to be changed is wanted as it is.
local function leave_as_they_are(context, changes)
  local seen = agreement.read_one(context, names_of(changes)).slots
  for _, change in ipairs(changes) do
    local slot = seen[change.slot]
    if slot then agreement.want(context, { { slot = change.slot, state = slot.state, weight = slot.weight } }) end
  end
end

--- A rollback that goes on may have been further than its journal tells. A step of it that would give the new release more
--- than it has now is behind: of that only the closing of slots is left, if something else serves then.
local function without_rise(context, changes)
  if not next(context.new) then return changes end
  local now, after = weigh(context, changes)
  if after.new * now.all <= now.new * after.all then return changes end
  local closing, opening = {}, {}
  for _, change in ipairs(changes) do table.insert(change.state ~= "ready" and closing or opening, change) end
  leave_as_they_are(context, opening)
  if not ends_service(context, closing) then return closing end
  leave_as_they_are(context, closing)
  return {}
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
  changes = without_rise(context, changes)
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
    set(context, changes)
  end)
  if next(held) then raise_held(held) end
  return {}
end

--- Slots in service, or routed, that a balancer finds down. One that is away does not know.
---@return table<string, string> down  why, by slot
function balancer.down(context, _, args)
  local down = {}
  for index, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver, args.slots)
    if not ok and not errors.is_away(seen) then error(seen, 0) end
    local routed = {}
    for _, name in ipairs(ok and seen.route and seen.route.slots or {}) do routed[name] = true end
    for _, name in ipairs(args.slots) do
      local slot = ok and seen.slots[name]
      if slot and slot.up == false and (slot.state == "ready" or routed[name]) then down[name] = agreement.name_of(context, index) .. " finds it down by its own check, and sends it nothing" end
    end
  end
  return down
end

--- Whether what a driver counted are counts: one that reckons may give NaN or infinity.
local function is_counted(slot)
  local sum = math.abs(slot.requests) + math.abs(slot.errors) + math.abs(slot.latency or 0) + math.abs(slot.seconds or 0)
  return sum < math.huge -- and what has NaN in it is not below anything
end

--- Requests, errors and mean latency of slots, summed over the balancers: name -> {requests, errors, latency}. `counted`
--- tells which balancers are in a sum, a bit each: sums of others cannot be compared. Slots without counts are left out.
function balancer.stats(context)
  local sums = {}
  for i, driver in ipairs(context.drivers) do
    local ok, stats = pcall(driver.stats, driver)
    if not ok and (#context.drivers == 1 or not errors.is_away(stats)) then error(stats, 0) end
    for name, slot in pairs(ok and stats or {}) do
      if not is_counted(slot) then goto continue end
      local sum = sums[name] or { requests = 0, errors = 0, latency = 0 }
      sum.requests, sum.errors = sum.requests + slot.requests, sum.errors + slot.errors
      sum.latency = math.max(sum.latency, slot.latency or 0)
      sum.seconds = slot.seconds and (sum.seconds or 0) + slot.seconds
      sum.window = #context.drivers == 1 and slot.window or nil
      sum.counted = (sum.counted or 0) | 1 << i
      sums[name] = sum
      ::continue::
    end
  end
  return sums
end

local function run_of(context)
  return (context.run_id:match("^[^/]+"))
end

--- Starts what deployrt manages itself, and adds the slots that a balancer does not know.
---@return {lenient?: boolean}  whether health is checked so that what serves passes, and not as the new release says
function balancer.prepare(context)
  local lenient
  agreement.writing(context, function()
    for index, driver in ipairs(context.drivers) do
      if not context.behind[index] then driver:prepare(run_of(context), context.wanted) end
      lenient = lenient or driver.lenient or nil
    end
  end)
  return { lenient = lenient }
end

--- Has balancers check health as the new release says, or so that what serves passes.
function balancer.examine(context, _, args)
  agreement.writing(context, function()
    for _, driver in ipairs(context.drivers) do
      if driver.examine then driver:examine(args.strict) end
    end
  end)
  return {}
end

--- Puts back how balancers were set up when the run began. What serves because its traffic could not be taken away goes on.
function balancer.unprepare(context)
  agreement.writing(context, function()
    for _, driver in ipairs(context.drivers) do
      if driver.unprepare then driver:unprepare(run_of(context), next(context.kept_open) ~= nil, agreement.others(context)) end
    end
  end)
  return {}
end

--- Stops the balancers that deployrt itself started.
function balancer.stop(context)
  agreement.writing(context, function()
    context.unsaved = false
    for _, driver in ipairs(context.drivers) do driver:stop() end
  end)
  return {}
end

return balancer
