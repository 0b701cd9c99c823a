-- cli/exec.lua -- deployrt exec APP.yml -- COMMAND
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local json = require "deployrt.progress.json"
local stopping = require "deployrt.stopping"

local function show(command, name, width, text)
  for line in text:gmatch("([^\n]*)\n?") do
    if line ~= "" then command.write(("%-" .. width .. "s | %s\n"):format(name, line)) end
  end
end

--- The status as a shell has it: 128 and more for what a signal ended.
local function status_of(result)
  return result.signal and 128 + result.signal_number or result.status
end

local function object_of(name, result, err)
  if err then return { host = name, error = errors.text(err) } end
  return { host = name, status = status_of(result), signal = result.signal, stdout = result.stdout, stderr = result.stderr }
end

local function report(command, name, width, result, err)
  if command.flags.json then
    command.write(json.now("exec", object_of(name, result, err)))
  elseif err then
    command.write_error(("%-" .. width .. "s ! %s\n"):format(name, errors.text(err)))
  else
    show(command, name, width, result.stdout)
    show(command, name, width, result.stderr)
    if result.status ~= 0 or result.signal then
      command.write_error(("%-" .. width .. "s ! %s\n"):format(name, result.signal and "signal " .. result.signal or "status " .. result.status))
    end
  end
end

--- Runs the command on a host. When it is canceled, what runs there is ended: sshd does not say that its channel is closed.
---@return table? result
---@return deployrt.Error? err
---@return "ended"|"left"|nil cut  whether it could be told
local function ask(app, entry, argv, stopped)
  local each <close> = setmetatable({ line = connection.new(entry, app.app) }, { __close = function(self) self.line:close() end })
  local link, err = each.line:link()
  if not link or stopped:is_set() then return nil, err end
  return each.line:attend(argv)
end

--- Waits until all hosts have answered; raises when we were interrupted, and says what became of the command where it ran still.
local function await(tasks, stopped, cut)
  local signal = stopping.until_signal(tasks, stopped, "HUP")
  for _, task in ipairs(tasks) do
    local ok, err = task:wait()
    if not ok then error(err, 0) end
  end
  if not signal then return end
  local parts = {}
  for _, each in ipairs { { cut.ended, "the command was ended on " }, { cut.left, "it may run still on " } } do
    table.sort(each[1])
    if #each[1] > 0 then parts[#parts + 1] = each[2] .. table.concat(each[1], ", ") end
  end
  errors.raise("interrupted", ("interrupted by SIG%s: %s"):format(signal, #parts > 0 and table.concat(parts, "; ") or "the command runs nowhere"))
end

return function(command)
  local app = common.app(command)
  if not command.rest or #command.rest == 0 then errors.raise("usage", "which command? deployrt exec APP.yml -- COMMAND") end
  if #app.hosts == 0 then command.write_error(("deployrt: %s has no hosts now: nothing was run\n"):format(app.file)) end
  local width, failed, tasks, stopped, cut = 0, 0, {}, core.event(), { ended = {}, left = {} }
  for _, entry in ipairs(app.hosts) do width = math.max(width, #entry.name) end
  for i, entry in ipairs(app.hosts) do
    tasks[i] = core.spawn(function()
      local result, err, state = ask(app, entry, command.rest, stopped)
      if state then table.insert(cut[state], entry.name) end
      if stopped:is_set() and not result then return end
      if err or result.status ~= 0 or result.signal then failed = failed + 1 end
      report(command, entry.name, width, result, err)
    end)
  end
  await(tasks, stopped, cut)
  return failed == 0 and 0 or 1
end
