-- pace.lua -- Where time is only pretended, a loop that waits for nothing would go on for ever: it is found by what it does in a second.
local errors = require "deployrt.errors"

---@class deployrt.Pace
---@field most integer    records of a journal within a second
---@field count integer   since then
---@field since number
local Pace = {}
Pace.__index = Pace

local pace = {}

local least, for_each = 20000, 200 -- records: of any run, and of one more instance

---@param instances integer  of the application
---@return deployrt.Pace
function pace.new(instances)
  return setmetatable({ most = least + for_each * instances, count = 0, since = 0 }, Pace)
end

--- Counts one more record.
---@param now number  seconds
--- Raises deployrt.Error: "strategy", and counts anew: what is undone then has its own.
function Pace:step(now)
  if now - self.since >= 1 then self.count, self.since = 0, now end
  self.count = self.count + 1
  if self.count <= self.most then return end
  self.count = 0
  errors.raise("strategy", ("more than %d records of its journal within a second: is there a loop that waits for nothing?"):format(self.most))
end

return pace
