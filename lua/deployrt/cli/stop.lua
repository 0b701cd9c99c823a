-- cli/stop.lua -- deployrt stop APP.yml: no traffic, no process, no balancer of ours.
local common = require "deployrt.cli.common"
local operation = require "deployrt.operation"
local verbs = require "deployrt.verbs"

local stop = setmetatable({ name = "stop", api = 1, options = {} }, { __index = verbs })
stop.__index = stop

function stop:deploy() end

local function proceed(run)
  local script = run.script
  run.balancer:refresh()
  local all = run.fleet:instances()
  script:step("take out of service", function() run.balancer:detach(all) end)
  script:step("stop", function()
    script:each(all, function(_, each) each:stop() end)
  end)
  run.root:commit()
  operation.effect { name = "balancer.stop", args = {} }
end

return function(command)
  local app = common.app(command)
  return common.execute(command, app, {
    strategy = stop, values = {}, kind = "stop", proceed = proceed, done = ("stopped: nothing of %s runs any more"):format(app.app),
    target = function() return { release = "none", settings = "", command = {} } end,
  })
end
