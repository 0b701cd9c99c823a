-- cli/abort.lua -- deployrt abort APP.yml: rolls back a run that was interrupted, or is under way.
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local history = require "deployrt.history"
local leftover = require "deployrt.leftover"
local lock = require "deployrt.lock"
local request = require "deployrt.request"
local resume = require "deployrt.cli.resume"

local unheard = {
  over = "run %s has let go of its lock, and did not say how it ended: see `deployrt status %s`",
  unknown = "run %s was asked to roll back, and none of its hosts can be asked any more: once one is back, `deployrt status %s` tells how it ended, or that it goes on",
}

--- How a run ended that was asked to roll back.
local function ending_of(command, opened, id, seen)
  local state = common.state(command, opened.app)
  history.learn(state, opened:lines())
  local run = history.find(state, id)
  if run and run.finished then return run end
  errors.raise("unfinished", unheard[seen]:format(id, opened.app.file))
end

--- Those of some runs that there may be something to roll back of.
local function unfinished(command, opened, runs)
  local state, open = common.state(command, opened.app):at_hand(), {}
  history.learn(state, opened:lines())
  for _, each in ipairs(runs) do
    local record = each.held.dead and history.find(state, each.held.run)
    if not (record and record.finished and not leftover.is_open(record)) then open[#open + 1] = each end
  end
  return open
end

--- Asks the run that is under way to roll back, and waits until it has. Beside one that was interrupted a person says which.
---@return deployrt.Run? ended  nil: none is under way, or its controller died meanwhile
local function ask(command, opened)
  local runs = {}
  for _, each in ipairs(lock.holders(opened:lines())) do
    if not command.flags.run or command.flags.run == each.held.run then runs[#runs + 1] = each end
  end
  if #runs == 0 or runs[1].held.dead then return nil end
  local run = request.only(unfinished(command, opened, runs))
  local id = run.held.run
  request.send(run, "abort")
  command.write_error(("run %s is under way: it was asked to roll back\n"):format(id))
  local seen = request.await_end(run)
  return seen ~= "dead" and ending_of(command, opened, id, seen) or nil
end

return function(command)
  local ended = not command.flags.force and common.look(command, function(opened) return ask(command, opened) end, nil, { partial = true })
  if not ended then return resume(command, true) end
  command.say("run.finished", ("run %s: %s"):format(ended.id, ended.outcome:gsub("_", " ")), { run = ended.id, outcome = ended.outcome, exit = ended.exit })
  if ended.outcome == "needs_attention" then return 3 end
  if ended.outcome == "succeeded" then
    errors.raise("nothing", ("run %s had succeeded before it heard: `deployrt rollback %s` takes it back"):format(ended.id, command.operands[1]))
  end
  return 0
end
