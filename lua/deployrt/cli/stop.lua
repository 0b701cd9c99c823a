-- cli/stop.lua -- deployrt stop APP.yml
local common = require "deployrt.cli.common"
local stop = require "deployrt.stop"

return function(command)
  local app = common.app(command)
  if app.groups then app.groups:refuse_busy() end
  local exit = common.execute(command, app, {
    strategy = stop, values = {}, kind = "stop", proceed = stop.proceed, done = ("stopped: nothing of %s runs on its hosts any more"):format(app.app),
    target = function() return { release = "none", settings = "", command = {} } end,
  })
  if exit == 0 and app.groups then app.groups:give_back_all(function(message) command.write_error(message .. "\n") end) end
  return exit
end
