-- progress.lua -- How a run is shown while it happens: live, a line an event, JSON, or only what went wrong.
local text = require "deployrt.progress.text"

local progress = {}

---@class deployrt.ProgressOptions
---@field mode "live"|"lines"|"json"|"quiet"
---@field write fun(text: string)         to standard output
---@field write_error fun(text: string)   to standard error
---@field now fun(): number               seconds, monotonic
---@field clock fun(): number             seconds since 1970
---@field color? boolean                  may use colours
---@field ascii? boolean                  must not use anything but ASCII symbols
---@field verbose? boolean                observations too
---@field columns? integer                of the terminal; default 80
---@field rows? integer                   of the terminal; default 24
---@field size? fun(): integer, integer   columns and rows now, for the live view

---@class deployrt.Progress
local Progress = {}
Progress.__index = Progress

local rooms = {
  live = "deployrt.progress.live", lines = "deployrt.progress.lines", json = "deployrt.progress.json",
  quiet = "deployrt.progress.lines",
}

--- Opens a view of one run.
---@param options deployrt.ProgressOptions
---@return deployrt.Progress
function progress.open(options)
  local room = rooms[options.mode]
  if not room then error(("progress: no mode '%s'"):format(tostring(options.mode)), 2) end
  return setmetatable({ view = require(room).open(options), clock = options.clock }, Progress)
end

--- Shows an event. It gets the time, and the run named by `run.started`; the caller's table stays as it is.
---@param event table
function Progress:emit(event)
  local stamped = {}
  for key, value in pairs(event) do stamped[key] = value end
  if event.event == "run.started" then self.run = event.run end
  stamped.time = event.time or text.iso(self.clock())
  stamped.run = event.run or self.run
  self.view:event(stamped)
end

--- Redraws the live view, where something has changed; call it about eight times a second.
function Progress:tick()
  if not self.closed then self.view:tick() end
end

--- Leaves the terminal as it should be; the live view prints its summary now. A second call does nothing.
function Progress:close()
  if self.closed then return end
  self.closed = true
  self.view:close()
end

return progress
