-- journaled.lua -- The command, and how much of its time its journal took.
--   lua5.4 journaled.lua FILE ARGUMENT...
-- Writes the seconds in which a record was written or waited for on the disk, and those of the whole command.
local core = require "deployrt.core"
local journal = require "deployrt.journal"

local out = table.remove(arg, 1)
local began, spent, waiting, since = core.now(), 0, 0, nil
local open = journal.open

--- Counts a stretch in which several tasks wait once.
local function timed(fn)
  return function(...)
    if waiting == 0 then since = core.now() end
    waiting = waiting + 1
    local result = table.pack(pcall(fn, ...))
    waiting = waiting - 1
    if waiting == 0 then spent = spent + core.now() - since end
    if not result[1] then error(result[2], 0) end
    return table.unpack(result, 2, result.n)
  end
end

function journal.open(path)
  local log = open(path)
  log.write, log.sync = timed(log.write), timed(log.sync)
  return log
end

local exit = require("deployrt.cli").main(arg)
local file = assert(io.open(out, "w"))
file:write(("%.6f %.6f\n"):format(spent, core.now() - began))
file:close()
os.exit(exit)
