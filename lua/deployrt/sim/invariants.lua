-- sim/invariants.lua -- What must hold at every moment of a simulated run, and at its end.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local sandbox = require "deployrt.sandbox"
local slot_name = require "deployrt.slot_name"
local weights = require "deployrt.balancer.weights"

local invariants = {}

---@class deployrt.sim.View  a world as an invariant sees it
---@field time number         seconds since the run began
---@field instances {host: string, port: integer, name: string, state: string, weight: integer, open: boolean, share: number,
---  release?: string, new: boolean, running: boolean, healthy: boolean, hurt: boolean}[]  what runs or gets traffic; open: requests may come
---  there; share in percent
---@field demand number       requests a second
---@field capacity number     requests a second that one instance can serve
---@field target string       the new release
---@field answer? string      what a person said last at a gate that has several answers
---@field outcome? string     of the run that ended last: "succeeded", "rolled_back", "interrupted", "needs_attention"

local slack = 1.02 -- weights are whole numbers
local uneven = 1.02 -- and those of a side's instances are not all the same

--- Nobody but the run has changed what serves.
local function is_undisturbed(world)
  return not world.hurt and not world.balancer.dirty and not world.faults:has("old-broken")
end

local checks = {}

--- Why a share of the demand is more than those who get it can serve; nil when they can.
local function overload(world, who, percent, able)
  local load = world.balancer.demand * percent / 100
  if load <= world.capacity * able * slack then return end
  return ("%s gets %.0f requests a second, and its %d instances that are ready can serve %.0f; how many may be missing meanwhile is declared in "
    .. "strategy.define, as `may_lack = 1`, another amount, or the name of an option"):format(who, load, able, world.capacity * able)
end

--- Without a balancer nobody shares the demand out.
local function overload_of_all(world)
  local able = world.tally:able(world.tally.new) + world.tally:able(world.tally.old)
  return overload(world, "the fleet", 100, able) or (able == 0 and not world.allow_gap and "nothing serves" or nil)
end

--- Why one instance of a side gets more than it can serve, though all of them together could; nil when none does.
local function overload_of_one(world, side)
  local load = world.balancer.demand * world.tally:heaviest(side) / 100
  if load <= world.capacity * uneven then return end
  return ("an instance of the %s side gets %.0f requests a second, and can serve %.0f: the weights of that side are uneven"):format(
    side.name, load, world.capacity)
end

--- Each side's share of the demand is at most what that side can carry, and each instance's what one can.
checks["capacity"] = { on = { traffic = true, exit = true }, look = function(world, event)
  if world.crippled or not is_undisturbed(world) or (event.kind == "exit" and event.why ~= "stopped") then return end
  local tally = world.tally
  if world.balancer.absent then return overload_of_all(world) end
  for _, side in ipairs { tally.new, tally.old } do
    local problem = overload(world, ("the %s side"):format(side.name), tally:share(side), tally:able(side)) or overload_of_one(world, side)
    if problem then return problem end
  end
  if tally:share(tally.new) + tally:share(tally.old) == 0 and not world.allow_gap then return "nothing serves" end
end }

local function is_fed(world, event)
  local slot = world.balancer.named[slot_name.of(event.host, event.port)]
  return world.balancer:is_open(slot), slot
end

--- Whether a slot that is opened holds a process that was ready at some time.
local function opened_too_early(world, change, before)
  local slot = world.balancer.named[change.slot]
  local opens = world.balancer:is_open(slot) and not before.open
  if not opens or slot.hurt then return end
  local process = slot.machine:running(slot.port)
  if not process and slot.found_open then return end -- it was so before, and is put back
  if not process then return ("%s gets traffic, and nothing runs there"):format(slot.name) end
  if process.hurt or process.was_ready or process.ready_at <= core.now() then return end
  return ("%s gets traffic before release %s is ready there"):format(slot.name, process.release)
end

--- Traffic goes only to what is ready: neither to what starts, nor to what is being stopped, nor to an empty slot.
checks["traffic only to ready instances"] = { on = { traffic = true, start = true, signal = true }, look = function(world, event)
  if event.kind == "traffic" then
    if event.by ~= "run" then return end
    for i, change in ipairs(event.changes) do
      local problem = opened_too_early(world, change, event.before[i])
      if problem then return problem end
    end
    return
  end
  if world.balancer.absent or world.balancer.dirty or event.process.hurt then return end -- where clients go is their own business
  local fed, slot = is_fed(world, event)
  if not fed or slot.hurt then return end
  return event.kind == "start" and ("release %s is started on %s:%d, which gets traffic already"):format(event.release, event.host, event.port)
    or ("%s:%d is stopped while it gets traffic"):format(event.host, event.port)
end }

