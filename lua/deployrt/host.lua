-- host.lua -- A host as strategies know it: a name, a group, and commands that go through the door.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"

---@class deployrt.Host
---@field name string
---@field group? string
---@field leaves? boolean  it is given back once the run has succeeded
---@field current? string  the release that `current` points to there
local Host = { kind = "host" }
Host.__index = Host

local host = {}

---@param entry table  an entry of app.hosts
---@return deployrt.Host
function host.new(entry)
  return setmetatable({ name = entry.name, group = entry.group, leaves = entry.leaves }, Host)
end

--- Runs a command on the host: journaled, done once, and raising when it fails.
---@async
---@param argv string[]    never a shell line
---@param opts? {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string}  timeout in seconds
---@return {status: integer, signal?: integer, stdout: string, stderr: string}
--- Raises deployrt.Error: "exit", "timeout", "unreachable".
function Host:run(argv, opts)
  opts = opts or {}
  local result = operation.effect {
    name = "host.run", kind = "look", host = self, note = core.quote(argv),
    args = { command = argv, timeout = opts.timeout, stdin = opts.stdin, env = opts.env, cwd = opts.cwd },
  }
  if result.status == 0 then return result end
  errors.raise("exit", ("%s: `%s` ended with status %d"):format(self.name, core.quote(argv), result.status),
    { host = self.name, detail = (result.stdout .. result.stderr):sub(-2000) })
end

return host
