-- cli/lib.lua -- deployrt lib install|update|list|verify [APP.yml] [NAME...]
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local install = require "deployrt.library.install"
local library = require "deployrt.library"
local lock = require "deployrt.library.lock"
local permission = require "deployrt.permission"
local suggest = require "deployrt.suggest"

local actions = {}

local function short(text)
  return text and #text == 40 and text:sub(1, 12) or text
end

local function say_change(command)
  return function(change)
    if command.flags.quiet then return end
    local how = not change.fetched and "is there" or change.before == change.now and "installed"
      or change.before and "installed, in place of " .. short(change.before) or "installed, and locked"
    command.say("library", ("%s %s: %s"):format(change.name, short(change.now), how), { name = change.name, version = change.now, previous = change.before })
  end
end

function actions.install(command, app)
  install.bring(app, function() return false end, say_change(command))
  return 0
end

--- With names, only those.
function actions.update(command, app, names)
  local wanted, known = {}, {}
  for _, each in ipairs(app.require) do known[#known + 1], wanted[each.name] = each.name, #names == 0 end
  for _, name in ipairs(names) do
    if wanted[name] == nil then errors.raise("usage", ("%s requires no library '%s'%s"):format(app.file, name, suggest.hint(name, known))) end
    wanted[name] = true
  end
  install.bring(app, function(each) return wanted[each.name] end, say_change(command))
  return 0
end

local function source_of(locked)
  if locked.rock then return ("rock %s %s%s"):format(locked.rock, locked.version, locked.server and " from " .. locked.server or "") end
  return ("git %s %s (%s)"):format(locked.git, locked.ref or "HEAD", short(locked.commit))
end

function actions.list(command, app)
  local locked = {}
  for _, each in ipairs(lock.read(app.dir)) do locked[each.name] = each end
  for _, wanted in ipairs(app.require) do
    local found = locked[wanted.name]
    local state = not found and "not locked" or library.difference(app.dir, found) and "not as locked" or "installed"
    local names = {}
    for name in pairs(found and found.files or {}) do names[#names + 1] = name end
    table.sort(names)
    command.say("library", ("%s: %s, %s; may: instances, %s"):format(wanted.name, state, found and source_of(found) or "nothing fetched yet",
      table.concat(wanted.allow or permission.default, ", ")), { name = wanted.name, state = state, files = names })
    for _, name in ipairs(command.flags.json and {} or names) do command.write("  " .. name .. "\n") end
  end
  return 0
end

function actions.verify(command, app)
  library.open(app)
  if not command.flags.quiet then
    command.say("libraries", ("%d librar%s: every file is as deployrt.lock says"):format(#app.require, #app.require == 1 and "y" or "ies"))
  end
  return 0
end

--- The app.yml of a command line, by default the one of this directory.
local function take_file(command)
  local operands = command.operands
  local at = operands[1] and operands[1]:find("%.ya?ml$") and 1 or 0
  if at == 0 then table.insert(operands, 1, core.fs.stat("app.yml") and "app.yml" or nil) end
  local app = common.app(command)
  return app, table.move(operands, 2, #operands, 1, {})
end

return function(command)
  local name = table.remove(command.operands, 1)
  local action = actions[name or ""]
  if not action then
    errors.raise("usage", ("deployrt lib %s? There are: install, update, list, verify"):format(name or ""))
  end
  local app, names = take_file(command)
  if #app.require == 0 then errors.raise("nothing", ("%s requires no library (key `require`)"):format(app.file)) end
  return action(command, app, names)
end
