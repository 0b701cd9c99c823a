-- stopping.lua -- What ends a run before its time: signals, its timeout, an abort. What is in flight finishes first. Other work is
-- given up at once.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local stopping = {}

--- Asks a run to stop: everything is rolled back. One that is on its way back already goes on with it, and ends what may hold
--- it up.
---@param run table
---@param err deployrt.Error  the reason
function stopping.stop(run, err)
  if run.undoing then
    run.hurried, run.hurried_at = run.hurried or err, run.hurried_at or run.world:now()
    return run.hurry_event:set()
  end
  if run.stopping then return end
  if not run.turns.live then -- a replay goes to its end first
    run.stop_when_live = run.stop_when_live or err
    return
  end
  pcall(run.journal.write, run.journal, { type = "SIGNAL", code = err.code, message = err.message })
  run.stopping = err
  run.stop_event:set()
end

--- The same, as the journal has it.
---@param run table
---@param record table
function stopping.stop_again(run, record)
  run.stopping = errors.new(record.code, record.message)
  run.stop_event:set()
end

--- Hears signals, from before the lock is taken until the task is canceled. Losing the terminal stops no run.
---@param run table
---@param options {leave: fun(), signals?: function}  leave: ends the process, as a second signal asks; signals: default core.signals
---@return table task
function stopping.listen(run, options)
  return core.spawn(function()
    local signals <close>, heard = (options.signals or core.signals)("INT", "TERM", "HUP"), false
    while true do
      local name = signals:next()
      if not name then return end
      if name ~= "HUP" then
        if heard then options.leave() end
        heard = true
        if run.stopping or run.undoing then run.emit { event = "log", message = "it is being rolled back already: once more leaves at once, and the run unfinished" } end
        stopping.stop(run, errors.new("interrupted", "interrupted by SIG" .. name))
      end
    end
  end)
end

--- Stops a run that has worked for longer than it may, over all its lives; of a life that was killed, what counts is the
--- time to the last operation that ended in it.
---@param run table
---@param seconds number
---@return table task
function stopping.limit(run, seconds)
  return core.spawn(function()
    run.turns:await_live()
    if core.sleep(math.max(0, seconds - run.clock:now())) and not run.undoing then
      stopping.stop(run, errors.new("timeout", ("the run took longer than its timeout of %gs"):format(seconds)))
    end
  end)
end

--- The same where time is only pretended.
---@param run table
---@param seconds number
function stopping.pretend_limit(run, seconds)
  run.world:set_alarm(seconds, function()
    stopping.stop(run, errors.new("timeout", ("the run would take longer than its timeout of %gs"):format(seconds)))
  end)
end

--- Waits until tasks have ended. SIGINT or SIGTERM cancels them; one more ends us as it ends others.
---@async
---@param tasks table[]
---@param stopped? table  an event, which is set then: a cancellation may be swallowed by the wait that it ends
---@param ... string  other signals that do so
---@return string? signal  that came meanwhile
function stopping.until_signal(tasks, stopped, ...)
  local signal
  local names = { "INT", "TERM", ... }
  local listening = core.spawn(function()
    local signals <close> = core.signals(table.unpack(names))
    signal = signals:next()
    if signal and stopped then stopped:set() end
    for _, task in ipairs(signal and tasks or {}) do task:cancel() end
  end)
  for _, task in ipairs(tasks) do task:wait() end
  listening:cancel()
  listening:wait()
  return signal
end

return stopping
