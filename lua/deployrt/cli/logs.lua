-- cli/logs.lua -- deployrt logs APP.yml [--follow] [--lines N]
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"

local json = cjson.new()

--- Prints whole lines, each with the instance's name in front, or as an object.
local function printer(command, member, width)
  local label = ("%-" .. width .. "s"):format(member.label)
  local function format(line)
    if not command.flags.json then return ("%s | %s\n"):format(label, line) end
    return json.encode { host = member.host.name, port = member.port, release = member.release, line = line } .. "\n"
  end
  local rest = ""
  return function(text)
    rest = rest .. text
    local out = {}
    for line, stop in rest:gmatch("([^\n]*)\n()") do
      out[#out + 1] = format(line)
      rest = stop and rest or rest
    end
    rest = rest:match("[^\n]*$")
    if #out > 0 then command.write(table.concat(out)) end
  end
end

--- The file that an instance writes to: what was adopted has one of its own, if any.
local function log_of(line, member)
  if not member.launch.adopted then return ("%s/logs/%d.log"):format(line.root, member.port) end
  local found = line:execute { "readlink", ("/proc/%d/fd/1"):format(member.pid) }.stdout:gsub("\n$", "")
  return line:execute({ "test", "-f", found }).status == 0 and found or nil, found
end

--- Passes on what an instance has said, and with `follow` what it goes on to say.
local function show(command, opened, member, width, lines)
  local line, follow = opened.connections[member.host.name], command.flags.follow
  local print_text = printer(command, member, width)
  local file, other = log_of(line, member)
  if not file then return print_text(("(it was started by hand, and its output goes to %s)\n"):format(other ~= "" and other or "where we cannot look")) end
  local words = { "tail", "-n", tostring(lines), file }
  if follow then table.insert(words, 2, "-F") end
  local stream <close> = errors.check(line:link()):stream(words)
  while true do
    local text, which = errors.check(stream:read())
    if not text then return end
    if which == 1 then print_text(text) end
  end
end

return function(command)
  local lines = math.tointeger(tonumber(command.flags.lines or 20))
  if not lines or lines < 0 then errors.raise("usage", "--lines needs a number") end
  return common.survey(command, function(opened)
    opened.balancer.configured = false
    opened.fleet:discover()
    local members, width = opened.fleet:instances(), 0
    for _, member in ipairs(members) do width = math.max(width, #member.label) end
    local function each(member) show(command, opened, member, width, lines) end
    if command.flags.follow then
      fleet.together(members, each)
    else
      for _, member in ipairs(members) do each(member) end
    end
  end)
end
