-- sim/report.lua -- A simulated run as a person can follow it.
local faults = require "deployrt.sim.faults"

local report = {}

local function changes_text(event)
  local parts = {}
  for i, change in ipairs(event.changes) do
    local before = event.before[i]
    local from = before.state .. (before.weight ~= 100 and " " .. before.weight or "")
    local to = (change.state or before.state) .. ((change.weight or before.weight) ~= 100 and " " .. (change.weight or before.weight) or "")
    if from ~= to then parts[#parts + 1] = ("%s %s -> %s"):format(change.slot, from, to) end
  end
  return table.concat(parts, ", ")
end

local function place(event)
  return ("%s:%d"):format(event.host, event.port)
end

local texts = {
  start = function(event) return ("%s starts release %s"):format(place(event), event.release) end,
  ready = function(event) return ("%s is ready, release %s"):format(place(event), event.release) end,
  exit = function(event) return ("%s ends, release %s (%s)"):format(place(event), event.release, event.why) end,
  signal = function(event) return ("%s gets SIG%s, release %s"):format(place(event), event.signal, event.release) end,
  traffic = function(event) return ("balancer%s: %s"):format(event.by ~= "run" and " (" .. event.by .. ")" or "", changes_text(event)) end,
  op = function(event)
    local ok = event.ok and "done" or "failed: " .. tostring(event.error):gsub("\n.*", "")
    return ("op %s %s %s"):format(event.text, event.instance or event.host or "", ok)
  end,
  step = function(event) return "== " .. event.text end,
  analysis = function(event) return ("analysis: %s%s"):format(event.verdict, event.text and ", " .. event.text or "") end,
  rollback = function(event) return "rollback: " .. event.text end,
  fault = function(event) return "FAULT " .. event.text end,
  crash = function(event) return "FAULT " .. event.text end,
  call = function(event) return ("FAULT a call to %s, %s"):format(event.host, event.text) end,
  command = function(event) return "a command runs on " .. event.host end,
}

--- One line an event: the same seed gives the same lines, to the byte.
---@param event table
---@return string
function report.line(event)
  local text = texts[event.kind] and texts[event.kind](event) or ("%s %s"):format(event.kind, event.text or "")
  return ("%9.3fs  %s"):format(event.at, text)
end

--- All that happened, line by line.
---@param result deployrt.sim.Result
---@return string[]
function report.trace(result)
  local lines = {}
  for i, event in ipairs(result.events) do lines[i] = report.line(event) end
  return lines
end

local most = 60 -- lines of a trace; the end is what matters

--- What went wrong in a seed, and how to see it again.
---@param result deployrt.sim.Result
---@param command string  that replays it
---@return string
function report.violation(result, command)
  local broken, lines, trace = result.violation, {}, {}
  for _, event in ipairs(result.events) do
    if event.at <= broken.at then trace[#trace + 1] = report.line(event) end
  end
  lines[1] = ("seed %d breaks '%s' after %.3fs: %s"):format(result.seed, broken.invariant, broken.at, broken.message)
  for _, fault in ipairs(result.faults) do lines[#lines + 1] = "  fault: " .. faults.describe(fault) end
  if #result.faults == 0 then lines[#lines + 1] = "  without any fault" end
  if #trace > most then lines[#lines + 1] = ("  ... %d events before"):format(#trace - most) end
  for i = math.max(1, #trace - most + 1), #trace do lines[#lines + 1] = trace[i] end
  lines[#lines + 1] = "again: " .. command
  return table.concat(lines, "\n") .. "\n"
end

return report
