-- adoption.lua -- A service that was started by hand becomes the old release of a run (process.adopt).
local errors = require "deployrt.errors"
local instance = require "deployrt.instance"
local operation = require "deployrt.operation"
local verbs = require "deployrt.verbs"

local adoption = {}

--- It would be in the way of what is started. A stop starts nothing, and leaves alone what is none of ours.
local function refuse(run, slot)
  local owner = operation.observe { name = "instance.owner", host = slot.host, args = { port = slot.port } }
  if not owner then return end
  if run.kind == "stop" then
    return table.insert(run.notes, ("%s: %s, which deployrt did not start: it is left as it is"):format(slot.host.name, owner))
  end
  errors.raise("stranger", ("%s: %s, which deployrt did not start; stop it, give process.ports other ports, or take it over with process.adopt: true"):format(
    slot.host.name, owner), { host = slot.host.name })
end

local function member_of(run, slot, found)
  return instance.new {
    host = slot.host, port = slot.port, pid = found.pid, stranger = found, launch = {
      release = "adopted", settings = run.id, adopted = true, packed = false, command = { found.command }, obstacle = found.obstacle,
    },
  }
end

--- Who serves now gets traffic through the balancer before anything else; it may stand where no balancer has been yet.
local function choose_serving(run, adopted)
  for _, member in ipairs(run.fleet.members) do
    if member.state == "serving" then return {} end
  end
  local chosen, count = {}, {}
  for _, member in ipairs(adopted) do
    local name = member.host.name
    count[name] = (count[name] or 0) + 1
    if count[name] <= run.app.process.instances then
      chosen[#chosen + 1], member.state = member, "serving"
    end
  end
  return chosen
end

--- One that could not be started again is stopped last, and one that gets no traffic not at all.
local function guard(member)
  local obstacle = member.launch.adopted and member.launch.obstacle
  if not obstacle then return end
  member.lasts = member.state == "serving"
  if member.lasts or not member.stranger then return end
  errors.raise("stranger", ("%s: pid %d (%s) gets no traffic, and could not be started again after a rollback (%s): stop it by hand first"):format(
    member.label, member.pid, member.launch.command[1]:sub(1, 80), obstacle), { host = member.host.name })
end

--- Looks at the slots on which something listens that deployrt did not start: an error, or with `adopt` members of the fleet.
---@async
---@param run table
--- Raises deployrt.Error: "stranger".
function adoption.look(run)
  run.adopted = {}
  for _, slot in ipairs(run.fleet:strangers()) do
    if not run.app.process.adopt then
      refuse(run, slot)
    else
      local found = operation.observe { name = "stranger.look", host = slot.host, args = { port = slot.port } }
      if found then table.insert(run.adopted, member_of(run, slot, found)) end
    end
  end
  for _, member in ipairs(run.adopted) do
    member.state = run.fleet:state_of(member)
    run.fleet:add(member)
  end
  run.to_attach = choose_serving(run, run.adopted)
  for _, member in ipairs(run.fleet.members) do guard(member) end
end

--- What `look` found, a line each.
---@return string[]
function adoption.describe(run)
  local lines = {}
  for i, member in ipairs(run.adopted) do
    local found = member.stranger
    lines[i] = ("%s: pid %d of %s would be adopted: %s%s"):format(member.label, found.pid, found.user, found.command:sub(1, 200),
      found.obstacle and (" (it could not be started again, so it is stopped last: %s)"):format(found.obstacle) or "")
  end
  return lines
end

--- Makes instances of them. Undone by letting them run on as strangers.
---@async
function adoption.take(script, run)
  if #run.adopted == 0 then return end
  verbs.step(script, "adopt", function()
    verbs.each(script, run.adopted, function(_, member)
      operation.effect {
        name = "stranger.adopt", kind = "look", host = member.host, instance = member.label,
        args = { port = member.port, process = member.stranger, launch = member.launch, release = member.release },
        undo = { name = "stranger.disown", args = { port = member.port } },
      }
      member.recorded = true
    end)
  end)
end

--- Sends traffic to them where nothing else gets any.
---@async
function adoption.attach(script, run)
  if #run.to_attach == 0 or not script.balancer:exists() then return end
  verbs.step(script, "traffic to what was adopted", function() script.balancer:attach(run.to_attach) end)
end

--- After success: stops those that could not be started again. From here on there is no way back.
---@async
function adoption.stop_last(script, run)
  local last = {}
  for _, member in ipairs(run.fleet:instances()) do
    if member.postponed then last[#last + 1] = member end
  end
  if #last == 0 then return end
  operation.checkpoint()
  verbs.commit(script)
  verbs.step(script, "stop what was adopted", function()
    verbs.each(script, last, function(_, member)
      member.lasts = false
      member:stop()
    end)
  end)
end

local function still_wanted(run)
  for _, member in ipairs(run.fleet.members) do
    if member.launch.adopted then return true end
  end
  return run.kind ~= "stop" and run.previous_launch and run.previous_launch.adopted
end

--- What was adopted once is forgotten when no rollback would go back to it.
---@async
function adoption.forget(_, run)
  if still_wanted(run) then return end
  for _, host in ipairs(run.fleet:kept_hosts()) do
    if #host.origins > 0 or #run.adopted > 0 then operation.effect { name = "stranger.forget", host = host, args = {} } end
  end
end

return adoption
