-- run.lua -- One execution of a strategy: everything is checked, then locked, then done, or undone.
local core = require "deployrt.core"
local archive = require "deployrt.archive"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local journal = require "deployrt.journal"
local lock = require "deployrt.lock"
local monitor = require "deployrt.monitor"
local operation = require "deployrt.operation"
local rollout = require "deployrt.rollout"
local sandbox = require "deployrt.sandbox"
local secrets = require "deployrt.secrets"
local session = require "deployrt.session"
local undo = require "deployrt.undo"

local run = {}

--- The settings that make an instance new when they change.
local function settings_of(app, opened, sha256)
  local values = {}
  for name in pairs(app.process.secrets or {}) do values[name] = opened.secrets:value(name) end
  return core.sha256(journal.canonical { app.process.command, app.process.env or {}, values, sha256 or "" }):sub(1, 16)
end

--- What is to be started: release, command and environment, as they are kept with each instance.
local function launch_of(app, opened, force)
  local process, release = app.process, app.release or {}
  if release.path then opened.archive = archive.open(release.path, opened.controller) end
  local sha256 = opened.archive and opened.archive.sha256
  local settings = settings_of(app, opened, sha256)
  return {
    release = release.version or (sha256 or settings):sub(1, 12), sha256 = sha256, packed = opened.archive ~= nil,
    command = process.command, env = process.env or {}, secrets = secrets.references(process.secrets),
    settings = force and settings .. "-" .. core.sha256(tostring(core.time())):sub(1, 6) or settings,
  }
end

local function check_content(self)
  self.releases = {}
  local answers = fleet.together(self.session.hosts, function(host)
    return operation.observe { name = "release.list", host = host, args = {} }
  end)
  for i, host in ipairs(self.session.hosts) do
    self.releases[host.name] = answers[i]
    local has = answers[i][self.target.release]
    if has and self.target.sha256 and has.sha256 ~= self.target.sha256 then
      errors.raise("content", ("%s has a release %s with other content: give the new one another version (release.version)"):format(
        host.name, self.target.release), { host = host.name })
    end
    if self.target.packed and not has and not self.session.archive then
      errors.raise("missing", ("%s has no release %s any more: deploy it again"):format(host.name, self.target.release), { host = host.name })
    end
  end
end

local function check_strangers(self)
  for _, slot in ipairs(self.fleet:strangers()) do
    local owner = operation.observe { name = "instance.owner", host = slot.host, args = { port = slot.port } }
    if owner then
      errors.raise("stranger", ("%s: %s, which deployrt did not start; stop it, or give process.ports other ports"):format(slot.host.name, owner),
        { host = slot.host.name })
    end
  end
end

--- Looks at everything that could stop the run, and changes nothing.
local function check(self)
  for _, driver in ipairs(self.session.drivers) do driver:check() end
  self.fleet:discover()
  check_strangers(self)
  check_content(self)
  if self.strategy.check then self.strategy.check(self.script) end
end

local function nothing_to_do(self)
  local fresh, active = {}, self.fleet:active_hosts()
  for _, member in ipairs(self.fleet.members) do
    if not self.fleet:is_target(member) and not member.kept and member.state == "serving" then return false end
    if self.fleet:is_target(member) and member.state == "serving" then
      fresh[member.host.name] = (fresh[member.host.name] or 0) + 1
    end
  end
  for _, host in ipairs(active) do
    if fresh[host.name] ~= self.app.process.instances then return false end
  end
  return true
end

local function remember_wanted(self)
  local context = self.world.context
  if #context.drivers == 0 then return end
  operation.effect { name = "balancer.prepare", args = {} }
  self.balancer:refresh()
  for name, slot in pairs(self.balancer.slots) do context.wanted[name] = { state = slot.state, weight = slot.weight } end
  for _, driver in ipairs(context.drivers) do driver:persist(context.wanted) end
end

