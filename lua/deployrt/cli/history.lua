-- cli/history.lua -- deployrt history APP.yml
local common = require "deployrt.cli.common"
local json = require "deployrt.progress.json"
local life = require "deployrt.life"
local text = require "deployrt.progress.text"

--- What was deployed in place of what; a stop leads to nothing.
local function change_of(run)
  local after = run.strategy == "stop" and "nothing" or run.release
  return run.previous and ("%s -> %s"):format(run.previous, after) or after
end

return function(command)
  local app = common.app(command)
  local runs = common.state(command, app):runs()
  if #runs == 0 and not command.flags.json then command.write("no run yet\n") end
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
  return 0
end
