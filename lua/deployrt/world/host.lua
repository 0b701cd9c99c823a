-- world/host.lua -- Commands on hosts, and on the controller for hooks.
local errors = require "deployrt.errors"

local host_room = {}

--- A secret that a command prints is no more to be read by a script than any other.
local function mask(context, text)
  return context.secrets and context.secrets:mask(text) or text
end

--- Runs a command exactly once; a cut connection neither loses nor repeats it.
function host_room.run(context, host, args, key)
  local result = host:execute_once(key, args.command, { timeout = args.timeout, stdin = args.stdin, env = args.env, cwd = args.cwd })
  return { status = result.status, signal = result.signal, stdout = mask(context, result.stdout), stderr = mask(context, result.stderr) }
end

--- Ends a command that may be running still.
function host_room.stop(_, host, _, key)
  host:call("operation_stop", { key })
  return {}
end

--- Runs a hook on this machine, in the directory of app.yml.
function host_room.hook(context, _, args)
  local environment = context.hook_environment(args.env)
  local result = context.controller:execute(args.command, { cwd = context.app.dir, env = environment, timeout = args.timeout or 3600 })
  if result.status ~= 0 or result.signal then
    errors.raise("hook", ("hook '%s' failed with %s"):format(args.name, result.signal and "signal " .. result.signal or "status " .. result.status),
      { detail = (result.stdout .. result.stderr):sub(-2000) })
  end
  return { output = mask(context, result.stdout) }
end

return host_room
