-- state/copy.lua -- Keeps the copy of a run's journal in a state that has room for one (etcd), a moment behind.
local core = require "deployrt.core"
local journal = require "deployrt.journal"

---@class deployrt.JournalCopy
local Copy = {}
Copy.__index = Copy

local copy = {}

local every = 1 -- seconds

--- The journal of a run as a state has it; "" where it has none.
---@async
---@param state deployrt.State
---@param id string
---@return string text, integer chunks
function copy.read(state, id)
  if not state.read_journal then return "", 0 end
  return state:read_journal(id)
end

--- A copy that is brought up to date by flush(), and by a task until close(); nil when the state keeps none.
---@async
---@param state deployrt.State
---@param id string
---@param log deployrt.Journal
---@return deployrt.JournalCopy?
function copy.open(state, id, log)
  if not state.append_journal then return nil end
  local text, chunks = copy.read(state, id)
  local _, records = journal.restore(text)
  local self = setmetatable({ state = state, id = id, mirror = log:mirror(), chunks = chunks, active = true }, Copy)
  self.mirror.sent = records
  return self
end

--- Writes what the copy lacks.
---@async
--- Raises deployrt.Error: "etcd".
function Copy:flush()
  while true do
    local before = self.mirror.sent
    local text = self.mirror:take()
    if text == "" then return end
    local ok, err = pcall(self.state.append_journal, self.state, self.id, self.chunks + 1, text)
    if not ok then
      self.mirror.sent = before
      error(err, 0)
    end
    self.chunks = self.chunks + 1
  end
end

--- Keeps it up to date from now on. A state that is away for a while holds nobody up.
function Copy:keep()
  self.task = core.spawn(function()
    while self.active and core.sleep(every) do pcall(self.flush, self) end
  end)
end

--- The last records, and the end.
---@async
function Copy:close()
  self.active = false
  if self.task then
    self.task:cancel()
    self.task:wait()
  end
  pcall(self.flush, self)
end

return copy
