-- request.lua -- What somebody asks of a run that is under way: its controller reads it on its hosts, with its next sign of life.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"

local request = {}

--- The run that is under way, and a host where it hears.
---@async
---@param opened deployrt.Session
---@return deployrt.LockState? held  nil: none is
---@return deployrt.Connection? line
function request.live_run(opened)
  local held, line = lock.find(opened:lines())
  if held and not held.dead then return held, line end
end

--- The same; without one it is an error.
--- Raises deployrt.Error: "nothing"; "locked" when the run was interrupted; why a host is away, where no other one knows of a run.
function request.check_live(opened)
  local held, line = lock.find(opened:lines())
  if not held then
    opened:check_complete()
    errors.raise("nothing", ("no run of %s is under way"):format(opened.app.app))
  end
  if held.dead then errors.raise("locked", lock.refusal(held, opened.app.file)) end
  return held, line
end

--- Asks.
---@async
---@param line deployrt.Connection
---@param held deployrt.LockState
---@param word "pause"|"approve"|"abort"
---@param answer? string
function request.send(line, held, word, answer)
  line:call("run_control", { held.run, ("%s %d %s"):format(word, math.floor(core.time() * 1000), answer or "") })
end

return request
