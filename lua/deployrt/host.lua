-- host.lua -- A host as strategies know it: a name, a group, and commands that go through the door.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"
local options = require "deployrt.options"
local signature = require "deployrt.signature"

---@class deployrt.Host
---@field name string
---@field group? string
---@field leaves? boolean  it is given back once the run has succeeded
---@field current? string  the release that `current` points to there
local Host = { kind = "host", takes = signature.of { run = "argv: words" } }
Host.__index = Host

local host = {}

---@param entry table  an entry of app.hosts
---@return deployrt.Host
function host.new(entry)
  return setmetatable({ name = entry.name, group = entry.group, leaves = entry.leaves }, Host)
end

--- Variables for a command, as a script gave them.
---@param env? table<string, string|number>
---@return table<string, string>?
function host.environment(env)
  if env == nil then return nil end
  if type(env) ~= "table" then errors.raise("usage", ("an environment is a table of texts, not %s"):format(tostring(env))) end
  local out = {}
  for name, value in next, env do
    if type(name) ~= "string" or type(value) ~= "string" and type(value) ~= "number" then
      errors.raise("usage", ("an environment has names and texts, and %s is a %s"):format(tostring(name), type(value)))
    end
    if name:find("[\0=]") or tostring(value):find("\0", 1, true) then
      errors.raise("usage", ("an environment has no NUL byte, nor `=` in a name, and '%s' has"):format((name:gsub("%c", "?"))))
    end
    out[name] = tostring(value)
  end
  return out
end

local longest_note = 200 -- bytes of a command that whoever watches is shown

local run_takes = { timeout = true, stdin = "text?", env = true, cwd = "text?" }

--- Runs a command on the host: journaled, done once, and raising when it fails.
---@async
---@param argv string[]    never a shell line
---@param opts? {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string}  timeout in seconds
---@return {status: integer, signal?: integer, stdout: string, stderr: string}
--- Raises deployrt.Error: "exit", "timeout", "unreachable".
function Host:run(argv, opts)
  opts = options.check("run", opts, run_takes)
  if opts.timeout ~= nil and not (type(opts.timeout) == "number" and opts.timeout > 0) then
    errors.raise("usage", ("a timeout is a number of seconds, not %s"):format(tostring(opts.timeout)))
  end
  local line = core.quote(argv)
  local result = operation.effect {
    name = "host.run", kind = "look", host = self, note = errors.clip(line, longest_note),
    args = { command = argv, timeout = opts.timeout, stdin = opts.stdin, env = host.environment(opts.env), cwd = opts.cwd },
  }
  if result.status == 0 then return result end
  errors.raise("exit", ("%s: `%s` ended with status %d"):format(self.name, errors.clip(line), result.status),
    { host = self.name, detail = (result.stdout .. result.stderr):sub(-2000) })
end

return host
