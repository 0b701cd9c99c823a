-- cli/plan.lua -- deployrt plan STRATEGY APP.yml: what run would do; changes nothing anywhere.
local common = require "deployrt.cli.common"
local deploy = require "deployrt.cli.run"
local inventory = require "deployrt.inventory"
local plan = require "deployrt.plan"
local progress = require "deployrt.progress"
local text = require "deployrt.progress.text"
local units = require "deployrt.units"

local function show(command, app, strategy, found)
  local lines = { ("plan: %s of %s%s %s, on %d host%s\n"):format(text.line(strategy.name), app.app, found.previous and " from " .. found.previous .. " to" or ",",
    found.release, #app.hosts, #app.hosts == 1 and "" or "s") }
  for _, line in ipairs(found.lines) do lines[#lines + 1] = ("%8s  %s\n"):format(units.format_duration(line.at), text.line(line.text)) end
  command.write(table.concat(lines))
  if found.failure then return end
  command.write(found.unchanged and ("nothing to change: release %s serves already\n"):format(found.release)
    or ("%d changes, at least %s of waiting; nothing was changed\n"):format(found.effects, units.format_duration(found.seconds)))
end

local function encode(command, app, strategy, found)
  local view = progress.open { mode = "json", write = command.write, write_error = command.write_error, clock = function() return found.made end,
    now = function() return 0 end }
  view:emit { event = "run.started", app = app.app, strategy = strategy.name, release = found.release, previous = found.previous, hosts = #app.hosts }
  for _, line in ipairs(found.lines) do
    if line.event then
      line.event.seconds = line.at
      view:emit(line.event)
    end
  end
  if not found.failure then
    view:emit { event = "plan.finished", seconds = found.seconds, changes = found.effects, unchanged = found.unchanged or false, release = found.release,
      previous = found.previous, undo = found.undo, undo_count = found.undo_count }
  end
  view:close()
end

return function(command)
  collectgarbage("incremental", 400, 400) -- what a plan makes, it keeps: looking for garbage often is in vain
  local app, options = deploy.prepare(command)
  inventory.check(app, options.strategy)
  options.force, options.offline = command.flags.force, command.flags.offline
  if not options.offline then options.state = common.state(command, app) end
  local found = plan.make(app, options)
  local tell = command.flags.json and encode or show
  tell(command, app, options.strategy, found)
  if found.failure then error(found.failure, 0) end
  return 0
end