--- The happy path, from the first change to the last.
local function proceed(self)
  local script = self.script
  remember_wanted(self)
  rollout.upload(script, self)
  script:hook("before")
  rollout.prepare(script)
  local deploy = core.spawn(function()
    core.budget(sandbox.budget)
    self.strategy.deploy(script)
  end)
  local ok, err = deploy:wait()
  if ok == nil then
    deploy:cancel()
    deploy:wait()
  end
  if not ok then error(err, 0) end
  rollout.fill(script)
  rollout.retire(script)
  rollout.activate(script, self)
end

local function finish_well(self)
  self.root:commit()
  for _, task in ipairs { rollout.prune } do
    local ok, err = pcall(task, self.script, self)
    if not ok then self.emit { event = "warning", message = "old releases were not removed: " .. errors.text(errors.wrap(err)) } end
  end
  local ok, err = pcall(self.script.hook, self.script, "after")
  if not ok then self.emit { event = "warning", message = errors.text(errors.wrap(err)) } end
end

--- What is left when compensations failed, host by host, with what mends it.
local function left_over(self, failures)
  local left = {}
  for _, failure in ipairs(failures) do
    left[#left + 1] = {
      host = failure.host or "balancer", message = ("%s: %s"):format(failure.label, errors.text(failure.error)),
      command = ("deployrt status %s"):format(self.app.file),
    }
  end
  return left
end

