-- resume.lua -- Taking up a run that was interrupted: find its journal, replay it, look at the world, and go on.
local advice = require "deployrt.advice"
local alone = require "deployrt.resume.alone"
local config = require "deployrt.config"
local copy = require "deployrt.state.copy"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local history = require "deployrt.history"
local inventory = require "deployrt.inventory"
local journal = require "deployrt.journal"
local keep = require "deployrt.config.keep"
local leftover = require "deployrt.leftover"
local library = require "deployrt.library"
local life = require "deployrt.life"
local lock = require "deployrt.lock"
local operation = require "deployrt.operation"
local repair = require "deployrt.resume.repair"
local schema = require "deployrt.schema"
local session = require "deployrt.session"
local strategy = require "deployrt.strategy"
local undo = require "deployrt.undo"

local resume = {}

---@class deployrt.Past  the earlier lives of a run
---@field id string
---@field path string      its directory on this machine
---@field header table
---@field records table[]  of the journal, without the header
---@field abort? boolean
---@field force? boolean  a person wants it undone from the journal alone
---@field state deployrt.State
---@field file string     app.yml as the user named it
---@field epoch fun(lines: deployrt.Connection[]): integer
---@field go_live fun(run: table)

local own_strategies = { rollback = "deployrt.rollback", stop = "deployrt.stop", repl = "deployrt.repl" }

--- Whether there is still something to take up of a run, as its record has it.
local function is_unfinished(record)
  return not record.finished or leftover.is_open(record)
end

