-- nginx_process.lua -- nginx on its host: what runs there, its configuration tested, exchanged and loaded.
local attempt = require "deployrt.balancer.attempt"
local syntax = require "deployrt.balancer.nginx_syntax"

local nginx_process = {}

local patience = 30 -- seconds that a command may take

local function argv_of(script, arguments)
  local argv = { "/bin/sh", "-c", script, "sh" }
  return table.move(arguments, 1, #arguments, #argv + 1, argv)
end

local function shell(host, script, arguments)
  return host:execute(argv_of(script, arguments), { timeout = patience })
end

--- What a command complains of; nil when it did well.
---@return string?
local function failure(host, argv, stdin)
  local how, result = attempt.run(host, argv, { timeout = patience, stdin = stdin })
  local said = attempt.output(result)
  return how and (said ~= "" and said or ("%s %s"):format(argv[1], how))
end

---@class deployrt.NginxFacts
---@field program string
---@field config string     the main configuration
---@field prefix string     where relative paths begin
---@field pid_default string

--- Where nginx is, and what was compiled into it; nil: not installed.
---@param host deployrt.Connection
---@param config? string  of app.yml
---@return deployrt.NginxFacts?
function nginx_process.find(host, config)
  local found = shell(host, "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; command -v nginx && nginx -V 2>&1", {}).stdout
  local program = found:match("^(/[^\n]+)")
  if not program then return nil end
  local function compiled(name, default) return found:match("%-%-" .. name .. "=(%S+)") or default end
  local prefix = compiled("prefix", "/usr/local/nginx"):gsub("/*$", "/")
  return {
    program = program, prefix = prefix, config = config or compiled("conf-path", prefix .. "conf/nginx.conf"),
    pid_default = compiled("pid-path", prefix .. "logs/nginx.pid"),
  }
end

--- The whole configuration as nginx reads it, each file after a line `# configuration file PATH:`.
---@param host deployrt.Connection
---@param facts deployrt.NginxFacts
---@return string? dump
---@return string? problem  in nginx's own words
function nginx_process.dump(host, facts)
  local how, result = attempt.run(host, { facts.program, "-T", "-c", facts.config }, { timeout = patience })
  if not how then return result.stdout end
  return nil, result.stderr ~= "" and result.stderr:sub(-2000) or "nginx -T " .. how
end

--- The file itself, where links lead to; "" when there is none.
function nginx_process.real_path(host, path)
  return shell(host, '[ -e "$1" ] && readlink -f -- "$1"', { path }).stdout:match("[^\n]*")
end

--- Statements of such a name outside of all blocks.
---@param facts deployrt.NginxFacts
---@param dump string
---@param name string
---@return deployrt.NginxNode[]
function nginx_process.statements(facts, dump, name)
  return syntax.outermost(dump, facts.config:match("^.*/") or "", name)
end

local function full_path(facts, path)
  return path:sub(1, 1) == "/" and path or facts.prefix .. path
end

--- Where the process id of the master is written.
---@param facts deployrt.NginxFacts
---@param dump string
---@return string path
function nginx_process.pid_file(facts, dump)
  local node = nginx_process.statements(facts, dump, "pid")[1]
  return full_path(facts, node and node.words[2] or facts.pid_default)
end

--- The statements that load its modules, for an nginx whose relative paths begin elsewhere.
---@param facts deployrt.NginxFacts
---@param dump string
---@return string
function nginx_process.modules(facts, dump)
  local lines = {}
  for i, node in ipairs(nginx_process.statements(facts, dump, "load_module")) do lines[i] = ('load_module "%s";\n'):format(full_path(facts, node.words[2])) end
  return table.concat(lines)
end

-- $1: the pid file, $2: our file, $3: its copy from before, $4 and $5: the same of the one for routes, or empty; then workers
-- known from before. Prints a line each of "master PID START", "worker PID", "leaving PID", "socket HEX" (a connection of a
-- leaving worker), "blind PID" (one whose connections cannot be seen), "owed", and at last our files with a NUL between them.
local look_script = [==[
cd /proc || exit 1
{ read -r pid < "$1"; } 2>/dev/null
file=$2 before=$3 routes=$4 routes_before=$5
shift 5
known=" $* " workers= leaving=
case ${pid:-x} in *[!0-9]*) pid= ;; esac
title() { # pid -- how the process calls itself
  title=
  { read -r title < "$1/cmdline"; } 2>/dev/null
  [ "$title" ]
}
title "${pid:-none}"
case $title in
  'nginx: master'*)
    { read -r stat < "$pid/stat"; } 2>/dev/null
    set -- ${stat##*) }
    echo "master $pid ${20}"
    { read -r workers < "$pid/task/$pid/children"; } 2>/dev/null || [ -e "$pid/task/$pid/children" ] ||
      workers=$(grep -sl "^PPid:[[:space:]]*$pid\$" [0-9]*/status | cut -d / -f 1)
    ;;
esac
for p in $workers $known; do
  case " $seen " in *" $p "*) continue ;; esac
  seen="$seen $p"
  title "$p"
  case $title in
    'nginx: worker process is shutting down'*)
      echo "leaving $p"
      if [ -r "$p/fd" ]; then leaving="$leaving $p/fd" one=$p; else echo "blind $p"; fi
      ;;
    'nginx: worker process'*) echo "worker $p" ;;
  esac
