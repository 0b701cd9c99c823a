-- request.lua -- What somebody asks of a run that is under way: its controller reads it on its hosts, with its next sign of life.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local lock = require "deployrt.lock"
local waiting = require "deployrt.waiting"

local request = {}

--- The runs that are under way, each with the hosts where it hears.
---@async
---@param opened deployrt.Session
---@return deployrt.Holder[]
local function live_runs(opened)
  local live = {}
  for _, each in ipairs(lock.holders(opened:lines())) do
    if not each.held.dead then live[#live + 1] = each end
  end
  return live
end

local function name_of(run)
  local held = run.held
  return ("%s on %s%s%s"):format(held.run, run.lines[1].name, held.dead and ", interrupted" or "", held.step ~= "" and (", at '%s'"):format(held.step) or "")
end

--- The only one of some runs.
---@param runs deployrt.Holder[]
---@return deployrt.Holder
--- Raises deployrt.Error: "usage" when there are more, and a person must say which.
function request.only(runs)
  local names, what = {}, "are under way"
  for i, each in ipairs(runs) do
    names[i] = name_of(each)
    if each.held.dead then what = "have not ended" end
  end
  if #runs == 1 then return runs[1] end
  errors.raise("usage", ("%d runs %s (%s): say which with --host and the name of one of its hosts"):format(#runs, what, table.concat(names, "; ")))
end

--- The run that is under way; without one it is an error. Of several it is the only one that waits for a person, where such a one
--- is preferred.
---@async
---@param opened deployrt.Session
---@param prefer_waiting? boolean
---@return deployrt.Holder
--- Raises deployrt.Error: "nothing"; "locked" when the run was interrupted; why a host is away, where no other one knows of a run;
--- "usage" when there are several.
function request.check_live(opened, prefer_waiting)
  local live, waits = live_runs(opened), {}
  for _, each in ipairs(prefer_waiting and live or {}) do
    if waiting.is_so(each.held.step) then waits[#waits + 1] = each end
  end
  if #live > 0 then return request.only(#waits > 0 and waits or live) end
  local held = lock.find(opened:lines())
  if held and held.dead then errors.raise("locked", lock.refusal(held, opened.app.file)) end
  opened:check_complete()
  errors.raise("nothing", ("no run of %s is under way"):format(opened.app.app))
end

--- Asks, on all of its hosts: any of them may go away before the controller has heard there. It hears each request once, whatever
--- was asked before first; the number tells it from the same request made again.
---@async
---@param run deployrt.Holder
---@param word "pause"|"approve"|"abort"
---@param answer? string
--- Raises deployrt.Error: why the first host does not take it, where none does.
function request.send(run, word, answer)
  local text = ("%s %d %s"):format(word, math.floor(core.time() * 1000), ((answer or ""):gsub("%c", " ")))
  local refusals = fleet.together(run.lines, function(line)
    local ok, err = pcall(line.call, line, "run_control", { run.held.run, text })
    return not ok and err
  end)
  for i = 1, #run.lines do
    if not refusals[i] then return end
  end
  error(refusals[1], 0)
end

--- What one host after the other has of a run, until one knows; whoever does not know comes last from then on.
---@return "under way"|"over"|"dead"|"unknown"
local function look(lines, id)
  local silent = false
  for _ = 1, #lines do
    local held, away = lock.read(lines[1])
    local is_its = held ~= nil and held.run == id
    if not (away or is_its) then return "over" end
    if is_its and not held.dead then return "under way" end
    silent = silent or is_its
    table.insert(lines, table.remove(lines, 1))
  end
  return silent and "dead" or "unknown"
end

--- Waits until a run has let go of its hosts.
---@async
---@param run deployrt.Holder
---@return "over"|"dead"|"unknown"  dead: its controller died; unknown: none of its hosts can be asked any more
function request.await_end(run)
  local lines = table.move(run.lines, 1, #run.lines, 1, {})
  local seen
  repeat
    core.sleep(0.2)
    seen = look(lines, run.held.run)
  until seen ~= "under way"
  return seen
end

return request
