-- instance.lua -- A slot running a release, and the verbs that change it.
local errors = require "deployrt.errors"
local launch = require "deployrt.launch"
local operation = require "deployrt.operation"
local slot_name = require "deployrt.slot_name"

---@class deployrt.Instance
---@field host deployrt.Host
---@field port integer
---@field label string      "web1:8080"
---@field slot string       "web1-8080", its name in balancers
---@field release string    version
---@field launch table      what was or will be started: command, env, settings
---@field state "serving"|"draining"|"idle"|"down"
---@field pid? integer
---@field started? boolean      by this run
---@field was_healthy? boolean  whether it became so after its start, or was found so since; nil: it ran before, and is taken for healthy
local Instance = { kind = "instance" }
Instance.__index = Instance

local instance = {}

---@param fields table
---@return deployrt.Instance
function instance.new(fields)
  fields.label = ("%s:%d"):format(fields.host.name, fields.port)
  fields.slot = slot_name.of(fields.host.name, fields.port)
  fields.release = fields.launch.release
  fields.state = fields.state or "down"
  return setmetatable(fields, Instance)
end

local function perform(self, door, spec)
  spec.host, spec.instance = self.host, self.label
  spec.args.port, spec.args.release = self.port, self.release
  return door(spec)
end

local function stop_arguments(self)
  local stop = operation.current().app.process.stop
  return { port = self.port, release = self.release, settings = self.launch.settings, signal = stop.signal, timeout = stop.timeout }
end

--- Starts the process; nothing to do when it runs already. Undone by stopping it.
---@async
--- Raises deployrt.Error: "stranger", "missing", "start", "unreachable", "timeout".
function Instance:start()
  if self.pid then return end
  self.started, self.was_healthy = true, false
  local result = perform(self, operation.effect, {
    name = "instance.start", kind = "look", args = { launch = self.launch },
    undo = { name = "instance.stop", args = stop_arguments(self) },
  })
  self.pid, self.state = result.pid, "idle"
  if self.on_start then self.on_start() end
end

--- Waits until the health check succeeds as often as app.yml asks.
---@async
--- Raises deployrt.Error: "exited" with the end of its log, "unhealthy".
function Instance:await_healthy()
  local run = operation.current()
  local ok, err = pcall(perform, self, operation.observe, {
    name = "instance.await_healthy", args = { health = launch.health(run.app, self.launch), launch = self.launch },
  })
  if ok or err.code == "unhealthy" or err.code == "exited" then self.was_healthy = ok end
  if not ok then error(err, 0) end
end

--- One probe.
---@async
---@return boolean healthy
---@return string? reason
function Instance:is_healthy()
  local run = operation.current()
  local found = perform(self, operation.observe, { name = "instance.probe", args = { health = launch.health(run.app, self.launch), launch = self.launch } })
  self.was_healthy = found.healthy or self.was_healthy
  return found.healthy, found.reason
end

--- What could not be started again runs on, without traffic, until the run has succeeded.
local function postpone(self, run)
  if not self.postponed then
    run.emit { event = "log", message = ("%s runs on until the run has succeeded: what was adopted there could not be started again (%s)"):format(
      self.label, self.launch.obstacle) }
  end
  self.postponed, self.state = true, "idle"
end

--- Whether the last thing that is taken back here, should it come to that, is the start of this very process: nothing came
--- between that could need it.
local function was_just_started(self, scope, found)
  local last = scope.entries[#scope.entries]
  return last ~= nil and last.label == "instance.start" and last.instance == self.label and self.pid ~= nil and found.pid == self.pid
end

--- What starts again what was stopped; nil where nothing can, or need.
local function way_back(self, run, scope, found)
  if found.state ~= "running" or not found.launch or found.launch.obstacle or was_just_started(self, scope, found) then return nil end
  return { name = "instance.restore", kind = "look", args = {
    port = self.port, pid = found.pid, launch = found.launch, release = found.launch.release, own = self.started,
    health = self.was_healthy ~= false and launch.health(run.app, found.launch) or nil,
  } }
end

--- Stops the process, politely first. Undone by starting what ran and waiting until it is healthy, if it was; there is nothing
--- to undo where it was started just before.
---@async
--- Raises deployrt.Error: "serving" when it still gets traffic, "stuck".
function Instance:stop()
  local run, scope = operation.current()
  if run.balancer:is_serving(self) then
    errors.raise("serving", ("%s still gets traffic: drain it before you stop it"):format(self.label), { host = self.host.name })
  end
  if self.lasts then return postpone(self, run) end
  local args = stop_arguments(self)
  args.pid = self.pid
  perform(self, operation.effect, {
    name = "instance.stop", kind = "look", args = args, find = "instance.show",
    undo = function(found) return way_back(self, run, scope, found) end,
  })
  self.pid, self.state = nil, "down"
  run.fleet:forget(self)
end

return instance
