-- control.lua -- What people ask of a run from another terminal: hold it, go on, let it through a gate.
local core = require "deployrt.core"
local operation = require "deployrt.operation"
local waiting = require "deployrt.waiting"

---@class deployrt.Control
---@field paused boolean
---@field granted boolean  gates open by themselves
---@field choose fun(answers: string[]): string  the answer that such a gate gets
---@field gates deployrt.Gate[]  those that wait
---@field waits string[]  the steps at which the run waits, for hosts
local Control = {}
Control.__index = Control

---@class deployrt.Gate
---@field answers? string[]  those that let it through; nil: any approval
---@field refuse fun(answer: string)  says that it is none of them
---@field open? boolean
---@field answer? string

local control = {}

local function first_of(answers) return answers[1] end

---@param granted? boolean
---@param choose? fun(answers: string[]): string  default: the first
---@return deployrt.Control
function control.new(granted, choose)
  return setmetatable({ paused = false, granted = granted or false, choose = choose or first_of, gates = {}, waits = {}, changed = core.event() }, Control)
end

--- Opens the gates that take the answer, or else ends a pause.
local function let_through(self, answer)
  local open, shut = waiting.part(self.gates, answer)
  for _, gate in ipairs(open) do gate.open, gate.answer = true, gate.answers and answer end
  if #open == 0 and not self.paused then
    for _, gate in ipairs(shut) do gate.refuse(answer) end
  end
  self.paused, self.gates = self.paused and #open > 0, shut
end

--- Takes a request: "pause", "approve" or "abort", with a number that tells it from the one before, and an answer where one is given.
--- An approval is for the gates that take it; only where none does it ends a pause.
---@param request string
---@return string kind
function Control:hear(request)
  local kind, answer = request:match("^(%l+) ?%d* ?(.*)$")
  if kind == "pause" then
    self.paused = true
  elseif kind == "approve" then
    let_through(self, answer)
  end
  self.changed:set()
  return kind
end

--- Where the run waits for people now.
---@return string? step  for hosts; nil: it does not
function Control:step()
  return waiting.together(self.waits)
end

local function remove(list, item)
  for i = #list, 1, -1 do
    if list[i] == item then return table.remove(list, i) end
  end
end

--- Waits for a person, unless the run is stopped meanwhile. Hosts know of it, and so does who asks them.
---@param step string  for them
local function wait_for(self, run, reason, step, granted)
  if granted() then return end
  run.emit { event = "waiting", reason = reason }
  table.insert(self.waits, step)
  local closing <close> = setmetatable({}, { __close = function()
    remove(self.waits, step)
    run.tell()
  end })
  run.tell()
  while not granted() do
    self.changed:clear()
    self.changed:wait(0.25)
    operation.checkpoint()
  end
end

--- Where a run can be held: at the beginning of a step. Nothing holds one on its way back.
---@async
---@param run table
---@param label string  of the step
function Control:hold(run, label)
  if not self.paused or core.locals().undoing then return end
  wait_for(self, run, ("paused before '%s': %s goes on"):format(label, waiting.command(run.app.file, { {} })), waiting.step(("paused before '%s'"):format(label)), function() return not self.paused end)
end

--- Has a gate wait, until it is closed.
local function enlist(self, gate)
  table.insert(self.gates, gate)
  return setmetatable({}, { __close = function() remove(self.gates, gate) end })
end

--- A gate: waits for an approval that comes after it was reached. Where there are answers, one of them lets it through.
---@async
---@param run table
---@param question string
---@param answers? string[]
---@return string? answer
function Control:gate(run, question, answers)
  if self.granted then return answers and self.choose(answers) end
  local gate = { answers = answers, refuse = function(answer)
    run.emit { event = "warning", message = ("'%s' is no answer here: it takes %s"):format(answer, table.concat(answers, " or ")) }
  end }
  local closing <close> = enlist(self, gate)
  wait_for(self, run, ("%s: %s lets it through, Ctrl-C or `deployrt abort %s` rolls back"):format(
    question, waiting.command(run.app.file, { gate }), run.app.file), waiting.step(question, answers), function() return gate.open end)
  return gate.answer
end

return control
