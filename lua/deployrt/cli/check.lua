-- cli/check.lua -- deployrt check APP.yml [--connect]
local common = require "deployrt.cli.common"

return function(command)
  local app = common.app(command)
  if command.flags.connect then
    common.look(command, function(opened)
      for _, driver in ipairs(opened.drivers) do driver:check() end
      opened.fleet:discover()
    end)
  end
  if not command.flags.quiet then
    command.write(("%s is fine: %s, %d host%s%s\n"):format(app.file, app.app, #app.hosts, #app.hosts == 1 and "" or "s",
      command.flags.connect and ", all reached" or ""))
  end
  return 0
end
