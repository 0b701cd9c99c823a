-- sim/scenario.lua -- One seed: a world that serves, a run in it with its faults, and an operator who sees it through.
local core = require "deployrt.core"
local ending = require "deployrt.sim.ending"
local errors = require "deployrt.errors"
local memory = require "deployrt.sim.memory"
local resume = require "deployrt.resume"
local run = require "deployrt.run"
local slot_name = require "deployrt.slot_name"
local units = require "deployrt.units"
local worlds = require "deployrt.sim.world"

local scenario = {}

local midnight = 1700000000 -- the time of day at which every simulation begins
local capacity = 100        -- requests a second that an instance can serve
local longest = 3600        -- seconds beyond the run's timeout in which a controller must have come to an end
local silence = 32          -- seconds after which a run counts as dead, and a little more
local attempts = 6          -- of an operator, until a run must have ended
local abort_within = 100    -- seconds: what is in flight may wait for its health (60), and for a host that does not answer (30)

---@class deployrt.sim.Scenario
---@field seed integer
---@field strategy deployrt.Strategy
---@field values table                  its options
---@field app deployrt.App
---@field faults deployrt.sim.Fault[]
---@field agreeable? boolean    people give the first answer at each gate
---@field check fun(world: deployrt.sim.World, event: table)

---@class deployrt.sim.Result
---@field seed integer
---@field strategy string        its name
---@field outcome string         "succeeded", "rolled_back", "interrupted", "refused", "locked"
---@field violation? {invariant: string, message: string, at: number}
---@field events table[]
---@field seconds number         virtual ones, until all was over
---@field records integer        of journals
---@field ending string          what each slot runs and gets in the end
---@field reason? string         why it was rolled back or refused

--- The group of hosts that serves when a strategy begins which takes over to another one; nil: all serve.
local function first_group(plan)
  local first = plan.app.hosts[1].group
  for _, entry in ipairs(plan.strategy.groups and first and plan.app.hosts or {}) do
    if entry.group ~= first then return first end
  end
end

--- How many of so many instances the strategy declares that it may do without.
local function lack_of(plan, count)
  local lack = plan.strategy.may_lack or {}
  local amount = lack.option and plan.values[lack.option] or lack
  return (amount.count or amount.percent) and units.resolve_amount(amount, count) or 0
end

--- What the strategy promises to keep serving: all, but for what it may lack.
local function demand_of(world, plan)
  local count = 0
  for _, host in ipairs(world.machines) do count = count + (host.standby and 0 or plan.app.process.instances) end
  return capacity * math.max(0, count - lack_of(plan, count))
end

--- The verdicts that let a strategy which judges go on, and the failures that it is told to overlook, in percent; nil: it does not judge.
local function judgement_of(values)
  if not values.inconclusive then return nil end
  return { verdicts = { pass = true, inconclusive = values.inconclusive == "pass" or nil }, errors = values.errors or 1 }
end

--- The old release serves on a host.
local function populate_host(world, plan, host, launch, text)
  local broken = world.faults:of("old-broken")[1]
  host.releases[launch.release] = { sha256 = ("0"):rep(64), time = midnight - 1000 }
  host.current = launch.release
  for i = 1, plan.app.process.instances do
    local port = world.ports[i]
    local process = host:start(port, "before", launch, text)
    process.ready_at, process.was_ready = broken and math.huge or 0, true
    if broken and broken.dead then host:kill(port, "broken") end
    local slot = world.balancer.named[slot_name.of(host.name, port)]
    slot.state = "ready"
  end
end

--- The old release serves on every host, or on those of one group.
local function populate(world, plan)
  local launch = { release = "1.0", settings = "old", command = { "./serve" }, packed = true, env = {} }
  local text, group = require("cjson").encode(launch), first_group(plan)
  world.launches[text], world.grouped = launch, group ~= nil
  for i, host in ipairs(world.machines) do
    host.standby = group ~= nil and plan.app.hosts[i].group ~= group
    if not host.standby then populate_host(world, plan, host, launch, text) end
  end
end

