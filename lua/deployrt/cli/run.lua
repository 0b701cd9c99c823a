-- cli/run.lua -- deployrt run STRATEGY APP.yml
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local schema = require "deployrt.schema"
local strategy = require "deployrt.strategy"

return function(command)
  local name, path = command.operands[1], command.operands[2]
  if name and not path and name:find("%.ya?ml$") then
    errors.raise("usage", ("which strategy? For example: deployrt rolling %s"):format(name))
  end
  if not path then errors.raise("usage", ("which app.yml? For example: deployrt %s app.yml"):format(name or "rolling")) end
  local loaded = strategy.load(name, function(text) command.write_error(text .. "\n") end)
  local app = common.app(command, 2)
  local values = schema.validate_options(loaded.options, app.strategy or {}, app.place, loaded.name)
  return common.execute(command, app, { strategy = loaded, values = values, kind = "deploy" })
end
