-- sim/machine.lua -- A simulated host: processes in slots, releases, the lock, and the functions of the host library.
local core = require "deployrt.core"

---@class deployrt.sim.Machine
---@field name string
---@field on boolean       it has power
---@field cut boolean      no controller reaches it; clients do
---@field full boolean     its disk has no room
---@field standby? boolean  of a group of hosts that does not serve when the run begins
---@field current_before? string  what `current` pointed to then
---@field processes table<integer, deployrt.sim.Process>  by port: what runs, or ran and is not forgotten
---@field releases table<string, {sha256: string, time: integer}>
local Machine = {}
Machine.__index = Machine

---@class deployrt.sim.Process
---@field release string
---@field alive boolean
---@field ready_at number    when it answers its first probe; math.huge: never
---@field seen_ready boolean it was ready at some time
---@field sick_from? number  flapping begins
---@field sick_till? number
---@field period? number     of the flapping: half of it is healthy
---@field hurt? boolean      a fault, not the deployment, made it fail

local machine = {}

---@param name string
---@param world deployrt.sim.World
function machine.new(name, world)
  return setmetatable({
    name = name, world = world, on = true, cut = false, full = false, boots = 1, pids = 100, processes = {}, releases = {}, runs = {},
    random = world:stream("machine " .. name),
  }, Machine)
end

local functions = {} -- of the host library, with its words; each returns a text and a status

--- Performs a function of the host library.
---@param name string
---@param words string[]
---@return string output
---@return integer status
function Machine:perform(name, words)
  return functions[name](self, words)
end

local function refuse(code, message)
  return ("%s: %s\n"):format(code, message), 1
end

--- Whether the process in a slot answers a probe now.
---@param process? deployrt.sim.Process
---@return boolean
function machine.is_healthy(process, now)
  if not process or not process.alive or now < process.ready_at then return false end
  if process.sick_from and now >= process.sick_from and now < process.sick_till then
    return process.period > 0 and (now - process.sick_from) % process.period >= process.period / 2
  end
  return true
end

--- The process in a slot, when it runs.
function Machine:running(port)
  local process = self.processes[port]
  return process and process.alive and process or nil
end

--- Ends a process. Whoever watches is told why.
function Machine:kill(port, why)
  local process = self:running(port)
  if not process then return end
  process.alive = false
  process.hurt = process.hurt or why ~= "stopped"
  self.world:note("exit", { host = self.name, port = port, release = process.release, why = why, process = process })
end

--- Starts a process, as its launch says and as the faults want it.
function Machine:start(port, key, launch, text)
  self.pids = self.pids + 1
  local process = {
    host = self.name, port = port, pid = self.pids, key = key, launch = launch, text = text, release = launch.release, alive = true,
    started = core.now(), ready_at = core.now() + self.random:uniform(0.1, 1.5), stop_delay = self.random:uniform(0.01, 0.4), boot = self.boots,
  }
  self.processes[port] = process
  self.world.faults:on_start(self, process)
  self.world:note("start", { host = self.name, port = port, release = process.release, process = process })
  self.world:when_ready(process)
  return process
end

--- Takes the power away: what ran is gone, and another boot begins when it comes back.
function Machine:power(on)
  self.on = on
  if on then
    self.boots = self.boots + 1
  else
    for _, port in ipairs(self.world.ports) do self:kill(port, "power") end
  end
end

function functions.facts(self)
  return ("/sim/%s\t/home\tboot%d\tdeploy\t%s\t%s\n"):format(self.name, self.boots, self.name, self.last or ""), 0
end

local function show(self, port)
  local process = self.processes[port]
  if not process then return ("%d\tnone\t0\t\t\n"):format(port) end
  local state = not process.alive and "exited" or process.stopping and "ending" or "running"
  return ("%d\t%s\t%d\t%s\t%s\n"):format(port, state, process.pid, process.key, process.text)
end

function functions.process_show(self, words)
  return show(self, math.tointeger(words[1])), 0
end

