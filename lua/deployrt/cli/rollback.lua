-- cli/rollback.lua -- deployrt rollback APP.yml [--to V]
local common = require "deployrt.cli.common"
local rollback = require "deployrt.rollback"

return function(command)
  local app = common.app(command)
  local target = rollback.target(common.state(command, app), command.flags.to)
  return common.execute(command, app, {
    strategy = rollback, values = {}, kind = "rollback", target = function() return target end,
    done = ("rolled back: %s serves again"):format(target.release),
  })
end
