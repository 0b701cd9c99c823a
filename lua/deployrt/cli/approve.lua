-- cli/approve.lua -- deployrt approve [ANSWER] APP.yml: lets a run go on that waits for a person.
local pause = require "deployrt.cli.pause"

return function(command)
  local answer = #command.operands > 1 and table.remove(command.operands, 1) or nil
  return pause(command, "approve", answer)
end
