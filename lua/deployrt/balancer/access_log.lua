-- access_log.lua -- Counts requests and errors by upstream address from nginx's access log, as it grows.
local access_log = {}

--- What the log's lines look like; `deployrt help nginx` shows it.
access_log.format = [[log_format deployrt '$upstream_addr|$upstream_status|$upstream_response_time|$request_time|$status|$msec';]]

-- $1: the log, $2: its inode as last seen, $3: how far it was read. Prints "log INODE OFFSET" and for each address
-- "ADDRESS REQUESTS ERRORS SECONDS". What a rotated log still got is read first; a line half written waits. A request that
-- was tried at several servers counts at each.
local script = [==[
tally() { # file offset -- counts whole lines; says how many bytes they had
  tail -c +$(($2 + 1)) -- "$1" | { cat; echo .; } | LC_ALL=C awk -F '|' '
    NR > 1 { count(line) }
    { line = $0 }
    function count(text,  field, n, i, part, status, seconds) {
      bytes += length(text) + 1
      if (split(text, field, "|") < 6) return
      n = split(field[1], part, /, | : /)
      split(field[2], status, /, | : /)
      split(field[3], seconds, /, | : /)
      for (i = 1; i <= n; i++) {
        if (part[i] == "" || part[i] == "-") continue
        requests[part[i]]++
        if (status[i] ~ /^5/) errors[part[i]]++
        time[part[i]] += seconds[i]
      }
    }
    END {
      for (each in requests) printf "slot %s %d %d %.6f\n", each, requests[each], errors[each], time[each]
      printf "bytes %d\n", bytes
    }'
}
inode=$(stat -c %i -- "$1") || exit 1
size=$(stat -c %s -- "$1")
offset=$3
if [ -z "$2" ]; then
  offset=$size
elif [ "$inode" != "$2" ]; then
  for old in "$1".1 "$1"-*; do
    [ -e "$old" ] && [ "$(stat -c %i -- "$old")" = "$2" ] && tally "$old" "$offset" | grep slot
  done
  offset=0
elif [ "$size" -lt "$offset" ]; then
  offset=0
fi
echo "log $inode $offset"
tally "$1" "$offset"
]==]

---@class deployrt.AccessLog
---@field position {inode: string, offset: integer}
---@field totals table<string, {requests: integer, errors: integer, seconds: number, latency: number}>  by address
local AccessLog = {}
AccessLog.__index = AccessLog

--- A log that is read from now on; what it holds already does not count.
---@param path string
---@return deployrt.AccessLog
function access_log.open(path)
  return setmetatable({ path = path, position = { inode = "", offset = 0 }, totals = {} }, AccessLog)
end

local function add(self, address, requests, errors, seconds)
  local total = self.totals[address] or { requests = 0, errors = 0, seconds = 0, latency = 0 }
  total.requests, total.errors = total.requests + requests, total.errors + errors
  total.seconds, total.latency = total.seconds + seconds, seconds / requests
  self.totals[address] = total
end

--- Reads what is new.
---@async
---@param host deployrt.Connection
---@return table<string, {requests: integer, errors: integer, seconds: number, latency: number}>? totals  by address; latency: of the last requests
---@return string? problem
function AccessLog:read(host)
  local result = host:execute({ "/bin/sh", "-c", script, "sh", self.path, self.position.inode, tostring(self.position.offset) },
    { timeout = 30 })
  local inode, offset, bytes = result.stdout:match("log (%d+) (%d+)\n"), result.stdout:match("log %d+ (%d+)"), result.stdout:match("bytes (%d+)")
  if not bytes then return nil, result.stderr end
  for address, requests, errors, seconds in result.stdout:gmatch("slot (%S+) (%d+) (%d+) ([%d.]+)") do
    add(self, address, math.tointeger(requests), math.tointeger(errors), tonumber(seconds))
  end
  self.position = { inode = inode, offset = math.tointeger(offset) + math.tointeger(bytes) }
  return self.totals
end

return access_log
