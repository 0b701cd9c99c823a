-- cli/history.lua -- deployrt history APP.yml
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local history = require "deployrt.history"
local json = require "deployrt.progress.json"
local life = require "deployrt.life"
local text = require "deployrt.progress.text"

--- What was deployed in place of what; a stop leads to nothing.
local function change_of(run)
  local after = run.strategy == "stop" and "nothing" or run.release
  return run.previous and ("%s -> %s"):format(run.previous, after) or after
end

--- Has this machine know what hosts know of runs. What a team shares is whole without them.
---@return deployrt.Error? away  why that is not all
local function learn(state, app)
  if type(app.state) == "table" then return nil end
  local names = history.ask(state, app)
  if #names == 0 then return nil end
  return errors.new("unreachable", ("%s cannot be asked, `deployrt status %s` says why: what is said of runs is what this machine knows%s"):format(
    table.concat(names, ", "), app.file, #names < #app.hosts and ", and the other hosts" or ""))
end

return function(command)
  local app = common.app(command)
  local state, away = common.state(command, app):at_hand()
  away = away or learn(state, app)
  local runs, problem = state:runs()
  problem = problem or away
  if #runs == 0 and not problem and not command.flags.json then command.write("no run yet\n") end
  for _, run in ipairs(runs) do
    if run.outcome == "running" and run.life and life.is_gone(run.life) then run.outcome = "unfinished" end
    if command.flags.json then
      run.launch, run.previous_launch, run.life = nil, nil, nil
      if run.strategy == "stop" then run.release = nil end
      run.run, run.time, run.event = run.id, text.iso(run.finished or run.started), "run"
      command.write(json.line(run) .. "\n")
    else
      command.write(("%s  %-10s %-14s %s  %s@%s\n"):format(run.id, text.line(run.strategy), run.outcome, change_of(run), run.user, run.controller))
    end
  end
  if problem then error(problem, 0) end
  return 0
end
