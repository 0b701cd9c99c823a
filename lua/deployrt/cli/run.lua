-- cli/run.lua -- deployrt run STRATEGY APP.yml
local archive = require "deployrt.archive"
local build = require "deployrt.build"
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local errors = require "deployrt.errors"
local inventory = require "deployrt.inventory"
local journal = require "deployrt.journal"
local run = require "deployrt.run"
local schema = require "deployrt.schema"
local secrets = require "deployrt.secrets"
local strategy = require "deployrt.strategy"

--- The same, where hosts are made for it: when nothing is to be changed, or no run comes about, none are left.
local function on_new_hosts(command, app, options, say)
  local function warn(text) command.write_error(text .. "\n") end
  inventory.check(app, options.strategy)
  local needed = run.is_needed(app, common.state(command, app), command.flags.force)
  inventory.clear(app, warn)
  if needed then inventory.provision(app, say) end
  local ok, exit = pcall(common.execute, command, app, options)
  if app.groups and (ok or exit.code ~= "unfinished") and exit ~= 3 then app.groups:give_back_new(warn) end
  if ok then return exit end
  error(exit, 0)
end

local deploy = setmetatable({}, { __call = function(self, command)
  local app, options = self.prepare(command)
  local function say(text)
    if not (command.flags.quiet or command.flags.json) then command.write_error(text .. "\n") end
  end
  if not command.flags.failed then build.run(app, say) end -- those hosts get the release that the others have
  if app.inventory then return on_new_hosts(command, app, options, say) end
  return common.execute(command, app, options)
end })

--- Why there is no host to bring along, by the last run that changed something.
local function refuse_none(state)
  local runs = state:runs()
  local last = runs[#runs]
  if last and not last.finished then
    errors.raise("nothing", ("the last run, %s, has not ended: there is no host that it went on without"):format(last.id))
  elseif last and last.outcome ~= "succeeded" and last.outcome ~= "unchanged" then
    errors.raise("nothing", ("the last run, %s, ended '%s', and went on without no host: --failed has nothing to bring along; repeat it whole"):format(
      last.id, last.outcome:gsub("_", " ")))
  end
  errors.raise("nothing", "the last run went on without no host: --failed has nothing to bring along")
end

--- Whether app.yml has what a run started: the files, or without any the command and what it is given.
local function is_same(app, launch)
  local path, process = app.release and app.release.path, app.process
  if path then
    local here = connection.new({ name = "local" }, app.app)
    local closing <close> = setmetatable({}, { __close = function() here:close() end })
    return archive.open(path, here).sha256 == launch.sha256
  end
  return not launch.packed and journal.canonical { process.command, process.env or {}, secrets.references(process.secrets) }
    == journal.canonical { launch.command, launch.env or {}, launch.secrets or {} }
end

--- Keeps to the release that the others have: a version that is not named is that one, and nothing else is brought along.
local function keep_release(command, app, last)
  local release = app.release or {}
  if release.version and release.version ~= last.release then
    errors.raise("usage", ("release %s is asked for, and run %s deployed %s: --failed gives hosts what the others have; give --release %s, or deploy %s on all hosts"):format(
      release.version, last.id, last.release, last.release, release.version))
  end
  if (release.path or not release.version) and last.launch and not is_same(app, last.launch) then
    errors.raise("usage", ("%s is not what run %s deployed as release %s: --failed gives hosts what the others have; give --release %s and its files, "
      .. "or deploy what is new on all hosts"):format(release.path or "what app.yml starts", last.id, last.release, last.release))
  end
  command.flags.release = last.release
end

--- Has --failed mean the hosts that the last successful run went on without, and its release.
local function narrow(command)
  local app = common.app(command, 2)
  local state = common.state(command, app)
  local last = state:last_success()
  if not last or not last.failed then refuse_none(state) end
  keep_release(command, app, last)
  command.flags.host = last.failed
end

--- What the command line says of a run: the application, and what run.execute needs.
---@param command deployrt.Command
---@return deployrt.App
---@return table options
function deploy.prepare(command)
  local name, path = command.operands[1], command.operands[2]
  if name and not path and name:find("%.ya?ml$") then
    errors.raise("usage", ("which strategy? For example: deployrt rolling %s"):format(name))
  end
  if not path then errors.raise("usage", ("which app.yml? For example: deployrt %s app.yml"):format(name or "rolling")) end
  if command.flags.failed then narrow(command) end
  local app = common.app(command, 2, true)
  local loaded = common.strategy(command, name, app)
  local values, unused = schema.validate_options(loaded.options, app.strategy or {}, app.place, loaded.name, strategy.is_option)
  return app, { strategy = loaded, values = values, notes = unused, kind = "deploy" }
end

return deploy
