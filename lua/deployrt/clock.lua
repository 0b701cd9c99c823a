-- clock.lua -- The time of a run: it moves only when an operation ends, so that a replay sees the same times.
---@class deployrt.Clock
local Clock = {}
Clock.__index = Clock

local clock = {}

---@param present fun(): number  the time of the world, in seconds
---@return deployrt.Clock
function clock.new(present)
  return setmetatable({ value = 0, present = present, offset = -present() }, Clock)
end

--- Seconds since the run began, without those in which no controller was at work.
---@return number
function Clock:now()
  return self.value
end

--- Moves on to the present, in whole microseconds: a journal gives back the same number, and a replay compares it alike.
function Clock:tick()
  self.value = math.floor((self.present() + self.offset) * 1e6 + 0.5) / 1e6
end

--- Moves to a recorded time; the present goes on from there.
---@param value number
function Clock:set(value)
  self.value, self.offset = value, value - self.present()
end

return clock
