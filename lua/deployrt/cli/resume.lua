-- cli/resume.lua -- deployrt resume|abort APP.yml
local common = require "deployrt.cli.common"
local keep = require "deployrt.config.keep"
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

--- Where no run was interrupted: a controller may have died while hosts were made for one.
---@return integer? exit  nil: no hosts are left
local function give_back_left(command, app)
  local groups = app.groups
  if not groups then return nil end
  local count = groups:clear(function(text) command.write_error(text .. "\n") end)
  if count == 0 then return groups:refuse_busy() end
  command.say("log", ("no run of %s was interrupted; the hosts of %d group%s that none had begun to use were given back"):format(app.app, count,
    count == 1 and "" or "s"))
  return 0
end

local function text_of(value)
  return type(value) == "table" and table.concat(value, ", ") or value
end

--- What is set besides secrets: those that are not kept are given again.
local function without_secrets(settings)
  local list = {}
  for _, each in ipairs(settings or {}) do
    if not each:find(keep.removed, 1, true) then list[#list + 1] = each end
  end
  return list[1] and list
end

--- A run goes on with what it began with: says so where the command line has something else.
---@param began table  the flags that the run began with
local function tell_ignored(command, app, began)
  local given = { set = without_secrets(app.settings), release = command.flags.release, host = command.flags.host }
  local before = { set = without_secrets(began.set), release = began.release, host = began.host }
  for _, name in ipairs { "set", "release", "host" } do
    local text = text_of(given[name])
    if text and text ~= text_of(before[name]) then
      command.say("warning", ("warning: --%s %s changes nothing of this run: it goes on with what it began with"):format(name, text))
    end
  end
end

return function(command, abort)
  local app = common.app(command)
  local flags = command.flags
  local ok, then_app, options = pcall(resume.prepare, app, common.state(command, app), {
    run = flags.run, abort = abort, force = abort and flags.force, yes = flags.yes, confirm = confirm,
  })
  if not ok then
    local exit = then_app.code == "nothing" and give_back_left(command, app)
    if exit then return exit end
    error(then_app, 0)
  end
  if not then_app then
    local undone = abort and options.outcome == "succeeded"
    command.say("run.finished", options.text .. (undone and ("; `deployrt rollback %s` takes it back"):format(app.file) or ""),
      { run = options.run, outcome = options.outcome, exit = options.exit })
    return options.exit
  end
  tell_ignored(command, app, options.flags or {})
  return common.execute(command, then_app, options)
end
