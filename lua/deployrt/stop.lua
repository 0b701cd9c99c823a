-- stop.lua -- Taking an application out of service: no traffic, no process, no balancer of ours.
local adoption = require "deployrt.adoption"
local elsewhere = require "deployrt.elsewhere"
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"
local verbs = require "deployrt.verbs"

local stop = setmetatable({ name = "stop", api = 1, options = {} }, { __index = verbs })
stop.__index = stop

function stop:deploy() end

--- The whole run: nothing is uploaded, filled or retired.
---@async
function stop.proceed(run)
  local script = run.script
  adoption.take(script, run)
  local away = run.balancer:look()
  if away then
    run.emit { event = "warning", message = ("nothing is taken out of service at the balancer, and requests in flight are not waited for, because it is away: %s")
      :format(errors.text(away)) }
  end
  local all, known = run.fleet:instances(), {}
  for _, each in ipairs(all) do
    if run.balancer.slots[each.slot] then known[#known + 1] = each end -- others are on ports that app.yml does not have any more
  end
  for _, name in ipairs(elsewhere.left(run.balancer)) do known[#known + 1] = { slot = name, label = name } end
  script:step("take out of service", function() run.balancer:detach(known) end)
  script:step("stop", function()
    script:each(all, function(_, each) each:stop() end)
  end)
  script:commit()
  adoption.stop_last(script, run)
  adoption.forget(script, run)
  operation.effect { name = "balancer.stop", args = {}, note = run.balancer:exists() and "the balancer" or nil }
end

return stop
