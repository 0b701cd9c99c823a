-- operation.lua -- The one door to the world: numbers, journals and undoes every effect and observation.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local journal = require "deployrt.journal"

local operation = {}

---@class deployrt.Operation
---@field name string            a function of the world: "instance.start"
---@field kind? "repeat"|"look"|"ask"  how it is settled when nobody knows whether it was done; default "repeat"
---@field host? deployrt.Host
---@field instance? string       "web1:8080", for people
---@field args table             plain data; no secrets
---@field undo? {name: string, args: table}|fun(found: any): {name: string, args: table}?  what puts it back
---@field find? string           an observation made before the effect; what it finds goes to `undo`
---@field note? string           for the live view

--- The run and the scope of the task that asks.
---@return table run
---@return deployrt.Scope scope
function operation.current()
  local locals = core.locals()
  if not (locals and locals.run) then errors.raise("usage", "this call only works while a strategy runs") end
  return locals.run, locals.scope
end

--- Raises when the run is being stopped, or a sibling of this task failed. Each operation and each wait begins here.
---@async
function operation.checkpoint()
  local run, scope = operation.current()
  if run.undoing then return end
  if run.stopping then error(run.stopping, 0) end
  local sibling = scope:is_abandoned()
  if sibling then errors.raise("abandoned", "given up because another one failed") end
end

local function hash(spec)
  return core.sha256(spec.name .. journal.canonical(spec.args)):sub(1, 16)
end

local function announce(run, spec, started, ok, err)
  run.emit {
    event = "op", op = spec.name, host = spec.host and spec.host.name, instance = spec.instance, ok = ok,
    seconds = core.now() - started, note = spec.note, release = spec.args.release, effect = not spec.observes,
    error = not ok and errors.text(err) or nil,
  }
end

--- Passes an operation to the world and records its outcome.
local function act(run, spec, id)
  local started = core.now()
  local ok, result = pcall(run.world.perform, run.world, spec, id)
  if not ok then result = run.mask(errors.wrap(result)) end
  run.journal:write { type = "DONE", id = id, ok = ok, result = ok and result or { code = result.code, message = result.message } }
  announce(run, spec, started, ok, result)
  if not ok then error(result, 0) end
  return result
end

--- Looks at the world; the answer is journaled.
---@async
---@param spec deployrt.Operation
function operation.observe(spec)
  operation.checkpoint()
  local run, scope = operation.current()
  spec.observes = true
  return act(run, spec, scope:next_id())
end

--- The compensation of an effect, as an operation of its own when the time comes.
local function compensation(spec, undo)
  return {
    label = spec.name, host = spec.host and spec.host.name,
    run = function()
      operation.effect { name = undo.name, kind = undo.kind or "repeat", host = spec.host, instance = spec.instance,
        args = undo.args, note = undo.note, undoes = true }
    end,
  }
end

--- Changes the world: what is there is recorded first, the intent is on the disk before the effect, the way back is
--- registered before it too.
---@async
---@param spec deployrt.Operation
function operation.effect(spec)
  operation.checkpoint()
  local run, scope = operation.current()
  local id = scope:next_id()
  local found = spec.find and run.world:perform({ name = spec.find, host = spec.host, args = spec.args }, id)
  local undo = spec.undo
  if type(undo) == "function" then undo = undo(found) end
  run.journal:write {
    type = "INTENT", id = id, op = spec.name, kind = spec.kind or "repeat", host = spec.host and spec.host.name,
    args = spec.args, hash = hash(spec), found = found, undo = undo,
  }
  run.journal:sync()
  if undo and not run.undoing then scope:push(compensation(spec, undo)) end
  run.changed = true
  return act(run, spec, id)
end

--- Waits, unless the run is stopped meanwhile.
---@async
---@param seconds number
function operation.sleep(seconds)
  local run = operation.current()
  local deadline = core.now() + seconds
  repeat
    operation.checkpoint()
    local left = math.max(0, deadline - core.now())
    if run.undoing then core.sleep(left) else run.stop_event:wait(math.min(left, 0.25)) end
  until core.now() >= deadline
  operation.checkpoint()
end

--- Runs `fn` in a scope below the present one, so that its undo is grouped.
---@async
function operation.within(scope, fn, ...)
  local locals = core.locals()
  local before = rawget(locals, "scope")
  locals.scope = scope
  local result = table.pack(pcall(fn, ...))
  locals.scope = before
  if not result[1] then error(result[2], 0) end
  return table.unpack(result, 2, result.n)
end

return operation
