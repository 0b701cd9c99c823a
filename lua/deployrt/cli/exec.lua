-- cli/exec.lua -- deployrt exec APP.yml -- COMMAND
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local json = require "deployrt.progress.json"

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
    command.write(json.encode(object_of(name, result, err)) .. "\n")
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

return function(command)
  local app = common.app(command)
  if not command.rest or #command.rest == 0 then errors.raise("usage", "which command? deployrt exec APP.yml -- COMMAND") end
  if #app.hosts == 0 then command.write_error(("deployrt: %s has no hosts now: nothing was run\n"):format(app.file)) end
  local width, failed = 0, 0
  for _, entry in ipairs(app.hosts) do width = math.max(width, #entry.name) end
  fleet.together(app.hosts, function(entry)
    local each = connection.new(entry, app.app)
    local link, err = each:link()
    local result
    if link then result, err = link:exec(command.rest, {}) end
    if err or result.status ~= 0 or result.signal then failed = failed + 1 end
    report(command, entry.name, width, result, result == nil and err or nil)
    each:close()
  end)
  return failed == 0 and 0 or 1
end
