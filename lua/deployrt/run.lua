-- run.lua -- One execution of a strategy: everything is checked, then locked, then done, or undone.
local adoption = require "deployrt.adoption"
local advice = require "deployrt.advice"
local core = require "deployrt.core"
local archive = require "deployrt.archive"
local clock = require "deployrt.clock"
local control = require "deployrt.control"
local copy = require "deployrt.state.copy"
local elsewhere = require "deployrt.elsewhere"
local errors = require "deployrt.errors"
local inventory = require "deployrt.inventory"
local journal = require "deployrt.journal"
local launch = require "deployrt.launch"
local leftover = require "deployrt.leftover"
local life = require "deployrt.life"
local lock = require "deployrt.lock"
local monitor = require "deployrt.monitor"
local operation = require "deployrt.operation"
local pretend = require "deployrt.world.pretend"
local preflight = require "deployrt.preflight"
local previous = require "deployrt.previous"
local rollout = require "deployrt.rollout"
local script = require "deployrt.script"
local session = require "deployrt.session"
local stopping = require "deployrt.stopping"
local turns = require "deployrt.turns"
local undo = require "deployrt.undo"

local run = {}

--- A run that went on without every host has deployed nothing.
local function check_kept(self)
  local all = self.fleet:active_hosts()
  if #all == 0 or #self.fleet:kept_hosts(all) > 0 then return end
  local names = {}
  for i, host in ipairs(all) do names[i] = host.name end
  errors.raise("failed", ("nothing was deployed: on every host it failed, and was tolerated (%s); the warnings say why"):format(table.concat(names, ", ")))
end

--- The happy path, from the first change to the last.
local function proceed(self)
  adoption.take(self.script, self)
  self.balancer:adopt()
  rollout.revive(self.script, self)
  rollout.leave(self.script)
  rollout.upload(self.script, self)
  self.script:hook("before")
  rollout.prepare(self.script)
  adoption.attach(self.script, self)
  script.call(self, "deploy")
  check_kept(self)
  self.script:fill()
  rollout.level(self.script)
  rollout.leave(self.script, true)
  rollout.retire(self.script)
  rollout.activate(self.script, self)
  self.balancer:agree()
  rollout.confirm(self)
  rollout.examine(self)
end

--- What remains to be done after success; until it is over, everything can still be undone.
local function finish_well(self)
  local function try(what, task, ...)
    local ok, err = pcall(task, self.script, ...)
    if not ok then self.emit { event = "warning", message = what .. errors.text(errors.wrap(err)) } end
  end
  try("old releases were not removed: ", rollout.prune, self)
  try("what was adopted is still known: ", adoption.forget, self)
  if self.kind ~= "stop" then try("", self.script.hook, "after") end
  operation.checkpoint()
  try("what was adopted still runs: ", adoption.stop_last, self)
end

--- From now on a disk that is full stops nothing: going back, or saying that the run is over, counts more.
local function endure(self)
  self.journal:endure(function(err) self.emit { event = "warning", message = errors.text(err) } end)
end

