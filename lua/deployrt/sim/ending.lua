-- sim/ending.lua -- The end of a simulated run: what is there must be what the exit code says.
local machine = require "deployrt.sim.machine"
local core = require "deployrt.core"
local slot_name = require "deployrt.slot_name"

local ending = {}

--- What a slot holds and gets, in one word for each.
local function fingerprint(world, slot)
  local process = slot.machine:running(slot.port)
  local fed = world.balancer:is_open(slot)
  return process and process.release or "nothing", fed, process
end

--- Each slot and each `current` as they are now: what is put back must look so again.
---@param world deployrt.sim.World
---@return table<string, {release: string, fed: boolean, state: string, weight: integer}>
function ending.remember(world)
  local found = {}
  for _, host in ipairs(world.machines) do host.current_before = host.current end
  for _, slot in ipairs(world.balancer.slots) do
    local release, fed = fingerprint(world, slot)
    found[slot.name] = { release = release, fed = fed, state = slot.state, weight = slot.weight }
  end
  return found
end

--- The end in one line: what each slot runs and gets.
---@param world deployrt.sim.World
---@return string
function ending.describe(world)
  local parts = {}
  for i, slot in ipairs(world.balancer.slots) do
    local release, fed = fingerprint(world, slot)
    parts[i] = ("%s %s %s"):format(slot.name, release, fed and slot.weight or "-")
  end
  return table.concat(parts, ", ")
end

--- Whether the group of hosts that did not serve does so now; where nothing had served, the first one is filled again.
local function is_taken_over(world)
  for _, slot in ipairs(world.balancer.slots) do
    if slot.machine.standby and world.balancer:is_open(slot) then return true end
  end
  return false
end

--- The hosts that a run did not go on without.
local function kept(world, without)
  local left, list = {}, {}
  for _, name in ipairs(without or {}) do left[name] = true end
  for _, host in ipairs(world.machines) do list[#list + 1] = not left[host.name] and host or nil end
  return list
end

--- Why what serves on a host is not the new release, all of it and well; nil when it is.
local function not_serving(world, host, wanted, spared)
  local serving = 0
  for _, port in ipairs(world.ports) do
    local slot = world.balancer.named[slot_name.of(host.name, port)]
    local release, fed, process = fingerprint(world, slot)
    if fed and release ~= world.target.release and not spared[host.name] then return ("%s gets traffic and runs %s"):format(slot.name, release) end
    if fed then serving = serving + 1 end
    local well = not process or process.hurt or spared[host.name] or machine.is_healthy(process, core.now())
    if fed and not well then return slot.name .. " gets traffic and is not healthy" end
  end
  if serving ~= wanted and not spared[host.name] then
    return ("%d instances serve on %s, and app.yml says %d"):format(serving, host.name, wanted)
  end
end

--- Why what serves is not the new release, everywhere; nil when it is. `spared` are hosts that faults took instances of.
---@param world deployrt.sim.World
---@param spared table<string, boolean>
---@param without? string[]  hosts that the run says it went on without
---@return string?
function ending.not_taken_over(world, spared, without)
  if world.balancer.route then return "requests are still told apart" end
  local taken_over = is_taken_over(world)
  for _, host in ipairs(kept(world, without)) do
    local wanted = (not world.grouped or host.standby == taken_over) and world.app.process.instances or 0
    local why = not_serving(world, host, wanted, spared)
    if why then return why end
  end
end

--- Why the world is not all-new; nil when it is: nothing of the old release is left beside what serves.
---@param world deployrt.sim.World
---@param spared table<string, boolean>
---@param without? string[]
---@return string?
function ending.not_new(world, spared, without)
  local why = ending.not_taken_over(world, spared, without)
  if why then return why end
  for _, host in ipairs(kept(world, without)) do
    for _, port in ipairs(world.ports) do
      local slot = world.balancer.named[slot_name.of(host.name, port)]
      local release, fed, process = fingerprint(world, slot)
      if process and not fed and not world.keeps_old and not spared[host.name] then return ("%s runs %s and gets no traffic"):format(slot.name, release) end
    end
    if host.current ~= world.target.release then return ("current points to %s on %s"):format(tostring(host.current), host.name) end
  end
end

--- What a slot is not as it was; nil when it is.
local function difference(world, slot)
  local was = world.initial[slot.name]
  local release, fed, process = fingerprint(world, slot)
  if release ~= was.release then return ("%s runs %s; before: %s"):format(slot.name, release, was.release) end
  if fed ~= was.fed then return ("%s %s traffic; before the run it did%s"):format(slot.name, fed and "gets" or "gets no", was.fed and "" or " not") end
  if fed and slot.weight ~= was.weight then return ("%s has the weight %d; before: %d"):format(slot.name, slot.weight, was.weight) end
  if process and fed and not process.hurt and not process.was_ready and not machine.is_healthy(process, core.now()) then
    return slot.name .. " is not healthy"
  end
end

--- Hosts that are not as they were before the run, each with why. Files of a release that were committed harm nobody.
---@param world deployrt.sim.World
---@param spared table<string, boolean>
---@return {host: string, why: string}[]
function ending.not_old(world, spared)
  local list = {}
  for _, host in ipairs(world.machines) do
    if not spared[host.name] then
      local why
      for _, port in ipairs(world.ports) do why = why or difference(world, world.balancer.named[slot_name.of(host.name, port)]) end
      if host.current ~= host.current_before then why = why or ("current points to %s on %s"):format(tostring(host.current), host.name) end
      if host.releases[world.target.release] and not world.committed then why = why or ("release %s is still on %s"):format(world.target.release, host.name) end
      if why then list[#list + 1] = { host = host.name, why = why } end
    end
  end
  return list
end

return ending
