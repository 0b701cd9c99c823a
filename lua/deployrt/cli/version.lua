-- cli/version.lua -- deployrt version
return function(command)
  command.write(("deployrt %s\n"):format(require("deployrt.cli").version))
  return 0
end
