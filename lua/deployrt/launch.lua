-- launch.lua -- What is to be started, as it is kept with each instance: the release, and the settings that make an instance new.
local archive = require "deployrt.archive"
local core = require "deployrt.core"
local journal = require "deployrt.journal"
local secrets = require "deployrt.secrets"

---@class deployrt.Launch
---@field release string
---@field sha256? string    of its files
---@field packed boolean    it has files
---@field command string[]
---@field env table<string, string>
---@field secrets table<string, string>  where each comes from
---@field health? table      how it says that it is well: app.yml may say otherwise by now, for another release
---@field group? string|false  of what served before a run: the group of hosts in which it did alone; false: in several
---@field settings string   another one where any of this changes, or the value of a secret
local launch = {}

--- The settings that make an instance new when they change.
local function settings_of(app, opened, sha256)
  local values = {}
  for name in pairs(app.process.secrets or {}) do values[name] = opened.secrets:value(name) end
  return core.sha256(journal.canonical { app.process.command, app.process.env or {}, values, sha256 or "" }):sub(1, 16)
end

--- What app.yml says is to be started.
---@async
---@param app deployrt.App
---@param opened {controller: deployrt.Connection, secrets: deployrt.Secrets, archive?: deployrt.Archive}  the archive is opened
---@param force? boolean  it is new whatever runs
---@return deployrt.Launch
function launch.of(app, opened, force)
  local process, release = app.process, app.release or {}
  if release.path then opened.archive = archive.open(app, opened.controller) end
  local sha256 = opened.archive and opened.archive.sha256
  local settings = settings_of(app, opened, sha256)
  return {
    release = release.version or (sha256 or settings):sub(1, 12), sha256 = sha256, packed = opened.archive ~= nil,
    command = process.command, env = process.env or {}, secrets = secrets.references(process.secrets), health = app.health,
    settings = force and settings .. "-" .. core.sha256(tostring(core.time())):sub(1, 6) or settings,
  }
end

--- How the health of what was started is checked; of what was started by others, as app.yml says now.
---@param app deployrt.App
---@param started deployrt.Launch
---@return table
function launch.health(app, started)
  return started.health or app.health
end

--- The key of app.yml by which what it says now differs from what was started.
---@param now deployrt.Launch
---@param started deployrt.Launch  perhaps by --force
---@return string? key  nil: it does not
function launch.difference(now, started)
  if now.settings == started.settings:match "^%x+" then return nil end
  if now.sha256 ~= started.sha256 then return "release.path" end
  for _, key in ipairs { "command", "env" } do
    if journal.canonical(now[key]) ~= journal.canonical(started[key] or {}) then return "process." .. key end
  end
  return "process.secrets"
end

return launch
