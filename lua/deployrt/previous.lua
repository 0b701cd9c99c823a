-- previous.lua -- What served before a run, and what a rollback of it goes back to.
local forgotten = require "deployrt.forgotten"

local previous = {}

--- The last run before this one that deployed something; of its record only what a way back needs.
---@param options table  as for run.execute
---@return {launch: table, previous_launch?: table}?
function previous.last(options)
  if options.past then return options.past.header.last end
  local last = options.state and options.state:last_success()
  return last and last.launch and { launch = last.launch, previous_launch = last.previous_launch }
end

--- What a rollback goes back to although it does not serve now. A run that only heals, scales or comes after a stop leaves
--- the way back as it was.
local function way_back(run)
  local last = run.last
  if not last then return nil end
  if run.fleet:is_target(last) then return last.previous_launch end
  return last.launch
end

--- What serves, and the group of hosts in which it does: a rollback goes back to that one.
local function launch_of(fleet, member)
  local launch = {}
  for key, value in pairs(member.launch) do launch[key] = value end
  launch.group = fleet:serving_group()
  return launch
end

--- Notes what the run found: what serves, what the balancer forgot, all releases that run, and what is current where.
---@param run table
function previous.find(run)
  run.forgotten = forgotten.find(run)
  local old = run.fleet:old()[1] or run.forgotten[1]
  if old and run.fleet:is_target(old) then old = nil end
  run.previous = old and old.release
  run.previous_launch = old and launch_of(run.fleet, old) or way_back(run)
  run.found_releases, run.found_current, run.found = {}, {}, {}
  for _, host in ipairs(run.fleet.hosts) do run.found_current[host.name] = host.current end
  for _, member in ipairs(run.fleet.members) do
    run.found_releases[member.release] = true
    if member.state == "serving" and not (member.stranger or member.launch.adopted) then run.found[#run.found + 1] = member end
  end
end

return previous