--- A process is stopped once its requests have ended, or the drain's time is over.
checks["stopped only when drained"] = { on = { signal = true }, look = function(world, event)
  local slot = world.balancer.named[slot_name.of(event.host, event.port)]
  local now = core.now()
  if event.process.started > slot.left_at then return end -- what is still to come was for one that ran there before
  if slot.reopened then return end -- by somebody else, while its last requests ended: nobody waits for those that came then
  if event.process.hurt or event.signal == "KILL" or now >= slot.drained_at or now >= slot.left_at + world.drain_timeout then return end
  return ("%s:%d is stopped, and %.2fs of its requests are still to come"):format(event.host, event.port, slot.drained_at - now)
end }

--- The last instance that serves well is not taken out of traffic; that nothing is stopped which serves, others see to.
checks["the last healthy instance stays"] = { on = { traffic = true }, look = function(world, event)
  local before = world.serving_before
  world.serving_before = world.tally.serving
  if event.by ~= "run" or world.allow_gap or not is_undisturbed(world) or not before or before == 0 or world.serving_before > 0 then return end
  for _, change in ipairs(event.changes) do
    local slot = world.balancer.named[change.slot]
    if world.balancer:is_open(slot) then return end -- it goes to something, if not to something healthy: said elsewhere
  end
  return "the last healthy instance was taken out of traffic"
end }

--- Whether a change takes traffic from a slot altogether: the others' shares grow then.
local function closes_something(world, event)
  for i, change in ipairs(event.changes) do
    if event.before[i].open and not world.balancer:is_open(world.balancer.named[change.slot]) then return true end
  end
  return false
end

--- Whether an instance of the new release that gets requests got them by a share, before a change or after it: otherwise each
--- side's share is what the number of its instances gives.
local function is_weighted(world, event)
  local function is_held(set) return set.routed or set.weight ~= weights.usual end
  local before = {}
  for i, change in ipairs(event.changes) do before[change.slot] = event.before[i] end
  for _, slot in ipairs(world.balancer.slots) do
    local process, was = slot.machine.processes[slot.port], before[slot.name]
    if process and process.release == world.target.release then
      if world.balancer:is_open(slot) and is_held(slot) or was and was.open and is_held(was) then return true end
    end
  end
  return false
end

--- Whether old instances leave one by one: those that stay get more by themselves.
local function is_replacement(world, event)
  return closes_something(world, event) and not is_weighted(world, event)
end

--- Once a run is being taken back, the new release gets no instance more, and no greater share. A copy of the journal that
--- lags may not know of that: who resumes from it goes forward again. Who was overtaken only believes that it takes it back.
checks["no rise after an abort"] = { on = { traffic = true, rollback = true, operator = true }, look = function(world, event)
  if event.kind == "operator" then
    world.backwards = false
    return
  end
  local before, fed_before = world.new_share or 0, world.new_fed or 0
  world.new_share, world.new_fed = world.tally:share(world.tally.new), world.tally.new.open
  if event.kind == "rollback" and not event.overtaken then world.backwards = true end
  if event.kind ~= "traffic" or event.by ~= "run" or not world.backwards or world.balancer.dirty or world.hurt then return end
  local rises = world.new_share > before + 1 and not world.crippled and not is_replacement(world, event)
  if world.new_fed > fed_before or rises then
    return ("the new release's share rises from %.0f%% to %.0f%% while the run is being rolled back"):format(before, world.new_share)
  end
end }

local enough = 100   -- requests of the new release that are no chance
local beyond = 10    -- percentage points above what a strategy may overlook

--- How many requests the new release has had since the shares changed.
local function requests_so_far(world)
  return (core.now() - (world.shares_since or core.now())) * world.balancer.demand * world.tally:share(world.tally.new) / 100
end

--- How many percent of its requests the new release is known to fail, where that is far more than a strategy may overlook: the
--- old one fails none then. nil: nobody can say so, or there was too little to be seen.
local function known_badness(world)
  local least
  for _, fault in ipairs(world.faults:of("bad-release")) do least = math.min(least or 1, fault.errors) end
  local percent = 100 * (least or 0)
  return is_undisturbed(world) and world.judged_requests >= enough and percent > world.judges.errors + beyond and percent or nil
