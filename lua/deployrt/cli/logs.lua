-- cli/logs.lua -- deployrt logs APP.yml [--follow] [--lines N]
local core = require "deployrt.core"
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"

--- Prints whole lines, each with the instance's name in front.
local function printer(command, label)
  local rest = ""
  return function(text)
    rest = rest .. text
    local out = {}
    for line, stop in rest:gmatch("([^\n]*)\n()") do
      out[#out + 1] = ("%s | %s\n"):format(label, line)
      rest = stop and rest or rest
    end
    rest = rest:match("[^\n]*$")
    if #out > 0 then command.write(table.concat(out)) end
  end
end

return function(command)
  local lines = tonumber(command.flags.lines or 20)
  if not lines then errors.raise("usage", "--lines needs a number") end
  common.look(command, function(opened)
    opened.balancer.configured = false
    opened.fleet:discover()
    local width, tasks = 0, {}
    for _, member in ipairs(opened.fleet:instances()) do width = math.max(width, #member.label) end
    for _, member in ipairs(opened.fleet:instances()) do
      local print_text = printer(command, ("%-" .. width .. "s"):format(member.label))
      local line = opened.connections[member.host.name]
      local words = { "tail", "-n", tostring(math.tointeger(lines)), ("%s/logs/%d.log"):format(line.root, member.port) }
      if command.flags.follow then table.insert(words, 2, "-F") end
      local stream = errors.check(line:link()):stream(words)
      tasks[#tasks + 1] = core.spawn(function()
        local text, which = stream:read()
        while text do
          if which == 1 then print_text(text) end
          text, which = stream:read()
        end
        stream:close()
      end)
      if not command.flags.follow then tasks[#tasks]:wait() end
    end
    for _, task in ipairs(tasks) do task:wait() end
  end)
  return 0
end
