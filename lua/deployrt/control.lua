-- control.lua -- What people ask of a run from another terminal: hold it, go on, let it through a gate.
local core = require "deployrt.core"
local operation = require "deployrt.operation"

---@class deployrt.Control
---@field paused boolean
---@field granted boolean  gates open by themselves
local Control = {}
Control.__index = Control

local control = {}

---@param granted? boolean
---@return deployrt.Control
function control.new(granted)
  return setmetatable({ paused = false, granted = granted or false, approvals = 0, changed = core.event() }, Control)
end

--- Takes a request: "pause" or "approve", with a number that tells it from the one before.
---@param word string
function Control:hear(word)
  local kind = word:match("^%l+")
  if kind == "pause" then
    self.paused = true
  elseif kind == "approve" then
    self.paused, self.approvals = false, self.approvals + 1
  end
  self.changed:set()
end

--- Waits for a person, unless the run is stopped meanwhile.
local function wait_for(self, run, reason, granted)
  if granted() then return end
  run.emit { event = "waiting", reason = reason }
  while not granted() do
    self.changed:clear()
    self.changed:wait(0.25)
    operation.checkpoint()
  end
end

--- Where a run can be held: at the beginning of a step.
---@async
---@param run table
---@param label string  of the step
function Control:hold(run, label)
  if not self.paused then return end
  wait_for(self, run, ("paused before '%s': `deployrt approve %s` goes on"):format(label, run.app.file), function() return not self.paused end)
end

--- A gate: waits for an approval that comes after it was reached.
---@async
---@param run table
---@param question string
function Control:gate(run, question)
  local before = self.approvals
  wait_for(self, run, ("%s: `deployrt approve %s` lets it through, Ctrl-C or `deployrt abort` rolls back"):format(question, run.app.file),
    function() return self.granted or self.approvals > before end)
end

return control
