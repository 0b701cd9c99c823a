-- cli/stop.lua -- deployrt stop APP.yml
local common = require "deployrt.cli.common"
local stop = require "deployrt.stop"

return function(command)
  local app = common.app(command)
  return common.execute(command, app, {
    strategy = stop, values = {}, kind = "stop", proceed = stop.proceed, done = ("stopped: nothing of %s runs any more"):format(app.app),
    target = function() return { release = "none", settings = "", command = {} } end,
  })
end
