-- build.lua -- hooks.build: makes the release on this machine, before anything else is looked at or touched.
local connection = require "deployrt.connection"
local controller = require "deployrt.controller"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local file = require "deployrt.file"
local life = require "deployrt.life"
local secrets = require "deployrt.secrets"
local session_command = require "deployrt.session_command"

local build = {}

--- Runs a command while it has the lock of a file, which says whose it is and which session; what the command starts does not
--- have it. Both outputs are one, in the order in which they were written. Where another one has the lock, a mark is printed,
--- and what the file says.
local alone = [[
exec 2>&1 9>> "$1"
flock -n 9
[ $? -ne 1 ] || { printf %s "$2"; exec cat "$1"; }
printf '%s\n%s\n' "$3" $$ > "$1"
trap : TERM
(shift 3; exec "$@" 9>&-)
status=$?
rm -f "$1"
trap - TERM
[ $status -le 128 ] || kill -$((status - 128)) $$ 2>/dev/null
exit $status]]

--- Ends the build of a controller that died.
---@param lock string  the file
---@param held string  what it says
--- Raises deployrt.Error: "locked" when its controller lives, or when it cannot be ended.
local function end_orphan(app, lock, held, say)
  local owner, text = held:match("^([^\n]*)\n(%d+)\n$")
  local session = math.tointeger(text)
  if not (owner and life.is_gone(owner) and (file.read(("/proc/%d/cmdline"):format(session)) or ""):find(lock, 1, true)) then
    errors.raise("locked", ("hooks.build of another run is under way in %s%s: wait until it has ended; nothing was changed"):format(app.dir,
      owner and (", begun by pid %d"):format((life.parts(owner))) or ""))
  end
  local here = connection.new({ name = "local" }, app.app)
  local closing <close> = setmetatable({}, { __close = function() here:close() end })
  if session_command.finish(here, session) == "left" then
    errors.raise("locked", ("hooks.build of a controller that died runs still, with pid %d, and cannot be ended: end it; nothing was changed"):format(session))
  end
  say(("hooks.build of a controller that died ran still, with pid %d: it was ended"):format(session))
end

--- Runs it where no other one runs in the same directory; one that nobody waits for is ended before.
local function run_alone(app, lock, command, say)
  local mark = core.sha256(lock .. core.time())
  while true do
    local words = { "/bin/sh", "-c", alone, "sh", lock, mark, life.of() }
    local result = controller.run(app, table.move(command, 1, #command, #words + 1, words), { what = "hooks.build" })
    local held = result.stdout:sub(1, #mark) == mark and result.stdout:sub(#mark + 1)
    if not held then return result end
    end_orphan(app, lock, held, say)
  end
end

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
---@param state deployrt.State
---@param say fun(text: string)  told before it begins, and what became of an earlier one
--- Raises deployrt.Error: "build" with the end of its output, "interrupted", "locked".
function build.run(app, state, say)
  local command = app.hooks and app.hooks.build
  if not command then return end
  if type(command) == "string" then command = { "/bin/sh", "-c", command } end
  say("building: " .. core.quote(command))
  local result = run_alone(app, state:file("build-" .. core.sha256(app.dir):sub(1, 12)), command, say)
  local how = controller.failure(result)
  if how then
    errors.raise("build", ("hooks.build %s: nothing was changed"):format(how), { detail = masked(app, result.stdout):sub(-4000) })
  end
end

return build
