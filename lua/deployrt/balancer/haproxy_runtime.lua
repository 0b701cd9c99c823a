-- haproxy_runtime.lua -- The language of HAProxy's runtime API: its tables read as rows, one for each server.
local config = require "deployrt.balancer.haproxy_config"

local haproxy_runtime = {}

---@class deployrt.HAProxyServer
---@field server string    its name
---@field endpoint string  address:port
---@field fqdn string      "-" where the configuration has an address
---@field state deployrt.SlotState
---@field weight integer
---@field checked boolean  whether HAProxy runs a health check of it
---@field up boolean
---@field sessions integer
---@field queue integer
---@field stat table<string, string>  its line of `show stat`

local function split(line, separator)
  local fields = {}
  local pattern = "([^" .. separator .. "]*)" .. separator
  for field in (line .. separator):gmatch(pattern) do fields[#fields + 1] = field end
  return fields
end

--- A line of `show stat`; commas within quotes part nothing.
local function split_csv(line)
  return split(line:gsub('"[^"]*"', function(quoted) return (quoted:sub(2, -2):gsub(",", ";")) end), ",")
end

--- The rows of a table in an answer. How HAProxy parts the answers of several commands is not to be relied upon
--- (some errors come without the empty line), but each table has its own header and ends at an empty line.
local function parse_table(text, first, split_line)
  local at = text:find("# " .. first, 1, true)
  local rows, names = {}, nil
  for line in (at and text:sub(at + 2) or ""):gmatch("([^\n]*)\n") do
    if line == "" then break end
    local fields, row = split_line(line), {}
    for i, name in ipairs(names or {}) do row[name] = fields[i] end
    if names then rows[#rows + 1] = row end
    names = names or fields
  end
  return rows
end

local function parse_states(text)
  return parse_table(text, "be_id", function(line) return split(line, " ") end)
end

--- The rows of `show stat`, by the names of its columns.
---@param text string
---@return table<string, string>[]
function haproxy_runtime.parse_stat(text)
  return parse_table(text, "pxname", split_csv)
end

--- A column as an integer; 0 where it is empty or absent.
function haproxy_runtime.number(row, name)
  return math.tointeger(row and row[name]) or 0
end

local number = haproxy_runtime.number

-- srv_admin_state: 0x01 set to maintenance, 0x02 by the server it tracks, 0x20 and 0x40 by name resolution; 0x08 set
-- to drain, 0x10 by the server it tracks. 0x04 only says that the configuration had it disabled at the start.
local function state_of(row)
  local admin = number(row, "srv_admin_state")
  if admin & 0x63 ~= 0 then return "maint" end
  return admin & 0x18 ~= 0 and "drain" or "ready"
end

local function row_of(state, stat)
  local checked = number(state, "srv_check_state") & 0x06 == 0x06 -- configured and enabled
  local name, operational = state_of(state), number(state, "srv_op_state")
  return {
    server = state.srv_name, fqdn = state.srv_fqdn, state = name, weight = number(state, "srv_uweight"),
    endpoint = config.endpoint { address = state.srv_addr, port = number(state, "srv_port") },
    stat = stat or {}, checked = checked,
    up = operational ~= 0 or (name == "maint" and not checked),
    sessions = number(stat, "scur"), queue = number(stat, "qcur"),
  }
end

--- The servers of an answer that holds `show servers state` and `show stat` of one backend.
---@param text string
---@return deployrt.HAProxyServer[]
function haproxy_runtime.rows_of(text)
  local stats, rows = {}, {}
  for _, stat in ipairs(haproxy_runtime.parse_stat(text)) do stats[stat.svname] = stat end
  for i, state in ipairs(parse_states(text)) do rows[i] = row_of(state, stats[state.srv_name]) end
  return rows
end

--- What HAProxy said to the commands, before the tables that were asked with them.
---@param text string
---@return string
function haproxy_runtime.complaint(text)
  local said = text:match("^(.-)%d*\n# be_id") or text:sub(1, 500)
  return (said:gsub("\n%s*\n+", "\n"):match("^%s*(.-)%s*$"))
end

return haproxy_runtime
