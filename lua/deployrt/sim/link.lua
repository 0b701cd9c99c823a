-- sim/link.lua -- The connection to a simulated host: it takes time, hangs, is lost before or after what it carried.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local machine = require "deployrt.sim.machine"

---@class deployrt.sim.Link: deployrt.Link
local Link = {}
Link.__index = Link

local link = {}

local function lost(self, what)
  self.closed = true
  return nil, errors.new("lost", ("%s: the connection was lost"):format(what), { host = self.machine.name })
end

--- Dials a host.
---@async
---@param host deployrt.sim.Machine
---@param world deployrt.sim.World
---@return deployrt.sim.Link?
---@return deployrt.Error?
function link.dial(host, world)
  world:hold()
  core.sleep(host.random:uniform(0.002, 0.03))
  world:hold()
  if host.on and not host.cut then return setmetatable({ machine = host, world = world, boots = host.boots }, Link) end
  core.sleep(3)
  return nil, errors.new("unreachable", "no answer", { host = host.name })
end

function Link:state()
  return (self.closed or self.boots ~= self.machine.boots) and "closed" or "open"
end

function Link:close()
  self.closed = true
end

--- The way there or back; false when it is cut, and nil with the error when the task was canceled.
local function travel(self, seconds)
  local ok, err = core.sleep(seconds)
  self.world:hold()
  if not ok then return nil, err end
  local host = self.machine
  return host.on and not host.cut and host.boots == self.boots
end

--- Waits while the host hangs, at most until the deadline; false when that came first.
local function answered_in_time(self, deadline)
  if not self.machine.hanging then return true end
  while self.machine.hanging do
    if core.now() >= deadline then return false end
    if not core.sleep(math.min(1, math.max(0.01, deadline - core.now()))) then return false end
  end
  self.world:hold()
  return true
end

--- Calls a function of the host library.
---@async
function Link:call(name, words, timeout)
  self.world:hold()
  if self:state() ~= "open" then return lost(self, name) end
  local host, deadline = self.machine, core.now() + (timeout or 30)
  local half = host.random:uniform(0.0005, 0.01)
  local there, canceled = travel(self, half)
  if there == nil then return nil, canceled end
  local inner = name == "as" and words[4] or name
  local fate = self.world.faults:on_call(host, inner)
  if not there or fate == "lost" then return lost(self, inner) end
  if not answered_in_time(self, deadline) then
    self.closed = true
    return nil, errors.new("timeout", inner .. ": no answer within the time allowed", { host = host.name })
  end
  local output, status = host:perform(name, words)
  local back
  back, canceled = travel(self, half)
  if back == nil then return nil, canceled end
  if not back or fate == "reply lost" then return lost(self, inner) end
  return output, status
end

--- A probe of an instance's health.
---@async
function Link:dial(_, port, timeout)
  self.world:hold()
  if self:state() ~= "open" then return lost(self, "dial") end
  local host = self.machine
  local there, canceled = travel(self, host.random:uniform(0.0005, 0.01))
  if there == nil then return nil, canceled end
  if not there then return lost(self, "dial") end
  if not answered_in_time(self, core.now() + timeout) then return nil, errors.new("timeout", "no answer within the time allowed") end
  if machine.is_healthy(host:running(port), core.now()) then return true end
  return nil, errors.new("refused", "connection refused")
end

--- Commands of the controller, such as those of hooks, always succeed.
function Link:exec()
  return { status = 0, stdout = "", stderr = "" }
end

return link
