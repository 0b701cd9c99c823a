-- command.lua -- A balancer that a command of the user's sets: it gets the wanted states of all slots as JSON.
local attempt = require "deployrt.balancer.attempt"
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local outage = require "deployrt.balancer.outage"

---@class deployrt.CommandBalancer: deployrt.Driver
---@field entry table
---@field context deployrt.DriverContext
local Command = {}
Command.__index = Command

local command = { keys = { "command", "can" } }

local patience = 60 -- seconds

command.help = [[
command: deployrt runs a command of yours whenever traffic is to change, on this machine or on a host (`host:`).
    balancer: {type: command, command: [./set-traffic, --zone, eu], can: [many, share], drain: {timeout: 5s}}
  It gets the wanted state of all slots on its standard input, and has done it when it exits with 0:
    {"app": "shop", "slots": [{"name": "web1-8080", "address": "10.0.0.11", "port": 8080, "state": "ready", "weight": 100}]}
  state is ready (gets requests; by its weight, 0 to 256), drain (no new requests, running ones finish) or maint (out of service).
  It may be run with the same states again. What it prints may be {"slots": {"web1-8080": {"state": "ready", "weight": 100}}}:
  what it has found to be so; a difference is an error. It has 60 seconds.

  can: what your balancer can do: many (several slots serve at once), share (by their weights). Default: [many].

What it cannot do: count requests, or say how many are in flight, so that a drain always lasts `drain.timeout`. What others change
is not seen. The states last set are kept below deployrt's directory, in balancer/.
]]

--- Combinations of keys that cannot work.
---@param entry table
---@param path string
---@param fail deployrt.config.Fail
function command.rules(entry, path, fail)
  if not entry.command then fail(path, ("%s.command is missing: what sets the balancer? See `deployrt help command`"):format(path)) end
end

--- What the user says that it can.
function command.capabilities(entry)
  local can = {}
  for _, name in ipairs(entry.can or { "many" }) do can[name] = true end
  return can
end

--- Opens a driver; nothing is run yet.
---@param entry table
---@param context deployrt.DriverContext
---@return deployrt.CommandBalancer
function command.open(entry, context)
  local self = { entry = entry, context = context, host = context.host }
  self.argv = type(entry.command) == "table" and entry.command or { "/bin/sh", "-c", entry.command }
  self.file = ("%s/balancer/command-%s.json"):format(context.host.root, core.sha256(table.concat(self.argv, "\0")):sub(1, 8))
  return setmetatable(self, Command)
end

---@package
function Command:fail(message, detail)
  errors.raise("balancer", ("balancer.command (%s): %s"):format(table.concat(self.argv, " "), message), { host = self.host.name, detail = detail })
end

--- The states that were last set.
local function states_of(self)
  local text, states = self.host:read(self.file), {}
  local ok, known = pcall(cjson.decode, text or "{}")
  for _, slot in ipairs(self.context.slots) do
    states[slot.name] = ok and known[slot.name] or { state = "maint", weight = 100 }
  end
  return states
end

--- States as they were last set: nobody asks the balancer.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string}
function Command:read()
  local slots = {}
  for name, state in pairs(states_of(self)) do
    slots[name] = { server = name, state = state.state, weight = state.weight, up = true, sessions = 0, queue = 0 }
  end
  return { slots = slots, instance = "command" }
end

--- Whether there is such a program. Changes nothing.
---@async
function Command:check()
  if type(self.entry.command) == "string" then return end
  local found = self.host:execute({ "/bin/sh", "-c", 'command -v -- "$1"', "sh", self.argv[1] }, { cwd = self:directory(), timeout = 30 })
  if found.status ~= 0 then self:fail("there is no such program, or it may not be run") end
end

--- Slots need not be known beforehand.
function Command:prepare() end

--- Where the command runs: beside app.yml, if it runs on this machine.
---@package
function Command:directory()
  return self.host.is_local and self.context.dir or nil
end

local function request(self, states)
  local list = {}
  for i, slot in ipairs(self.context.slots) do
    local state = states[slot.name]
    list[i] = { name = slot.name, address = slot.address, port = slot.port, state = state.state, weight = state.weight }
  end
  return cjson.encode { app = self.context.app, slots = list } .. "\n"
end

--- What the command found to be so must be what was wanted.
local function check_answer(self, text, wanted)
  local ok, answer = pcall(cjson.decode, text)
  local found = ok and type(answer) == "table" and type(answer.slots) == "table" and answer.slots or {}
  for name, is in pairs(found) do
    local slot = wanted[name]
    if slot and (is.state ~= slot.state or is.weight and is.weight ~= slot.weight) then
      self:fail(("%s should be %s with weight %d, and the command found it %s with weight %s"):format(
        name, slot.state, slot.weight, is.state, is.weight or "?"))
    end
  end
end

local function run(self, wanted)
  local how, result = attempt.run(self.host, self.argv, { stdin = request(self, wanted), cwd = self:directory(), timeout = patience })
  if how then self:fail(how .. ", so that it is not known what it did", attempt.output(result)) end
  check_answer(self, result.stdout, wanted)
end

local function merge(self, states, changes)
  local merged, changed = {}, false
  for name, state in pairs(states) do merged[name] = { state = state.state, weight = state.weight } end
  for _, change in ipairs(changes) do
    local slot = merged[change.slot]
    if not slot then self:fail(change.slot .. " is not in app.yml") end
    changed = changed or change.state and change.state ~= slot.state or change.weight and change.weight ~= slot.weight
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
  end
  return merged, changed
end

--- Runs the command with all states, unless they are set already.
---@async
---@param changes deployrt.SlotChange[]
---@param forward? "serve"|"gap"  what gets traffic now must answer
function Command:apply(changes, forward)
  local states = states_of(self)
  local wanted, changed = merge(self, states, changes)
  if not changed then return end
  local problem, detail = outage.expected(self.context, states, changes, forward)
  if problem then self:fail(problem, detail) end
  run(self, wanted)
  self.host:write(self.file, cjson.encode(wanted), "600")
end

--- A command counts nothing.
function Command:stats()
  return {}
end

--- The balancer is the user's.
function Command:persist() end

--- The balancer is the user's.
function Command:stop() end

return command
