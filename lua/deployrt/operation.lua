-- operation.lua -- The one door to the world: numbers, journals and undoes every effect and observation.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local journal = require "deployrt.journal"
local slot_name = require "deployrt.slot_name"
local trace = require "deployrt.trace"
local turns = require "deployrt.turns"
local undo = require "deployrt.undo"

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
---@field quiet? boolean         of no interest to who watches

--- The run and the scope of the task that asks.
---@return table run
---@return deployrt.Scope scope
function operation.current()
  local locals = core.locals()
  if not (locals and locals.run) then errors.raise("usage", "this call only works while a strategy runs") end
  return locals.run, locals.scope
end

--- Whether this task puts something back.
---@return boolean
function operation.is_undoing()
  return core.locals().undoing == true
end

local always = core.event() -- whoever can wait gets past it at once
always:set()

--- Raises where nobody can wait, such as a coroutine of a script's own: that is at the script's line, whoever catches it.
---@async
function operation.check_can_wait()
  local ok, problem = pcall(always.wait, always)
  if ok then return end
  local place = type(problem) == "string" and trace.place()
  error(place and ("%s: %s"):format(place, problem) or problem, 0)
end

local most_refusals = 10000 -- of one task

--- Raises what says that a task is to do nothing more. A script that asks on and on, whatever it catches, waits for nothing meanwhile and
--- lets nobody else have a turn: it has passed its limit of instructions then.
local function refuse(err)
  local locals = core.locals()
  locals.refused = (rawget(locals, "refused") or 0) + 1
  if locals.refused > most_refusals then
    local before = core.exempt(false)
    core.charge(math.huge)
    core.exempt(before)
  end
  error(err, 0)
end

local hurried_undo = 10 -- seconds

--- Raises when what a script has written itself to undo something has had its time, or somebody has asked for an end meanwhile.
local function check_own_undo(run, own)
  local now = run.world:now()
  if run.hurried and now >= run.hurried_at + hurried_undo then refuse(run.hurried) end
  if now >= own.till then refuse(errors.new("timeout", ("it took longer than %d s"):format(own.seconds))) end
end

--- Raises when the run is being stopped, or a sibling of this task failed. Each operation and each wait begins here.
---@async
function operation.checkpoint()
  local run, scope = operation.current()
  operation.check_can_wait()
  local locals = core.locals()
  if locals.undoing then return locals.own_undo and check_own_undo(run, locals.own_undo) end
  if run.stopping then refuse(run.stopping) end
  local sibling = scope:is_abandoned()
  if sibling then refuse(errors.new("abandoned", "given up because another one failed")) end
end

--- Has what this task does from now on end within a time: a script's own undo, which nothing else ends.
---@param seconds number
function operation.limit_own_undo(seconds)
  core.locals().own_undo = { till = operation.current().world:now() + seconds, seconds = seconds }
end

--- Lets what the runtime does for a script work without that script's limits: it comes to its end, though the script has passed them.
---@param fn fun(...): ...
---@return fun(...): ...
function operation.exempt(fn)
  local function leave(before, ok, ...)
    core.exempt(before)
    if not ok then error(..., 0) end
    return ...
  end
  return function(...)
    return leave(core.exempt(true), pcall(fn, ...))
  end
end

--- Waits until the journal is exhausted. When it tells of a rollback, the strategy itself does nothing new any more: what
--- ended it left perhaps no record.
---@async
function operation.await_live()
  local run = operation.current()
  if run.turns:await_live() then operation.checkpoint() end
  if run.turns.unwinding and not core.locals().undoing then errors.raise("unwinding", "the run was being rolled back already") end
end

--- What tells an operation from another one at the same place; a rehearsal is never replayed.
local function hash(run, spec)
  return not run.rehearsing and core.sha256(spec.name .. journal.canonical(spec.args)):sub(1, 16) or nil
end

--- A result as a journal would give it back. A pretended world gives plain data that nobody else holds.
local function plain(run, result)
  return run.rehearsing and result or journal.plain(result)
end

local function announce(run, spec, started, ok, err)
  run.emit {
    event = "op", op = spec.name, host = spec.host and spec.host.name, instance = spec.instance, ok = ok,
    seconds = core.now() - started, note = spec.note, release = spec.args.release, effect = not (spec.observes or spec.quiet),
    error = not ok and errors.text(err) or nil,
  }
end

--- Waits for this operation's turn, and moves the run's clock on.
local function take_turn(run, id)
  run.turns:await(id)
  run.clock:tick()
end

--- Records what came of an operation, and hands it on.
local function conclude(run, spec, id, started, ok, result)
  result = ok and plain(run, result) or not ok and run.mask(errors.wrap(result)) or nil
  if not ok and result.code == "superseded" then run.leave(result) end
  take_turn(run, id)
  run.journal:write {
    type = "DONE", id = id, op = spec.name, hash = spec.observes and hash(run, spec) or nil, at = run.clock:now(), ok = ok,
    result = ok and result or nil,
    error = not ok and { code = result.code, message = result.message, host = result.host, detail = result.detail } or nil,
  }
  announce(run, spec, started, ok, result)
  if not ok then error(result, 0) end
  return result
