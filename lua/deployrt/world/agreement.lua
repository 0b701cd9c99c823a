-- world/agreement.lua -- Balancers kept alike: what a run wants of them, who changes them, and who has to catch up.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local route = require "deployrt.balancer.route"
local slot_name = require "deployrt.slot_name"

local agreement = {}

--- A balancer as people know it.
---@param index integer  its place in app.yml
---@return string
function agreement.name_of(context, index)
  local entry = context.app.balancers[index]
  return ("balancer %d (%s%s)"):format(index, entry.type, entry.host and " on " .. entry.host or "")
end

--- What the first balancer that answers says.
---@param names? string[]  the slots that are asked for; default: all
function agreement.read_one(context, names)
  local problem
  for _, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver, names)
    if ok then return seen end
    if not errors.is_away(seen) then error(seen, 0) end
    problem = problem or seen
  end
  error(problem, 0)
end

local function count_serving(seen)
  local count = 0
  for _, slot in pairs(seen.slots) do
    if slot.state == "ready" and slot.weight > 0 then count = count + 1 end
  end
  return count
end

local function is_alike(one, other)
  for name, slot in pairs(one.slots) do
    local its = other.slots[name] or slot.left and slot
    if not its or its.state ~= slot.state or slot.state == "ready" and its.weight ~= slot.weight then return false end
  end
  return true
end

--- Where balancers differ, what one of them uses gets traffic. Only who knows what runs can tell whether it should.
local function dispute(best, all)
  for name, slot in pairs(best.slots) do
    for _, seen in ipairs(all) do
      local its = seen and seen.slots[name] or slot
      if (its.state == "ready") ~= (slot.state == "ready") then
        if its.state == "ready" then slot.up = its.up end -- what is out of service is not up for who says so
        slot.weight, slot.state, slot.disputed = math.max(slot.weight, its.weight), "ready", true
      end
    end
  end
end

--- What only other balancers than the best still send to slots that app.yml does not name any more.
local function add_left(best, all)
  for _, seen in pairs(all) do
    for name, slot in pairs(seen and seen.slots or {}) do
      if slot.left and not best.slots[name] then best.slots[name] = slot end
    end
  end
end

