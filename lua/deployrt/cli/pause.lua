-- cli/pause.lua -- deployrt pause|approve APP.yml: asks something of a run that is under way.
local common = require "deployrt.cli.common"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"

return function(command, word, answer)
  word = word or "pause"
  return common.look(command, function(opened)
    local line = opened:lines()[1]
    for _, each in ipairs(opened:lines()) do
      if each.name < line.name then line = each end -- the run listens to the first by name
    end
    local held = lock.read(line)
    if not held then errors.raise("nothing", ("no run of %s is under way"):format(opened.app.app)) end
    if held.dead then errors.raise("locked", lock.refusal(held, opened.app.file)) end
    line:call("run_control", { held.run, ("%s %d %s"):format(word, math.floor(core.time() * 1000), answer or "") })
    command.write(word == "pause" and ("run %s holds at its next step; `deployrt approve %s` lets it go on\n"):format(held.run, opened.app.file)
      or ("run %s goes on\n"):format(held.run))
    return 0
  end)
end
