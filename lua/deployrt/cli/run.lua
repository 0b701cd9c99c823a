-- cli/run.lua -- deployrt run STRATEGY APP.yml
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local schema = require "deployrt.schema"
local strategy = require "deployrt.strategy"

local deploy = setmetatable({}, { __call = function(self, command)
  local app, options = self.prepare(command)
  return common.execute(command, app, options)
end })

--- The hosts that the last successful run went on without.
local function failed_hosts(command)
  local app = common.app(command, 2)
  local last = common.state(command, app):last_success()
  if not last or not last.failed then errors.raise("nothing", "the last run failed on no host: there is nothing to repeat") end
  return last.failed
end

--- What the command line says of a run: the application, and what run.execute needs.
---@param command deployrt.Command
---@return deployrt.App
---@return table options
function deploy.prepare(command)
  local name, path = command.operands[1], command.operands[2]
  if name and not path and name:find("%.ya?ml$") then
    errors.raise("usage", ("which strategy? For example: deployrt rolling %s"):format(name))
  end
  if not path then errors.raise("usage", ("which app.yml? For example: deployrt %s app.yml"):format(name or "rolling")) end
  local loaded = strategy.load(name, function(text) command.write_error(text .. "\n") end)
  if command.flags.failed then command.flags.host = failed_hosts(command) end
  local app = common.app(command, 2)
  local values = schema.validate_options(loaded.options, app.strategy or {}, app.place, loaded.name)
  return app, { strategy = loaded, values = values, kind = "deploy" }
end

return deploy
