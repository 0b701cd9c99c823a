-- cli/schema.lua -- deployrt schema
local json = require "deployrt.progress.json"
local schema = require "deployrt.schema"

return function(command)
  command.write(json.encode(schema.json()) .. "\n")
  return 0
end
