-- cli/unlock.lua -- deployrt unlock APP.yml: removes a dead run's lock.
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"

return function(command)
  return common.survey(command, function(opened)
    local removed = 0
    for _, host in ipairs(opened:lines()) do
      local held = lock.read(host)
      if held then
        if not held.dead and not command.flags.force then
          errors.raise("locked", lock.refusal(held, opened.app.file), { host = host.name })
        end
        host:call("lock_break", { held.run })
        command.write(("%s: removed the lock of run %s\n"):format(host.name, held.run))
        removed = removed + 1
      end
    end
    if removed == 0 then command.write("there is no lock\n") end
  end)
end