--- Who gets traffic from some balancer besides the slots, each once.
local function others_of(all)
  local list, known = {}, {}
  for _, seen in pairs(all) do
    for _, other in ipairs(seen and seen.others or {}) do
      local key = ("%s\t%s\t%s"):format(other.via, other.name, other.address)
      local first = known[key]
      if first and first.weight ~= other.weight then first.differs = true end
      if not first then list[#list + 1], known[key] = other, other end
    end
  end
  return list
end

--- What the balancers say: of several, the one that has most in service, for one that was restarted lost something; and what
--- others have in service besides.
---@return table seen
---@return string? differ  which one has other states, or is away
---@return boolean? halted  one of them does not run
function agreement.read_all(context)
  if #context.drivers < 2 then
    local seen = agreement.read_one(context)
    return seen, nil, seen.down
  end
  local all, best, problem, differ, halted = {}, nil, nil, nil, nil
  for index, driver in ipairs(context.drivers) do
    local ok, seen = pcall(driver.read, driver)
    if not ok and not errors.is_away(seen) then error(seen, 0) end
    all[index], problem, halted = ok and seen, problem or not ok and seen, halted or ok and seen.down or nil
    if ok and (not best or count_serving(seen) > count_serving(best)) then best = seen end
  end
  if not best then error(problem, 0) end
  for index, seen in ipairs(all) do
    if not seen then
      differ = differ or agreement.name_of(context, index) .. " is away"
    elseif not is_alike(best, seen) then
      differ = differ or agreement.name_of(context, index) .. " has other states"
    end
  end
  dispute(best, all)
  add_left(best, all)
  best.others = others_of(all)
  return best, differ, halted
end

--- Waits until whoever is in line has had his turn.
---@async
---@param last? deployrt.Event  of the one who came last
local function let_pass(last)
  while last and not last:is_set() do last:wait() end
end

--- Lets one task at a time do something of a kind, in the order in which they came.
local function alone(context, kind, action)
  local before, done = context[kind], core.event()
  context[kind] = done
  let_pass(before)
  local ok, err = pcall(action)
  done:set()
  if context[kind] == done then context[kind] = nil end
  if not ok then error(err, 0) end
end

--- Waits for who is changing the balancers now, and for those who came before.
---@async
function agreement.await_changes(context)
  let_pass(context.changing)
end

--- Lets one task at a time change the balancers: an operation, or what mends them.
function agreement.exclusively(context, action)
  alone(context, "changing", action)
end

--- Lets one task at a time write the files of balancers. States change meanwhile.
function agreement.writing(context, action)
  alone(context, "writing", action)
end

--- Both: for what may write files, and sets states.
function agreement.reshaping(context, action)
  agreement.writing(context, function() agreement.exclusively(context, action) end)
end

--- Tells the slots that a balancer need not know: app.yml does not name them any more, and only others have them still.
local function is_foreign(context, driver)
  return function(name)
    if driver.left and driver.left[name] then return false end
    for _, each in ipairs(context.drivers) do
      if each.left and each.left[name] then return true end
    end
    return false
  end
end

--- Sets states of slots, as far as a balancer has them.
---@async
---@return table<string, deployrt.DriverSlot>  as they were before, where it had to look
function agreement.apply(context, driver, changes, forward)
  local foreign, own = is_foreign(context, driver), {}
  for _, change in ipairs(changes) do own[#own + 1] = not foreign(change.slot) and change or nil end
  return #own > 0 and driver:apply(own, forward) or {}
end

--- From now on a run wants these states, whatever somebody else does.
function agreement.want(context, changes)
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

--- A balancer has the wanted states now; one that is alone is never compared with others.
function agreement.note_reached(context, index)
  if #context.drivers > 1 then context.has[index] = snapshot(context) end
end

--- Tries until it succeeds, or a balancer that is being restarted has had its time to come back.
---@return deployrt.Error? err  of one that is away
function agreement.patiently(seconds, action)
  local deadline = core.now() + seconds
  while true do
    local ok, err = pcall(action)
    if ok then return nil end
    if not errors.is_away(err) then error(err, 0) end
    if core.now() >= deadline then return err end
    core.sleep(0.1)
  end
end

agreement.patience = 15 -- seconds in which a balancer that is being restarted must come back
local patience_beside, patience_at_end = 2, 15

--- One of several is away, and stays behind.
---@return string  what people should know of it
function agreement.leave_behind(context, index, err)
  context.behind[index] = err
  return ("%s is away, and will be brought up to date when it returns: %s"):format(agreement.name_of(context, index), err.message)
end

--- Changes one balancer. One that is away while others are there stays behind, and is brought up to date when it returns.
local function change_one(context, index, action)
  local behind = context.behind[index]
  local patience = #context.drivers == 1 and agreement.patience or behind and 0 or patience_beside
  local err = agreement.patiently(patience, function()
    context.check_lock() -- each time: a balancer has no epoch to refuse who was superseded while it waited
    action(context.drivers[index])
  end)
  if not err and not behind then agreement.note_reached(context, index) end
  if err and not behind then context.warn(agreement.leave_behind(context, index, err)) end
  return err
end

--- Changes all of them; when none is there, that is an error.
function agreement.change_all(context, action)
  local done, problem = false, nil
  for index, driver in ipairs(context.drivers) do
    local err = not driver.stopped and change_one(context, index, action) or nil
    done, problem = done or not err, err or problem
  end
  if not done and problem then error(problem, 0) end
end

--- Tells the slots that are not of the hosts to which `--host` limits the run, or not for certain; nil when it leaves no host out.
---@param context table
---@return (fun(slot: string): boolean)?
function agreement.others(context)
  local app, own = context.app, {}
  if app.hosts == app.all_hosts then return nil end
  for _, entry in ipairs(app.hosts) do own[entry.name] = true end
  return function(name)
    local host = slot_name.host(name)
    return not (host and own[host])
  end
end

--- What the run wants of the slots that are its own.
local function own_wanted(context)
  local wanted, is_other = {}, agreement.others(context)
  for name, state in pairs(context.wanted) do
    if not (is_other and is_other(name)) then wanted[name] = state end
  end
  return wanted
end

--- Has balancers know the wanted states over a restart of theirs: soon after a change, and at the end of a run.
---@async
function agreement.save(context)
  if not context.unsaved then return end
  agreement.writing(context, function()
    context.unsaved = false
    for _, driver in ipairs(context.drivers) do
      local ok, err = pcall(driver.persist, driver, own_wanted(context))
      context.unsaved = context.unsaved or not ok
      if not ok and not errors.is_away(err) then error(err, 0) end
    end
  end)
end

--- The run is over: balancers note what they have to know of its slots later. Where that fails, what an earlier run noted stands.
---@async
function agreement.conclude(context)
  for _, driver in ipairs(context.drivers) do
    if driver.conclude then pcall(driver.conclude, driver, own_wanted(context)) end
  end
end

--- Slots of other hosts are wanted as they are: another run may be at work there. But a balancer that was restarted may have
--- forgotten them as it has the run's own.
local function follow(context, index, seen)
  local is_other = agreement.others(context)
  if not is_other or seen.down then return end
  local before = context.instances[index] or seen.instance
  context.instances[index] = seen.instance
  if before ~= seen.instance and not context.drivers[index].remembers then return end
  for name, slot in pairs(seen.slots) do
    if is_other(name) then context.wanted[name] = { state = slot.state, weight = slot.weight } end
  end
end

--- What an earlier life of the run saw of other hosts' slots is long ago.
function agreement.forget_others(context)
  local is_other = agreement.others(context)
  for name in pairs(is_other and context.wanted or {}) do
    if is_other(name) then context.wanted[name] = nil end
  end
end

--- What a balancer does differently from what the run wants of it, as changes.
local function differences(seen, wanted, foreign)
  local slots, changes = seen.slots, {}
  for name, state in pairs(wanted) do
    local slot = slots[name] or foreign(name) and state
    if not slot or slot.state ~= state.state or (state.weight and slot.state == "ready" and slot.weight ~= state.weight) then
      changes[#changes + 1] = { slot = name, state = state.state, weight = state.weight }
    end
  end
  table.sort(changes, function(a, b) return a.slot < b.slot end)
  return changes
end

--- Whether anything is to get traffic.
local function is_wanted(wanted)
  for _, state in pairs(wanted) do
    if state.state == "ready" then return true end
  end
  return false
end

--- Says that a balancer was brought to the wanted states, and why it was not there.
local function tell(context, index, count, rerouted)
  local name, what = agreement.name_of(context, index), count == 1 and "1 slot" or count > 0 and count .. " slots" or rerouted and "its route"
  if context.begins then
    context.log(("%s gets the states of the others: %s"):format(name, what or "it was started"))
  elseif context.behind[index] then
    context.warn(("%s is back: %s"):format(name, what and what .. " brought up to date" or "it was started again"))
  elseif not what then
    context.warn(("%s did not run, and was started again"):format(name))
  else
    context.warn(("the balancer was restarted or changed by somebody: %s set right again"):format(what))
  end
end

--- Brings one balancer to the wanted states.
local function mend_one(context, index)
  local driver = context.drivers[index]
  local seen = driver:read()
  follow(context, index, seen)
  local changes = differences(seen, context.wanted, is_foreign(context, driver))
  local down = seen.down and is_wanted(context.wanted)
  local rerouted = driver.route and context.route ~= nil and not route.is_same(seen.route, context.route)
  if #changes > 0 or down then
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
  if #changes > 0 or rerouted or down then tell(context, index, #changes, rerouted) end
  context.behind[index] = nil
  agreement.note_reached(context, index)
end

--- Tries each of them; what went wrong, by place.
local function mend_all(context)
  local problems = {}
  context.check_lock()
  agreement.reshaping(context, function()
    for index, driver in ipairs(context.drivers) do
      local ok, err = true, nil
      if not driver.stopped then ok, err = pcall(mend_one, context, index) end
      problems[index] = not ok and errors.wrap(err) or nil
    end
  end)
  return problems
end

--- Says once that a balancer does not answer: not what a moment explains, and not what the operations have told.
local function complain(context, problems)
  for index in ipairs(context.drivers) do
    local err, said = problems[index], context.complaints[index] or 0
    context.complaints[index] = err and not context.behind[index] and said + 1 or 0
    if context.complaints[index] == 4 then
      context.warn(("%s does not answer, and is brought up to date when it returns: %s"):format(agreement.name_of(context, index), err.message))
    end
  end
end

--- Brings each balancer that was restarted, changed by others, or away, to the wanted states.
---@async
function agreement.mend(context)
  if context.changing or context.writing then return end
  complain(context, mend_all(context))
end

--- The same when the run has only just said what it wants: nobody has changed anything. Who is at work is waited for.
---@async
function agreement.begin(context)
  context.begins = true
  mend_all(context)
  context.begins = nil
end

local function same(one, other)
  for name, state in pairs(other) do
    local has = one and one[name]
    if not has or has.state ~= state.state or has.weight ~= state.weight then return false end
  end
  return true
end

--- All balancers have the wanted states: one that is away gets time to return, and is then an error. On the way back it is none
--- if it never heard of anything else.
---@async
---@param back? boolean
function agreement.reach(context, back)
  local deadline = core.now() + (back and patience_beside or patience_at_end)
  local problems = mend_all(context)
  while next(problems) and core.now() < deadline do
    core.sleep(0.2)
    problems = mend_all(context)
  end
  for index, err in pairs(problems) do
    if not back or not same(context.has[index], context.wanted) then
      errors.raise("balancer", ("%s does not have the states that the run wants: %s"):format(agreement.name_of(context, index), err.message),
        { host = err.host, detail = err.detail })
    end
  end
end

return agreement