local function roll_back(self, cause)
  self.emit { event = "rollback.started", reason = errors.text(cause), host = cause.host, step = self.failed_step }
  self.undoing = true
  local failures = {}
  local locals = core.locals()
  locals.scope = undo.root()
  locals.scope.path = "/undo"
  undo.unwind(self.root, function(entry) entry.run() end, failures)
  local left = left_over(self, failures)
  self.emit { event = "rollback.finished", ok = #left == 0, left = left }
  local hook_ok, hook_err = pcall(self.script.hook, self.script, "failed", { ERROR = cause.message })
  if not hook_ok then self.emit { event = "warning", message = errors.text(errors.wrap(hook_err)) } end
  return left
end

local function outcome_of(cause, left)
  if #left > 0 then return "needs_attention", 3 end
  if cause.code == "interrupted" then return "interrupted", 130 end
  return "rolled_back", 1
end

--- The picture after a rollback is of what was found, not of what was meant.
local function look_again(self)
  if not pcall(self.fleet.discover, self.fleet) then return end
  if #self.session.drivers > 0 then self.report_traffic() end
end

--- Asks the run to stop: what is in flight finishes, then everything is rolled back.
local function stop(self, err)
  if self.stopping then return end
  self.stopping = err
  self.stop_event:set()
end

local function listen(self, options)
  return core.spawn(function()
    local signals <close> = core.signals("INT", "TERM", "HUP")
    while true do
      local name = signals:next()
      if not name then return end
      if name ~= "HUP" then
        if self.stopping or self.undoing then options.leave() end
        stop(self, errors.new("interrupted", "interrupted by SIG" .. name))
      end
    end
  end)
end

local function deadline(self, seconds)
  return core.spawn(function()
    if core.sleep(seconds) then stop(self, errors.new("timeout", ("the run took longer than its timeout of %gs"):format(seconds))) end
  end)
end

local function record_of(self, fields)
  local me = core.whoami()
  local record = {
    id = self.id, app = self.app.app, strategy = self.strategy.name, kind = self.kind, release = self.target.release, launch = self.target,
    previous = self.previous, previous_launch = self.previous_launch, user = me.user, controller = me.host,
    started = self.started_at, hosts = #self.app.hosts,
  }
  for key, value in pairs(fields) do record[key] = value end
  return record
end

local function find_previous(self)
  local old = self.fleet:old()[1]
  self.previous_launch = old and old.launch
  self.previous = old and old.release
end

--- Everything after the checks: from the lock to its release.
local function execute(self, options)
  local started = core.now()
  self.state:save(self.id, record_of(self, { outcome = "running" }))
  self.emit {
    event = "run.started", run = self.id, app = self.app.app, strategy = self.strategy.name, release = self.target.release,
    previous = self.previous, hosts = #self.app.hosts, instances = self.fleet:capacity(),
  }
  monitor.snapshot(self)
  local watching = core.spawn(monitor.watch, self, self.world.context)
  local listening = listen(self, options)
  local timing = deadline(self, self.script.options.timeout or 3600)
  local ok, cause = pcall(options.proceed or proceed, self)
  local left, outcome, exit = {}, "succeeded", 0
  timing:cancel()
  if ok then
    finish_well(self)
  else
    cause = self.mask(self.stopping or errors.wrap(cause)) -- children that were stopped raise the reason several times
    left = roll_back(self, cause)
    outcome, exit = outcome_of(cause, left)
    if #left == 0 then look_again(self) end
  end
  self.over = true
  for _, task in ipairs { watching, listening } do
    task:cancel()
    task:wait()
  end
  monitor.snapshot(self)
  self.state:save(self.id, record_of(self, { outcome = outcome, exit = exit, finished = core.time(), error = cause and cause.message }))
  self.emit {
    event = "run.finished", outcome = outcome, exit = exit, seconds = core.now() - started,
    message = cause and errors.text(cause) or options.done,
    left = #left > 0 and left or nil, release = self.target.release, previous = self.previous, instances = self.fleet:capacity(),
  }
  return exit
end

local function new_script(self, strategy, values)
  return setmetatable({
    app = self.app, release = { version = self.target.release, sha256 = self.target.sha256 }, options = values,
    fleet = self.fleet, balancer = self.balancer,
  }, strategy)
end

--- The run's own copies of its strategy and of app.yml, and their SHA-256.
local function keep_copies(app, strategy, path)
  local sums = {}
  local file = io.open(app.file, "rb")
  local texts = { ["app.yml"] = file and file:read("a") or "", ["strategy.lua"] = strategy.text }
  if file then file:close() end
  for name, text in pairs(texts) do
    errors.check(core.fs.write(path .. "/" .. name, text))
    sums[name] = core.sha256(text)
  end
  return sums
end

--- Connects, checks, locks and executes.
---@async
---@param app table
---@param options {strategy: deployrt.Strategy, values: table, state: deployrt.State, emit: fun(event: table), force?: boolean, target?: fun(session: table): table, kind?: string, proceed?: fun(run: table), leave: fun()}
---@return integer exit
function run.execute(app, options)
  local opened = session.open(app, { secrets = options.kind ~= "stop" })
  local closing <close> = setmetatable({}, { __close = function() opened:close() end })
  local id, path = options.state:create()
  local target = options.target and options.target(opened) or launch_of(app, opened, options.force)
  opened.fleet.target = target
  local log = journal.create(path .. "/journal")
  log:write { type = "HEADER", run = id, app = app.app, strategy = options.strategy.name, release = target.release, files = keep_copies(app, options.strategy, path) }
  local self = opened:new_run {
    id = id, session = opened, target = target, release = target.release, strategy = options.strategy, state = options.state, kind = options.kind,
    journal = log, started_at = core.time(),
  }
  self.emit = function(event) -- a run is heard of once it begins; what its checks find is an error, or nothing
    self.begun = self.begun or event.event == "run.started"
    if self.begun then options.emit(event, opened.secrets) end
  end
  self.root = undo.root()
  self.report_traffic = function() self.emit { event = "traffic", share = monitor.shares(self) } end
  self.script = new_script(self, options.strategy, options.values)
  local locals = core.locals()
  locals.run, locals.scope = self, self.root
  check(self)
  find_previous(self)
  if options.kind == "deploy" and not options.force and nothing_to_do(self) then
    self.state:save(id, record_of(self, { outcome = "unchanged", exit = 0, finished = core.time() }))
    self.emit { event = "run.started", run = id, app = app.app, strategy = self.strategy.name, release = target.release, hosts = #app.hosts }
    self.emit { event = "log", message = ("nothing to change: release %s serves already"):format(target.release) }
    self.emit { event = "run.finished", outcome = "succeeded", exit = 0, seconds = 0, unchanged = true, release = target.release }
    return 0
  end
  local held = lock.take(opened:lines(), id, app.file, function(other) return options.state:is_over(other) end)
  local unlocking <close> = setmetatable({}, { __close = function() held.release() end })
  local exit = execute(self, options)
  log:close()
  return exit
end

return run
