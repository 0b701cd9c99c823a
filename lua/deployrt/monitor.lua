-- monitor.lua -- Looks at balancers and traffic while a run lasts: for the picture, and to mend what others change.
local core = require "deployrt.core"
local world_balancer = require "deployrt.world.balancer"

local monitor = {}

local mend_every, report_every = 0.25, 1 -- seconds

--- What a balancer does differently from what the run wants of it, as changes.
local function differences(driver, wanted)
  local slots, changes = driver:read().slots, {}
  for name, state in pairs(wanted) do
    local slot = slots[name]
    if not slot or slot.state ~= state.state or (state.weight and slot.state == "ready" and slot.weight ~= state.weight) then
      changes[#changes + 1] = { slot = name, state = state.state, weight = state.weight }
    end
  end
  table.sort(changes, function(a, b) return a.slot < b.slot end)
  return changes
end

--- A balancer that was restarted or changed by others is brought to the wanted state again.
local function mend(run, context)
  if context.changing then return end
  context.check_lock()
  world_balancer.exclusively(context, function()
    for _, driver in ipairs(context.drivers) do
      local changes = differences(driver, context.wanted)
      if #changes > 0 then
        driver:prepare()
        driver:apply(changes)
        run.emit { event = "warning", message = ("the balancer was restarted or changed by somebody: %d slots set right again"):format(#changes) }
      end
    end
  end)
end

local function releases_by_slot(run)
  local map = {}
  for _, member in ipairs(run.fleet.members) do map[member.slot] = member.release end
  return map
end

--- The share of traffic by release, in percent, from the weights of the slots.
---@return table<string, number>
function monitor.shares(run)
  local map, sums, total = releases_by_slot(run), {}, 0
  for name, slot in pairs(run.balancer.slots) do
    if slot.state == "ready" and slot.weight > 0 and map[name] then
      sums[map[name]] = (sums[map[name]] or 0) + slot.weight
      total = total + slot.weight
    end
  end
  for release, sum in pairs(sums) do sums[release] = math.floor(10000 * sum / total + 0.5) / 100 end
  return sums
end

local function rates(run, stats, seconds)
  local map, requests, failures = releases_by_slot(run), {}, {}
  for name, now in pairs(stats) do
    local before = run.last_stats and run.last_stats[name]
    local release = map[name]
    if release and before and now.requests >= before.requests then
      requests[release] = (requests[release] or 0) + (now.requests - before.requests) / seconds
      failures[release] = (failures[release] or 0) + math.max(0, now.errors - before.errors) / seconds
    end
  end
  run.last_stats = stats
  return requests, failures
end

--- A snapshot of all slots, for the live view.
function monitor.snapshot(run)
  local list = {}
  for _, member in ipairs(run.fleet.members) do
    local slot = run.balancer.slots[member.slot]
    list[#list + 1] = {
      host = member.host.name, port = member.port, release = member.release, state = member.state,
      weight = slot and slot.state == "ready" and slot.weight or 0,
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
  local reported = core.now()
  while not run.over and core.sleep(mend_every) do
    if #context.drivers > 0 then
      pcall(mend, run, context)
      pcall(world_balancer.save, context)
    end
    monitor.snapshot(run)
    if core.now() - reported >= report_every and #context.drivers > 0 then
      local ok, stats = pcall(world_balancer.stats, context)
      if ok then
        local requests, failures = rates(run, stats, core.now() - reported)
        run.emit { event = "traffic", share = monitor.shares(run), requests = requests, errors = failures }
      end
      reported = core.now()
    end
  end
end

--- The end of watching: what balancers must still know, and the last picture.
---@async
function monitor.last_look(run, context)
  pcall(world_balancer.save, context)
  monitor.snapshot(run)
end

return monitor
