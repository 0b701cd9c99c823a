-- haproxy_process.lua -- The process and the files of the HAProxy that deployrt runs itself, and the host that it runs on.
local core = require "deployrt.core"

local haproxy_process = {}

local socket_limit = 90 -- HAProxy binds the path with its pid behind it, and 107 bytes is all there is

--- Runs a line of shell there.
---@async
---@param host deployrt.Connection
---@param script string
---@return deployrt.ExecResult
local function shell(host, script, ...)
  return host:execute({ "/bin/sh", "-c", script, "sh", ... }, { timeout = 30 })
end
haproxy_process.shell = shell

--- Where the program is on a host, and how many files it may open; nil: not installed.
---@param host deployrt.Connection
---@return string? program
---@return integer files
function haproxy_process.find_program(host)
  local found = shell(host, "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; command -v haproxy; ulimit -Hn")
  local program, limit = found.stdout:match("^(/[^\n]+)\n(%S+)")
  return program, math.tointeger(limit) or 65536
end

--- How many connections the limit of files allows: each has two ends, and a slot one for its health check in each backend.
function haproxy_process.connections(files, slots)
  return math.max(100, math.min(20000, (files - 200 - 2 * slots) // 2))
end

-- The lines of /proc about sockets that listen: they come first, and reading goes no further, for there may be connections
-- by the thousand.
local listening = [[
listening() {
  for table in /proc/net/tcp /proc/net/tcp6; do sed -n '/ 0[16] /q; / 0A /p' $table 2>/dev/null; done
}
]]

-- Prints "pid name" of who listens on a port (hexadecimal, $1), "0" when that cannot be seen. Addresses that do
-- not collide with ours ($2, as /proc writes it; empty: any) are left out.
local owner_script = listening .. [[
sockets=$(listening | awk -v port=":$1" -v ours="$2" '
  substr($2, length($2) - 4) == port {
    address = substr($2, 1, length($2) - 5)
    if (ours == "" || address == ours || address ~ /^0+$/) print $10
  }')
[ "$sockets" ] || exit 0
pid=$(ls -l /proc/[0-9]*/fd 2>/dev/null | awk -v sockets="$sockets" '
  BEGIN { count = split(sockets, list); for (i = 1; i <= count; i++) wanted["socket:[" list[i] "]"] = 1 }
  /^\/proc\// { split($0, part, "/"); pid = part[3] }
  $NF in wanted { print pid; exit }')
[ "$pid" ] && echo "$pid $(cat "/proc/$pid/comm")" || echo 0
]]

local function hexadecimal(address)
  local a, b, c, d = address:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if not a or address == "0.0.0.0" then return "" end
  return ("%02X%02X%02X%02X"):format(d, c, b, a)
end

--- Who listens where we want to; nil when nobody does.
---@param host deployrt.Connection
---@param listen string  "127.0.0.1:8000", ":8000"
---@return {pid: string, text: string}?
function haproxy_process.find_owner(host, listen)
  local address, port = listen:match("^(.*):(%d+)$")
  if not port then return nil end
  local answer = shell(host, owner_script, ("%04X"):format(port), hexadecimal(address)).stdout
  local pid, name = answer:match("^(%d+) ?([^\n]*)")
  if not pid then return nil end
  return { pid = pid, text = pid == "0" and "a process of another user" or ("%s (pid %s)"):format(name, pid) }
end

-- Has a HAProxy that serves nothing bind an address ($2) for a moment; the parent ends once that is done, or has failed.
local bind_script = [[
directory=$(mktemp -d) || exit 0
printf 'defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\nfrontend try\n  bind %s\n' "$2" > "$directory/cfg"
"$1" -D -f "$directory/cfg" -p "$directory/pid" 2>&1
status=$?
kill -KILL $(cat "$directory/pid" 2>/dev/null) 2>/dev/null
rm -rf -- "$directory"
exit $status
]]

--- Whether HAProxy can listen at an address where nobody does.
---@param host deployrt.Connection
---@param paths {program: string}
---@param listen string  "127.0.0.1:8000", ":8000"
---@return string? problem  in HAProxy's words
function haproxy_process.try_to_bind(host, paths, listen)
  local result = shell(host, bind_script, paths.program, listen)
  if result.status == 0 then return nil end
  return result.stdout:match("[Cc]annot bind socket %(([^)]*)%)") or result.stdout:sub(-500)
end

--- Makes a directory that is ours alone, so that nobody else can put a socket there.
function haproxy_process.make_directory(host, path)
  return shell(host, 'mkdir -p -m 700 -- "$1" && [ -O "$1" ] && [ ! -L "$1" ] && chmod 700 -- "$1"', path)
end

--- Puts a configuration in place once HAProxy has found it valid.
function haproxy_process.install(host, paths, text)
  host:write(paths.config .. ".next", text, "600")
  return shell(host, '"$1" -c -f "$2.next" && mv -f -- "$2.next" "$2" || { rm -f -- "$2.next"; exit 1; }',
    paths.program, paths.config)
end

--- Starts the master process; it has bound its address, or failed, when this returns.
function haproxy_process.start(host, paths)
  return shell(host, 'exec "$1" -W -D -f "$2" -p "$3"', paths.program, paths.config, paths.pid)
end

-- Whether a process ($1) was started with a configuration ($2).
local has_config = [[
has_config() { tr '\0' '\n' 2>/dev/null < "/proc/$1/cmdline" | grep -qxF -- "$2"; }
]]

--- Whether a process is master or worker of ours.
---@param pid string
function haproxy_process.is_ours(host, paths, pid)
  return shell(host, has_config .. 'has_config "$1" "$2"', pid, paths.config).status == 0
end

--- Signals the master process (0: looks whether it lives); a pid that another process has by now is left alone.
---@return boolean there
function haproxy_process.signal(host, paths, name)
  return shell(host, has_config .. [[pid=$(cat "$1" 2>/dev/null) && [ "$pid" ] && has_config "$pid" "$2" && kill "-$3" "$pid"]],
    paths.pid, paths.config, name).status == 0
end

--- Whether a process still accepts connections: after a reload the old one does for a moment.
---@param pid string
function haproxy_process.is_listening(host, pid)
  return shell(host, listening .. [[{ listening; ls -l "/proc/$1/fd" 2>/dev/null; } | awk '
    $4 == "0A" { listening[$10] = 1 }
    match($0, /socket:\[[0-9]+\]/) && (substr($0, RSTART + 8, RLENGTH - 9) in listening) { found = 1 }
    END { exit !found }']], pid).status == 0
end

--- Removes what a stopped HAProxy leaves behind.
function haproxy_process.remove(host, paths)
  return shell(host, 'rm -f -- "$1" "$1".before-* "$2" "$3" "$4" "$6"/maintenance-*.html && { rmdir -- "$5" "$6" 2>/dev/null; true; }',
    paths.config, paths.pid, paths.socket, paths.map, paths.socket_directory, paths.directory)
end

--- Where its files are, below the application's directory; a socket whose path would be too long is in /tmp. So is one with a
--- dollar in it: in an address HAProxy takes that for a variable, however it is quoted.
---@param root string
---@param socket? string  of app.yml
function haproxy_process.paths(root, socket)
  local directory = root .. "/balancer"
  local paths = { directory = directory }
  paths.config, paths.pid = directory .. "/haproxy.cfg", directory .. "/haproxy.pid"
  paths.map = directory .. "/route.map"
  paths.socket_directory, paths.socket = directory, socket or directory .. "/haproxy.sock"
  if not socket and (#paths.socket > socket_limit or paths.socket:find("$", 1, true)) then
    paths.socket_directory = "/tmp/deployrt-" .. core.sha256(directory):sub(1, 16)
    paths.socket = paths.socket_directory .. "/haproxy.sock"
  end
  return paths
end

return haproxy_process
