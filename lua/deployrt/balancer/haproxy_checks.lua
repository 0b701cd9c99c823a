-- haproxy_checks.lua -- HAProxy's own health checks: who is to get traffic passes one before.
local runtime = require "deployrt.balancer.haproxy_runtime"

local number = runtime.number

local haproxy_checks = {}

--- What a server tracks, whose health is its own: "backend/server"; nil for nothing.
local function tracked_by(row)
  return row.stat.tracked ~= "" and row.stat.tracked or nil
end

--- Whether the backend's check is a connection and no more, as it was for those that have been checked: deployrt makes one itself.
local function only_connects(rows)
  local connects = false
  for _, row in ipairs(rows) do
    local layer = row.checked and (row.stat.check_status or ""):match("L(%d)")
    if layer and layer ~= "4" or row.checks_elsewhere or tracked_by(row) then return false end
    connects = connects or layer == "4" and row.up
  end
  return connects
end

--- The slots among these whose servers HAProxy checks, by themselves or by what they track, and that get no traffic.
---@param slots table<string, deployrt.HAProxyServer>
---@param rows deployrt.HAProxyServer[]  all of the backend
---@param names string[]
---@return string[]
function haproxy_checks.of(slots, rows, names)
  local list = {}
  if only_connects(rows) then return list end
  for _, name in ipairs(names) do
    local row = slots[name]
    local passes_first = (row.checked or tracked_by(row)) and not (row.state == "ready" and row.weight > 0)
    list[#list + 1] = passes_first and name or nil
  end
  return list
end

--- What a server tracks, where that is the same instance: its check is of no other. nil: it is another's, or has none.
---@return string?  "backend/server"
local function own_tracked(row, ask)
  local backend, name = (tracked_by(row) or ""):match("^([^/]+)/(.+)$")
  if not backend then return nil end
  for _, other in ipairs(runtime.rows_of(ask("show servers state " .. backend), backend)) do
    if other.server == name and other.checked and other.endpoint == row.endpoint then return backend .. "/" .. name end
  end
end

--- Has HAProxy check a server anew, without traffic, whatever it knew of what was there before. One that comes out of maintenance
--- counts as up until its first check, and is down after the first failure; that it has passed shows by its health, which is full
--- then. Where a single failure is enough, full is all that there is, so that it begins down; so does what a server tracks.
---@param row deployrt.HAProxyServer
---@param backend string
---@param ask fun(command: string): string  HAProxy's answer
---@return string[] commands
function haproxy_checks.begin(row, backend, ask)
  local where = backend .. "/" .. row.server
  local commands = { ("set server %s state maint"):format(where), ("set server %s state drain"):format(where) }
  local begins_down = row.checked and number(row.stat, "check_fall") <= 1 and where or own_tracked(row, ask)
  if begins_down then commands[3] = ("set server %s health down"):format(begins_down) end
  return commands
end

--- Why a server is not known to pass; nil when it is.
local function problem_of(row)
  if row.state ~= "drain" then return "somebody else has set its state" end
  if tracked_by(row) then return not row.up and "the server that it tracks is down" or nil end
  local full = number(row.stat, "check_rise") + number(row.stat, "check_fall") - 1
  if row.up and number(row.stat, "check_health") >= full then return nil end
  local status, code = (row.stat.check_status or ""):gsub("^%* ", ""), row.stat.check_code or ""
  if status == "" or status == "INI" then return "it was not checked yet" end
  local said = row.stat.last_chk ~= "" and row.stat.last_chk or row.stat.check_desc
  local passes = status:find("OK", 1, true) and "it passes, and not yet as often as its `rise` says: " or ""
  return ("%s%s%s%s"):format(passes, status, code ~= "" and " " .. code or "", said and said ~= "" and ": " .. said or "")
end

--- The first of the slots that has not passed, and why; nil when all have.
---@param slots table<string, deployrt.HAProxyServer>
---@param names string[]
---@return string?
function haproxy_checks.first_problem(slots, names)
  for _, name in ipairs(names) do
    local problem = problem_of(slots[name])
    if problem then return ("%s does not pass the check of its server %s (%s)"):format(name, slots[name].server, problem) end
  end
end

--- What a server that was not checked beforehand is trusted with: that it goes down as others do, and not by the first failure.
---@param row deployrt.HAProxyServer
---@return boolean
function haproxy_checks.is_to_be_trusted(row)
  return row.checked and row.state == "maint"
end

return haproxy_checks
