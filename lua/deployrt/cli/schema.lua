-- cli/schema.lua -- deployrt schema
local cjson = require "cjson"
local schema = require "deployrt.schema"

return function(command)
  command.write(cjson.encode(schema.json()) .. "\n")
  return 0
end
