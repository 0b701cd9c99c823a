-- cli/version.lua -- deployrt version
return function(command)
  local version = require("deployrt.cli").version
  command.say("version", "deployrt " .. version, { version = version })
  return 0
end
