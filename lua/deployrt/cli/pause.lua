-- cli/pause.lua -- deployrt pause APP.yml: holds a run that is under way.
local common = require "deployrt.cli.common"
local request = require "deployrt.request"

return function(command)
  return common.look(command, function(opened)
    local held, line = request.check_live(opened)
    request.send(line, held, "pause")
    command.say("paused", ("run %s holds at its next step; `deployrt approve %s` lets it go on"):format(held.run, opened.app.file), { run = held.run })
    return 0
  end, nil, { partial = true })
end
