-- permission.lua -- What the code that runs in a task may do: everything, or what app.yml allows a shared library.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local permission = {}

---@class deployrt.Grant    what scripts of shared libraries may do together; nil in its place: everything
---@field libraries string  who they are, for messages
---@field verbs table<string, boolean>

local actions = {
  ["host.run"] = "run commands on hosts", http = "send requests of its own", balancer = "change the balancer",
  driver = "bring a balancer driver",
}

--- What can be allowed, in the order in which messages list it.
permission.names = { "balancer", "host.run", "http", "driver" }

--- What a library may do when app.yml does not say: the verbs of instances always, and these.
permission.default = { "balancer" }

--- Raises when the running task acts for a library that may not do this.
---@param name "balancer"|"host.run"|"http"
--- Raises deployrt.Error: "denied".
function permission.check(name)
  local locals = core.locals()
  local grant = locals and locals.grant
  if not grant or grant.verbs[name] then return end
  errors.raise("denied", ("the library %s may not %s: if you trust it with that, add %s to its `allow` in app.yml (require:)"):format(
    grant.libraries, actions[name], name))
end

--- One grant for scripts that work together: what all of them may do.
---@param one? deployrt.Grant
---@param other? deployrt.Grant
---@return deployrt.Grant?
function permission.both(one, other)
  if not one or not other then return one or other end
  local verbs = {}
  for name in pairs(one.verbs) do verbs[name] = other.verbs[name] end
  return { libraries = one.libraries == other.libraries and one.libraries or one.libraries .. ", " .. other.libraries, verbs = verbs }
end

--- The grant of a library.
---@param library string
---@param allow string[]
---@return deployrt.Grant
function permission.grant(library, allow)
  local verbs = {}
  for _, name in ipairs(allow) do verbs[name] = true end
  return { libraries = library, verbs = verbs }
end

return permission