end

--- Passes an operation to the world.
local function act(run, spec, id)
  return conclude(run, spec, id, core.now(), pcall(run.world.perform, run.world, spec, id))
end

--- The result that the journal has. It is handed out in the order in which it came then.
local function hand_back(run, spec, id, done)
  run.turns:await(id)
  run.clock:set(done.at)
  if not done.ok then error(errors.new(done.error.code, done.error.message, { host = done.error.host, detail = done.error.detail }), 0) end
  if not run.undoing then run.world:recall(spec) end -- a rollback that goes on began with what is there
  return done.result
end

--- What the journal has of this operation; raises when it is another one than the script asks for now.
local function recall(run, spec, id)
  local intent, done = run.turns:past(id)
  local record = intent or done
  if record and (record.op ~= spec.name or (record.hash and record.hash ~= hash(run, spec))) then
    local host = spec.host and " on " .. spec.host.name or ""
    run.turns:fail(turns.mismatch(("%s: the journal has %s here, and the strategy asks for %s%s%s"):format(
      id, record.op, spec.name, host, record.op == spec.name and " with other arguments" or "")))
    error(run.turns.failed, 0)
  end
  return intent, done
end

--- Looks at the world; the answer is journaled.
---@async
---@param spec deployrt.Operation
operation.observe = operation.exempt(function(spec)
  operation.checkpoint()
  local run, scope = operation.current()
  spec.observes = true
  local id = scope:next_id()
  local _, done = recall(run, spec, id)
  if done and (done.ok or not operation.is_undoing()) then return hand_back(run, spec, id, done) end -- on the way back it is asked again
  operation.await_live()
  return act(run, spec, id)
end)

--- The compensation of an effect, as an operation of its own when the time comes; nil when there is nothing to put back.
---@param intent table          as the journal has it
---@param host? deployrt.Host
---@return {label: string, host?: string, run: fun()}?
function operation.compensation(intent, host)
  local back = intent.undo
  return back and {
    id = intent.id, label = intent.op, host = intent.host, instance = intent.instance, back = back.name,
    run = function()
      operation.effect { name = back.name, kind = back.kind or "repeat", host = host, instance = intent.instance,
        args = back.args, note = back.note, undoes = intent.id }
    end,
  }
end

--- What looks before a run begins only looks: nothing would hold the lock, and nothing would undo it.
local function refuse_in_check(run, name)
  if run.checking then errors.raise("usage", ("check runs before anything is touched, and %s changes something: do that in deploy"):format(name)) end
end

--- What is there before an effect. When that cannot be told, the effect has failed before it began.
local function find(run, spec, id)
  local started = core.now()
  local ok, found = pcall(run.world.perform, run.world, { name = spec.find, host = spec.host, args = spec.args }, id)
  return ok and plain(run, found) or conclude(run, spec, id, started, false, found)
end

--- A host that the run goes on without is left as it is.
local function refuse_given_up(run, host)
  if host and run.fleet.given_up[host.name] and not core.locals().undoing then
    errors.raise("given_up", ("the run goes on without %s"):format(host.name), { host = host.name })
  end
end

--- Begins an effect: what is there is recorded first, and the intent is on the disk before the effect.
local function intend(run, spec, id)
  local found = spec.find and find(run, spec, id)
  local back = spec.undo
  if type(back) == "function" then back = back(found) end
  local intent = {
    type = "INTENT", id = id, op = spec.name, kind = spec.kind or "repeat", host = spec.host and spec.host.name,
    instance = spec.instance, args = spec.args, hash = hash(run, spec), found = found, undo = back,
  }
  run.journal:write(intent)
  run.journal:sync()
  return intent
end

--- Before what may have been done already is repeated or looked at; a person was asked before the run went live. On the way
--- back nobody was asked.
local function settle(run, spec, id)
  run.turns:await_live()
  local undoing = core.locals().undoing
  if undoing and spec.kind == "ask" or run.stopping and not undoing then run.world:forsake(spec, id) end
  if run.stopping and not undoing then error(run.stopping, 0) end
end

--- What is left of a compensation that failed, and is tried again.
---@return deployrt.Operation? spec  nil: nothing
local function what_is_left(run, spec, id)
  local args = run.world:remainder(spec, function(concerns) return run.turns:is_overtaken(id, spec.name, concerns) end)
  return args and setmetatable({ args = args }, { __index = spec })
end

