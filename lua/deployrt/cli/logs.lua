-- cli/logs.lua -- deployrt logs APP.yml [--follow] [--lines N]
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local json = require "deployrt.progress.json"
local line_printer = require "deployrt.cli.lines"

local look_every = 1 -- seconds, for instances that start while logs are followed
local again_every = 5 -- seconds, for a host that was lost while it was followed
local most_followed = 7 -- on one host: sshd allows ten sessions a connection, and looking needs some

---@class deployrt.Printer: deployrt.Lines
---@field member deployrt.Instance

--- Prints what an instance says, line by line, each with its name in front, or as an object.
---@return deployrt.Printer
local function new_printer(command, member, width)
  local label, printer = line_printer.label(member.label, width), nil
  printer = line_printer.new(command.write, function(line)
    if not command.flags.json then return ("%s | %s\n"):format(label, line) end
    local now = printer.member
    return json.now("line", { host = now.host.name, port = now.port, release = now.release or cjson.null, line = line })
  end)
  printer.member = member
  return printer
end

local function name_of(line, port)
  return ("%s/logs/%d.log"):format(line.root, port)
end

--- The file that an instance writes to: what was adopted has one of its own, if any.
local function log_of(line, member)
  if not (member.launch or {}).adopted then return name_of(line, member.port) end
  local found = line:execute { "readlink", ("/proc/%d/fd/1"):format(member.pid) }.stdout:gsub("\n$", "")
  return line:execute({ "test", "-f", found }).status == 0 and found or nil, found
end

--- `tail` would outlive us where nothing is said any more: it ends with the standard input that we hold open.
local held = 'tail -F "$@" & cat > /dev/null; kill $!'

--- Where the present process began to write: its record says so at the end of the first line.
local function offset_of(line, member)
  return tonumber((line:read(("%s/instances/%d"):format(line.root, member.port)) or ""):match("^[^\n]*\t(%d+)\n") or 0)
end

--- Begins to read the last lines, or all that the present process wrote.
local function open_tail(line, member, file, lines, follow)
  local from = lines and { "-n", tostring(lines) } or { "-c", ("+%d"):format(offset_of(line, member) + 1) }
  local link = errors.check(line:link())
  if not follow then return link:stream { "tail", from[1], from[2], file } end
  return link:stream({ "sh", "-c", held, "sh", from[1], from[2], file }, { open_stdin = true })
end

--- Passes on what an instance has said, and with `follow` what it goes on to say.
---@param lines? integer  the last ones; nil: all since it started
local function show(opened, printer, lines, follow)
  local member = printer.member
  local line = opened.connections[member.host.name]
  local file, other = log_of(line, member)
  if not file then return printer:add(("(it was started by hand, and its output goes to %s)\n"):format(other ~= "" and other or "where we cannot look")) end
  local stream <close> = open_tail(line, member, file, lines, follow)
  while true do
    local text, which = errors.check(stream:read())
    if not text then break end
    if which == 1 then printer:add(text) end
  end
  printer:finish()
end