local function begin(plan)
  local target = { release = "2.0", sha256 = ("1"):rep(64), packed = true, command = { "./serve" }, env = {}, settings = "new" }
  local world = worlds.new(plan.seed, plan.app, { target = target, faults = plan.faults, check = plan.check })
  populate(world, plan)
  world.capacity, world.balancer.demand = capacity, demand_of(world, plan)
  world.timeout = plan.values.timeout or 3600
  world.allow_gap, world.keeps_old = plan.values.allow_gap, plan.values.keep
  world.judges = judgement_of(plan.values)
  world.drain_timeout = plan.app.balancers[1] and plan.app.balancers[1].drain.timeout or 30
  world.initial = ending.remember(world)
  local app = setmetatable({ site = world:site() }, { __index = plan.app })
  return world, app, target
end

--- A run begins, or is taken up: nobody else's may be under way.
local function check_alone(world, life)
  for _, other in ipairs(world.lives) do
    if other ~= life and other.began and not other.finished and not other.dead and not other.overtaken then
      world:violate("one run at a time", "a second controller goes on while the first is at work")
    end
  end
  life.began = true
end

local most = 5 -- of what is left is told

--- What a run has left, on a line; empty where that is nothing. Where a script's own undo fails, its message has the line.
local function left_text(left)
  if not left then return "" end
  local parts = {}
  for i, each in ipairs(left) do parts[i] = ("%s: %s"):format(each.host, (each.message:gsub("\n.*", ""))) end
  return ("; left: %s%s"):format(table.concat(parts, "; ", 1, math.min(#parts, most)), #parts > most and (" and %d more"):format(#parts - most) or "")
end

--- What people and invariants learn of a run.
local function hear(world, life)
  return function(event)
    if event.event == "run.started" then
      check_alone(world, life)
      if life.replayed then world:note("analysis", { verdict = life.replayed, replayed = true, text = "so its journal has it" }) end
    elseif event.op == "balancer.adopt" and event.ok then
      world.balancer.known = true -- what it found is in the journal: that is what it puts back from now on
    elseif event.event == "op" and event.effect then
      world.crippled = world.crippled or life.rolled_back_at ~= nil and not event.ok
      world:note("op", { text = event.op, host = event.host, instance = event.instance, ok = event.ok, error = event.error })
    elseif event.event == "step.started" then
      world:note("step", { text = event.step })
    elseif event.event == "analysis" then
      world:note("analysis", { verdict = event.verdict, text = event.reason })
    elseif event.event == "rollback.started" then
      life.rolled_back_at, world.reason, world.committed = core.now(), event.reason, core.locals().run.committed ~= nil
      if life.asked_at and core.now() - life.asked_at > abort_within then
        world:violate("an abort is honoured in time", ("it was asked for %.0f seconds before the way back began"):format(core.now() - life.asked_at))
      end
      world:note("rollback", { text = event.reason, overtaken = life.overtaken })
    elseif event.event == "run.finished" then
      life.outcome, life.left, life.without, life.settled = event.outcome, event.left, event.without, event.settled
      world.outcome = event.outcome
      world:note("finished", { text = ("%s, exit %d%s"):format(event.outcome, event.exit, left_text(event.left)) })
    elseif event.event == "warning" then
      world:note("warning", { text = event.message })
    end
  end
end

--- A person who decides at gates that have several answers. Whoever was overtaken asks in vain.
local function answerer(world, plan, life)
  return function(answers)
    local answer = plan.agreeable and answers[1] or world.person:pick(answers)
    if not life.overtaken then world.answer = answer end
    world:note("answer", { text = answer })
    return answer
  end
end

--- What a controller needs besides its application.
local function options_of(world, plan, life, state)
  return {
    strategy = plan.strategy, values = plan.values, state = state, kind = "deploy", yes = true, choose = answerer(world, plan, life), unwatched = true, emit = hear(world, life),
    replayed = function(event) -- the life before may have died before it told its last verdict
      if event.event == "analysis" then life.replayed = event.verdict end
    end,
    signals = function()
      return setmetatable({ next = function()
        if not life.signal:wait() then return nil end
        life.signal:clear()
        return "INT"
      end }, { __close = function() end })
    end,
    leave = function(err)
      world:note("left", { text = err and errors.text(err) or "left at once" })
      world:die(life, "left")
      world:hold()
    end,
  }
end

--- The life of a controller, to its end or its death. What interrupts and freezes is meant for the one that is not a rival.
---@async
local function live(world, body, rival)
  local time = longest + world.timeout
  local life = { ended = core.event(), signal = core.event(), rival = rival }
  world.lives[#world.lives + 1] = life
  if rival then world.rival = life else world.life = life end
  life.task = core.spawn(function()
    core.locals().life = life
    local ok, result = pcall(body, life)
    life.finished, life.exit, life.error = core.now(), ok and result or nil, not ok and errors.wrap(result) or nil
    life.ended:set()
  end)
  if not life.ended:wait(time) then
    world:violate("deadlines fire", ("a controller has not come to an end in %g seconds"):format(time))
    life.dead, life.why = true, "stuck"
  end
  if life.dead then life.task:abandon() end
  if life.error then
    world:note("refused", { text = errors.text(life.error) })
    if life.error.code == "script" then world:violate("scripts do not fail", life.error.message) end
  end
  return life
end

local function deploy(world, plan, app, target, state, rival)
  return live(world, function(life)
    local options = options_of(world, plan, life, state)
    options.target = function(session)
      session.archive = { sha256 = target.sha256, bytes = 0 }
      return target
    end
    return run.execute(app, options)
  end, rival)
end

local function take_up(world, plan, app, state, verb)
  world:note("operator", { text = "deployrt " .. verb })
  return live(world, function(life)
    local then_app, options = resume.prepare(app, state, {
      abort = verb == "abort", yes = true, restore = function() return app, { strategy = plan.strategy, values = plan.values } end,
    })
    if not then_app then
      world:note("finished", { text = options.text })
      life.outcome, life.settled = options.outcome, options.exit == 3 -- what is left of a run that nobody can take up was committed
      return options.exit
    end
    for key, value in pairs(options_of(world, plan, life, state)) do options[key] = options[key] or value end
    return run.execute(then_app, options)
  end)
end

--- Hosts that faults took instances of, or that somebody changed before the run saw them: nobody can say how they must look
--- in the end.
local function spared(world)
  local set = {}
  for _, slot in ipairs(world.balancer.slots) do
    local process = slot.machine.processes[slot.port]
    if slot.hurt or slot.dirty or slot.found_edited or (process and process.hurt) then set[slot.host] = true end
  end
  return set
end

--- Exit 3 names every host that is not as it was.
local function check_left(world, life)
  local named = {}
  for _, each in ipairs(life.left) do named[each.host] = true end
  for _, each in ipairs(ending.not_old(world, spared(world))) do
    if not named[each.host] and not named.balancer then
      world:violate("exit 3 tells the truth", ("what is left does not name %s: %s"):format(each.host, each.why))
    end
  end
end

--- What was committed before a run failed stays: then the new release has taken over, everywhere. A commit in between would have
--- every failure end half-way.
local function check_committed(world, life)
  local why = ending.not_taken_over(world, spared(world), life.without)
  local first = life.left and life.left[1]
  local said = first and (", and on %s %s"):format(first.host, first.message) or " after a commit"
  if why then world:violate("the end is all-new or all-old", ("it failed%s, but %s"):format(said, why)) end
end

local function check_locks(world)
  for _, host in ipairs(world.machines) do
    if host.lock and not world.faults:has("host-off") and not world.faults:has("host-cut") and not world.faults:has("ssh-hang") then
      world:violate("no lock is left behind", ("%s is locked by run %s"):format(host.name, host.lock.run))
    end
  end
end

--- All-new or all-old, as the last life says.
local function check_end(world, life)
  local outcome, unheard = life.outcome, life.error and life.error.code == "nothing"
  if unheard and not ending.not_taken_over(world, spared(world)) then return end -- it had ended, and died before it said so
  if outcome == "succeeded" then
    local why = ending.not_new(world, spared(world), life.without)
    if why then world:violate("the end is all-new or all-old", "it succeeded, but " .. why) end
  elseif life.settled then
    check_committed(world, life)
  else
    local first = ending.not_old(world, spared(world))[1]
    if first then world:violate("the end is all-new or all-old", ("it ended '%s', but %s"):format(outcome or "refused", first.why)) end
  end
  check_locks(world)
end

local function ended(life)
  return life.finished and (life.exit == 0 or life.exit == 1 or life.exit == 130 or life.settled)
end

--- When no fault goes on any more.
local function calm(plan)
  local till = 0
  for _, fault in ipairs(plan.faults) do
    if fault.at then till = math.max(till, fault.at + (fault.seconds or 0)) end
  end
  return till
end

--- What an operator does about a run that did not end: first what the fault says, in the end an abort.
local function see_through(world, plan, app, life, state)
  for i = 1, attempts do
    if life.finished and life.left then check_left(world, life) end
    if world.violation or ended(life) or life.overtaken then return life end
    if life.error and (life.error.code == "nothing" or not life.resumed and i == 1) then return life end
    local crash = life.why == "crash" and world.crash
    local wait = crash and crash.pause or 40
    if i > 1 then wait = math.max(wait, calm(plan) + 1 - (core.now() - world.began)) end
    core.sleep(wait)
    if crash and crash.elsewhere then state = memory.state("other" .. i, function(when) world:on_record(when) end) end
    life = take_up(world, plan, app, state, crash and i == 1 and crash.verb or i > 2 and "abort" or "resume")
    life.resumed = true
  end
  if not ended(life) then
    world:violate("all converges once the faults are over", ("after %d attempts: %s%s"):format(attempts,
      life.error and errors.text(life.error) or life.outcome or tostring(life.why), left_text(life.left)))
  end
  return life
end

--- Somebody else begins the same deployment from another machine.
local function rival_of(world, plan, app, target)
  local state = memory.state("rival", function() world:hold() end)
  return function()
    if world.rival then return end
    world.rival_state = state
    core.spawn(function()
      world:note("operator", { text = "deployrt run, on another machine" })
      deploy(world, plan, app, target, state, true)
    end)
  end
end

--- Somebody believes the controller dead, because it gave no sign of life for long enough, and takes its run up. When it
--- wakes, it must find out, and leave.
local function takeover_of(world, plan, app)
  local state = memory.state("elsewhere", function() world:hold() end)
  return function(life, fault)
    core.spawn(function()
      core.sleep(silence)
      if not life.frozen or life.finished or life.dead or world.takeover then return end
      world.takeover, life.overtaken = core.event(), true
      local later = take_up(world, plan, app, state, fault.verb)
      if later.error then life.overtaken, later.resumed, world.hindered = false, true, later else world.later = later end
      world.takeover:set()
    end)
  end
end

local function is_locked(world)
  for _, host in ipairs(world.machines) do
    if host.lock then return true end
  end
  return false
end

--- The life that had the last word: of two controllers, the one that was not refused, or came later. Whoever leaves something
--- is seen through.
local function last_of(world, life, see)
  if world.takeover then world.takeover:wait(longest + world.timeout) end
  if world.later then
    life = see(world.later)
  elseif not ended(life) then
    life = see(life)
  end
  if life.error and world.hindered and is_locked(world) then life = see(world.hindered) end -- it got the lock on some hosts only
  local rival = world.rival
  if not rival then return life end
  if not rival.finished and not rival.dead then rival.ended:wait(longest + world.timeout) end
  if rival.exit == 3 then rival = see(rival, world.rival_state) end
  local later = not life.outcome or not life.finished or rival.finished and rival.finished > life.finished
  return rival.outcome and later and rival or life
end

local function play(world, plan, app, target)
  local state = memory.state("run", function(when) world:on_record(when) end)
  core.spawn(world.agenda.serve, world.agenda)
  core.sleep(0)
  world.began = core.now()
  world:watch()
  world.on_second, world.on_freeze = rival_of(world, plan, app, target), takeover_of(world, plan, app)
  world.faults:arm()
  local function see(life, own) return see_through(world, plan, app, life, own or state) end
  local life = last_of(world, see(deploy(world, plan, app, target, state)), see)
  world.over = true
  if not world.violation then check_end(world, life) end
  return life
end

local function outcome_of(life)
  if life.outcome then return life.outcome end
  return life.error and life.error.code == "locked" and "locked" or "refused"
end

--- Plays one seed.
---@async
---@param plan deployrt.sim.Scenario
---@return deployrt.sim.Result
function scenario.play(plan)
  core.virtual_time(midnight)
  local done, world, life, problem = core.event(), nil, nil, nil
  local root = core.spawn(function()
    local ok, err = xpcall(function()
      local app, target
      world, app, target = begin(plan)
      life = play(world, plan, app, target)
    end, function(err) return type(err) == "table" and err or debug.traceback(err) end)
    if not ok then problem = err end
    done:set()
  end)
  done:wait()
  local seconds = core.now()
  root:abandon()
  core.virtual_time(nil)
  if problem then error(problem, 0) end
  return {
    seed = plan.seed, strategy = plan.strategy.name, outcome = outcome_of(life), violation = world.violation, events = world.events, seconds = seconds, records = world.records,
    ending = ending.describe(world), reason = life.error and errors.text(life.error) or world.reason, faults = plan.faults,
  }
end

return scenario
