-- cli/check.lua -- deployrt check [STRATEGY] APP.yml [--connect]
local adoption = require "deployrt.adoption"
local archive = require "deployrt.archive"
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local deploy = require "deployrt.cli.run"
local driver = require "deployrt.balancer.driver"
local elsewhere = require "deployrt.elsewhere"
local fleet = require "deployrt.fleet"
local inventory = require "deployrt.inventory"
local lock = require "deployrt.lock"
local plan = require "deployrt.plan"
local strategy = require "deployrt.strategy"
local suggest = require "deployrt.suggest"

--- With a strategy, its options and what it needs of the balancers are checked too.
local function read(command)
  if #command.operands < 2 then return common.app(command), { strategy = {} } end
  return deploy.prepare(command)
end

--- Options that no strategy has which is known here, in words; what those of shared libraries have, nobody knows beforehand.
local function unknown_options(app)
  if not app.strategy or app.require and #app.require > 0 then return {} end
  local lines, known, names = {}, strategy.all_options(), {}
  for key in pairs(known) do names[#names + 1] = key end
  table.sort(names)
  for key in pairs(app.strategy) do
    if not known[key] and not key:find("^x%-") then
      lines[#lines + 1] = ("warning: %s: no strategy here has an option '%s'%s"):format(app.place("strategy." .. key), key, suggest.hint(key, names))
    end
  end
  table.sort(lines)
  return lines
end

--- A release that hooks.build does not make must be there, and readable: a run would be refused for it. Where only the file is
--- looked at, it may be made later.
---@return string[] warnings
local function check_release(app, whole)
  local path = app.release and app.release.path
  if not path or app.hooks and app.hooks.build then return {} end
  if whole or core.fs.stat(path) then
    archive.look(app)
    return {}
  end
  return { ("warning: %s: release.path: %s is not there: a run would be refused for it"):format(app.place "release.path", path) }
end

local least_room = 1024 -- KB: less has no room for the files of a run, whatever the release needs

--- Tries to write where the application's files are, or will be, and leaves nothing there. Parts may be on disks of their own.
local room_library = [[
room_check() { # KB
  at=$root
  while [ ! -e "$at" ]; do
    [ ! -L "$at" ] || { fail missing "$at is a link to $(readlink "$at"), which is not there: make that, or give the host another \`dir\`"; return 1; }
    at=${at%/*} at=${at:-/}
  done
  for place in "$at" "$root/releases" "$root/instances" "$root/logs" "$root/runs"; do
    [ -d "$place" ] || [ "$place" = "$at" ] || continue
    room=$(df -Pk "$place" 2>/dev/null | { read -r _; read -r _ total _ room _; [ "$total" -gt 0 ] && echo "$room"; } 2>/dev/null)
    [ "${room:-$1}" -ge "$1" ] || { fail full "$room KB are free at $place: make room there"; return 1; }
    message=$({ printf '%4096s' '' > "$place/.room.$$"; } 2>&1) && rm -f "$place/.room.$$" && continue
    rm -f "$place/.room.$$" 2>/dev/null
    case $message in *[Nn]o\ space* | *quota*)
      fail full "no file can be made at $place, though $room KB are free (${message##*: }; \`df -i\` shows inodes): make room there"
      return 1 ;;
    esac
    fail system "cannot write to $place: ${message##*: }: have $(id -un) write there, or give the host another \`dir\`"
    return 1
  done
}]]

--- Raises for each host whose disk is full, or where the application's directory cannot be written.
local function check_room(opened)
  fleet.together(opened:lines(), function(line) line:call("with", { room_library, "room_check", tostring(least_room) }) end)
end

return function(command)
  local app, options = read(command)
  local warnings = options.kind and {} or check_release(app, command.flags.connect) -- what a strategy needs is looked at as its run does
  if command.flags.connect then common.state(command, app):check() end
  driver.check_needs(app, options.strategy, options.values)
  local found = command.flags.connect and common.look(command, function(opened, run)
    local lines = driver.check_all(opened.drivers)
    for _, name in ipairs(opened.secrets.empty) do lines[#lines + 1] = ("process.secrets.%s is empty"):format(name) end
    check_room(opened)
    opened.fleet:discover()
    common.await_check(opened)
    elsewhere.note(opened.balancer, lines)
    lines[#lines + 1] = common.idleness(opened, common.state(command, app):runs(), lock.find(opened:lines()))
    for i, note in ipairs(lines) do lines[i] = "warning: " .. note end
    lines[#lines + 1] = driver.renewal(opened.drivers)
    opened.fleet:check_ports()
    adoption.look(run)
    for _, line in ipairs(adoption.describe(run)) do lines[#lines + 1] = line end
    return lines
  end, app, { secrets = true }) or {}
  if options.kind then
    inventory.check(app, options.strategy)
    options.offline = not command.flags.connect
    plan.check(app, options)
  end
  if not command.flags.quiet then
    command.say("checked", ("%s is fine: %s, %d host%s%s"):format(app.file, app.app, #app.hosts, #app.hosts == 1 and "" or "s",
      command.flags.connect and ", all reached" or ""), { file = app.file, app = app.app, hosts = #app.hosts, reached = command.flags.connect or false })
    local unknown = options.kind and {} or unknown_options(app)
    for _, list in ipairs { warnings, unknown } do table.move(list, 1, #list, #found + 1, found) end
    for _, line in ipairs(found) do command.say(line:find("^warning: ") and "warning" or "log", line) end
  end
  return 0
end