function functions.process_list(self)
  local parts, listening = {}, {}
  for _, port in ipairs(self.world.ports) do
    if self.processes[port] then parts[#parts + 1] = show(self, port) end
    if self:running(port) then listening[#listening + 1] = "\t" .. port end
  end
  return ("%slistening%s\ncurrent\t%s\n"):format(table.concat(parts), table.concat(listening), self.current or ""), 0
end

function functions.process_start(self, words)
  local port, key = math.tointeger(words[1]), words[2]
  local process = self.processes[port]
  if process and process.key == key and (process.alive or process.boot == self.boots) then return process.pid .. "\n", 0 end
  if process and process.alive then return refuse("busy", "slot " .. port .. " runs another process of this application") end
  if self.full then return refuse("system", "cannot write below /sim: No space left on device") end
  local launch = self.world:launch(words[4])
  if launch.packed and not self.releases[launch.release] then return refuse("missing", words[3] .. ": no such directory") end
  return self:start(port, key, launch, words[4]).pid .. "\n", 0
end

function functions.process_signal(self, words)
  local port, pid, signal = math.tointeger(words[1]), math.tointeger(words[2]), words[3]
  local process = self:running(port)
  if not process or process.pid ~= pid then return "gone\n", 0 end
  self.world:note("signal", { host = self.name, port = port, release = process.release, signal = signal, process = process })
  process.stopping = true
  local delay = signal == "KILL" and 0.001 or process.stop_delay
  self.world.agenda:after(delay, function()
    if self.processes[port] == process then self:kill(port, "stopped") end
  end)
  return "sent\n", 0
end

function functions.process_forget(self, words)
  local port, pid = math.tointeger(words[1]), math.tointeger(words[2])
  local process = self.processes[port]
  if not process or process.pid ~= pid then return "", 0 end
  if process.alive then return "running\n", 0 end
  self.processes[port] = nil
  return "", 0
end

function functions.process_log(self, words)
  local process = self.processes[math.tointeger(words[1])]
  return process and ("simulated: release %s\n"):format(process.release) or "", 0
end

function functions.port_owner()
  return "", 0
end

function functions.release_list(self)
  local parts = {}
  for version, entry in pairs(self.releases) do parts[#parts + 1] = ("%s\t%s\t%d\n"):format(version, entry.sha256, entry.time) end
  table.sort(parts)
  return table.concat(parts), 0
end

function functions.release_receive(self, words)
  if self.full then return refuse("full", "No space left on device") end
  self.releases[words[1]] = { sha256 = words[2], time = math.floor(core.time()) }
  return "", 0
end

function functions.release_remove(self, words)
  for port, process in pairs(self.processes) do
    if process.alive and process.release == words[1] then return refuse("busy", ("release %s still runs in slot %d"):format(words[1], port)) end
  end
  self.releases[words[1]] = nil
  return "", 0
end

function functions.current_get(self)
  return self.current or "", 0
end

function functions.current_set(self, words)
  if self.full then return refuse("system", "cannot switch current: No space left on device") end
  self.current = words[1] ~= "" and words[1] or nil
  return "", 0
end

--- A command runs once for its key; a later call gets the same answer.
function functions.operation_run(self, words)
  self.commands = self.commands or {}
  if not self.commands[words[1]] then
    self.commands[words[1]] = true
    self.world:note("command", { host = self.name })
  end
  return "0\t\t0\t0\n", 0
end

function functions.operation_stop()
  return "", 0
end

local function run_of(self, id)
  self.runs[id] = self.runs[id] or { epochs = {}, journal = {}, step = "" }
  return self.runs[id]
end

local function holds(self, run, epoch)
  return self.lock and self.lock.run == run and (not epoch or epoch == "" or self.lock.epoch == epoch)
end

local function superseded(self, run)
  return refuse("superseded", ("run %s does not hold the lock of %s any more: another controller took it over, or it was unlocked"):format(run, self.name))
end

function functions.lock_read(self)
  local held = self.lock
  if not held then return "", 1 end
  return ("locked: %s\t%s\t%s\t%d\t%s\t%d\t%d\t%s\n"):format(held.run, held.epoch, held.owner, held.since // 1 | 0, held.life, held.beat // 1 | 0,
    core.time() // 1 | 0, run_of(self, held.run).step), 0
end

function functions.lock_take(self, words)
  local run, epoch, since, life, text = words[1], words[2], words[4], words[5], words[6]
  if self.full then return refuse("system", "cannot make the lock: No space left on device") end
  local entry = run_of(self, run)
  if tonumber(epoch) < (entry.latest or 1) then return superseded(self, run) end
  local takes_over = holds(self, run) and tonumber(epoch) > tonumber(self.lock.epoch) and not entry.epochs[epoch]
  if not self.lock or takes_over then
    entry.epochs[epoch], entry.latest = true, tonumber(epoch)
    self.lock = { run = run, epoch = epoch, owner = words[3], life = life, since = tonumber(since), beat = core.time() }
  elseif not (holds(self, run, epoch) and self.lock.life == life) then
    return (functions.lock_read(self)), 1
  end
  entry.journal[#entry.journal + 1] = text
  return self.last or "", 0
end

function functions.lock_beat(self, words)
  if not holds(self, words[1], words[2]) then return superseded(self, words[1]) end
  self.lock.beat = core.time()
  run_of(self, words[1]).step = words[3] or run_of(self, words[1]).step
  return "", 0
end

functions["as"] = function(self, words)
  if not holds(self, words[1], words[2]) then return superseded(self, words[1]) end
  local text, journal = words[3], run_of(self, words[1]).journal
  local fits = text == "" or not self.full
  if text ~= "" then journal[#journal + 1] = fits and text or text:sub(1, #text // 2) end
  local output, status = self:perform(words[4], table.move(words, 5, #words, 1, {}))
  return output, fits and status or status + 64
end

function functions.lock_release(self, words)
  if holds(self, words[1], words[2]) then self.last, self.lock = words[1], nil end
  return "", 0
end

function functions.run_journal(self, words)
  return table.concat(run_of(self, words[1]).journal), 0
end

function functions.runs_ended(self)
  local ends = {}
  for _, run in pairs(self.runs) do
    local text = "\n" .. table.concat(run.journal)
    ends[#ends + 1] = text:match("^.*\n([^\n]+\n)$") -- from the end: journals are long
  end
  table.sort(ends)
  return table.concat(ends), 0
end

return machine
