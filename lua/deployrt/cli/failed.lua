-- cli/failed.lua -- What --failed means: the hosts that the last successful run went on without, and its release.
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local errors = require "deployrt.errors"
local launch = require "deployrt.launch"
local secrets = require "deployrt.secrets"

local failed = {}

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

--- What app.yml says is to be started.
local function launch_here(app)
  local here = connection.new({ name = "local" }, app.app)
  local closing <close> = setmetatable({}, { __close = function() here:close() end })
  return launch.of(app, { controller = here, secrets = secrets.read(app.process.secrets, app.dir, here, app.place) })
end

--- Keeps to the release that the others have: a version that is not named is that one, and nothing else is brought along, nor
--- started otherwise.
local function keep_release(command, app, last)
  local release = app.release or {}
  if release.version and release.version ~= last.release then
    errors.raise("usage", ("release %s is asked for, and run %s deployed %s: --failed gives hosts what the others have; give --release %s, or deploy %s on all hosts"):format(
      release.version, last.id, last.release, last.release, release.version))
  end
  local key = last.launch and launch.difference(launch_here(app), last.launch)
  if key then
    errors.raise("usage", ("%s is not what run %s deployed as release %s: --failed gives hosts what the others have; give --release %s and %s, "
      .. "or deploy what is new on all hosts"):format(key == "release.path" and release.path or key, last.id, last.release, last.release,
      key == "release.path" and "its files" or "the settings of then"))
  end
  command.flags.release = last.release
end

--- After a stop the others have nothing.
local function refuse_stopped(state, last)
  for _, run in ipairs(state:runs()) do
    if run.id > last.id and run.kind == "stop" and run.outcome == "succeeded" then
      errors.raise("nothing", ("run %s stopped the application after run %s deployed it: --failed would start it on %s alone; deploy it on all hosts"):format(
        run.id, last.id, table.concat(last.failed, ", ")))
    end
  end
end

--- Has --failed mean the hosts that the last successful run went on without, and its release.
---@param command deployrt.Command
--- Raises deployrt.Error: "nothing", "usage".
function failed.narrow(command)
  local app = common.app(command, 2)
  local state = common.state(command, app)
  local last = state:last_success()
  if not last or not last.failed then refuse_none(state) end
  refuse_stopped(state, last)
  keep_release(command, app, last)
  command.flags.host = last.failed
end

return failed
