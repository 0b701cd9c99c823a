-- request.lua -- What somebody asks of a run that is under way: its controller reads it on its hosts, with its next sign of life.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"
local waiting = require "deployrt.waiting"

local request = {}

--- The runs that are under way, each with a host where it hears.
---@async
---@param opened deployrt.Session
---@return deployrt.Holder[]
function request.live_runs(opened)
  local live = {}
  for _, each in ipairs(lock.holders(opened:lines())) do
    if not each.held.dead then live[#live + 1] = each end
  end
  return live
end

--- The only one of some runs.
---@param runs deployrt.Holder[]
---@return deployrt.LockState held
---@return deployrt.Connection line
--- Raises deployrt.Error: "usage" when there are more, and a person must say which.
function request.only(runs)
  if #runs > 1 then
    local names = {}
    for i, each in ipairs(runs) do names[i] = ("%s on %s%s"):format(each.held.run, each.line.name, each.held.step ~= "" and (", at '%s'"):format(each.held.step) or "") end
    errors.raise("usage", ("%d runs are under way (%s): say which with --host and the name of one of its hosts"):format(#runs, table.concat(names, "; ")))
  end
  return runs[1].held, runs[1].line
end

--- The run that is under way, and a host where it hears; without one it is an error. Of several it is the only one that waits for a
--- person, where such a one is preferred.
---@async
---@param opened deployrt.Session
---@param prefer_waiting? boolean
---@return deployrt.LockState held
---@return deployrt.Connection line
--- Raises deployrt.Error: "nothing"; "locked" when the run was interrupted; why a host is away, where no other one knows of a run;
--- "usage" when there are several.
function request.check_live(opened, prefer_waiting)
  local live, waits = request.live_runs(opened), {}
  for _, each in ipairs(prefer_waiting and live or {}) do
    if waiting.is_so(each.held.step) then waits[#waits + 1] = each end
  end
  if #live > 0 then return request.only(#waits > 0 and waits or live) end
  local held = lock.find(opened:lines())
  if held and held.dead then errors.raise("locked", lock.refusal(held, opened.app.file)) end
  opened:check_complete()
  errors.raise("nothing", ("no run of %s is under way"):format(opened.app.app))
end

--- Asks.
---@async
---@param line deployrt.Connection
---@param held deployrt.LockState
---@param word "pause"|"approve"|"abort"
---@param answer? string
function request.send(line, held, word, answer)
  line:call("run_control", { held.run, ("%s %d %s"):format(word, math.floor(core.time() * 1000), answer or "") })
end

return request
