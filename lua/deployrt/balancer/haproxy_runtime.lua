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
---@field checks_elsewhere boolean  which is of another port, or address
---@field up boolean
---@field sessions integer
---@field queue integer
---@field stat table<string, string>  its line of `show stat`, of which most is read when the first of that is asked for

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

--- The rows of all tables of a kind in an answer. How HAProxy parts the answers of several commands is not to be relied
--- upon (some errors come without the empty line), but each table has its own header and ends at an empty line.
---@param reader_of fun(header: string): fun(line: string): table
local function parse_table(text, first, reader_of)
  local rows, at = {}, 1
  while true do
    at = text:find("# " .. first, at, true)
    if not at then return rows end
    at = at + 2
    local read_line
    for line in text:sub(at):gmatch("([^\n]*)\n") do
      if line == "" then break end
      if read_line then rows[#rows + 1] = read_line(line) else read_line = reader_of(line) end
    end
  end
end

local function named(fields, names, row)
  for i, name in ipairs(names) do row[name] = fields[i] end
  return row
end

local columns = {
  be_name = true, srv_name = true, srv_addr = true, srv_op_state = true, srv_admin_state = true, srv_uweight = true, srv_check_state = true,
  srv_fqdn = true, srv_port = true, srv_check_port = true, srv_check_addr = true,
}

--- Reads the columns of `show servers state` that are of use, by one pattern: it is asked many times in a run.
local function state_reader(header)
  local pattern, names = "^", {}
  for name in header:gmatch("[^ ]+") do
    pattern = pattern .. (columns[name] and "([^ ]*) ?" or "[^ ]* ?")
    names[#names + 1] = columns[name] and name or nil
  end
  return function(line) return named({ line:match(pattern) }, names, {}) end
end

local function parse_states(text)
  return parse_table(text, "be_id", state_reader)
end

--- Reads a row of `show stat`, most of whose hundred columns are read when the first of them is asked for.
local function stat_reader(header)
  local names
  return function(line)
    local row = {}
    row.pxname, row.svname, row.qcur, row.scur = line:match("^([^,]*),([^,]*),([^,]*),[^,]*,([^,]*)")
    return setmetatable(row, { __index = function(_, name)
      setmetatable(row, nil)
      names = names or split(header, ",")
      named(split_csv(line), names, row)
      return row[name]
    end })
  end
end

--- The rows of `show stat`, by the names of its columns.
---@param text string
---@return table<string, string>[]
function haproxy_runtime.parse_stat(text)
  return parse_table(text, "pxname", stat_reader)
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

local function checks_elsewhere(state)
  local port, address = number(state, "srv_check_port"), state.srv_check_addr or "-"
  return port ~= 0 and port ~= number(state, "srv_port") or address ~= "-" and address ~= "0.0.0.0" and address ~= state.srv_addr
end

local function row_of(state, stat)
  local checked = number(state, "srv_check_state") & 0x06 == 0x06 -- configured and enabled
  local name, operational = state_of(state), number(state, "srv_op_state")
  return {
    server = state.srv_name, fqdn = state.srv_fqdn, state = name, weight = number(state, "srv_uweight"),
    endpoint = config.endpoint { address = state.srv_addr, port = number(state, "srv_port") },
    stat = stat or {}, checked = checked, checks_elsewhere = checked and checks_elsewhere(state),
    up = operational ~= 0 or (name == "maint" and not checked),
    sessions = number(stat, "scur"), queue = number(stat, "qcur"),
  }
end

--- The servers of one backend, of an answer that holds its `show servers state` and `show stat`.
---@param text string
---@param backend string
---@return deployrt.HAProxyServer[]
function haproxy_runtime.rows_of(text, backend)
  local stats, rows = {}, {}
  for _, stat in ipairs(haproxy_runtime.parse_stat(text)) do
    if stat.pxname == backend then stats[stat.svname] = stat end
  end
  for _, state in ipairs(parse_states(text)) do
    if state.be_name == backend then rows[#rows + 1] = row_of(state, stats[state.srv_name]) end
  end
  return rows
end

--- Connections that HAProxy only passes on, such as WebSockets: nothing analyses them any more in either direction.
---@param text string  of `show sess`
---@param backend string
---@return table<string, integer>  by server
function haproxy_runtime.tunnels(text, backend)
  local counts = {}
  for line in text:gmatch("[^\n]+") do
    local server = line:match(" be=(%S+) ") == backend and line:match(" srv=(%S+) ")
    if server and line:find(" rq%[[^%]]*an=00h[^%]]*%] rp%[[^%]]*an=00h") then counts[server] = (counts[server] or 0) + 1 end
  end
  return counts
end

--- What HAProxy said to the commands, before the tables that were asked with them.
---@param text string
---@return string
function haproxy_runtime.complaint(text)
  local said = text:match("^(.-)%d*\n# be_id") or text:sub(1, 500)
  return (said:gsub("\n%s*\n+", "\n"):match("^%s*(.-)%s*$"))
end

return haproxy_runtime
