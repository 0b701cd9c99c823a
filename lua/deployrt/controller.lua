-- controller.lua -- Commands of app.yml that this machine runs before a run begins, or after it is over.
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local stopping = require "deployrt.stopping"

local controller = {}

controller.longest = 3600 -- seconds that a command may take

--- Does `action()`, and gives it up at SIGINT or SIGTERM: what it started on this machine is ended with it.
local function until_signal(what, action)
  local work = core.spawn(action)
  local signal = stopping.until_signal { work }
  local ok, result = work:wait()
  if signal then errors.raise("interrupted", ("%s was interrupted by SIG%s: nothing was changed"):format(what, signal)) end
  if not ok then error(result, 0) end
  return result
end

--- Runs a command in the directory of app.yml, and waits for its end, whatever that is.
---@async
---@param app deployrt.App
---@param command string|string[]  a line for /bin/sh, or program and arguments
---@param opts {what: string, env?: table<string, string>, stdin?: string}  what: the key of app.yml, for messages
---@return {status: integer, signal?: string, stdout: string, stderr: string}
--- Raises deployrt.Error: "interrupted".
function controller.run(app, command, opts)
  if type(command) == "string" then command = { "/bin/sh", "-c", command } end
  local line = connection.new({ name = "local" }, app.app)
  local closing <close> = setmetatable({}, { __close = function() line:close() end })
  local env = { APP = app.app, RELEASE = app.release.version or "" }
  for name, value in pairs(opts.env or {}) do env[name] = value end
  return until_signal(opts.what, function()
    return errors.check(line:attend(command, { cwd = app.dir, timeout = controller.longest, env = env, stdin = opts.stdin }))
  end)
end

--- Whether a command that was given a variable still runs on this machine, whoever started it.
---@param name string
---@param value string
---@return boolean
function controller.is_running(name, value)
  local wanted = ("\0%s=%s\0"):format(name, value)
  for _, entry in ipairs(core.fs.list("/proc") or {}) do
    local file = entry:find("^%d+$") and io.open(("/proc/%s/environ"):format(entry), "rb")
    local text = file and file:read("a") or ""
    if file then file:close() end
    if ("\0" .. text):find(wanted, 1, true) then return true end
  end
  return false
end

--- How a command ended, in words; nil when it did well.
---@return string?
function controller.failure(result)
  if result.signal then return "was ended by SIG" .. result.signal end
  return result.status ~= 0 and "failed with status " .. result.status or nil
end

return controller
