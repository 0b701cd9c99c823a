-- history.lua -- Runs that another machine made, or ended: hosts keep the last records of their journals.
local connection = require "deployrt.connection"
local fleet = require "deployrt.fleet"
local journal = require "deployrt.journal"
local leftover = require "deployrt.leftover"

local history = {}

local asked = 3 -- hosts: as many as keep copies of a journal

--- Whether nobody will take a run up any more: from then on its record stays as it is.
local function is_closed(record)
  return record.finished ~= nil and not leftover.is_open(record)
end

--- The runs that hosts know to be over; one that needed attention may be closed by now, and only some of the hosts have heard.
local function ended_runs(lines)
  local answers = fleet.together(table.move(lines, 1, asked, 1, {}), function(line)
    local ok, text = pcall(line.call, line, "runs_ended")
    return ok and text or "" -- one that is away says nothing
  end)
  local records = {}
  for _, text in ipairs(answers) do
    for _, each in ipairs(journal.whole(text)) do
      local record = each.type == "FINISHED" and each.record
      if record and not (records[record.id] and is_closed(records[record.id])) then records[record.id] = record end
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
  for _, run in ipairs(state:runs()) do known[run.id] = run end
  for id, record in pairs(ended_runs(lines)) do
    local before = known[id]
    if not (before and before.finished) or not is_closed(before) and is_closed(record) then
      pcall(function() -- a disk that is full keeps nobody from asking
        state:directory(id)
        state:save(id, record)
      end)
    end
  end
end

--- The same on connections of its own, to as few hosts as need be asked.
---@async
---@param state deployrt.State
---@param app deployrt.App
---@return string[] away  names of hosts that cannot be asked
function history.ask(state, app)
  local lines, there, away = {}, {}, {}
  local closing <close> = setmetatable({}, { __close = function()
    for _, line in ipairs(lines) do line:close() end
  end })
  for i = 1, math.min(asked, #app.hosts) do lines[i] = connection.new(app.hosts[i], app.app) end
  local answers = fleet.together(lines, function(line) return (pcall(line.connect, line)) end)
  for i, line in ipairs(lines) do
    if answers[i] then there[#there + 1] = line else away[#away + 1] = line.name end
  end
  history.learn(state, there)
  return away
end

--- All runs, oldest first, where one that is missing would lead to a wrong answer.
---@param state deployrt.State
---@return deployrt.Run[]
--- Raises deployrt.Error: "state".
function history.all(state)
  local runs, problem = state:runs()
  if problem then error(problem, 0) end
  return runs
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
