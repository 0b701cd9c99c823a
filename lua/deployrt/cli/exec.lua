-- cli/exec.lua -- deployrt exec APP.yml -- COMMAND
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"

local function show(command, name, width, text)
  for line in text:gmatch("([^\n]*)\n?") do
    if line ~= "" then command.write(("%-" .. width .. "s | %s\n"):format(name, line)) end
  end
end

local function report(command, name, width, result, err)
  if command.flags.json then
    command.write(cjson.encode { host = name, status = result and result.status, signal = result and result.signal,
      stdout = result and result.stdout, stderr = result and result.stderr, error = err and errors.text(err) } .. "\n")
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
