-- cli/approve.lua -- deployrt approve APP.yml: lets a run go on that waits for a person.
local pause = require "deployrt.cli.pause"

return function(command)
  return pause(command, "approve")
end
