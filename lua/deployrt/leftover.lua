-- leftover.lua -- What a rollback leaves: in words, with what mends it; and what nobody knew of.
local errors = require "deployrt.errors"

local leftover = {}

--- What is left when compensations failed, host by host, with what mends it.
---@param run table
---@param failures table[]  {label, host, error}
---@return {host: string, message: string, command: string}[]
function leftover.describe(run, failures)
  local left = {}
  for _, failure in ipairs(failures) do
    left[#left + 1] = {
      host = failure.host or "balancer", message = ("%s: %s"):format(failure.label, errors.text(failure.error)),
      command = ("%sdeployrt abort %s"):format(errors.is_gone(failure.error) and ("once %s is back: "):format(failure.host or "it") or "", run.app.file),
    }
  end
  return left
end

--- Ends what this run has started and its journal does not know of: the copy that it was taken up from lagged.
---@async
---@param run table
---@return table[] failures  {label, host, error}
function leftover.stop_unknown(run)
  local failures, started_by_us = {}, "^" .. run.id:gsub("%p", "%%%0") .. "/op%-%d" -- what was put back has the key of an undo
  run.fleet:discover()
  for _, member in ipairs(table.move(run.fleet.members, 1, #run.fleet.members, 1, {})) do
    if member.key and member.key:find(started_by_us) and run.fleet:is_target(member) then
      local ok, err = pcall(member.stop, member)
      if not ok then failures[#failures + 1] = { label = "instance.stop", host = member.host.name, error = errors.wrap(err) } end
    end
  end
  return failures
end

return leftover