local function roll_back(self, cause)
  self.turns:await_live()
  self.emit { event = "rollback.started", reason = errors.text(cause), host = cause.host, step = self.failed_step }
  self.undoing = true
  self.tell()
  endure(self)
  if not self.turns.unwinding then self.journal:write { type = "ROLLBACK", reason = cause.message } end
  local locals = core.locals()
  locals.scope, locals.undoing = undo.root("undo/failed"), true
  local function look(path, action) -- each life of the run looks for itself at what is there
    return leftover.describe(self, operation.within(undo.root(path .. self.lock.epoch), action, self))
  end
  local left = leftover.describe(self, operation.unwind(self.root))
  if #left == 0 and self.resumed then left = look("undo/end", leftover.take_back_unknown) end
  if #left == 0 and not self.committed then left = look("undo/found", leftover.revive) end
  for _, each in ipairs(leftover.committed(self)) do left[#left + 1] = each end
  self.emit { event = "rollback.finished", ok = #left == 0, left = left }
  local hook_ok, hook_err = pcall(self.script.hook, self.script, "failed", { ERROR = (cause.message:gsub("\0", "?")) })
  if not (hook_ok or self.hurried) then self.emit { event = "warning", message = errors.text(errors.wrap(hook_err)) } end
  return left
end

local function outcome_of(cause, left, abort)
  if #left > 0 then return "needs_attention", 3 end
  if abort or cause.code == "withdrawn" then return "rolled_back", 0 end
  if cause.code == "interrupted" then return "interrupted", 130 end
  return "rolled_back", 1
end

--- The picture after a rollback is of what was found, not of what was meant.
local function look_again(self)
  if not pcall(self.fleet.discover, self.fleet) then return end
  for _, member in ipairs(self.fleet:instances()) do -- what was to be deployed may have served before
    self.previous = self.previous or member.state == "serving" and member.release or nil
  end
  if #self.session.drivers > 0 then self.report_traffic() end
end

local function record_of(self, fields)
  local me = core.whoami()
  local record = {
    id = self.id, app = self.app.app, strategy = self.strategy.name, kind = self.kind, release = self.target.release, launch = self.target,
    previous = self.previous, previous_launch = self.previous_launch, user = me.user, controller = me.host,
    started = self.started_at, hosts = #self.app.hosts,
  }
  for _, host in ipairs(self.session.hosts) do
    if self.fleet.given_up[host.name] then
      record.failed = record.failed or {}
      table.insert(record.failed, host.name)
    end
  end
  for key, value in pairs(fields) do record[key] = value end
  return record
end

local function announce(self)
  self.emit {
    event = "run.started", run = self.id, app = self.app.app, strategy = self.strategy.name, release = self.target.release,
    previous = self.previous, hosts = #self.app.hosts, instances = self.fleet:capacity(),
  }
  for _, note in ipairs(self.notes) do self.emit { event = "warning", message = note } end
  for _, event in ipairs(self.said) do self.emit(event) end
  monitor.snapshot(self)
end

--- The happy path, and the way back from it.
local function attempt(self, options)
  local happy_path = options.proceed or proceed
  local ok, cause = pcall(function()
    happy_path(self)
    finish_well(self)
    if self.resumed then operation.await_live() end -- all was done already, and the journal may tell what ended it
  end)
  if self.turns.failed then error(self.turns.failed, 0) end -- nothing was done, so nothing is undone
  if ok then return "succeeded", 0, {} end
  cause = self.mask(self.stopping or errors.wrap(cause)) -- children that were stopped raise the reason several times
  local left = roll_back(self, cause)
  local outcome, exit = outcome_of(cause, left, options.past and options.past.abort)
  if #left == 0 then look_again(self) end
  return outcome, exit, left, cause
end

--- The run is over: its journal says so before anybody else does. A record that cannot be written does not change the outcome;
--- but then nobody else knows it, and would go back to hosts that it gives back.
local function conclude(self, outcome, exit, cause, left)
  local groups = self.app.groups
  self.root:commit()
  endure(self)
  if groups then groups:decide(outcome) end
  local record = record_of(self, { outcome = outcome, exit = exit, finished = core.time(), settled = leftover.is_settled(left), error = cause and cause.message })
  self.concluded = record
  self.journal:write { type = "FINISHED", outcome = outcome, exit = exit, finished = record.finished, failed = record.failed, settled = record.settled,
    error = record.error, record = record }
  self.journal:sync()
  local ok, err = pcall(self.state.save, self.state, self.id, record)
  local function warn(message) self.emit { event = "warning", message = message } end
  if not ok then
    warn(("the history lacks this run%s: %s"):format(groups and ", and hosts that it left are given back with the next one" or "", errors.text(errors.wrap(err))))
  elseif groups then
    groups:give_back(warn)
  end
end

--- Everything after the checks: from the lock to its release.
local function execute(self, options)
  local started = core.now()
  if not self.resumed then announce(self) end
  local watching = core.spawn(options.unwatched and function() end or monitor.watch, self, self.world.context)
  local timing = stopping.limit(self, self.script.options.timeout or 3600)
  local ended = core.event()
  local keeping = core.spawn(monitor.keep, self, self.world.context, ended)
  local ok, outcome, exit, left, cause = pcall(attempt, self, options)
  self.over = true
  for _, task in ipairs { timing, watching } do
    task:cancel()
    task:wait()
  end
  ended:set()
  keeping:wait()
  if not ok then error(outcome, 0) end
  monitor.snapshot(self)
  conclude(self, outcome, exit, cause, left)
  local serving = elsewhere.left(self.balancer)
  self.emit {
    event = "run.finished", outcome = outcome, exit = exit, seconds = core.now() - started,
    message = cause and errors.text(cause) or options.done, traceback = cause and cause.traceback,
    left = #left > 0 and left or nil, elsewhere = #serving > 0 and serving or nil, without = self.concluded.failed, stranded = leftover.stranded(self), settled = self.concluded.settled, release = self.target.release, previous = self.previous, instances = self.fleet:capacity(),
  }
  return exit
end

--- What a later life of the run needs: the texts that it was started from, and what was decided from them.
local function header_of(self, options)
  local me = core.whoami()
  return {
    type = "HEADER", run = self.id, app = self.app.app, file = self.app.file, dir = self.app.dir, kind = self.kind, strategy = options.strategy.name,
    given = options.strategy.given, files = self.app.files, scripts = options.strategy.sources, flags = options.flags, launch = self.target,
    last = self.last, archive = self.has_archive, inventory = inventory.keep(self.app), started = self.started_at, user = me.user, controller = me.host,
  }
end

--- The release's files, if they are still those that the run began with.
local function reopen_archive(app, opened, header)
  if not header.archive then return end
  local ok, found = pcall(archive.open, app, opened.controller)
  if ok and found.sha256 == header.launch.sha256 then opened.archive = found end
end

local copies = 3 -- hosts that keep a copy of the journal

local function open_journal(self, path, options)
  self.journal = journal.open(path .. "/journal", options.state.disk)
  if not options.past then self.journal:write(header_of(self, options)) end
  for i, line in ipairs(self.session:lines()) do
    if i <= copies then line.mirror = self.journal:mirror(options.past ~= nil) end
  end
end

--- Another controller has taken over. Where the lock was taken after that one had come and gone, it is let go.
local function give_up(self, err)
  if self.leaving then return self.leaving:wait() end
  self.leaving = core.event()
  self.lock:give_up(err)
  self.leaving:set()
end

--- A run, new or in a later life, with all that its tasks need.
local function new_run(opened, options)
  local past = options.past
  local target = past and past.header.launch or options.target and options.target(opened) or launch.of(opened.app, opened, options.force)
  local id = past and past.id or options.state:create()
  if past then reopen_archive(opened.app, opened, past.header) end
  opened:deploys(target)
  local self = opened:new_run {
    id = id, session = opened, target = target, release = target.release, strategy = options.strategy, state = options.state, kind = options.kind,
    check_first = options.check_first,
    resumed = past ~= nil, without_script = past and past.force, has_archive = past and past.header.archive or not past and opened.archive ~= nil, started_at = past and past.header.started or core.time(),
    turns = turns.new(past and past.records), root = undo.root(), stop = stopping.stop, control = control.new(options.yes, options.choose),
    last = previous.last(options), said = {},
  }
  open_journal(self, options.state:directory(id), options)
  self.emit = function(event) -- a run is heard of once it begins; what its checks find is an error, or nothing
    self.begun = self.begun or event.event == "run.started"
    if self.checking and event.event == "log" then table.insert(self.said, event) end
    if event.event == "step.started" then
      self.step = event.step
      self.tell()
    end
    local hear = self.begun and options.emit or options.replayed
    if hear then hear(event, opened.secrets) end
  end
  self.tell = function(what) -- a replay tells what was so
    local text = (self.control:step() or self.undoing and lock.way_back or what or self.step or ""):gsub("%c", " ")
    if self.lock and self.turns.live then self.lock:tell(text) end
  end
  if not options.unwatched then self.report_traffic = function() monitor.report_traffic(self) end end
  self.leave = function(err)
    if self.lock and err and err.code == "superseded" then give_up(self, err) end
    options.leave(err, self.id)
  end
  self.announce = announce
  self.script = script.trusted(self, options.values)
  return self
end

local function is_over(self)
  return function(other) return self.state:is_over(other) end
end

--- Takes the lock, and gives signs of life from now on.
local function take_lock(self, epoch)
  if self.state.take_lock then
    local me = core.whoami()
    self.team_lock = self.state:take_lock {
      run = self.id, epoch = epoch, since = self.started_at, owner = ("%s@%s"):format(me.user, me.host), life = life.of(), lost = self.leave,
    }
  end
  self.lock = lock.take(self.session:lines(), { run = self.id, epoch = epoch, since = self.started_at, file = self.app.file, is_over = is_over(self), looked = not self.resumed })
  self.lock:keep(self.leave, function(word)
    if self.control:hear(word) == "abort" then self:stop(errors.new("interrupted", "aborted by `deployrt abort`")) end
  end)
  self.copy = copy.open(self.state, self.id, self.journal)
  if self.copy then
    self.copy:flush()
    self.copy:keep()
  end
end

--- Lets go of the locks, once the copies of the journal have all of it. Where a later life of a run came to nothing, it is as
--- interrupted as it was.
local function let_go(self)
  if self.copy then self.copy:close() end
  if self.lock then
    if self.resumed and not self.concluded then self.lock:stop() else self.lock:release() end
  end
  if self.team_lock then self.team_lock:release() end
end

--- Something broke in the runtime itself: how far the run is, only its journal tells. So it stays an interrupted run.
local function break_off(self, err)
  if self.team_lock then self.team_lock:stop() end
  if self.copy then self.copy:close() end
  if self.lock then self.lock:stop() end
  return errors.new("unfinished", ("%s\nthe run is unfinished: `%s` carries on, `%s` rolls back"):format(
    errors.text(errors.wrap(err)), advice.resume(self.app.file, self.id), advice.abort(self.app.file, self.id)))
end

--- The same run in a pretended world: what would be done, in its order, without any of it.
---@async
---@param app deployrt.App
---@param options table  as for execute; journal, emit, begun(run) before anything else, `offline`: nothing is
--- looked at, and `begin`, what is known without looking
function run.rehearse(app, options)
  local opened <close> = session.open(app, { secrets = options.kind ~= "stop" and (options.offline and "unread" or true) })
  local target = options.target and options.target(opened) or launch.of(app, opened, options.force)
  opened:deploys(target)
  local self = opened:new_run {
    id = "plan", rehearsing = true, session = opened, target = target, release = target.release, strategy = options.strategy, kind = options.kind,
    check_first = options.check_first,
    has_archive = opened.archive ~= nil, turns = turns.new(), root = undo.root(), control = control.new(true), journal = options.journal, emit = options.emit,
    last = previous.last(options),
  }
  self.world = pretend.new(not options.offline and self.world or nil, options.begin)
  self.clock = clock.new(function() return self.world:now() end)
  monitor.tell_once(self)
  self.script = script.trusted(self, options.values)
  options.begun(self)
  local locals = core.locals()
  locals.run, locals.scope = self, self.root
  preflight.balancers(self, options.notes)
  stopping.pretend_limit(self, self.script.options.timeout or 3600)
  local serving = { core.spawn(self.turns.serve, self.turns, {}), core.spawn(self.world.serve, self.world, function() return self.turns:is_busy() end) }
  local ok, err = pcall(function()
    preflight.look(self)
    for _, note in ipairs(self.notes) do self.emit { event = "warning", message = note } end
    previous.find(self)
    self.unchanged = not options.proceed and not options.force and preflight.is_unchanged(self)
    if not self.unchanged then
      local happy_path = options.proceed or proceed
      happy_path(self)
      finish_well(self)
    end
  end)
  self.turns:close()
  self.world:close()
  for _, task in ipairs(serving) do task:wait() end
  if not ok then error(err, 0) end
end

local function end_unchanged(self)
  self.journal:write { type = "FINISHED", outcome = "unchanged", exit = 0 }
  self.state:save(self.id, record_of(self, { outcome = "unchanged", exit = 0, finished = core.time() })) -- no host hears of it
  self.emit { event = "run.started", run = self.id, app = self.app.app, strategy = self.strategy.name, release = self.target.release, hosts = #self.app.hosts }
  self.emit { event = "log", message = ("nothing to change: release %s serves already"):format(self.target.release) }
  self.emit { event = "run.finished", outcome = "succeeded", exit = 0, seconds = 0, unchanged = true, release = self.target.release }
  return 0
end

--- The turns begin when nothing but operations follows: a replay waits for nothing else.
local function begin(self, options)
  local past = options.past
  if past then take_lock(self, past.epoch(self.session:lines())) end
  preflight.balancers(self, options.notes)
  self.serving = core.spawn(self.turns.serve, self.turns, {
    signal = function(record) stopping.stop_again(self, record) end,
    mended = function(intent, done) self.fleet:renew(intent.instance, done.result.pid) end,
    live = function()
      past.go_live(self)
      self.tell()
    end,
  })
  local fit, problem = pcall(preflight.look, self)
  if not fit then
    if not past then lock.refuse_held(self.session:lines(), self.app.file, is_over(self)) end -- what another run has in hand looks wrong
    error(problem, 0)
  end
  previous.find(self)
  if not past and not options.proceed and not options.force and preflight.is_unchanged(self) then
    lock.refuse_held(self.session:lines(), self.app.file, is_over(self))
    return end_unchanged(self)
  end
  if not past then
    self.journal:sync()
    self.state:save(self.id, record_of(self, { outcome = "running", life = life.of() }))
    take_lock(self, 1)
  end
  return execute(self, options)
end

--- Whether a run would change anything: what serves is something else than what is wanted.
---@async
---@param app deployrt.App
---@param state? deployrt.State  nil: whether another run is under way is all the same
---@param force? boolean  it changes something whatever serves
---@return boolean
--- Raises deployrt.Error: "locked" when another run is under way, or was interrupted.
function run.is_needed(app, state, force)
  if #app.hosts == 0 then return true end
  local opened <close> = session.open(app, { secrets = true })
  opened:deploys(launch.of(app, opened, false))
  return opened:with_run({}, function(self)
    if state then lock.refuse_held(opened:lines(), app.file, function(id) return state:is_over(id) end) end
    if force then return true end
    self.fleet:discover()
    return not preflight.is_unchanged(self)
  end)
end

--- Connects, checks, locks and executes; or takes up a run that was interrupted.
---@async
---@param app deployrt.App
---@param options {strategy: deployrt.Strategy, values: table, state: deployrt.State, emit: fun(event: table), kind: string, yes?: boolean, choose?: (fun(answers: string[]): string), replayed?: fun(event: table), leave: fun(err?: deployrt.Error, id: string), force?: boolean, flags?: table, target?: fun(session: table): table, check_first?: fun(release: string), proceed?: fun(run: table), unwatched?: boolean, past?: deployrt.Past}
---@return integer exit
function run.execute(app, options)
  local hangups <close> = (options.signals or core.signals)("HUP") -- losing the terminal stops nothing, at no time
  local past = options.past
  local opened <close> = session.open(app, { secrets = options.kind ~= "stop", away = past and not past.force, partial = past and past.force })
  if past and #opened:lines() == 0 then opened:check_complete() end
  local self = new_run(opened, options)
  local locals = core.locals()
  locals.run, locals.scope = self, self.root
  local listening = stopping.listen(self, options)
  local ok, result = pcall(begin, self, options)
  listening:cancel()
  listening:wait()
  self.turns:close()
  if self.serving then self.serving:wait() end
  if ok or not self.changed or self.turns.failed then let_go(self) else result = break_off(self, result) end
  self.journal:close()
  if ok then return result end
  if not past and not self.lock then self.state:forget(self.id) end
  if self.stopping and not self.changed then result = errors.new("interrupted", self.stopping.message .. "; nothing was changed") end
  error(result, 0)
end

return run
