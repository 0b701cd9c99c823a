-- cli/history.lua -- deployrt history APP.yml
local common = require "deployrt.cli.common"
local json = require "deployrt.progress.json"
local lock = require "deployrt.lock"
local text = require "deployrt.progress.text"

return function(command)
  local app = common.app(command)
  for _, run in ipairs(common.state(command, app):runs()) do
    if run.outcome == "running" and run.life and lock.is_gone(run.life) then run.outcome = "unfinished" end
    if command.flags.json then
      run.launch, run.previous_launch, run.life = nil, nil, nil
      if run.strategy == "stop" then run.release = nil end
      command.write(json.encode(run) .. "\n")
    else
      command.write(("%s  %-10s %-14s %s%s  %s@%s\n"):format(run.id, text.line(run.strategy), run.outcome,
        run.previous and run.previous .. " -> " or "", run.release, run.user, run.controller))
    end
  end
  return 0
end
