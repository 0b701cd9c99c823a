-- build.lua -- hooks.build: makes the release on this machine, before anything else is looked at or touched.
local connection = require "deployrt.connection"
local controller = require "deployrt.controller"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local secrets = require "deployrt.secrets"

local build = {}

local in_order = 'exec "$@" 2>&1' -- both outputs as one, in the order in which they were written

--- What the build said, without the secrets of app.yml. They are read only now: a build that succeeds shows nothing.
local function masked(app, text)
  local here = connection.new({ name = "local" }, app.app)
  local closing <close> = setmetatable({}, { __close = function() here:close() end })
  local ok, known = pcall(secrets.read, app.process.secrets or {}, app.dir, here)
  return ok and known:mask(text) or text
end

--- Runs the build, if app.yml has one, in the directory of app.yml.
---@async
---@param app deployrt.App
---@param say fun(text: string)  told before it begins
--- Raises deployrt.Error: "build" with the end of its output, "interrupted".
function build.run(app, say)
  local command = app.hooks and app.hooks.build
  if not command then return end
  local words = { "/bin/sh", "-c", in_order, "sh" }
  if type(command) == "string" then command = { "/bin/sh", "-c", command } end
  say("building: " .. core.quote(command))
  table.move(command, 1, #command, #words + 1, words)
  local result = controller.run(app, words, { what = "hooks.build" })
  local how = controller.failure(result)
  if how then
    errors.raise("build", ("hooks.build %s: nothing was changed"):format(how), { detail = masked(app, result.stdout:sub(-4000)) })
  end
end

return build
