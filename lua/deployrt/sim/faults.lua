-- sim/faults.lua -- What goes wrong in a simulated world: drawn from the seed, as a list that can be made shorter.
local core = require "deployrt.core"
local random = require "deployrt.sim.random"

---@class deployrt.sim.Fault
---@field kind string
---@field at? number        seconds after the run began
---@field seconds? number   how long it lasts
---@field host? string      nil: everywhere
---@field text string       for people

---@class deployrt.sim.Faults
---@field list deployrt.sim.Fault[]
local Faults = {}
Faults.__index = Faults

local faults = {}

local kinds = {} -- name -> draw(random, shape): the fields of one

local function window(stream, shape, shortest, longest)
  return { at = stream:uniform(0, shape.horizon), seconds = stream:uniform(shortest, longest) }
end

local function on_host(stream, shape, fault)
  fault.host = stream:pick(shape.hosts)
  return fault
end

local function somewhere(stream, shape, fault)
  if stream:chance(0.5) then fault.host = stream:pick(shape.hosts) end
  return fault
end

kinds["slow-start"] = function(stream, shape) return somewhere(stream, shape, { extra = stream:uniform(2, 90) }) end
kinds["failing-start"] = function(stream, shape) return somewhere(stream, shape, { after = stream:uniform(0.01, 0.5) }) end
kinds["never-ready"] = function(stream, shape) return somewhere(stream, shape, {}) end
kinds["crash-loop"] = function(stream, shape) return somewhere(stream, shape, { after = stream:uniform(0.5, 20) }) end
kinds["flapping"] = function(stream, shape)
  return somewhere(stream, shape, { period = stream:uniform(0.2, 3), after = stream:uniform(0, 5), seconds = stream:uniform(5, 200) })
end
kinds["old-broken"] = function(stream) return { dead = stream:chance(0.5) } end
kinds["bad-release"] = function(stream) return { errors = stream:uniform(0.1, 0.9), latency = 0.02 } end
kinds["stubborn"] = function(stream, shape) return somewhere(stream, shape, {}) end
kinds["long-requests"] = function(stream) return { seconds = stream:uniform(5, 60) } end
kinds["ssh-hang"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 1, 45)) end
kinds["connection-lost"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 0, 0)) end
kinds["reply-lost"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 0, 0)) end
kinds["host-off"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 1, 60)) end
kinds["host-cut"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 1, 60)) end
kinds["disk-full"] = function(stream, shape) return on_host(stream, shape, window(stream, shape, 1, 60)) end
kinds["balancer-late"] = function(stream, shape)
  local fault = window(stream, shape, 2, 40)
  fault.delay = stream:uniform(0.1, 8)
  return fault
end
kinds["balancer-stale"] = function(stream, shape)
  local fault = window(stream, shape, 2, 40)
  fault.delay = stream:uniform(0.1, 4)
  return fault
end
kinds["balancer-timeout"] = function(stream, shape) return window(stream, shape, 0, 0) end
kinds["balancer-down"] = function(stream, shape) return window(stream, shape, 0.5, 12) end
kinds["balancer-reset"] = function(stream, shape) return window(stream, shape, 0, 0) end
kinds["balancer-edited"] = function(stream, shape)
  local fault = window(stream, shape, 0, 0)
  fault.slot, fault.state = stream:integer(1, 1000), stream:pick { "ready", "drain", "maint" }
  return fault
end
kinds["metrics-missing"] = function(stream, shape) return window(stream, shape, 2, 60) end
kinds["metrics-nan"] = function(stream, shape) return window(stream, shape, 2, 60) end
kinds["metrics-reset"] = function(stream, shape) return window(stream, shape, 0, 0) end
kinds["clock-jump"] = function(stream, shape)
  local fault = window(stream, shape, 0, 0)
  fault.by = stream:uniform(-4000, 4000)
  return fault
end
kinds["abort"] = function(stream, shape) return window(stream, shape, 0, 0) end
kinds["crash"] = function(stream, shape)
  return {
    record = stream:integer(1, math.max(2, math.floor(shape.records * 1.1))), when = stream:pick { "before", "after" },
    pause = stream:uniform(31, 90), elsewhere = stream:chance(0.3), verb = stream:pick { "resume", "abort" },
  }
end
kinds["frozen"] = function(stream, shape)
  local fault = window(stream, shape, 40, 120)
  fault.verb = stream:pick { "resume", "abort" }
  return fault
