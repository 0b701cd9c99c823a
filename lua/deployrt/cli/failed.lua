-- cli/failed.lua -- What --failed means: the hosts that the last successful run went on without, and its release.
local archive = require "deployrt.archive"
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local errors = require "deployrt.errors"
local journal = require "deployrt.journal"
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
---@param command deployrt.Command
--- Raises deployrt.Error: "nothing", "usage".
function failed.narrow(command)
  local app = common.app(command, 2)
  local state = common.state(command, app)
  local last = state:last_success()
  if not last or not last.failed then refuse_none(state) end
  keep_release(command, app, last)
  command.flags.host = last.failed
end

return failed
