-- world/host.lua -- Commands on hosts, and on the controller for hooks.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local life = require "deployrt.life"
local session_command = require "deployrt.session_command"

local host_room = {}

--- Runs a command exactly once; a cut connection neither loses nor repeats it. A secret that it prints is no more to be read
--- by a script than any other.
function host_room.run(context, host, args, key)
  local result = host:execute_once(key, args.command, { timeout = args.timeout, stdin = args.stdin, env = args.env, cwd = args.cwd })
  return { status = result.status, signal = result.signal, stdout = context.secrets:mask(result.stdout), stderr = context.secrets:mask(result.stderr) }
end

--- Ends a command that may be running still.
function host_room.stop(_, host, _, key)
  host:call("operation_stop", { key })
  return {}
end

local longest = 3600 -- seconds of a hook on the way back, which has no other limit

--- Waits for a hook, and ends it when the run is to stop; on the way back, when somebody asks for that again.
---@return deployrt.ExecResult? result
---@return deployrt.Error? err
---@return "ended"|"left"|nil cut
local function attend(context, name, action)
  local working, asked = core.spawn(action), core.locals().undoing and context.hurry_event or context.stop_event
  local watching = core.spawn(function()
    if not asked:wait() then return end
    context.warn(("hook '%s' is ended: %s"):format(name, context.why_stopped()))
    working:cancel()
  end)
  local done = table.pack(working:wait())
  watching:cancel()
  watching:wait()
  if done[1] then return table.unpack(done, 2, done.n) end
  error(done[2], 0)
end

local function warn_left(context, name, pid)
  context.warn(("hook '%s' cannot be ended, and may run still on this machine, with pid %d: end it there"):format(name, pid))
end

--- Runs a hook on this machine, in the directory of app.yml. Which process it is is noted, so that a later life of the run can end it.
function host_room.hook(context, _, args, _, id)
  local pid
  local function begun(found)
    pid = found
    context.note_process(id, life.of(found))
  end
  context.tell("hook " .. args.name)
  local result, err, cut = attend(context, args.name, function()
    return context.controller:attend(args.command, { cwd = context.app.dir, env = context.hook_environment(args.env), begun = begun,
      timeout = core.locals().undoing and longest or nil })
  end)
  context.tell()
  if cut == "left" and pid then warn_left(context, args.name, pid) end
  if not result then
    context.check_stop()
    error(err, 0)
  elseif result.status ~= 0 or result.signal then
    errors.raise("hook", ("hook '%s' failed with %s"):format(args.name, result.signal and "signal " .. result.signal or "status " .. result.status),
      { detail = context.secrets:mask(result.stdout .. result.stderr):sub(-2000) })
  end
  return { output = context.secrets:mask(result.stdout) }
end

--- Ends a hook that may be running still, since its controller died.
function host_room.stop_hook(context, _, args, _, id)
  local process = context.process_of(id)
  local pid, machine = nil, "the machine that the run was begun on"
  if process then pid, machine = life.parts(process) end
  if not process or not life.is_here(process) then
    context.warn(("hook '%s' may run still on %s%s: look there, and end it"):format(args.name, machine, pid and ", with pid " .. pid or ""))
    return {}
  end
  local cut = life.may_have_session(process) and session_command.finish(context.controller, pid)
  if cut == "left" then warn_left(context, args.name, pid) end
  if cut == "ended" then context.warn(("hook '%s' ran still, with pid %d: it was ended"):format(args.name, pid)) end
  return {}
end

return host_room
