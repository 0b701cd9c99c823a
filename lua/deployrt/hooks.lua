-- hooks.lua -- Commands of app.yml that run on this machine in the midst of a deployment.
local core = require "deployrt.core"
local operation = require "deployrt.operation"

local hooks = {}

--- Runs one; nothing where app.yml has none of this name.
---@async
---@param name string
---@param env? table<string,string>
function hooks.run(name, env)
  local run = operation.current()
  local command = run.app.hooks and run.app.hooks[name]
  if not command then return end
  if type(command) == "string" then command = { "/bin/sh", "-c", command } end
  operation.effect { name = "host.hook", kind = "ask", note = name, args = { name = name, command = command, env = env or {} } }
end

--- Runs one that has its say once in a run: whoever comes meanwhile waits for what it says.
---@async
---@param name string
---@param env? table<string,string>
--- Raises what it raised, each time.
function hooks.once(name, env)
  local run = operation.current()
  if not (run.app.hooks and run.app.hooks[name]) then return end
  local asked = run.asked[name]
  operation.check_can_wait()
  if asked then
    asked.done:wait()
  else
    asked = { done = core.event() }
    run.asked[name] = asked
    local ok, err = pcall(hooks.run, name, env)
    asked.problem = not ok and err or nil
    asked.done:set()
  end
  if asked.problem then error(asked.problem, 0) end
end

return hooks
