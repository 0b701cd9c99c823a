-- leftover.lua -- What a rollback leaves: in words, with what mends it; and what nobody knew of.
local advice = require "deployrt.advice"
local errors = require "deployrt.errors"
local launch = require "deployrt.launch"
local operation = require "deployrt.operation"
local world_instance = require "deployrt.world.instance"

local leftover = {}

--- What a strategy wrote itself to undo something: only its author knows what that was, and to try again may never help.
local function is_own(failure)
  return failure.entry ~= nil and not failure.entry.back and not failure.host
end

--- What is to be started again, and its release is no longer on the host.
local function is_lost(failure)
  local back = failure.entry and failure.entry.back or failure.label
  return back == "instance.restore" and failure.error.code == "missing"
end

local function remedy(run, failure)
  if is_lost(failure) then
    return ("deploy again, or bring the release back to its place, then: %s"):format(advice.abort(run.app.file, run.id))
  end
  if is_own(failure) then return ("by hand, then end the run: %s --force"):format(advice.abort(run.app.file, run.id)) end
  return (errors.is_gone(failure.error) and ("once %s is back: "):format(failure.host or "it") or "") .. advice.abort(run.app.file, run.id)
end

--- What is left when compensations failed, host by host, with what mends it.
---@param run table
---@param failures table[]  {label, host, error, entry}
---@return {host: string, message: string, command: string}[]
function leftover.describe(run, failures)
  local left = {}
  for _, failure in ipairs(failures) do
    left[#left + 1] = {
      host = is_own(failure) and "strategy" or failure.host or "balancer", message = ("%s: %s"):format(failure.label, errors.text(failure.error)),
      command = remedy(run, failure),
    }
  end
  return left
end

local harmless = { ["release.upload"] = true, ["balancer.adopt"] = true, ["balancer.prepare"] = true } -- nothing serves otherwise for it
local most = 5 -- changes of a host that are named

--- What helps where all that is left was committed, in words.
---@param kind string  of the run
---@param file string
---@return string
function leftover.remedy(kind, file)
  if kind == "stop" then return ("`deployrt stop %s` again"):format(file) end
  return ("`deployrt rollback %s` goes back to what served before, or deploy again"):format(file)
end

--- The same as the end of a sentence about a run; empty for one that left nothing, or something else.
---@param record? {kind: string, settled?: boolean}  of the history
---@param file string
---@return string
function leftover.hint(record, file)
  return record and record.settled and "; all that is left of the last one was committed: " .. leftover.remedy(record.kind, file) or ""
end

--- Whether a rollback that goes on would mend what a run has left: not where all of that was committed.
---@param record {outcome: string, settled?: boolean}  of the history, or of a journal
---@return boolean
function leftover.is_open(record)
  return record.outcome == "needs_attention" and not record.settled
end

--- The hosts that a run went on without, and where not all was taken back.
---@param run table
---@return string[]?  nil: there are none
function leftover.stranded(run)
  local names = {}
  for _, host in ipairs(run.session.hosts) do names[#names + 1] = run.fleet.stranded[host.name] and host.name or nil end
  return names[1] and names
end

--- Whether all that is left was committed.
---@param left {committed?: boolean}[]
---@return boolean?
function leftover.is_settled(left)
  for _, each in ipairs(left) do
    if not each.committed then return nil end
  end
  return #left > 0 or nil
end

--- What the strategy committed before the run failed, host by host: nobody knows how to take that back.
---@param run table
---@return {host: string, message: string, command: string}[]
function leftover.committed(run)
  local left, by_host = {}, {}
  for _, entry in ipairs(run.committed or {}) do
    local host = entry.host or "balancer"
    if not harmless[entry.label] then
      if not by_host[host] then
        by_host[host] = {}
        left[#left + 1] = { host = host, changes = by_host[host], committed = true, command = leftover.remedy(run.kind, run.app.file) }
      end
      table.insert(by_host[host], entry.instance and entry.label .. " " .. entry.instance or entry.label)
    end
  end
  for _, each in ipairs(left) do
    local changes = each.changes
    each.message = ("the strategy committed %s%s before it failed"):format(table.concat(changes, ", ", 1, math.min(#changes, most)),
      #changes > most and (" and %d more"):format(#changes - most) or "")
    each.changes = nil
  end
  return left
end

--- Tries to take something back, and notes what failed.
local function try(failures, label, host, action, ...)
  local ok, err = pcall(action, ...)
  if not ok then failures[#failures + 1] = { label = label, host = host.name, error = errors.wrap(err) } end
end

--- What the strategy committed is to stay: by the name of the effect, and where it was.
local function committed_of(run)
  local kept = {}
  for _, entry in ipairs(run.committed or {}) do kept[("%s %s"):format(entry.label, entry.instance or entry.host or "")] = true end
  return kept
end

local function stop_unknown(run, failures, kept)
  run.fleet:discover()
  for _, member in ipairs(table.move(run.fleet.members, 1, #run.fleet.members, 1, {})) do
    local own = world_instance.is_own_start(run.world.context, member) and run.fleet:is_target(member)
    if own and not kept["instance.start " .. member.label] then
      try(failures, "instance.stop", member.host, member.stop, member)
    end
  end
end

local function reset_current(run, failures, kept)
  local release = run.target.release
  for _, host in ipairs(run.target.packed and run.found_current and run.session.hosts or {}) do
    local found = run.found_current[host.name]
    if host.current == release and found ~= release and not kept["release.activate " .. host.name] then
      try(failures, "release.activate", host, operation.effect, { name = "release.activate", host = host, args = { release = found } })
    end
  end
end

local function remove_unknown(run, failures, kept)
  local release = run.target.release
  for _, host in ipairs(run.target.packed and run.session.hosts or {}) do
    local had = run.releases and run.releases[host.name]
    local stays = not had or had[release] or kept["release.upload " .. host.name]
    try(failures, "release.remove", host, function()
      if stays or not operation.observe({ name = "release.list", host = host, args = {} })[release] then return end
      operation.effect { name = "release.remove", host = host, args = { release = release } }
    end)
  end
end

--- Starts again what served when the run began and does not run any more, although everything was put back: its host went
--- away meanwhile, and came back without it.
---@async
---@param run table
---@return table[] failures  {label, host, error}
function leftover.revive(run)
  local failures = {}
  local ok, err = pcall(run.fleet.discover_hosts, run.fleet)
  if not ok then return { { label = "instance.list", host = err.host, error = errors.wrap(err) } } end
  for _, member in ipairs(run.found or {}) do
    if not run.fleet:at(member.host, member.port) then
      try(failures, "instance.restore", member.host, operation.effect, { name = "instance.restore", kind = "look", host = member.host, instance = member.label,
        args = { port = member.port, launch = member.launch, release = member.release, health = launch.health(run.app, member.launch) } })
    end
  end
  return failures
end

--- Ends what this run has started, and removes what it has brought, that its journal does not know of: the copy that it was
--- taken up from lagged. What was committed stays.
---@async
---@param run table
---@return table[] failures  {label, host, error}
function leftover.take_back_unknown(run)
  local failures, kept = {}, committed_of(run)
  stop_unknown(run, failures, kept)
  reset_current(run, failures, kept)
  remove_unknown(run, failures, kept)
  return failures
end

return leftover
