-- resume/alone.lua -- Undoing a run from its journal alone: no script is asked.
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"
local repair = require "deployrt.resume.repair"

local alone = {}

local function is_below(id, path)
  return id:find("^[/#]", #path + 1) ~= nil and id:sub(1, #path) == path
end

--- What had been committed is not undone, but for what ran beside that.
---@param beside {all: string, but: string}[]  paths
local function let_stand(run, scope, beside)
  local settled = {}
  for _, entry in ipairs(scope:commit()) do
    local open = false
    for _, each in ipairs(beside) do open = open or is_below(entry.id, each.all) and not is_below(entry.id, each.but) end
    if open then scope:push(entry) else settled[#settled + 1] = entry end
  end
  operation.let_stand(run, settled)
end

--- Undoes what a journal tells without running the strategy: one operation after the other, from the last to the first.
---@param records table[]
---@param hush? fun(run: table)  keeps the run from telling others
---@return fun(run: table)
function alone.undo_all(records, hush)
  return function(run)
    if hush then hush(run) end
    local hosts, done, scope = {}, {}, run.root
    run.found = {} -- that is what is there now, and not what was there at the beginning
    for _, host in ipairs(run.session.hosts) do hosts[host.name] = host end
    for _, record in ipairs(records) do
      if record.type == "DONE" then done[record.id] = record end
    end
    for _, record in ipairs(records) do
      local host = hosts[record.host or ""]
      if record.op == "commit" and record.type == "DONE" then
        let_stand(run, scope, record.result.beside)
      elseif record.type == "INTENT" and record.id:sub(1, 1) == "/" then
        if not done[record.id] then pcall(run.world.forsake, run.world, { name = record.op, host = host, args = record.args }, record.id) end
        if done[record.id] and done[record.id].ok then run.world:recall { name = record.op, host = host, args = record.args } end
        local compensation, away = operation.compensation(record, host), run.session.unreachable[record.host or ""]
        if compensation and away then compensation.run = function() error(away, 0) end end
        if compensation then scope:push(compensation) end
      end
    end
    repair.want_what_is_there(run) -- some of it may be undone already
    errors.raise("aborted", "aborted, from the journal alone")
  end
end

--- What an earlier life has undone already, or tried to, and which processes there were.
---@param records table[]
---@return table[]
function alone.undone(records)
  local list = {}
  for _, record in ipairs(records) do
    if record.type == "PROCESS" or record.id and record.id:sub(1, 4) == "undo" then list[#list + 1] = record end
  end
  return list
end

--- Once a run was undone from the journal alone, no script goes on with it any more.
---@param records table[]
---@return boolean
function alone.was_forced(records)
  for _, record in ipairs(records) do
    if record.type == "RESUMED" and record.force then return true end
  end
  return false
end

return alone