--- The last run of this machine's history, when it did not end; nil when it did.
local function unfinished_here(state)
  local runs = state:runs()
  local last = runs[#runs]
  return last and is_unfinished(last) and last or nil
end

--- The runs that hold the lock, of a team or of hosts.
local function holders(state, lines)
  local team = state.read_lock and state:read_lock()
  local list = { team and team.run }
  for _, line in ipairs(lines) do
    local held = lock.read(line)
    if held then list[#list + 1] = held.run end
  end
  return list
end

--- The run to take up: one that holds the lock, of several the one that is this machine's last; where none does that could go
--- on, this machine's last; else the last of another one; else one whose lock has only to be removed. Hosts are asked for what
--- this machine may not have heard: how a run ended, that it is not offered later, and which one needs attention.
local function choose(state, lines)
  local here, holding, open = unfinished_here(state), holders(state, lines), nil
  for _, id in ipairs(holding) do
    if here and id == here.id then return id end
    local record = id ~= "?" and history.find(state, id)
    if id ~= "?" and not (record and not is_unfinished(record)) then open = open or id end
  end
  if open and here or not here or here.finished then
    history.learn(state, lines)
    local now = here and history.find(state, here.id)
    here = now and is_unfinished(now) and now or unfinished_here(state)
  end
  return open or here and here.id or holding[1]
end

--- The run to take up, and the longest copy of its journal. Raises why a host is away when the others know of no run.
local function look_elsewhere(app, state, wanted)
  local opened <close> = session.open(app, { partial = true })
  local id = wanted or choose(state, opened:lines())
  if not id then opened:check_complete() end
  local texts = { id and copy.read(state, id) or "" }
  for _, line in ipairs(id and opened:lines() or {}) do texts[#texts + 1] = line:call("run_journal", { id }) end
  local best, length = "", 0
  for _, each in ipairs(texts) do
    local text, count = journal.restore(each)
    if count > length then best, length = text, count end
  end
  return id, best, length
end

--- How a run ended for good: as its journal has it, or the history, where that is a copy which lags. What it left must not
--- be taken up then, nor gone back to. One that was overtaken may still have something to undo.
---@return table? ending  with outcome and exit; nil: it did not
local function ending_of(state, id, records)
  local last = records[#records]
  if last.type == "FINISHED" and not leftover.is_open(last) then return last end
  local record = history.find(state, id)
  return record and not is_unfinished(record) and record.outcome ~= "superseded" and record or nil
end

local function nothing(app, state, id)
  local last = id and history.find(state, id) or table.remove(history.all(state))
  errors.raise("nothing", ("%s: there is nothing to resume or abort%s"):format(
    id and ("run %s has ended"):format(id) or ("no run of %s was interrupted"):format(app.app), leftover.hint(last, app.file)))
end

--- The journal of a run on this machine. With `force` a damaged one is cut off where it is damaged, and kept aside.
local function read_here(path, disk, force)
  local ok, records = pcall(journal.read, path, disk)
  if ok then return records end
  if not force or records.code ~= "journal" then error(records, 0) end
  local text = disk.read(path)
  errors.check(disk.write(path .. ".damaged", text))
  errors.check(disk.write(path, text:sub(1, records.good)))
  return records.records
end

--- The hosts that a dead controller's run left locked.
--- Raises deployrt.Error: "locked" when it lives: it does itself what is still to be done.
local function left_locked(app, opened, id)
  local left = {}
  for _, line in ipairs(opened:lines()) do
    local held = lock.read(line)
    if held and held.run == id then
      if not held.dead then errors.raise("locked", lock.refusal(held, app.file), { host = line.name, lock = held }) end
      left[#left + 1] = line
    end
  end
  return left
end

--- Does what a controller had no time for that died when its run was over: the history has how it ended, and no host is locked.
---@return {text: string, exit: integer, outcome: string}?  how the run ended; nil when no host was locked by it any more
local function bury(app, state, id, ending)
  local record = history.find(state, id)
  if record and is_unfinished(record) then
    for _, key in ipairs { "outcome", "exit", "finished", "failed", "settled", "error" } do record[key] = ending[key] end
    record.finished = record.finished or core.time()
    state:save(id, record)
  end
  local opened <close> = session.open(app, { partial = true })
  local locked = left_locked(app, opened, id)
  for _, line in ipairs(locked) do line:call("lock_release", { id }) end
  local team = state.read_lock and state:read_lock()
  if team and team.run == id and team.dead then state:break_lock(team) end
  if app.groups then app.groups:give_back(function() end) end
  if #locked == 0 then return nil end
  local away = history.ended_without(ending, locked[1].name)
  local text = ("run %s had ended already: %s, exit %d; %s"):format(id, ending.outcome:gsub("_", " "), ending.exit,
    away and locked[1].name .. " was away then, and its lock is removed now" or "its controller died before it said so")
  return { run = id, text = text, exit = math.tointeger(ending.exit), outcome = ending.outcome }
end

--- Brings the journal of the run to this machine, where another one, or a newer life of it, has more.
local function fetch(app, state, wanted, force)
  local id, text, count = look_elsewhere(app, state, wanted)
  if not id then nothing(app, state) end
  local path, disk = state:directory(id), state.disk or journal.disk
  local records = read_here(path .. "/journal", disk, force)
  if count > #records then
    errors.check(disk.write(path .. "/journal", text))
    records = journal.parse(text, path .. "/journal")
  end
  if #records == 0 then
    errors.raise("nothing", ("there is no journal of run %s on this machine or on the hosts: if its controller is gone, it had changed nothing; "
      .. "remove its lock with `deployrt unlock %s`"):format(id, app.file))
  end
  return id, path, records
end

--- Whether a run changed anything, or may have: only its journal tells, where hosts still have it.
local function has_begun(lines, id)
  local seen = false
  for _, line in ipairs(lines) do
    for _, record in ipairs(journal.whole(line:call("run_journal", { id }))) do
      if record.type == "INTENT" or record.type == "FINISHED" then return true end
      seen = true
    end
  end
  return not seen
end

--- What was ended or unlocked elsewhere, and came before what serves now, is not offered again.
local function refuse_overtaken(past, lines, later)
  history.learn(past.state, lines)
  local record = history.find(past.state, past.id)
  if record and is_unfinished(record) then
    record.outcome, record.finished, record.error = "superseded", core.time(), ("run %s came after it"):format(later)
    pcall(past.state.save, past.state, past.id, record) -- a disk that is full does not make it a run to take up
  end
  errors.raise("nothing", ("run %s was ended or unlocked by another machine, and run %s came after it: there is nothing to resume or abort"):format(past.id, later))
end

--- Raises "nothing" when another run came after this one on a host whose lock it does not hold any more: ids sort by time.
local function check_last(past, lines, holding, later)
  if not later or holding and (past.force or not has_begun(lines, later)) then return end
  if not holding then refuse_overtaken(past, lines, later) end
  errors.raise("nothing", ("run %s still has the lock on %s, but elsewhere it was ended or unlocked, and run %s came after it there: remove the lock with "
    .. "`deployrt unlock %s`, or undo from the journal alone what the run did with `deployrt abort --force %s`"):format(past.id, holding, later, past.file, past.file))
end

--- The epoch of this life: one above all that came before.
local function next_epoch(past, records)
  return function(lines)
    local epoch, holding, later = 1, nil, nil
    for _, record in ipairs(records) do epoch = math.max(epoch, record.epoch or 1) end
    for _, line in ipairs(lines) do
      local held = lock.read(line)
      if held and (held.run ~= past.id or not held.dead) then errors.raise("locked", lock.refusal(held, past.file), { host = line.name }) end
      if held then
        epoch, holding = math.max(epoch, held.epoch), holding or line.name
      elseif line.last_run > (later or past.id) then
        later = line.last_run
      end
    end
    check_last(past, lines, holding, later)
    return epoch + 1
  end
end

--- Asks about operations that nobody but a person can settle.
local function ask_in_doubt(run, options)
  for _, intent in ipairs(run.turns:in_doubt()) do
    local what, process = intent.args.name and ("the hook '%s'"):format(intent.args.name) or intent.op, run.turns:process(intent.id)
    if process and life.is_here(process) and not life.is_gone(process) then
      errors.raise("doubt", ("%s was begun, and runs still, with pid %d: wait for its end, or roll back with `deployrt abort`, which ends it"):format(
        what, (life.parts(process))))
    elseif intent.kind == "ask" and not options.yes then
      local question = ("%s was begun, and nobody knows whether it was done. Do it again?"):format(what)
      if not (options.confirm and options.confirm(question)) then
        errors.raise("doubt", question .. " Say so with --yes, or roll back with `deployrt abort`")
      end
    end
  end
end

--- Hosts that are away keep nothing from being taken up when the run has given them up, or is to be undone whatever is there.
local function check_hosts(run, past)
  local ok, err = pcall(run.session.check_complete, run.session, run.fleet.given_up)
  if ok then return end
  err.message = ("%s; run %s goes on when it is back. If it is gone for good, take back what was done on the others with `deployrt abort --force %s`"):format(
    err.message, past.id, past.file)
  error(err, 0)
end

--- What happens between the last record and the first new operation.
local function go_live(past, options)
  return function(run)
    local me = core.whoami()
    if not options.force then check_hosts(run, past) end
    if not options.abort then ask_in_doubt(run, options) end
    run.announce(run)
    run.journal:write { type = "RESUMED", epoch = run.lock.epoch, user = me.user, controller = me.host, abort = options.abort, force = options.force }
    run.emit { event = "log", message = ("run %s: %d records replayed; %s"):format(past.id, #past.records,
      run.turns.unwinding and "its rollback goes on" or options.abort and "rolling back" or "going on") }
    local put_back = repair.recall_rollback(run, past.records)
    if options.force or run.turns.unwinding then repair.want_what_is_there(run) end
    if options.abort or run.turns.unwinding then repair.hold_down_the_new(run, put_back) end
    if options.force then return end
    if not run.turns.unwinding then
      local stopping = run.stopping
      run.stopping = nil -- a signal of an earlier life ends the run after the repair, and not the repair
      operation.within(undo.root("repair" .. run.lock.epoch), repair.bring_back, run, options.abort)
      run.stopping = run.stopping or stopping
    end
    if options.abort then run.stop(run, errors.new("aborted", ("aborted by %s@%s"):format(me.user, me.host))) end
    if run.stop_when_live then run.stop(run, run.stop_when_live) end
  end
end

--- Why a secret cannot be taken from what is there now; nil when it can. One that was set may have been set over another.
local function lack_of(app, now, name)
  local function is_set(where)
    local _, mark = where.place("process.secrets." .. name)
    return mark ~= nil and mark.file == "--set"
  end
  local is_there = (now.process.secrets or {})[name] ~= nil
  if is_there and (is_set(now) or not is_set(app)) then return nil end
  if is_set(app) then return "was given by --set: give it again, by" end
  return ("stood in %s itself, or a part of it did, and it is there no more: put it back, or give it by"):format(now.file)
end

--- Secrets that stood in app.yml itself, or were set, are not in the journal: they are taken from what is there now.
local function restore_secrets(app, now)
  for name, text in pairs(app.process.secrets or {}) do
    if text == keep.removed then
      local lack = lack_of(app, now, name)
      if lack then
        errors.raise("secret", ("process.secrets.%s %s `--set process.secrets.%s=...` (the journal keeps no secrets)"):format(name, lack, name))
      end
      app.process.secrets[name] = now.process.secrets[name]
    end
  end
end

--- The application and the strategy as the run began with them; `now`: app.yml as it is.
local function restore(header, state, now)
  local flags = header.flags or {}
  local app = config.load(header.file, { kept = header.files, set = flags.set, release = flags.release, hosts = flags.host })
  if core.fs.stat(header.dir) then app.dir = header.dir end
  if header.inventory then inventory.restore(app, state, header.inventory) end
  restore_secrets(app, now)
  if own_strategies[header.kind] then
    local own = require(own_strategies[header.kind])
    return app, { strategy = own, values = {}, proceed = own.proceed, hush = own.hush, by_hand = own.by_hand }
  end
  local loaded = strategy.load(header.given, { kept = header.scripts, libraries = library.kept(app) })
  return app, { strategy = loaded, values = (schema.validate_options(loaded.options, app.strategy or {}, app.place, loaded.name, strategy.is_option)) }
end

--- What was typed by hand has no script that could go on with it; the journal alone says how to take it back.
local function undo_by_hand(id, options, file)
  if not options.abort then
    errors.raise("usage", ("run %s was typed by hand, with `deployrt repl`: nothing can carry it on, and nothing was changed now; "
      .. "take it back with `%s`"):format(id, advice.abort(file, id)))
  end
  return setmetatable({ force = true }, { __index = options })
end

--- What run.execute needs to take up a run again.
---@async
---@param app deployrt.App      as it is now; it says where to look
---@param state deployrt.State
---@param options {run?: string, abort?: boolean, force?: boolean, yes?: boolean, confirm?: fun(question: string): boolean, restore?: fun(header: table): deployrt.App, table}
---@return deployrt.App? app    as it was then; nil when the run was over, and only its end had to be told
---@return table options        for run.execute; else {text, exit, outcome}
function resume.prepare(app, state, options)
  local id, path, records = fetch(app, state, options.run, options.force)
  local ending = ending_of(state, id, records)
  if ending then
    local over = bury(app, state, id, ending) or nothing(app, state, id)
    if options.abort and not ending.settled then over.exit = over.outcome == "succeeded" and 2 or 0 end -- rolled back is what was asked for
    return nil, over
  end
  local header = table.remove(records, 1)
  local then_app, found = (options.restore or restore)(header, state, app)
  if found.by_hand then options = undo_by_hand(id, options, app.file) end
  if alone.was_forced(records) then options = setmetatable({ abort = true, force = true }, { __index = options }) end
  local past = { id = id, path = path, header = header, records = records, abort = options.abort, force = options.force, state = state, file = app.file }
  past.epoch, past.go_live = next_epoch(past, records), go_live(past, options)
  found.past, found.kind, found.flags = past, header.kind, header.flags
  if options.force then
    found.proceed = alone.undo_all(records, found.hush)
    past.records = alone.undone(records)
  end
  return then_app, found
end

return resume
