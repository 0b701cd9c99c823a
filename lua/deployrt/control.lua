-- control.lua -- What people ask of a run from another terminal: hold it, go on, let it through a gate.
local core = require "deployrt.core"
local operation = require "deployrt.operation"
local waiting = require "deployrt.waiting"

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

--- Takes a request: "pause", "approve" or "abort", with a number that tells it from the one before, and an answer where one is given.
---@param word string
---@return string kind
function Control:hear(word)
  local kind, answer = word:match("^(%l+) ?%d* ?(.*)$")
  if kind == "pause" then
    self.paused = true
  elseif kind == "approve" then
    self.paused, self.approvals, self.answer = false, self.approvals + 1, answer
  end
  self.changed:set()
  return kind
end

--- Waits for a person, unless the run is stopped meanwhile. Hosts know of it, and so does who asks them.
---@param step string  for them
local function wait_for(self, run, reason, step, granted)
  if granted() then return end
  run.emit { event = "waiting", reason = reason }
  run.tell(step)
  while not granted() do
    self.changed:clear()
    self.changed:wait(0.25)
    operation.checkpoint()
  end
  run.tell()
end

--- Where a run can be held: at the beginning of a step.
---@async
---@param run table
---@param label string  of the step
function Control:hold(run, label)
  if not self.paused then return end
  wait_for(self, run, ("paused before '%s': `deployrt approve %s` goes on"):format(label, run.app.file), waiting.step(("paused before '%s'"):format(label)), function() return not self.paused end)
end

local function is_one_of(list, value)
  for _, each in ipairs(list) do
    if each == value then return true end
  end
  return false
end

--- A gate: waits for an approval that comes after it was reached. Where there are answers, one of them lets it through.
---@async
---@param run table
---@param question string
---@param answers? string[]
---@return string? answer
function Control:gate(run, question, answers)
  local seen, choice = self.approvals, answers and table.concat(answers, "|") .. " " or ""
  if self.granted then return answers and answers[1] end
  wait_for(self, run, ("%s: `deployrt approve %s%s` lets it through, Ctrl-C or `deployrt abort %s` rolls back"):format(
    question, choice, run.app.file, run.app.file), waiting.step(question, answers),
    function()
      if self.approvals == seen then return false end
      if not answers or is_one_of(answers, self.answer) then return true end
      seen = self.approvals
      run.emit { event = "warning", message = ("'%s' is no answer here: it takes %s"):format(self.answer, table.concat(answers, " or ")) }
      return false
    end)
  return answers and self.answer
end

return control
