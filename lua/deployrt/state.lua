-- state.lua -- What the controller remembers of runs: a directory a run, with its journal and its outcome.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

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
  local base = directory or ((os.getenv("XDG_STATE_HOME") or (core.whoami().home .. "/.local/state")) .. "/deployrt")
  return setmetatable({ path = base .. "/" .. app }, State)
end

--- A new run's directory and id; ids sort by time.
---@return string id
---@return string path
function State:create()
  local now = core.time()
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

--- Writes what is known of a run, whole.
function State:save(id, record)
  errors.check(core.fs.write(("%s/runs/%s/run.json"):format(self.path, id), json.encode(record) .. "\n"))
end

--- Forgets a run that never began.
function State:forget(id)
  for _, name in ipairs { "run.json", "journal" } do core.fs.remove(("%s/runs/%s/%s"):format(self.path, id, name)) end
  core.fs.remove(("%s/runs/%s"):format(self.path, id))
end

--- All runs, oldest first.
---@return table[]
function State:runs()
  local list = {}
  for _, id in ipairs(core.fs.list(self.path .. "/runs") or {}) do
    local file = io.open(("%s/runs/%s/run.json"):format(self.path, id))
    if file then
      local ok, record = pcall(json.decode, file:read("a"))
      file:close()
      if ok then list[#list + 1] = record end
    end
  end
  return list
end

--- Whether a run is known here, and has ended.
---@param id string
---@return boolean
function State:is_over(id)
  for _, run in ipairs(self:runs()) do
    if run.id == id then return run.finished ~= nil end
  end
  return false
end

--- The last successful run: what serves now came from it.
---@return table?
function State:last_success()
  local found
  for _, run in ipairs(self:runs()) do
    if run.outcome == "succeeded" and run.strategy ~= "stop" then found = run end
  end
  return found
end

return state
