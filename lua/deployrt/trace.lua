-- trace.lua -- Where a script went wrong: its file and line, and the script's own frames below, none of the runtime's.
local errors = require "deployrt.errors"

local trace = {}

local scripts = {}                                   -- source -> the lines of its text
local positions = {}                                 -- how messages write a script's path
local callers = setmetatable({}, { __mode = "kv" })  -- coroutine of a task -> that of the task that waits for it
local deepest, most = 200, 12                        -- frames that are looked at, and that are shown
local deepest_of_all = 1000                          -- frames of the runtime that may lie above the first of a script: C's calls have a limit

--- Makes a script known: frames of its text are shown, and named as its text names them.
---@param path string
---@param text string
function trace.know(path, text)
  local lines = {}
  -- C's own, and not what methods of strings are while a script is loaded: those count each step
  for line in string.gmatch(text .. "\n", "([^\n]*)\n") do lines[#lines + 1] = line end
  scripts["@" .. path] = lines
end

--- Says who waits for the running task, so that a trace goes on there.
---@param caller thread
function trace.called_from(caller)
  callers[coroutine.running()] = caller
end

--- A function as its script names it.
local function name_of(info)
  if info.what == "main" then return "in main chunk" end
  local head = scripts[info.source][info.linedefined] or ""
  local owner, name = head:match("function%s+[%w_.]-([%w_]*):([%w_]+)%s*%(")
  if owner then return ("in method '%s'"):format(name) end
  name = head:match("function%s+([%w_.]+)%s*%(")
  return name and ("in function '%s'"):format(name) or ("in function <%s:%d>"):format(info.short_src, info.linedefined)
end

--- Adds the script's frames of a coroutine; returns what the topmost of them called.
local function collect(co, frames)
  local called
  for level = 0, deepest_of_all do
    if level > deepest and #frames > 0 then break end
    local info = debug.getinfo(co, level, "Snl")
    if not info then return called end
    if scripts[info.source] then
      positions[info.short_src] = true
      frames[#frames + 1] = { place = ("%s:%d"):format(info.short_src, info.currentline), name = name_of(info) }
    elseif #frames == 0 then
      called = info.name
    end
  end
  frames.cut = true
  return called
end

--- What a script's own programming error says. Where it was raised below a verb that the script called wrongly, the place is the call.
local function located(message, frames, called)
  local place, rest = message:match("^([^\n]-):%d+: (.*)$")
  if not place or positions[place] then return message end
  return ("%s: %s%s"):format(frames[1].place, rest, called and (", in '%s'"):format(called) or "")
end

--- The frames as lines.
local function lines_of(frames)
  local lines = {}
  for i, frame in ipairs(frames) do
    if i <= most then lines[i] = ("%s: %s"):format(frame.place, frame.name) end
  end
  if #frames > most or frames.cut then lines[#lines + 1] = "..." end
  return table.concat(lines, "\n")
end

--- The frames of this coroutine and of those that wait for it; nil where none is a script's.
---@return table? frames
---@return string? called  by the topmost of them
local function script_frames()
  local frames, co = {}, coroutine.running()
  local called = collect(co, frames)
  while callers[co] and #frames <= most do
    co = callers[co]
    collect(co, frames)
  end
  return frames[1] and frames, called
end

--- The line of the script that the running code was called from, as "file:line"; nil where no script did.
---@return string?
function trace.place()
  local frames = script_frames()
  return frames and frames[1].place
end

--- A verb refused what it was given, or to do it: that is at the line of the call.
local function place_refusal(err)
  local frames = not err.detail and script_frames()
  if not frames then return end
  err.message, err.detail = frames[1].place .. ": " .. err.message, lines_of(frames)
end

local refusals = { usage = true, denied = true } -- codes

--- A script raised what says nothing: where it did so is all that there is to know.
local function wordless(raised)
  local err = errors.wrap(raised)
  place_refusal(err)
  return err.detail and err or raised
end

--- A message handler: makes an error of a text that was raised, with the trace as its detail. `traceback` has all frames, the
--- runtime's too. A text that no script has to do with is a fault of the runtime, and stays with its whole trace.
---@param raised any
---@return any
function trace.handler(raised)
  if type(raised) == "table" and type(rawget(raised, "message")) == "string" then
    if refusals[rawget(raised, "code")] and errors.wrap(raised) == raised then place_refusal(raised) end
    return raised
  end
  if type(raised) ~= "string" then return wordless(raised) end
  local frames, called = script_frames()
  local traceback = debug.traceback("", 2):gsub("^\n", "")
  if not frames then return raised .. "\n" .. traceback end
  local err = errors.new("script", errors.of_script(located(raised, frames, called)), { detail = lines_of(frames) })
  err.traceback = traceback
  return err
end

return trace