done
[ "$leaving" ] && { cat "$one/net/tcp" "$one/net/tcp6"; ls -l $leaving; } 2>/dev/null | awk '
  $4 == "01" || $4 == "02" { remote[$10] = $3 }
  match($0, /socket:\[[0-9]+\]/) {
    inode = substr($0, RSTART + 8, RLENGTH - 9)
    if (inode in remote) print "socket " remote[inode]
  }'
{ [ -e "$before" ] || [ -e "$routes_before" ]; } && echo owed
echo file
cat "$file" 2>/dev/null
printf '\0'
[ "$routes" ] && cat "$routes" 2>/dev/null
]==]

---@class deployrt.NginxSeen
---@field master? string      pid and start time
---@field pid? string         of the master
---@field workers table<string, true>  pids of those that accept connections
---@field leaving table<string, true>  pids of those that finish what they have
---@field sockets string[]    remote ends of the leaving workers' connections, as /proc writes them
---@field blind integer       leaving workers whose connections cannot be seen
---@field owed boolean        a file was exchanged, and whether nginx has loaded it is not known
---@field texts string[]      of our file, and of the one for routes

--- A file of ours.
---@class deployrt.NginxPlace
---@field file string
---@field next string    where its next text is written, aside
---@field before string  where the file from before is kept, until nginx has loaded the new one