--- Changes the world. The way back is registered before the effect.
---@async
---@param spec deployrt.Operation
operation.effect = operation.exempt(function(spec)
  operation.checkpoint()
  local run, scope = operation.current()
  refuse_in_check(run, spec.name)
  refuse_given_up(run, spec.host)
  local id = spec.undoes and "undo" .. spec.undoes or scope:next_id()
  local intent, done = recall(run, spec, id)
  local in_doubt, undoing = intent ~= nil and done == nil, core.locals().undoing
  if done and not (intent or undoing) then return hand_back(run, spec, id, done) end -- it failed before it began
  if not intent then
    operation.await_live()
    intent = intend(run, spec, id)
  end
  if intent.undo and not undoing then scope:push(operation.compensation(intent, spec.host)) end
  run.changed = true
  local again = undoing and run.turns.live -- what could not be undone is tried again
  if done and (done.ok or not again) then return hand_back(run, spec, id, done) end
  if in_doubt then settle(run, spec, id) end
  if done then spec = what_is_left(run, spec, id) end
  return spec and act(run, spec, id) or {}
end)

--- Waits, unless the run is stopped meanwhile; in a script's own undo, unless somebody asks for that again.
local function rest(run, seconds)
  local world, locals = run.world, core.locals()
  local own_undo = locals.undoing and locals.own_undo
  local deadline = world:now() + seconds
  repeat
    operation.checkpoint()
    if own_undo and run.hurried then refuse(run.hurried) end
    world:rest(math.max(0, deadline - world:now()), not locals.undoing and run.stop_event or own_undo and run.hurry_event or nil)
  until world:now() >= deadline
end

--- Something that only takes time, and is in the journal like an operation, with what came of it.
local function pass(name, fields, wait)
  operation.checkpoint()
  local run, scope = operation.current()
  local id = scope:next_id()
  local begun, done = run.turns:past(id)
  local result
  if done then
    result = hand_back(run, { name = name, args = {} }, id, done)
  else
    operation.await_live()
    if not begun then
      begun = { type = "WAIT", id = id, op = name }
      for key, value in pairs(fields) do begun[key] = value end
      run.journal:write(begun)
    end
    result = wait(run, begun)
    take_turn(run, id)
    run.journal:write { type = "DONE", id = id, op = name, at = run.clock:now(), ok = true, result = result }
  end
  return result
end

--- Waits until a moment that the journal keeps, unless the run is stopped meanwhile.
---@async
---@param seconds number
operation.sleep = operation.exempt(function(seconds)
  local run = operation.current()
  if core.locals().undoing then return rest(run, seconds) end
  pass("sleep", { till = run.world:wall() + seconds }, function(_, begun)
    rest(run, math.max(0, math.min(seconds, begun.till - run.world:wall())))
  end)
  operation.checkpoint()
end)

--- Waits for a person.
---@async
---@param question string
---@param answers? string[]  those that let it through; default: any approval
---@return string? answer
operation.gate = operation.exempt(function(question, answers)
  refuse_in_check(operation.current(), "approve")
  local answer = pass("gate", { question = question }, function(run) return run.control:gate(run, question, answers) end)
  operation.checkpoint()
  return answer
end)

--- The run's time in seconds: it moves when an operation ends, and is the same in a replay.
---@return number
function operation.now()
  return operation.current().clock:now()
end

--- A slot whose process could not be put back gets no traffic back either, until it is put back: that compensation fails, too.
local function hold_back(run, entry, is_held)
  local context = run.world.context
  if context and entry.instance then context.held_back[slot_name.of_label(entry.instance)] = is_held or nil end
end

--- What these have done stays. A run that fails later says what that was.
---@param run table
---@param compensations table[]
function operation.let_stand(run, compensations)
  run.committed = run.committed or {}
  table.move(compensations, 1, #compensations, #run.committed + 1, run.committed)
end

--- Forgets how to undo what was done so far.
---@async
operation.commit = operation.exempt(function()
  local run, scope = operation.current()
  refuse_in_check(run, "commit")
  pass("commit", {}, function() return { beside = scope:beside() } end)
  operation.let_stand(run, scope:commit())
  operation.checkpoint()
end)

--- Undoes a scope now; whatever stops the run does not stop this.
---@async
---@param scope deployrt.Scope
---@return table[] failures  {label, host, error} of each that failed
function operation.unwind(scope)
  local locals, failures, run = core.locals(), {}, operation.current()
  local before = rawget(locals, "undoing")
  locals.undoing = true
  undo.unwind(scope, function(entry)
    local ok, err = pcall(entry.run)
    hold_back(run, entry, not ok)
    if not ok then error(err, 0) end
  end, failures)
  locals.undoing = before
  return failures
end

--- Runs `fn` in a scope below the present one, so that its undo is grouped.
---@async
function operation.within(scope, fn, ...)
  local locals = core.locals()
  local before = rawget(locals, "scope")
  locals.scope = scope
  local result = table.pack(xpcall(fn, trace.handler, ...))
  locals.scope = before
  if not result[1] then error(result[2], 0) end
  return table.unpack(result, 2, result.n)
end

return operation
