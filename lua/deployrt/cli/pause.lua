-- cli/pause.lua -- deployrt pause APP.yml: holds a run that is under way.
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"
local request = require "deployrt.request"
local waiting = require "deployrt.waiting"

return function(command)
  return common.look(command, function(opened)
    local run = request.check_live(opened)
    if run.held.step == lock.way_back then
      errors.raise("nothing", ("run %s is rolling back, and nothing holds that: see `deployrt status %s`"):format(run.held.run, opened.app.file))
    end
    request.send(run, "pause")
    command.say("paused", ("run %s holds at its next step; %s lets it go on"):format(run.held.run, waiting.command(opened.app.file, { {} })), { run = run.held.run })
    return 0
  end, nil, { partial = true })
end