--- What runs, and what our files say, in one round trip.
---@param host deployrt.Connection
---@param pid_file string
---@param places deployrt.NginxPlace[]
---@param known string[]  workers of a master that may be gone
---@return deployrt.NginxSeen
function nginx_process.look(host, pid_file, places, known)
  local main, routes = places[1], places[2] or { file = "", before = "" }
  local arguments = { pid_file, main.file, main.before, routes.file, routes.before }
  table.move(known, 1, #known, 6, arguments)
  local result = shell(host, look_script, arguments)
  local head, text, routes_text = result.stdout:match("^(.-)%f[%w]file\n(.-)%z(.*)$")
  local seen = { workers = {}, leaving = {}, sockets = {}, blind = 0, texts = { text or "", routes_text or "" }, owed = false }
  for word, value, more in (head or ""):gmatch("(%l+) ?(%S*) ?([^\n]*)\n") do
    if word == "master" then
      seen.pid, seen.master = value, value .. "/" .. more
    elseif word == "worker" then
      seen.workers[value] = true
    elseif word == "leaving" then
      seen.leaving[value] = true
    elseif word == "socket" then
      seen.sockets[#seen.sockets + 1] = value
    elseif word == "blind" then
      seen.blind = seen.blind + 1
    else
      seen.owed = true
    end
  end
  return seen
end

--- How /proc writes the end of a connection; for a name and for IPv6 only the port.
local function socket_pattern(slot)
  local a, b, c, d = slot.address:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if not a then return (":%04X$"):format(slot.port) end
  return ("^%02X%02X%02X%02X:%04X$"):format(d, c, b, a, slot.port)
end

--- Connections of leaving workers to a slot.
---@param seen deployrt.NginxSeen
---@param slot deployrt.Slot
---@return integer
function nginx_process.connections(seen, slot)
  local pattern, count = socket_pattern(slot), seen.blind
  for _, remote in ipairs(seen.sockets) do
    if remote:find(pattern) then count = count + 1 end
  end
  return count
end

local test_script = [[
directory=$(mktemp -d) && cd "$directory" || exit 1
cat > nginx.conf
"$1" -t -q -e stderr -p "$directory/" -c "$directory/nginx.conf"
status=$?
rm -rf -- "$directory"
exit $status
]]

--- Has nginx read a part of a configuration alone; nothing of the real one is touched.
---@param host deployrt.Connection
---@param facts deployrt.NginxFacts
---@param part string
---@param options {style: string, modules: string}
---@return string? problem  in nginx's own words
function nginx_process.test_part(host, facts, part, options)
  -- a server without a log of its own would have nginx open the one that it was built with
  if options.style == "variable" then part = ("access_log off; server {\n    listen unix:socket;\n%s\n}"):format(part) end
  local text = ("%spid nginx.pid;\nevents {}\nhttp {\n%s\n}\n"):format(options.modules, part)
  return failure(host, argv_of(test_script, { facts.program }), text)
end

--- What nginx says to its whole configuration as it is on the disk; nil: nothing.
function nginx_process.test(host, facts)
  return failure(host, { facts.program, "-t", "-q", "-c", facts.config })
end

-- $1: nginx, $2: its configuration, then for each file: it, its next text, its copy from before. Exchanges the files, keeps
-- those from before, and puts them back when nginx refuses the whole. A copy that is there already is what nginx has loaded:
-- an earlier exchange was cut short.
local exchange_script = [==[
program=$1 config=$2
shift 2
keep() {
  while [ $# -gt 0 ]; do
    [ -e "$3" ] || ln -- "$1" "$3" || return 1
    shift 3
  done
}
place() {
  while [ $# -gt 0 ]; do
    mv -f -- "$2" "$1" || return 1
    shift 3
  done
}
put_back() {
  while [ $# -gt 0 ]; do
    rm -f -- "$2"
    [ ! -e "$3" ] || mv -f -- "$3" "$1"
    shift 3
  done
}
keep "$@" && place "$@" && "$program" -t -q -c "$config" && exit 0
put_back "$@"
exit 1
]==]

--- Writes the next text of a file, aside.
local function stage(host, place, text)
  return failure(host, argv_of('cp -p -- "$1" "$2" && cat > "$2" || { rm -f -- "$2"; exit 1; }', { place.file, place.next }), text)
end

local function paths_of(places, list)
  for _, place in ipairs(places) do table.move({ place.file, place.next, place.before }, 1, 3, #list + 1, list) end
  return list
end

--- Puts new texts in place of all our files, if nginx takes the whole configuration with them.
---@param host deployrt.Connection
---@param facts deployrt.NginxFacts
---@param places deployrt.NginxPlace[]
---@param texts string[]  of each
---@return string? problem
function nginx_process.exchange(host, facts, places, texts)
  for i, place in ipairs(places) do
    local problem = stage(host, place, texts[i])
    if problem then return problem end
  end
  local problem = failure(host, argv_of(exchange_script, paths_of(places, { facts.program, facts.config })))
  if problem then nginx_process.put_back(host, places) end -- a script that hangs is ended before it has done so
  return problem
end

--- Puts a text in place of a file that means the same to nginx.
---@param host deployrt.Connection
---@param place deployrt.NginxPlace
---@param text string
---@return string? problem
function nginx_process.annotate(host, place, text)
  return stage(host, place, text) or failure(host, argv_of('mv -f -- "$2" "$1"', { place.file, place.next }))
end

--- Puts the files from before back.
function nginx_process.put_back(host, places)
  shell(host, 'while [ $# -gt 0 ]; do rm -f -- "$2"; [ ! -e "$3" ] || mv -f -- "$3" "$1"; shift 3; done', paths_of(places, {}))
end

--- nginx has loaded the files: those from before are of no use any more.
function nginx_process.settle(host, places)
  shell(host, 'while [ $# -gt 0 ]; do rm -f -- "$2" "$3"; shift 3; done', paths_of(places, {}))
end

--- Asks the master to load its configuration, by a signal or by the user's command.
---@param host deployrt.Connection
---@param pid string
---@param command? string|string[]  `reload` of app.yml
---@param timeout number  seconds
---@return string? problem  which command failed, and how
---@return string? detail
function nginx_process.reload(host, pid, command, timeout)
  local line = command or "kill -HUP " .. pid
  local argv = type(line) == "table" and line or { "/bin/sh", "-c", line }
  local how, result = attempt.run(host, argv, { timeout = timeout })
  if not how then return nil end
  return ("%s`%s` %s"):format(command and "balancer.reload: " or "", type(line) == "table" and table.concat(line, " ") or line, how), attempt.output(result)
end

--- Why this user cannot do what a run does; nil when he can.
---@param host deployrt.Connection
---@param places deployrt.NginxPlace[]
---@param pid? string  to be signalled
---@return string?
function nginx_process.not_allowed(host, places, pid)
  local script = [[
    pid=$1
    shift
    while [ $# -gt 0 ]; do
      [ -w "$1" ] && [ -w "${1%/*}" ] || { echo "write $1"; exit; }
      shift 3
    done
    [ -z "$pid" ] || kill -0 "$pid" 2>/dev/null || echo "signal nginx's master process ($pid)"]]
  return shell(host, script, paths_of(places, { pid or "" })).stdout:match("[^\n]+")
end

return nginx_process
