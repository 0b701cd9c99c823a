-- cli/logs.lua -- deployrt logs APP.yml [--follow] [--lines N]
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local json = require "deployrt.progress.json"

local look_every = 1 -- seconds, for instances that start while logs are followed
local most_followed = 7 -- on one host: sshd allows ten sessions a connection, and looking needs some

--- Prints what an instance says, line by line, each with its name in front, or as an object.
local Printer = {}
Printer.__index = Printer

local function new_printer(command, member, width)
  return setmetatable({ command = command, member = member, label = ("%-" .. width .. "s"):format(member.label), rest = {} }, Printer)
end

--- A line as it is printed.
function Printer:format(line)
  if not self.command.flags.json then return ("%s | %s\n"):format(self.label, line) end
  local member = self.member
  return json.now("line", { host = member.host.name, port = member.port, release = member.release or cjson.null, line = line })
end

--- Prints the lines that are complete. The pieces of one that is not are kept as they came: a line may be of any length.
function Printer:add(text)
  local out, from, rest = {}, 1, self.rest
  for at in text:gmatch "()\n" do
    rest[#rest + 1] = text:sub(from, at - 1)
    out[#out + 1] = self:format(table.concat(rest))
    from, rest = at + 1, {}
  end
  if from <= #text then rest[#rest + 1] = text:sub(from) end
  self.rest = rest
  if #out > 0 then self.command.write(table.concat(out)) end
end

--- Prints what has no end of a line: who died in the middle of one says no more.
function Printer:finish()
  if #self.rest > 0 then self:add "\n" end
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
local function look(opened)
  opened.balancer.configured = false
  opened.fleet:discover()
  local list = opened.fleet:instances()
  return table.move(opened.fleet.exited, 1, #opened.fleet.exited, #list + 1, list)
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
  local members = look(opened)
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

--- Follows what runs, and what starts later, from its first word on.
local function follow_all(command, opened, lines)
  local followers, waiting = {}, {} -- by the instance's label
  while #opened.hosts > 0 do
    local members = look(opened)
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

return function(command)
  local lines = math.tointeger(tonumber(command.flags.lines or 20))
  if not lines or lines < 0 then errors.raise("usage", "--lines needs a number") end
  return common.survey(command, function(opened)
    if #opened.app.hosts == 0 then command.write_error(("deployrt: %s has no hosts now\n"):format(opened.app.file)) end
    if not command.flags.follow then return show_all(command, opened, lines) end
    common.tell_missing(command, opened)
    follow_all(command, opened, lines)
  end)
end