end
kinds["second-run"] = function(stream, shape) return window(stream, shape, 0, 0) end

--- All kinds, sorted.
---@return string[]
function faults.names()
  local list = {}
  for name in pairs(kinds) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local names = faults.names()

--- A fault in words: its kind, and every number that it was drawn with.
---@param fault deployrt.sim.Fault
---@return string
function faults.describe(fault)
  local keys, words = {}, { fault.kind }
  for key in pairs(fault) do
    if key ~= "kind" then keys[#keys + 1] = key end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value = fault[key]
    words[#words + 1] = ("%s=%s"):format(key, math.type(value) == "float" and ("%.3f"):format(value) or tostring(value))
  end
  return table.concat(words, " ")
end

--- The faults of a seed: often none, seldom many.
---@param seed integer
---@param shape {hosts: string[], horizon: number, records: integer}
---@param only? string  a kind
---@return deployrt.sim.Fault[]
function faults.draw(seed, shape, only)
  local stream, list = random.stream(seed, "faults"), {}
  local count = only and stream:integer(1, 2) or stream:pick { 0, 0, 1, 1, 1, 1, 2, 2, 3, 4 }
  for i = 1, count do
    local kind = only or stream:pick(names)
    local fault = kinds[kind](stream, shape)
    fault.kind = kind
    list[i] = fault
  end
  return list
end

---@param world deployrt.sim.World
---@param list deployrt.sim.Fault[]
---@return deployrt.sim.Faults
function faults.new(world, list)
  local self = setmetatable({ world = world, list = list, by_kind = {}, calls = {} }, Faults)
  for _, fault in ipairs(list) do
    self.by_kind[fault.kind] = self.by_kind[fault.kind] or {}
    table.insert(self.by_kind[fault.kind], fault)
  end
  return self
end

local nothing = {}

--- The settings of a fault; empty when it is not drawn.
---@param kind string
---@return table
function Faults:of(kind)
  return self.by_kind[kind] or nothing
end

---@param kind string
---@return boolean  whether it is drawn
function Faults:has(kind)
  return self.by_kind[kind] ~= nil
end

local timed = {} -- kind -> begin(world, fault) and what ends it

local function machine_flag(key, value)
  return function(world, fault)
    local host = world:machine(fault.host)
    host[key] = value
    world.agenda:after(fault.seconds, function()
      host[key] = not value
      world:note("fault", { text = fault.kind .. " is over", host = fault.host })
    end)
  end
end

timed["ssh-hang"] = machine_flag("hanging", true)
timed["host-cut"] = machine_flag("cut", true)
timed["disk-full"] = machine_flag("full", true)

timed["host-off"] = function(world, fault)
  local host = world:machine(fault.host)
  if not host.on then return end
  world.hurt = true
  host:power(false)
  world.agenda:after(fault.seconds, function()
    host:power(true)
    world:note("fault", { text = "power is back", host = fault.host })
  end)
end

timed["connection-lost"] = function(world, fault) world.faults.calls[fault.host] = "lost" end
timed["reply-lost"] = function(world, fault) world.faults.calls[fault.host] = "reply lost" end

timed["balancer-down"] = function(world, fault)
  world.balancer.down = true
  world.agenda:after(fault.seconds, function() world.balancer.down = false end)
end

--- A restart: counters at 0, and the states that it kept, or those of its configuration.
timed["balancer-reset"] = function(world)
  local owner, changes = world.balancer, {}
  owner:count()
  owner.lives = owner.lives + 1
  for _, slot in ipairs(owner.slots) do
    local state = owner.kept and owner.kept[slot.name] or world.initial[slot.name]
    slot.requests, slot.errors = 0, 0
    changes[#changes + 1] = { slot = slot.name, state = state.state, weight = state.weight }
  end
  owner:disturb(changes, "reset")
  owner:lose_route("reset")
end

timed["balancer-edited"] = function(world, fault)
  local owner = world.balancer
  owner:disturb({ { slot = owner.slots[fault.slot % #owner.slots + 1].name, state = fault.state } }, "edit")
end

timed["metrics-reset"] = function(world)
  world.balancer:count()
  for _, slot in ipairs(world.balancer.slots) do slot.requests, slot.errors = 0, 0 end
end

timed["clock-jump"] = function(_, fault) core.virtual_time(core.time() + fault.by) end
timed["abort"] = function(world) world:interrupt() end
timed["frozen"] = function(world, fault) world:freeze(fault) end
timed["second-run"] = function(world) world:second_run() end

--- What a balancer does wrong, or its counters.
local function is_of_balancer(fault)
  return fault.kind:find("^balancer%-") ~= nil or fault.kind:find("^metrics%-") ~= nil
end

--- Sets off those that have a time; the run begins now.
function Faults:arm()
  for _, fault in ipairs(self.list) do
    if fault.at and not (self.world.balancer.absent and is_of_balancer(fault)) then
      self.world.agenda:after(fault.at, function()
        if self.world.over then return end
        self.world:note("fault", { text = faults.describe(fault), host = fault.host })
        if timed[fault.kind] then timed[fault.kind](self.world, fault) end
      end)
    end
  end
end

local function hits(fault, host)
  return fault.host == nil or fault.host == host.name
end

--- The fault of this kind that is going on, if one is.
local function active(self, kind)
  local now = core.now() - self.world.began
  for _, fault in ipairs(self:of(kind)) do
    if now >= fault.at and now < fault.at + math.max(fault.seconds, 0) then return fault end
  end
end

local function fail_later(self, host, process, seconds)
  self.world.agenda:after(seconds, function()
    if host.processes[process.port] == process then host:kill(process.port, "crash") end
  end)
end

local start = {}

start["slow-start"] = function(_, fault, _, process) process.ready_at = process.ready_at + fault.extra end
start["never-ready"] = function(_, _, _, process) process.ready_at = math.huge end

start["failing-start"] = function(self, fault, host, process)
  process.ready_at = math.huge
  fail_later(self, host, process, fault.after)
end

start["crash-loop"] = function(self, fault, host, process)
  process.hurt = true
  fail_later(self, host, process, process.ready_at - core.now() + fault.after)
end

start["flapping"] = function(_, fault, _, process)
  process.hurt = true
  process.sick_from = process.ready_at + fault.after
  process.sick_till, process.period = process.sick_from + fault.seconds, fault.period
end

start["bad-release"] = function(_, fault, _, process) process.error_rate, process.latency = fault.errors, fault.latency end
start["stubborn"] = function(_, _, _, process) process.stop_delay = math.huge end

local of_a_start = { "slow-start", "never-ready", "failing-start", "crash-loop", "flapping", "bad-release", "stubborn" }

--- What a process that starts now will suffer: the new release's own faults.
function Faults:on_start(host, process)
  if process.release ~= self.world.target.release then return end
  for _, kind in ipairs(of_a_start) do
    for _, fault in ipairs(self:of(kind)) do
      if hits(fault, host) then start[kind](self, fault, host, process) end
    end
  end
end

local looks = { facts = true, lock_beat = true, lock_read = true, process_show = true, process_list = true, run_journal = true,
  runs_ended = true }

--- What becomes of a call: nil, "lost" or "reply lost". Looking around is not worth a fault.
function Faults:on_call(host, name)
  local fate = self.calls[host.name]
  if not fate or looks[name] then return nil end
  self.calls[host.name] = nil
  self.world:note("call", { host = host.name, text = ("%s: %s"):format(name, fate) })
  return fate
end

--- What becomes of a change of the balancer: {late, stale, timeout}.
function Faults:on_apply()
  local late, stale = active(self, "balancer-late"), active(self, "balancer-stale")
  local fate = { late = late and late.delay, stale = stale and stale.delay }
  for _, fault in ipairs(self:of("balancer-timeout")) do
    if not fault.spent and core.now() - self.world.began >= fault.at then
      self.spent = self.spent or {}
      fate.timeout = not self.spent[fault]
      self.spent[fault] = true
    end
  end
  return fate
end

--- What the balancer's counters look like.
function Faults:on_stats(stats)
  if active(self, "metrics-missing") then return {} end
  if active(self, "metrics-nan") then
    for _, slot in pairs(stats) do slot.requests, slot.errors, slot.latency = 0 / 0, 0 / 0, 0 / 0 end
  end
  return stats
end

--- How long the last of a slot's requests takes to end.
function Faults:session_length(stream)
  local long = self:of("long-requests")[1]
  return long and long.seconds or stream:uniform(0.02, 1.2)
end

return faults
