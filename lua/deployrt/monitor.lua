-- monitor.lua -- Looks at balancers and traffic while a run lasts: for the picture, and to mend what others change.
local agreement = require "deployrt.world.agreement"
local core = require "deployrt.core"
local world_balancer = require "deployrt.world.balancer"

local monitor = {}

local look_every, mend_every, report_every = 0.25, 0.25, 1 -- seconds
local slots_a_second = 4000 -- a large fleet, which takes long to look through, is looked at less often

local function pause(run, least)
  return math.max(least, #run.fleet.members / slots_a_second)
end

local others = "other hosts" -- what `--host` leaves out and what app.yml does not name, beside releases

local function releases_by_slot(run)
  local map = {}
  for _, member in ipairs(run.fleet.members) do map[member.slot] = member.release end
  return map
end

--- Routed slots that get requests: a balancer sends none to one that it finds down.
local function routed_slots(balancer)
  local names = {}
  for _, name in ipairs(balancer.route and balancer.route.slots or {}) do
    local slot = balancer.slots[name]
    if not slot or slot.up ~= false then names[#names + 1] = name end
  end
  return names
end

--- The share of each slot in all of the traffic, from 0 to 1: by weight, and for routed slots by the percentage that goes to them.
--- Who is down gets none, as the balancer sees it; what is left of the routed requests is for the others.
---@param balancer deployrt.Balancer
---@return table<string, number>
---@return number[]  of those who get traffic besides
function monitor.slot_shares(balancer)
  local parts, besides, total, routed = {}, {}, 0, routed_slots(balancer)
  local part = #routed > 0 and balancer.route.percent / 100 or 0
  for _, slot in pairs(balancer.slots) do
    if slot.state == "ready" and slot.up ~= false then total = total + slot.weight end
  end
  for _, other in ipairs(balancer.others) do total = total + other.weight end
  for i, other in ipairs(balancer.others) do besides[i] = (1 - part) * other.weight / total end
  for name, slot in pairs(balancer.slots) do
    if slot.state == "ready" and slot.up ~= false and slot.weight > 0 then parts[name] = (1 - part) * slot.weight / total end
  end
  for _, name in ipairs(routed) do parts[name] = (parts[name] or 0) + part / #routed end
  return parts, besides
end

--- The share of traffic by release, in percent; what goes to other hosts than the run's, or to what app.yml does not name, has no release.
---@return table<string, number>
function monitor.shares(run)
  local map, is_elsewhere, sums = releases_by_slot(run), run.fleet:elsewhere(), {}
  local function add(release, share)
    if release then sums[release] = (sums[release] or 0) + share end
  end
  local parts, besides = monitor.slot_shares(run.balancer)
  for name, share in pairs(parts) do add(map[name] or is_elsewhere(name) and others, share) end
  for _, share in ipairs(besides) do add(others, share) end
  local total = 0
  for _, sum in pairs(sums) do total = total + sum end
  for release, sum in pairs(sums) do sums[release] = total > 0 and math.floor(10000 * sum / total + 0.5) / 100 or 0 end
  return sums
end

--- What balancers have counted by now; nil when there are none, or they do not say.
local function counters(context)
  local ok, stats = pcall(world_balancer.stats, context)
  return ok and #context.drivers > 0 and stats or nil
end

--- What came and failed a second since the look before, by release; nil where that was no look at the same counters.
---@param before? table<string, {requests: integer, errors: integer}>  by slot
---@param stats table<string, {requests: integer, errors: integer}>
---@param seconds number  between them
---@return table<string, number>? requests
---@return table<string, number>? failures
local function rates(run, before, stats, seconds)
  local map, requests, failures = releases_by_slot(run), {}, {}
  for name, now in pairs(stats) do
    local release, past = map[name], before and before[name]
    if release and past and now.requests >= past.requests then
      requests[release] = (requests[release] or 0) + (now.requests - past.requests) / seconds
      failures[release] = (failures[release] or 0) + math.max(0, now.errors - past.errors) / seconds
    end
  end
  if next(requests) then return requests, failures end
end

local function tell_shares(run)
  run.shares_told, run.shares_due = core.now(), false
  run.emit { event = "traffic", share = monitor.shares(run) }
end

--- Tells the shares of traffic, which have just changed; of a large fleet soon.
function monitor.report_traffic(run)
  run.shares_due = core.now() - (run.shares_told or -math.huge) < pause(run, look_every) - look_every
  if not run.shares_due then tell_shares(run) end
end

local function is_same(shares, before)
  for release, share in pairs(shares) do
    if before[release] ~= share then return false end
  end
  for release in pairs(before) do
    if shares[release] == nil then return false end
  end
  return true
end

--- Tells each change of the shares at once; what tasks side by side make of them at the same moment is told once, behind them,
--- with the time since when they are so.
function monitor.tell_once(run)
  local due, emit, told = nil, run.emit, {}
  local function tell()
    local shares, since = monitor.shares(run), due
    due = nil
    if is_same(shares, told) then return end
    told = shares
    emit({ event = "traffic", share = shares }, since)
  end
  run.report_traffic = function()
    if core.locals().scope:is_beside_others() then due = run.world:now() else tell() end
  end
  run.emit = function(event)
    local is_behind = due and (event.event ~= "op" or run.world:now() > due or not core.locals().scope:is_beside_others())
    if is_behind then tell() end
    emit(event)
  end
end

--- A snapshot of all slots, for the live view.
function monitor.snapshot(run)
  if run.shares_due then tell_shares(run) end
  local list, shares = {}, run.balancer:exists() and monitor.slot_shares(run.balancer)
  for _, member in ipairs(run.fleet.members) do
    local slot = run.balancer.slots[member.slot]
    list[#list + 1] = {
      host = member.host.name, port = member.port, release = member.release, state = member.state,
      weight = slot and slot.state == "ready" and slot.weight or 0, share = shares and (shares[member.slot] or 0) or nil,
    }
  end
  table.sort(list, function(a, b)
    if a.host ~= b.host then return a.host < b.host end
    return a.port < b.port
  end)
  run.emit { event = "state", instances = list }
end

--- The task: until it is canceled. A balancer that does not answer is the operations' business.
---@async
function monitor.watch(run, context)
  run.turns:await_live()
  local before, reported = counters(context), core.now()
  while not run.over and core.sleep(pause(run, look_every)) do
    monitor.snapshot(run)
    if core.now() - reported >= report_every then
      local stats = counters(context)
      if stats then
        local requests, failures = rates(run, before, stats, core.now() - reported)
        run.emit { event = "traffic", share = monitor.shares(run), requests = requests, errors = failures }
      end
      before, reported = stats, core.now()
    end
  end
end

--- The task that brings balancers back to what the run wants, and has them know it over a restart. It is not canceled but
--- told, by the event: a balancer that is half mended, or a file that is half written, would stay so.
---@async
---@param ended deployrt.Event
function monitor.keep(run, context, ended)
  run.turns:await_live()
  repeat
    local is_over = ended:wait(pause(run, mend_every))
    if #context.drivers > 0 then pcall(agreement.mend, context) end
    pcall(agreement.save, context)
  until is_over
  agreement.conclude(context)
end

return monitor
