-- mortal.lua -- The command, and its death by SIGKILL at one operation.
--   lua5.4 mortal.lua before|after|count|end|lock|group N ARGUMENT...
-- before: the intent is on the disk, and nothing was done; after: it was done, and nobody wrote so; end: the journal says
-- that the run is over, and nothing else does; lock: N hosts have its lock, and the others not yet; group: groups of hosts were saved N
-- times. With count it lives, and writes to the file N which operations there were: "look NAME" or "effect NAME", a line each.
local core = require "deployrt.core"
local lock = require "deployrt.lock"
local state = require "deployrt.state"
local world = require "deployrt.world"

local when, limit = table.remove(arg, 1), table.remove(arg, 1)
local count, real, names = 0, world.real, {}
local found = { ["instance.show"] = true, ["release.current"] = true, ["balancer.find"] = true } -- before an effect
local pid = core.whoami().pid

local function die()
  os.execute("kill -KILL " .. pid)
end

--- What only looks leaves the world and the journal as they are: to die before it and after it is the same.
local function looks(spec)
  return spec.observes or found[spec.name]
end

function world.real(context)
  local inner = real(context)
  local perform = inner.perform
  function inner:perform(spec, id)
    if context.run_id:find("^look") then return perform(self, spec, id) end
    count = count + 1
    names[count] = (looks(spec) and "look " or "effect ") .. spec.name .. "\n"
    local mine = count
    if when == "before" and mine == tonumber(limit) then die() end
    local result = table.pack(pcall(perform, self, spec, id))
    if when == "after" and mine == tonumber(limit) then die() end
    if not result[1] then error(result[2], 0) end
    return table.unpack(result, 2, result.n)
  end
  return inner
end

local open, groups = state.open, 0
function state.open(...)
  local opened = open(...)
  function opened:save(id, record)
    if when == "end" and record.finished then die() end
    return getmetatable(self).__index.save(self, id, record)
  end
  function opened:save_group(group)
    getmetatable(self).__index.save_group(self, group)
    groups = groups + 1
    if when == "group" and groups == tonumber(limit) then die() end
  end
  return opened
end

local take = lock.take
function lock.take(connections, opts)
  if when ~= "lock" then return take(connections, opts) end
  take(table.move(connections, 1, tonumber(limit), 1, {}), opts)
  die()
end

local exit = require("deployrt.cli").main(arg)
if when == "count" then
  local file = io.open(limit, "w")
  file:write(table.concat(names))
  file:close()
end
os.exit(exit)
