-- cli/abort.lua -- deployrt abort APP.yml: rolls back a run that was interrupted.
local resume = require "deployrt.cli.resume"

return function(command)
  return resume(command, true)
end
