-- cli/common.lua -- What several commands do alike: read app.yml, open a session, show a run.
local advice = require "deployrt.advice"
local core = require "deployrt.core"
local config = require "deployrt.config"
local errors = require "deployrt.errors"
local etcd = require "deployrt.state.etcd"
local inventory = require "deployrt.inventory"
local library = require "deployrt.library"
local progress = require "deployrt.progress"
local session = require "deployrt.session"
local state = require "deployrt.state"
local strategy = require "deployrt.strategy"
local text = require "deployrt.progress.text"

local common = {}

--- Reads the app.yml that the command line names, with its overrides.
---@async
---@param command deployrt.Command
---@param position? integer  of the operand
---@param for_run? boolean  the hosts of a group that is left by a run are those that serve
function common.app(command, position, for_run)
  local path = command.operands[position or 1]
  if not path then errors.raise("usage", "which app.yml? See `deployrt help`") end
  local flags = command.flags
  local app = config.load(path, { set = flags.set, release = flags.release, hosts = flags.host, environ = os.getenv })
  if app.inventory then inventory.fill(app, common.state(command, app), flags.host, for_run) end
  return app
end

--- Loads the strategy that the command line names: one of the user's, of the libraries that app.yml requires, or a built-in one.
--- Without app.yml the libraries are those of this directory's deployrt.lock.
---@async
---@param command deployrt.Command
---@param name string
---@param app? deployrt.App
---@return deployrt.Loaded
function common.strategy(command, name, app)
  return strategy.load(name, {
    print_line = function(line) command.write_error(line .. "\n") end,
    libraries = app and library.open(app) or library.here("."),
  })
end

--- Where the controller keeps journals and history: --state, or the default.
function common.state(command, app)
  local directory = command.flags.state
  if type(app.state) == "table" then return etcd.open(app.app, directory, { endpoints = app.state.etcd }) end
  return state.open(app.app, directory)
end

--- Opens a session, calls `fn(session, run)`, and closes it.
---@async
---@param app? deployrt.App  default: the one that the command line names first
---@param opts? table        as for session.open
function common.look(command, fn, app, opts)
  app = app or common.app(command)
  local opened = session.open(app, opts)
  local ok, result = pcall(opened.with_run, opened, nil, function(run)
    return fn(opened, run)
  end)
  opened:close()
  if not ok then error(result, 0) end
  return result
end

--- What is left out because a host could not be asked, in words.
---@param opened deployrt.Session
---@return deployrt.Error[]
function common.missing(opened)
  local missing = {}
  for _, entry in ipairs(opened.app.hosts) do
    local err = opened.unreachable[entry.name]
    if err then missing[#missing + 1] = errors.new(err.code, ("%s: %s"):format(entry.name, err.message), { host = entry.name }) end
  end
  return missing
end

local patience = 2 -- seconds

--- A balancer learns with its next check that something is up again: what has just come back is no trouble.
---@async
---@param opened deployrt.Session  whose fleet was looked at
function common.await_check(opened)
  local deadline = core.now() + patience
  while core.now() < deadline do
    local _, down = opened.fleet:is_idle()
    if not down then return end
    core.sleep(0.25)
    opened.balancer:refresh()
  end
end

--- That no request gets through to what runs, and what sets it right, in words; while a run has it in hand, that one knows why.
---@param opened deployrt.Session  whose fleet was looked at
---@param runs table[]             records, oldest first
---@param held? deployrt.LockState
---@return string?
function common.idleness(opened, runs, held)
  local idle, down = opened.fleet:is_idle()
  if held or not idle then return nil end
  local strategy_name = "STRATEGY"
  for _, run in ipairs(runs) do
    if run.kind == "deploy" and run.outcome == "succeeded" then strategy_name = run.strategy end
  end
  local count = #opened.fleet.members
  if down then
    return ("%s %s, and the balancer finds down all that it would send traffic to, so no request gets through: see `deployrt logs %s` for why; "
      .. "`deployrt %s %s --force` starts anew what runs"):format(text.count(count, "instance"), count == 1 and "runs" or "run", opened.app.file, strategy_name, opened.app.file)
  end
  return ("%s %s, and the balancer sends traffic to none, as after a restart that it forgot its slots in: `deployrt %s %s` sets it right"):format(
    text.count(count, "instance"), count == 1 and "runs" or "run", strategy_name, opened.app.file)
end

--- Says so; the exit code that goes with it.
---@param command deployrt.Command
---@param opened deployrt.Session
---@return integer exit
function common.tell_missing(command, opened)
  local missing = common.missing(opened)
  for _, err in ipairs(missing) do command.complain(err, 2) end
  return #missing == 0 and 0 or 2
end

--- As look() does, with those hosts that can be had.
---@async
---@param fn fun(opened: deployrt.Session)
---@return integer exit  2 when something was left out
function common.survey(command, fn)
  return common.look(command, function(opened)
    fn(opened)
    return common.tell_missing(command, opened)
  end, nil, { partial = true })
end

local function mode_of(flags)
  if flags.json then return "json" end
  if flags.quiet then return "quiet" end
  if core.terminal(1) and os.getenv("TERM") ~= "dumb" then return "live" end
  return "lines"
end

--- How this command shows a run.
---@param command deployrt.Command
---@param mode? string  default: what suits its flags and the terminal
function common.progress(command, mode)
  mode = mode or mode_of(command.flags)
  local columns, rows = core.terminal(1)
  local view = progress.open {
    mode = mode, write = command.write, write_error = command.write_error, verbose = command.flags.verbose,
    color = mode == "live" and not command.flags["no-color"] and (os.getenv("NO_COLOR") or "") == "",
    columns = columns or 80, rows = rows or 24, size = function() return core.terminal(1) end,
    now = core.now, clock = core.time,
  }
  local ticking = mode == "live" and core.spawn(function()
    while core.sleep(0.125) do view:tick() end
  end)
  if mode == "live" then core.echo(1, false) end -- a key pressed would shift the picture
  return view, function()
    if ticking then ticking:cancel() end
    view:close()
    if mode == "live" then core.echo(1, true) end
  end
end

--- Masks secrets in everything that is shown.
function common.masked(value, secrets)
  if type(value) == "string" then return secrets:mask(value) end
  if type(value) ~= "table" then return value end
  local out = {}
  for key, each in pairs(value) do out[key] = common.masked(each, secrets) end
  return out
end

--- Executes a run and shows it.
---@async
function common.execute(command, app, options)
  local run = require "deployrt.run"
  local view, close = common.progress(command, options.mode)
  options.state = common.state(command, app)
  local flags = command.flags
  options.force, options.yes = flags.force, flags.yes
  options.flags = { set = app.settings, release = flags.release, host = flags.host, force = flags.force }
  options.emit = function(event, secrets)
    local shown = common.masked(event, secrets)
    if options.kind == "stop" and shown.op == nil then shown.release = nil end -- it leads to none
    view:emit(shown)
  end
  options.leave = function(err, id)
    close()
    command.write_error(("deployrt: %s\n"):format(err and errors.text(err)
      or ("left at once; the run is unfinished: %s`%s` rolls back"):format(
        options.kind == "repl" and "" or ("`%s` carries on, "):format(advice.resume(app.file, id)), advice.abort(app.file, id))))
    os.exit(err and 4 or 3)
  end
  local ok, exit = pcall(run.execute, app, options)
  close()
  if ok then return exit end
  error(exit, 0)
end

return common
