-- mortal.lua -- The command, and its death by SIGKILL at one operation.
--   lua5.4 mortal.lua before|after|count N ARGUMENT...
-- before: the intent is on the disk, and nothing was done; after: it was done, and nobody wrote so. With count it lives,
-- and writes to the file N how many operations there were.
local core = require "deployrt.core"
local world = require "deployrt.world"

local when, limit = table.remove(arg, 1), table.remove(arg, 1)
local count, real = 0, world.real
local pid = core.whoami().pid

local function die()
  os.execute("kill -KILL " .. pid)
end

function world.real(context)
  local inner = real(context)
  local perform = inner.perform
  function inner:perform(spec, id)
    if context.run_id:find("^look") then return perform(self, spec, id) end
    count = count + 1
    local mine = count
    if when == "before" and mine == tonumber(limit) then die() end
    local result = table.pack(pcall(perform, self, spec, id))
    if when == "after" and mine == tonumber(limit) then die() end
    if not result[1] then error(result[2], 0) end
    return table.unpack(result, 2, result.n)
  end
  return inner
end

local exit = require("deployrt.cli").main(arg)
if when == "count" then
  local file = io.open(limit, "w")
  file:write(count)
  file:close()
end
os.exit(exit)
