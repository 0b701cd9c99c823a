-- life.lua -- What tells a process of a machine from all others: machine, boot, pid, start time.
local core = require "deployrt.core"

local life = {}

--- The start time of a process, in ticks since boot; nil when it does not run (proc(5), field 22 of stat).
local function start_time(pid)
  local file = io.open(("/proc/%d/stat"):format(pid))
  if not file then return nil end
  local rest = file:read("a"):match("%) (.*)$")
  file:close()
  local fields = {}
  for field in (rest or ""):gmatch("%S+") do fields[#fields + 1] = field end
  return fields[1] ~= "Z" and fields[1] ~= "X" and fields[20] or nil
end

local function boot_id()
  local file = io.open("/proc/sys/kernel/random/boot_id")
  local text = file and file:read("l") or "unknown"
  if file then file:close() end
  return text
end

--- What tells a process of this machine from all others.
---@param pid? integer  default: this very one
---@return string
function life.of(pid)
  local me = core.whoami()
  pid = pid or me.pid
  return ("%s %s %d %s"):format(me.host, boot_id(), pid, start_time(pid) or "0")
end

--- Whether a life was that of a process of this machine which is gone; no need to wait for its silence then.
---@param text string  from life.of()
---@return boolean
function life.is_gone(text)
  local boot, pid, start = text:match("^%S+ (%S+) (%d+) (%d+)$")
  if not boot or not life.is_here(text) then return false end
  return boot ~= boot_id() or start_time(tonumber(pid)) ~= start
end

--- Whether a life is that of a process of this machine.
---@param text string  from life.of()
---@return boolean
function life.is_here(text)
  return text:match("^%S+") == core.whoami().host
end

--- The pid of a life, and its machine.
---@param text string  from life.of()
---@return integer pid
---@return string machine
function life.parts(text)
  local machine, pid = text:match("^(%S+) %S+ (%d+)")
  return math.tointeger(pid), machine
end

--- Whether the session that began with a process of this machine may be there still, though that process is gone perhaps: its pid is
--- no other's by now.
---@param text string  from life.of()
---@return boolean
function life.may_have_session(text)
  local boot, pid, start = text:match("^%S+ (%S+) (%d+) (%d+)$")
  local now = start_time(tonumber(pid))
  return boot == boot_id() and (now == nil or now == start)
end

return life
