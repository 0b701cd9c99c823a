-- sim/world.lua -- One simulated world: machines, a balancer, traffic, controllers that live and die, and what was seen.
local cjson = require "cjson"
local agenda = require "deployrt.sim.agenda"
local balancer = require "deployrt.sim.balancer"
local core = require "deployrt.core"
local faults = require "deployrt.sim.faults"
local link = require "deployrt.sim.link"
local machine = require "deployrt.sim.machine"
local pace = require "deployrt.pace"
local random = require "deployrt.sim.random"
local slot_name = require "deployrt.slot_name"
local simulated = require "deployrt.world.simulated"
local tally = require "deployrt.sim.tally"

---@class deployrt.sim.World
---@field seed integer
---@field app table
---@field ports integer[]
---@field machines deployrt.sim.Machine[]
---@field balancer deployrt.sim.Balancer
---@field faults deployrt.sim.Faults
---@field events table[]      what happened: {at, kind, ...}
---@field target table        launch of the new release
---@field began number        when the first run began
---@field tally? deployrt.sim.Tally  once invariants are looked at
---@field hurt? boolean       faults took instances away: the fleet cannot carry its traffic, whatever a strategy does
---@field person deployrt.sim.Random  decides at gates that have several answers
---@field answer? string      what was decided there last
---@field outcome? string     of the run that ended last
---@field grouped? boolean    one group of hosts serves, and the other one takes over
---@field committed? boolean  the strategy of the run that is rolled back, or was last, had committed something
---@field crippled? boolean   something could not be put back: less can serve than before
---@field violation? {invariant: string, message: string, at: number}  the first one
local World = {}
World.__index = World

local world = {}

local json = cjson.new()

---@param seed integer
---@param app table     a simulated application
---@param opts {target: table, faults: deployrt.sim.Fault[], check: fun(world: deployrt.sim.World, event: table)}
---@return deployrt.sim.World
function world.new(seed, app, opts)
  local self = setmetatable({
    seed = seed, app = app, ports = app.process.ports, machines = {}, by_name = {}, events = {}, target = opts.target, check = opts.check,
    agenda = agenda.new(), launches = {}, lives = {}, records = 0, began = 0, pace = pace.new(#app.hosts * app.process.instances),
  }, World)
  for i, entry in ipairs(app.hosts) do
    local host = machine.new(entry.name, self)
    self.machines[i], self.by_name[entry.name] = host, host
  end
  self.by_name["local"] = self.by_name["local"] or machine.new("local", self)
  self.faults = faults.new(self, opts.faults)
  self.balancer = balancer.new(self)
  self.person = self:stream("answers")
  return self
end

--- Random numbers of their own for a part, so that parts do not shift each other's.
---@param name string
function World:stream(name)
  return random.stream(self.seed, name)
end

---@param name string
---@return deployrt.sim.Machine
function World:machine(name)
  return self.by_name[name]
end

--- What `app.site` is: links, drivers and operations of this world.
---@return deployrt.Site
function World:site()
  return {
    dial = function(entry) return link.dial(self.by_name[entry.name], self) end,
    driver = function() return balancer.driver(self.balancer) end,
    world = function(context)
      local check = context.check_lock
      function context.check_lock() -- a frozen controller does not get as far as this
        self:hold()
        check()
      end
      return simulated.new(context)
    end,
  }
end

--- A launch from its text, as hosts keep it.
function World:launch(text)
  local launch = self.launches[text] or json.decode(text)
  self.launches[text] = launch
  return launch
end

--- Has something happen: it is remembered, and every invariant looks at it.
---@param kind string
---@param event table
function World:note(kind, event)
  event.kind, event.at = kind, core.now() - self.began
  self.events[#self.events + 1] = event
  if kind == "exit" then
    local slot = self.balancer.named[slot_name.of(event.host, event.port)]
    if slot then slot.died_at, slot.hurt = core.now(), slot.hurt or event.why ~= "stopped" end
  end
  if self.tally then self.tally:hear(event) end
  self.check(self, event)
end

--- From now on invariants are looked at.
function World:watch()
  self.tally = tally.new(self)
end

--- Has the moment in which a process becomes ready happen, too.
function World:when_ready(process)
  local seconds = process.ready_at - core.now()
  if seconds == math.huge then return end
  self.agenda:after(seconds, function()
    process.was_ready = process.alive
    if process.alive then self:note("ready", { host = process.host, port = process.port, release = process.release, process = process }) end
  end)
end

--- The first violation counts; what follows from it does not.
function World:violate(invariant, message)
  self.violation = self.violation or { invariant = invariant, message = message, at = core.now() - self.began }
end

--- Each thing that a controller does begins here: a dead one does nothing any more, a frozen one waits.
---@async
function World:hold()
  local locals = core.locals()
  local life = locals and locals.life
  if not life then return end
  if life.frozen then life.frozen:wait() end
  if life.dead then core.event():wait() end
end

--- Ends a controller in mid-action.
---@async
function World:die(life, why)
  if life.dead then return end
  life.dead, life.why = true, why
  life.ended:set()
end

--- Around each record of a journal: the place where controllers die.
---@async
function World:on_record(when)
  self:hold()
  if when == "before" then
    self.records = self.records + 1
    self.pace:step(core.now())
  end
  for _, crash in ipairs(self.faults:of("crash")) do
    if crash.record == self.records and crash.when == when then
      local life = core.locals().life
      self.crash = crash
      self:note("crash", { text = ("the controller dies %s record %d"):format(when, self.records), fault = crash })
      self:die(life, "crash")
      self:hold()
    end
  end
end

--- Somebody presses Ctrl-C, where a controller runs.
function World:interrupt()
  local life = self.life
  if not life or life.dead or life.finished then return end
  life.asked_at = life.asked_at or core.now()
  life.signal:set()
end

--- The controller is stopped in its tracks for a while, long enough for somebody else to believe it dead.
function World:freeze(fault)
  local life = self.life
  if not life or life.dead or life.finished or life.frozen then return end
  local thaw = core.event()
  life.frozen = thaw
  self.agenda:after(fault.seconds, function()
    life.frozen = nil
    life.asked_at = life.asked_at and core.now() -- it hears only now
    thaw:set()
    self:note("fault", { text = "the frozen controller goes on" })
  end)
  self.on_freeze(life, fault)
end

--- Somebody else starts a run meanwhile.
function World:second_run()
  if self.life and not self.life.finished then self.on_second() end
end

--- The shares and instances as they are now: what an author's invariants look at.
---@return deployrt.sim.View
function World:view()
  local now, list = core.now(), {}
  local parts = self.balancer:parts(function(slot) return self.balancer:is_open(slot) end)
  for _, slot in ipairs(self.balancer.slots) do
    local process = slot.machine:running(slot.port)
    local part = parts[slot.name]
    if process or part then
      list[#list + 1] = {
        host = slot.host, port = slot.port, name = slot.name, state = slot.state, weight = slot.state == "ready" and slot.weight or 0,
        open = part ~= nil, share = 100 * (part or 0), release = process and process.release,
        new = process ~= nil and process.release == self.target.release, running = process ~= nil,
        healthy = machine.is_healthy(process, now), hurt = process and process.hurt or slot.hurt or false, process = process, slot = slot,
      }
    end
  end
  return {
    time = now - self.began, instances = list, demand = self.balancer.demand, capacity = self.capacity, target = self.target.release,
    answer = self.answer, outcome = self.outcome,
  }
end

return world
