-- sim/agenda.lua -- What happens in a simulated world by itself, at its time: no controller's death stops it.
local core = require "deployrt.core"

---@class deployrt.sim.Agenda
local Agenda = {}
Agenda.__index = Agenda

local agenda = {}

---@return deployrt.sim.Agenda
function agenda.new()
  return setmetatable({ entries = {}, count = 0, sooner = core.event() }, Agenda)
end

--- Has something happen after so many seconds.
---@param seconds number
---@param action fun()
function Agenda:after(seconds, action)
  local at, entries = core.now() + math.max(0, seconds), self.entries
  local place, above = 1, #entries + 1 -- the last one is the next to come
  while place < above do
    local middle = (place + above) // 2
    if entries[middle].at > at then place = middle + 1 else above = middle end
  end
  table.insert(entries, place, { at = at, action = action })
  if place == #entries then self.sooner:set() end
end

--- Lets things happen, until close().
---@async
function Agenda:serve()
  while not self.closed do
    local entries = self.entries
    local first = entries[#entries]
    if first and first.at <= core.now() then
      entries[#entries] = nil
      first.action()
    else
      self.sooner:clear()
      if first then self.sooner:wait(first.at - core.now()) else self.sooner:wait() end
    end
  end
end

function Agenda:close()
  self.closed = true
  self.sooner:set()
end

return agenda
