-- sim/memory.lua -- The controller's side of a simulation: journals on a disk that is a table, and a history of runs.
local errors = require "deployrt.errors"
local files = require "deployrt.state"

local memory = {}

---@class deployrt.sim.Disk: deployrt.Disk
local Disk = {}

local File = {}
File.__index = File

--- Appends; fails as a full disk does.
---@param text string
function File:write(text)
  local disk = self.disk
  if disk.full then return nil, errors.new("system", self.path .. ": no space left on device") end
  disk.on_record("before")
  local chunks = disk.files[self.path]
  chunks[#chunks + 1] = text
  disk.on_record("after")
  return true
end

function File:sync()
  return true
end

function File:close() end

--- A disk; `on_record(when)` is called around each record of a journal, and may never return.
---@param on_record fun(when: "before"|"after")
function Disk.new(on_record)
  local disk = { files = {}, on_record = on_record }
  function disk.read(path) return table.concat(disk.files[path] or {}) end
  function disk.write(path, text)
    disk.files[path] = { text }
    return true
  end
  function disk.append(path)
    disk.files[path] = disk.files[path] or {}
    return setmetatable({ disk = disk, path = path }, File)
  end
  return disk
end

---@class deployrt.sim.State: deployrt.State
local State = {}
State.__index = State

--- The state of one machine on which a controller runs.
---@param name string  begins the ids of its runs
---@param on_record fun(when: "before"|"after")
---@return deployrt.sim.State
function memory.state(name, on_record)
  return setmetatable({ name = name, records = {}, ids = {}, disk = Disk.new(on_record), created = 0 }, State)
end

function State:create()
  self.created = self.created + 1
  local id = ("%s-%d"):format(self.name, self.created)
  return id, self:directory(id)
end

---@param id string
---@return string path  of the run, in memory
function State:directory(id)
  return "/runs/" .. id
end

--- Keeps what is known of a run.
---@param id string
---@param record table
function State:save(id, record)
  if not self.records[id] then self.ids[#self.ids + 1] = id end
  self.records[id] = record
end

--- Forgets a run that never began.
---@param id string
function State:forget(id)
  self.disk.files[self:directory(id) .. "/journal"] = nil
  self.records[id] = nil
  for i = #self.ids, 1, -1 do
    if self.ids[i] == id then table.remove(self.ids, i) end
  end
end

function State:runs()
  local list = {}
  for i, id in ipairs(self.ids) do list[i] = self.records[id] end
  return list
end

---@param id string
---@return boolean
function State:is_over(id)
  return self.records[id] ~= nil and self.records[id].finished ~= nil
end

function State:last_success()
  return files.last_success(self:runs())
end

return memory