--- What runs or has crashed. Logs need no balancer.
local function look(opened, seen)
  opened.balancer.configured = false
  seen:discover()
  local list = seen:instances()
  return table.move(seen.exited, 1, #seen.exited, #list + 1, list)
end

--- Slots in which something ran once, on hosts where nothing does now; which release it was nobody knows any more.
local function left(opened, members)
  local busy, list = {}, {}
  for _, member in ipairs(members) do busy[member.host] = true end
  for _, host in ipairs(opened.hosts) do
    local line = opened.connections[host.name]
    for _, port in ipairs(busy[host] and {} or opened.app.process.ports) do
      if line:execute({ "test", "-s", name_of(line, port) }).status == 0 then
        list[#list + 1] = { host = host, port = port, label = ("%s:%d"):format(host.name, port) }
      end
    end
  end
  return list
end

local function width_of(opened, members)
  local width = 0
  for _, member in ipairs(members) do width = math.max(width, #member.label) end
  for _, host in ipairs(opened.hosts) do
    for _, port in ipairs(opened.app.process.ports) do width = math.max(width, #host.name + 1 + #tostring(port)) end
  end
  return width
end

local function show_all(command, opened, lines)
  local members = look(opened, opened.fleet)
  for _, each in ipairs(left(opened, members)) do members[#members + 1] = each end
  table.sort(members, function(a, b)
    if a.port ~= b.port then return a.port < b.port end
    return a.host.name < b.host.name
  end)
  local width = width_of(opened, members)
  for _, member in ipairs(members) do show(opened, new_printer(command, member, width), lines) end
  if #members == 0 and #opened.hosts > 0 then command.write_error "deployrt: nothing runs there, and nothing has left a log\n" end
end

--- Begins to follow an instance.
local function begin(opened, printer, lines)
  local follower = { printer = printer }
  follower.task = core.spawn(function()
    local ok, err = pcall(show, opened, printer, lines, true)
    if not ok then follower.problem = err end
  end)
  return follower
end

--- Whether a connection has a session left for one more; says once which instance has to wait until another one is let go.
local function has_room(command, opened, followers, waiting, member)
  local count = 0
  for _, each in pairs(followers) do count = count + (each.printer.member.host == member.host and 1 or 0) end
  if count < most_followed or opened.connections[member.host.name].is_local then return true end
  if not waiting[member.label] then
    command.complain(errors.new("limit", ("%s is not followed: %d instances of its host are, and one connection has no room for more"):format(
      member.label, most_followed), { host = member.host.name }), 2)
  end
  waiting[member.label] = true
  return false
end

--- Ends to follow what was neither seen this time nor the time before: by now it has said all.
local function let_go(followers, members)
  local seen = {}
  for _, member in ipairs(members) do seen[member.label] = true end
  for label, follower in pairs(followers) do
    if follower.problem then error(follower.problem, 0) end
    if follower.missed and not seen[label] then
      follower.task:cancel()
      follower.printer:finish()
      followers[label] = nil
    end
    follower.missed = not seen[label]
  end
end

--- Ends to follow a host.
local function drop(followers)
  for _, each in pairs(followers) do
    each.task:cancel()
    each.printer:finish()
  end
end

--- Follows what runs on a host, and what starts there later, from its first word on, until nobody reads it or the host is lost.
---@param watched {over: boolean, away: table<string, boolean>, ended: deployrt.Event, problem?: deployrt.Error}
---@param followers table  by the instance's label
local function follow_host(command, opened, watched, host, followers, lines)
  local seen, waiting = fleet.new({ host }, opened.app.process, opened.balancer), {}
  while not (watched.over or command.unwritten) do
    local members = look(opened, seen)
    watched.away[host.name] = nil
    let_go(followers, members)
    for _, member in ipairs(members) do
      local known = followers[member.label]
      if not known and has_room(command, opened, followers, waiting, member) then
        followers[member.label] = begin(opened, new_printer(command, member, width_of(opened, members)), lines)
      elseif known then
        known.printer.member = member
        if member.state == "down" then known.printer:finish() end
      end
    end
    lines = nil
    core.sleep(math.max(look_every, #opened.hosts / 100))
  end
end

--- Says that a host is away, once; whether any is left.
local function lose(command, opened, away, host, err)
  if not away[host.name] then
    command.complain(errors.new(err.code, err.message .. "; it is followed again when it is back", { host = host.name }), 2)
    away[host.name] = true
  end
  for _, each in ipairs(opened.hosts) do
    if not away[each.name] then return true end
  end
  return false
end

--- Follows a host, also when it comes back after it was lost, until all of it is over.
local function watch(command, opened, watched, host, lines)
  while not watched.over do
    local followers = {}
    local ok, err = pcall(follow_host, command, opened, watched, host, followers, lines)
    drop(followers)
    err = not ok and errors.wrap(err) or nil
    if err and not errors.is_gone(err) then watched.problem = watched.problem or err end
    if ok or watched.problem or not lose(command, opened, watched.away, host, err) then return watched.ended:set() end
    core.sleep(again_every)
  end
end

--- Follows all hosts until nobody reads what they say, or none is left.
---@return boolean complete  none is away at the end
local function follow_all(command, opened, lines)
  local watched, tasks = { over = false, away = {}, ended = core.event() }, {}
  for i, host in ipairs(opened.hosts) do tasks[i] = core.spawn(watch, command, opened, watched, host, lines) end
  if #tasks > 0 then watched.ended:wait() end
  watched.over = true
  local problem = watched.problem -- what the others say when they are interrupted is none
  for _, task in ipairs(tasks) do task:cancel() end
  for _, task in ipairs(tasks) do task:wait() end
  if problem then error(problem, 0) end
  return next(watched.away) == nil
end

return function(command)
  local lines = math.tointeger(tonumber(command.flags.lines or 20))
  if not lines or lines < 0 then errors.raise("usage", "--lines needs a number") end
  return common.look(command, function(opened)
    if #opened.app.hosts == 0 then command.write_error(("deployrt: %s has no hosts now\n"):format(opened.app.file)) end
    if not command.flags.follow then show_all(command, opened, lines) end
    local exit = common.tell_missing(command, opened)
    if command.flags.follow and not follow_all(command, opened, lines) then return 2 end
    return exit
  end, nil, { partial = true })
end