end

--- The verdict that a rise rests on. It is good for one rise; who only makes room for that one has not had it yet: an old
--- instance leaves in the same change, or in the next one where requests are told apart.
local function take_verdict(world, leaves)
  local verdict = world.verdict
  if not leaves then world.verdict, world.spent = nil, verdict end
  return verdict
end

--- Whether nothing of the old release ran when the run began: the new one has nobody to be compared with.
local function is_without_old(world)
  local broken = world.faults:of("old-broken")[1]
  return broken ~= nil and broken.dead
end

--- Each rise of the new release's share above what it had is preceded by a verdict that allows it. Where old instances are
--- replaced, or somebody else changes something, the others get more by themselves. A verdict that passes what is known to be bad
--- was not about that, or had no limits.
checks["no promotion without evidence"] = { on = { traffic = true, analysis = true }, look = function(world, event)
  if event.kind == "analysis" then
    world.verdict, world.judged_requests = event.verdict, event.replayed and 0 or requests_so_far(world)
    return
  end
  world.shares_since = core.now()
  local before, now = world.judged_share or 0, world.tally:share(world.tally.new)
  local leaves = closes_something(world, event)
  if now <= before + 0.5 then
    world.verdict = world.verdict or leaves and world.spent or nil
    return
  end
  world.judged_share = now
  if before == 0 or not world.judges or world.backwards or event.by ~= "run" or world.balancer.dirty or world.hurt then return end
  if is_without_old(world) or is_replacement(world, event) then return end
  local verdict = take_verdict(world, leaves)
  local rise = ("the new release's share rises from %.0f%% to %.0f%%, and the last verdict is '%s'"):format(before, now, verdict or "none")
  if not world.judges.verdicts[verdict] then return rise end
  local bad = verdict == "pass" and known_badness(world)
  if bad then
    return ("%s, though it fails %.0f%% of its requests and the old one none: do `new` and `old` of analyse name those that share the "
      .. "traffic, and is anything at all above its limits?"):format(rise, bad)
  end
end }

local shown = { "host", "port", "name", "release", "state", "weight", "share", "open", "new", "running", "healthy", "hurt" }

--- What an author's invariant sees: nothing of the simulation itself.
local function copy_of(view)
  local copy = { instances = {} }
  for _, field in ipairs { "time", "demand", "capacity", "target", "answer", "outcome" } do copy[field] = view[field] end
  for i, each in ipairs(view.instances) do
    local instance = {}
    for _, field in ipairs(shown) do instance[field] = each[field] end
    copy.instances[i] = instance
  end
  return copy
end

--- What an author's invariant says of a view. It decides like a strategy does, and is held to the same limits.
local function judge(fn, view)
  local ok, holds, why = core.confined(sandbox.limits, fn, copy_of(view))
  if not ok then return "it fails: " .. errors.text(errors.wrap(holds)) end
  if holds == false then return type(why) == "string" and why or "it does not hold" end
end

--- The checks of each kind of event, the author's own among them.
---@param own? table<string, fun(view: deployrt.sim.View): boolean?, string?>
---@return fun(world: deployrt.sim.World, event: table)
function invariants.checker(own)
  local by_kind, names = {}, {}
  for name in pairs(checks) do names[#names + 1] = name end
  table.sort(names)
  local function add(kind, name, look)
    by_kind[kind] = by_kind[kind] or {}
    table.insert(by_kind[kind], { name = name, look = look })
  end
  for _, name in ipairs(names) do
    for kind in pairs(checks[name].on) do add(kind, name, checks[name].look) end
  end
  local own_names = {}
  for name in pairs(own or {}) do own_names[#own_names + 1] = name end
  table.sort(own_names)
  for _, name in ipairs(own_names) do
    for _, kind in ipairs { "traffic", "start", "ready", "exit", "signal", "finished" } do
      add(kind, name, function(world) return judge(own[name], world:view()) end)
    end
  end
  return function(world, event)
    local list = by_kind[event.kind]
    if not list or not world.tally or world.violation then return end
    for _, each in ipairs(list) do
      local problem = each.look(world, event)
      if problem then world:violate(each.name, problem) end
    end
  end
end

return invariants
