-- state.lua -- What the controller remembers of runs: a directory a run, with its journal and its outcome.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Run       what is remembered of one
---@field id string
---@field app string
---@field strategy string
---@field kind "deploy"|"rollback"|"stop"|"repl"
---@field release string
---@field previous? string   the release that served when it began
---@field launch table       what it deployed, and how that is started
---@field previous_launch? table
---@field user string        who began it
---@field controller string  the machine that he did so on
---@field hosts integer      how many it had
---@field failed? string[]   those that it went on without
---@field started number     seconds since 1970
---@field finished? number   nil: it has not ended
---@field outcome string     "running", "succeeded", "rolled_back", ...
---@field exit? integer

---@class deployrt.State
local State = {}
State.__index = State

local state = {}
local json = cjson.new()

local function make_directories(path)
  local at = path:sub(1, 1) == "/" and "" or "."
  for part in path:gmatch("[^/]+") do
    at = at .. "/" .. part
    local stat = core.fs.stat(at)
    if not stat then errors.check(core.fs.mkdir(at)) end
  end
end

--- Opens the state of an application; `directory` is --state, or nil for the user's own.
---@param app string
---@param directory? string
---@return deployrt.State
function state.open(app, directory)
  local given = os.getenv("XDG_STATE_HOME") or ""
  local base = given ~= "" and given or core.whoami().home .. "/.local/state"
  return setmetatable({ path = (directory or base .. "/deployrt") .. "/" .. app }, State)
end

--- Whether it can be had: nobody needs to answer for a directory.
function State:check() end

--- What can be asked of it now.
---@return deployrt.State
---@return deployrt.Error? away  why that is not all
function State:at_hand()
  return self
end

--- The present, or a moment after the last run where the clock was set back: the newest run must sort last.
local function moment(self)
  local now, names = core.time(), core.fs.list(self.path .. "/runs") or {}
  local y, mo, d, h, mi, s, ms = (names[#names] or ""):match("^(%d%d%d%d)(%d%d)(%d%d)T(%d%d)(%d%d)(%d%d)%.(%d%d%d)%-")
  if not y then return now end
  local days = (os.time { year = y, month = mo, day = d, hour = 12 } - os.time { year = 1970, month = 1, day = 1, hour = 12 }) // 86400
  return math.max(now, days * 86400 + h * 3600 + mi * 60 + s + ms / 1000 + 0.0015)
end

--- A new run's directory and id; ids sort by time.
---@return string id
---@return string path
function State:create()
  local now = moment(self)
  local id = ("%s.%03d-%s"):format(os.date("!%Y%m%dT%H%M%S", math.floor(now)), math.floor(now * 1000) % 1000,
    core.sha256(tostring(now) .. core.whoami().pid):sub(1, 6))
  return id, self:directory(id)
end

--- The directory of a run; it is made when it is not there.
---@param id string
---@return string path
function State:directory(id)
  local path = ("%s/runs/%s"):format(self.path, id)
  make_directories(path)
  return path
end

--- The path of a file about what this machine does for the application.
---@param name string
---@return string path
function State:file(name)
  make_directories(self.path)
  return self.path .. "/" .. name
end

--- Writes what is known of a run, whole.
function State:save(id, record)
  errors.check(core.fs.write(("%s/runs/%s/run.json"):format(self.path, id), json.encode(record) .. "\n"))
end

--- Forgets a run that never began.
function State:forget(id)
  for _, name in ipairs { "run.json", "journal" } do core.fs.remove(("%s/runs/%s/%s"):format(self.path, id, name)) end
  core.fs.remove(("%s/runs/%s"):format(self.path, id))
end

--- Remembers a group of hosts that a command gives.
---@param group deployrt.HostGroup
function State:save_group(group)
  make_directories(self.path .. "/groups")
  errors.check(core.fs.write(("%s/groups/%s.json"):format(self.path, group.name), json.encode(group) .. "\n"))
end

---@param name string
function State:forget_group(name)
  errors.check(core.fs.remove(("%s/groups/%s.json"):format(self.path, name)))
end

--- All groups of hosts that are remembered, oldest first.
---@return deployrt.HostGroup[]
function State:groups()
  local list = {}
  for _, name in ipairs(core.fs.list(self.path .. "/groups") or {}) do
    local file = io.open(("%s/groups/%s"):format(self.path, name))
    local ok, group = pcall(json.decode, file and file:read("a") or "")
    if file then file:close() end
    if not ok then errors.raise("state", ("%s/groups/%s is damaged: its hosts may still be there; look at it, and remove it"):format(self.path, name)) end
    list[#list + 1] = group
  end
  table.sort(list, function(a, b) return a.since < b.since end)
  return list
end

local no_such_file = 2 -- ENOENT

--- What is known of a run; nil and why not. One that is about to begin has no record yet, and one that is damaged is none.
local function record(self, id)
  local file <close>, reason, number = io.open(("%s/runs/%s/run.json"):format(self.path, id))
  if not file then return nil, number ~= no_such_file and reason or nil end
  local ok, found = pcall(json.decode, file:read("a") or "")
  return ok and found or nil
end

--- All runs, oldest first.
---@return deployrt.Run[]
---@return deployrt.Error? problem  why some may be missing
function State:runs()
  local list, why = {}, nil
  local ids, err = core.fs.list(self.path .. "/runs")
  if not ids and err.code ~= "missing" then why = err.message end
  for _, id in ipairs(ids or {}) do
    local found, reason = record(self, id)
    list[#list + 1], why = found, why or reason
  end
  return list, why and errors.new("state", ("the history cannot be read: %s; let this user read it, or name another directory with --state"):format(why))
end

--- The same, by their ids.
---@return table<string, table>
function State:by_id()
  local found = {}
  for _, run in ipairs(self:runs()) do found[run.id] = run end
  return found
end

--- Whether a run is known here, and has ended.
---@param id string
---@return boolean
function State:is_over(id)
  local run = self:by_id()[id]
  return run ~= nil and run.finished ~= nil
end

local by_hand = { stop = true, repl = true } -- what they leave was not deployed

local function deployed(run)
  return run.outcome == "succeeded" and not by_hand[run.strategy]
end

--- The last of some runs that deployed something.
---@param runs table[]  records, oldest first
---@return table?
function state.last_success(runs)
  for i = #runs, 1, -1 do
    if deployed(runs[i]) then return runs[i] end
  end
end

--- The last run that deployed something: what serves now came from it, unless it was stopped by hand.
---@return table?
function State:last_success()
  local ids = core.fs.list(self.path .. "/runs") or {}
  for i = #ids, 1, -1 do
    local run = record(self, ids[i])
    if run and deployed(run) then return run end
  end
end

return state
