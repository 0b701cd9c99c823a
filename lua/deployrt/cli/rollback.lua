-- cli/rollback.lua -- deployrt rollback APP.yml [--to V]
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local history = require "deployrt.history"
local inventory = require "deployrt.inventory"
local rollback = require "deployrt.rollback"

return function(command)
  local app = common.app(command)
  if inventory.is_elastic(app) then
    errors.raise("nothing", "with hosts.command each deployment has hosts of its own, and those of the one before were given back: deploy the earlier release again")
  end
  local state = common.state(command, app)
  local options = { strategy = rollback, values = {}, kind = "rollback" }
  function options.target(opened)
    history.learn(state, opened:lines())
    local target = rollback.target(state, command.flags.to)
    options.done = ("rolled back: %s serves again"):format(target.release)
    return target
  end
  return common.execute(command, app, options)
end
