-- cli/resume.lua -- deployrt resume|abort APP.yml
local common = require "deployrt.cli.common"
local resume = require "deployrt.resume"

--- Asks a question on the terminal; nil without one.
local function confirm(question)
  local terminal = io.open("/dev/tty", "r+")
  if not terminal then return nil end
  terminal:write(question, " [y/N] ")
  terminal:flush()
  local answer = terminal:read("l") or ""
  terminal:close()
  return answer:lower():find("^y") ~= nil
end

return function(command, abort)
  local app = common.app(command)
  local flags = command.flags
  local then_app, options = resume.prepare(app, common.state(command, app), {
    run = flags.run, abort = abort, force = abort and flags.force, yes = flags.yes, confirm = confirm,
  })
  if not then_app then
    local undone = abort and options.outcome == "succeeded"
    command.write(("%s%s\n"):format(options.text, undone and ("; `deployrt rollback %s` takes it back"):format(app.file) or ""))
    return options.exit
  end
  return common.execute(command, then_app, options)
end
