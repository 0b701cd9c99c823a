-- cli/repl.lua -- deployrt repl APP.yml: verbs by hand, from a terminal or a pipe.
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local repl = require "deployrt.repl"

--- Reads on while a line is executed: what was typed meanwhile is next.
---@param next_line fun(): string?
local function listen(console, next_line)
  return core.spawn(function()
    for line in next_line do
      console.lines[#console.lines + 1] = line
      console.arrived:set()
    end
    console.lines.ended = true
    console.arrived:set()
  end)
end

--- Lines that a person edits: one at a time, when it is asked for.
---@param editor deployrt.Editor
---@return fun(): string?
local function edited(console, editor)
  local asked, prompt = core.event(), nil
  function console.ask(text)
    prompt = text
    asked:set()
  end
  return function()
    if not asked:wait() then return nil end
    asked:clear()
    return (editor:next(prompt))
  end
end

--- core.signals, less those that the conversation sees to itself.
local function filtered(hear)
  return function(...)
    local signals = core.signals(...)
    local function following()
      local name = signals:next()
      while name and hear(name) do name = signals:next() end
      return name
    end
    return setmetatable({ next = following }, { __close = function() signals:close() end })
  end
end

return function(command)
  local app = common.app(command)
  local editor <close> = core.editor()
  local lines <close> = not editor and core.lines(0) or nil
  local console = { interactive = core.terminal(0) ~= nil, write = command.write, lines = {}, arrived = core.event() }
  local proceed, hear = repl.open(console)
  local listening = listen(console, editor and edited(console, editor) or function() return (lines:next()) end)
  local ok, exit = pcall(common.execute, command, app, {
    strategy = repl, values = repl.values, kind = "repl", proceed = proceed, done = "kept, as :commit says", signals = filtered(hear),
    mode = command.flags.quiet and "quiet" or "lines",
  })
  listening:cancel()
  listening:wait()
  if ok then return exit end
  error(exit, 0)
end
