-- health.lua -- Probes an instance the way app.yml says: over HTTP, a TCP connection, or a command on its host.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local template = require "deployrt.template"

local health = {}

local function status_fits(wanted, status)
  if wanted == nil then return status >= 200 and status <= 299 end
  if type(wanted) == "number" then return status == wanted end
  for _, each in ipairs(wanted) do
    if type(each) == "number" and each == status then return true end
    if type(each) == "table" and status >= (each.from or each[1]) and status <= (each.to or each[2]) then return true end
  end
  return false
end

local function probe_http(host, port, settings, timeout)
  local request = { url = ("http://127.0.0.1:%d%s"):format(port, settings.http), timeout = timeout, max_body = 65536 }
  if not host.is_local then
    local link, err = host:link()
    if not link then return false, errors.text(err) end
    request.fd, err = link:forward("127.0.0.1", port)
    if not request.fd then return false, errors.text(err) end
  end
  local response, err = core.http.request(request)
  if not response then return false, err.message end
  if not status_fits(settings.status, response.status) then return false, ("%s answers %d"):format(settings.http, response.status) end
  if settings.body and not response.body:find(settings.body, 1, true) then
    return false, ("%s answers without %q"):format(settings.http, settings.body)
  end
  return true
end

local function probe_tcp(host, port, timeout)
  local link, err = host:link()
  if not link then return false, errors.text(err) end
  local ok
  ok, err = link:dial("127.0.0.1", port, timeout)
  if ok then return true end
  return false, ("port %d: %s"):format(port, err.message)
end

local function probe_command(host, settings, values, known, timeout)
  local link, err = host:link()
  if not link then return false, errors.text(err) end
  local result
  result, err = link:exec(template.expand_all(settings.command, values), { timeout = timeout, cwd = values.dir })
  if not result then return false, "health command: " .. (err.code == "timeout" and ("no answer within %gs"):format(timeout) or err.message) end
  if result.status == 0 and not result.signal then return true end
  return false, ("health command: %s %s"):format(result.signal and "ended by SIG" .. result.signal or "status " .. result.status, known:mask(result.stdout .. result.stderr):sub(-200))
end

--- One probe.
---@async
---@param host deployrt.Connection
---@param port integer
---@param settings table   app.health
---@param values table     of ${...}
---@param known deployrt.Secrets  that no reason shows
---@param most? number     seconds that it may take, if that is less than the timeout of a probe
---@return boolean healthy
---@return string? why_not
function health.probe(host, port, settings, values, known, most)
  local timeout = math.min(settings.timeout, most or math.huge)
  if settings.http then return probe_http(host, port, settings, timeout) end
  if settings.command then return probe_command(host, settings, values, known, timeout) end
  return probe_tcp(host, port, timeout)
end

return health
