-- history.lua -- Runs that another machine made, or ended: hosts keep the last records of their journals.
local fleet = require "deployrt.fleet"
local journal = require "deployrt.journal"

local history = {}

local asked = 3 -- hosts: as many as keep copies of a journal

--- The runs that hosts know to be over.
local function ended_runs(lines)
  local answers = fleet.together(table.move(lines, 1, asked, 1, {}), function(line)
    local ok, text = pcall(line.call, line, "runs_ended")
    return ok and text or "" -- one that is away says nothing
  end)
  local records = {}
  for _, text in ipairs(answers) do
    for _, each in ipairs(journal.whole(text)) do
      if each.type == "FINISHED" and each.record then records[each.record.id] = each.record end
    end
  end
  return records
end

--- Has the history know what hosts know: of other controllers' runs, and of one that ended while its state was away.
---@async
---@param state deployrt.State
---@param lines deployrt.Connection[]  of the hosts, in their order
function history.learn(state, lines)
  local known = {}
  for _, run in ipairs(state:runs()) do known[run.id] = run.finished ~= nil end
  for id, record in pairs(ended_runs(lines)) do
    if not known[id] then
      pcall(function() -- a disk that is full keeps nobody from asking
        state:directory(id)
        state:save(id, record)
      end)
    end
  end
end

--- What the history has of a run.
---@param state deployrt.State
---@param id string
---@return deployrt.Run?
function history.find(state, id)
  for _, run in ipairs(state:runs()) do
    if run.id == id then return run end
  end
end

--- Whether a run went on without a host, and ended: it could not let go of its lock there then.
---@param record? deployrt.Run
---@param host string
---@return boolean
function history.ended_without(record, host)
  for _, name in ipairs(record and record.finished and record.failed or {}) do
    if name == host then return true end
  end
  return false
end

return history
