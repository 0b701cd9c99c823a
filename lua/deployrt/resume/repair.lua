-- resume/repair.lua -- A run that is taken up finds the world as its journal has it, as far as that is gone: brings it there.
local agreement = require "deployrt.world.agreement"
local errors = require "deployrt.errors"
local launch = require "deployrt.launch"
local operation = require "deployrt.operation"
local slot_name = require "deployrt.slot_name"
local world_balancer = require "deployrt.world.balancer"
local world_instance = require "deployrt.world.instance"

local repair = {}

--- Whether a life of this run that was killed then had started it again.
local function was_mended(run, member, found)
  local started = found.launch
  return found.pid ~= member.pid and found.key:sub(1, #run.id + 1) == run.id .. "/" and started ~= nil and started.release == member.release and started.settings == member.launch.settings
end

--- Instances that the journal leaves running, and that are not there any more, or that a life of the run that was killed then
--- had started again. A copy of the journal that lags may not know what the run itself started in their place.
local function missing_instances(run, only_old)
  local doubtful, missing = {}, {}
  for _, intent in ipairs(run.turns:in_doubt()) do doubtful[intent.instance or ""] = true end
  for _, member in ipairs(run.fleet.members) do
    local adopted = not member.stranger or member.recorded -- before that the process is none of ours to look after
    local kept = adopted and not run.fleet.given_up[member.host.name]
    local known = kept and not doubtful[member.label] and not (only_old and run.fleet:is_target(member))
    local found = known and run.world:perform({ name = "instance.show", host = member.host, args = { port = member.port } }, "")
    local mended = found and found.state == "running" and was_mended(run, member, found)
    local unknown = found and found.state == "running" and not mended and found.pid ~= member.pid
    if unknown and not world_instance.is_own_start(run.world.context, found) then
      errors.raise("moved", ("%s: another process runs there than the journal has: the application was changed by somebody else meanwhile; "
        .. "see `deployrt status`"):format(member.label), { host = member.host.name })
    end
    local gone = found and found.state ~= "running"
    if unknown or mended or gone then missing[#missing + 1] = { member = member, mended = mended, gone = gone } end
  end
  return missing
end

--- What was adopted, died since, and cannot be started again: the run goes on, and a rollback says what it lacks.
local function mourn(run, member)
  local err = errors.new("adopted", ("%s: what was adopted there does not run any more, and could not be started again (%s): start it by hand"):format(
    member.label, member.launch.obstacle), { host = member.host.name })
  run.emit { event = "warning", message = err.message }
  table.insert(run.root.entries, 1, { label = "adopted", host = member.host.name, run = function() error(err, 0) end })
end

--- A balancer need not have noticed that a process is gone: the one that is started in its place gets no requests until it is
--- well. One that does not answer sends none.
---@return fun() open  gives it those that it had
local function close(context, slot)
  local wanted = context.wanted[slot]
  local ok, seen = pcall(agreement.read_one, context, { slot })
  if not wanted or wanted.state ~= "ready" or not ok or seen.down then return function() end end
  local function set(state) pcall(world_balancer.apply, context, nil, { changes = { { slot = slot, state = state, weight = wanted.weight } } }) end
  set("maint")
  return function() set("ready") end
end

--- Starts an instance again, unless that was done. Before a rollback it must be well, whatever traffic it has by now: it is to
--- get it back.
local function start_again(run, missing, abort)
  local member = missing.member
  if member.launch.obstacle then return mourn(run, member) end
  if not missing.mended then run.emit { event = "warning", message = ("%s does not run any more: it is started again"):format(member.label) } end
  local open = missing.gone and close(run.world.context, member.slot)
  local result = operation.effect {
    name = "instance.restore", kind = "look", host = member.host, instance = member.label, args = {
      port = member.port, launch = member.launch, release = member.release,
      health = (abort or member.state == "serving") and member.was_healthy ~= false and launch.health(run.app, member.launch) or nil,
    },
  }
  run.fleet:renew(member.label, result.pid)
  if open then open() end
end

--- Who is to be told apart, as the journal says; nil: nobody was, and nobody is. A copy that lags may not know of a route
--- that the balancer has.
local function expected_route(run)
  local context = run.world.context
  if context.route ~= nil then return context.route end
  return world_balancer.read(context).route and (run.balancer.route or false)
end

--- Brings the world to what the journal says of it, as far as that is gone: instances that died, then the balancer's states,
--- which may give them traffic. A copy of the journal that lags tells of some as running that were stopped already.
function repair.bring_back(run, abort)
  local context, changes = run.world.context, {}
  agreement.forget_others(context)
  for name, state in pairs(context.wanted) do changes[#changes + 1] = { slot = name, state = state.state, weight = state.weight } end
  table.sort(changes, function(a, b) return a.slot < b.slot end)
  for _, missing in ipairs(missing_instances(run, abort)) do start_again(run, missing, abort) end
  if #context.drivers > 0 then
    local route = expected_route(run)
    if route ~= nil then world_balancer.route(context, nil, { route = route, timeout = 0 }) end
    if next(context.wanted) then world_balancer.prepare(context) end -- before it wanted anything, it had set nothing up either
    if #changes > 0 then world_balancer.restore(context, nil, { changes = changes, timeout = run.balancer.drain_timeout }) end
  end
end

--- What a rollback stopped already is not opened again on the way.
---@return table<string, true> put_back  slots whose process it has put back
function repair.recall_rollback(run, records)
  local gone, instances, put_back = run.world.context.gone, {}, {}
  for _, record in ipairs(records) do
    if record.type == "INTENT" and record.id:find("^undo") then instances[record.id] = record.instance end
    local label = record.type == "DONE" and record.ok and instances[record.id]
    if label and record.op:find("^instance%.") then
      local slot = slot_name.of_label(label)
      gone[slot], put_back[slot] = record.op == "instance.stop" or nil, record.op == "instance.restore" or nil
    end
  end
  return put_back
end

--- On the way back the new release gets no more traffic than it has, and none again where it has lost it already. What served
--- when the run began is not new, whatever its release.
function repair.hold_down_the_new(run, put_back)
  local context, found = run.world.context, {}
  for _, member in ipairs(run.found or {}) do found[member.slot] = member.pid end
  for _, member in ipairs(run.fleet.members) do
    local is_new = run.fleet:is_target(member) and found[member.slot] ~= member.pid
    if is_new and not put_back[member.slot] then
      local wanted = context.wanted[member.slot]
      context.new[member.slot], context.closed[member.slot] = true, wanted and wanted.state ~= "ready" or nil
    end
  end
end

--- A rollback that goes on wants of the balancers what is there, until it wants something else: what the strategy wanted
--- last is not to be brought back.
function repair.want_what_is_there(run)
  local context = run.world.context
  for name in pairs(context.wanted) do context.wanted[name] = nil end
  local ok, found = pcall(function() return #context.drivers > 0 and world_balancer.read(context) or { slots = {} } end)
  if not ok then return end
  for name, slot in pairs(found.slots) do context.wanted[name] = { state = slot.state, weight = slot.weight } end
  context.route = found.route or false
end

return repair
