-- cli/run.lua -- deployrt run STRATEGY APP.yml
local build = require "deployrt.build"
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local failed = require "deployrt.cli.failed"
local inventory = require "deployrt.inventory"
local plan = require "deployrt.plan"
local run = require "deployrt.run"
local schema = require "deployrt.schema"
local strategy = require "deployrt.strategy"

--- The same, where hosts are made for it: when nothing is to be changed, or no run comes about, none are left.
local function on_new_hosts(command, app, options, say)
  local function warn(text) command.write_error(text .. "\n") end
  inventory.check(app, options.strategy)
  local needed = run.is_needed(app, common.state(command, app), command.flags.force)
  inventory.clear(app, warn)
  if needed then inventory.provision(app, say) end
  local ok, exit = pcall(common.execute, command, app, options)
  if app.groups and (ok or exit.code ~= "unfinished") and exit ~= 3 then app.groups:give_back_new(warn) end
  if ok then return exit end
  error(exit, 0)
end

local deploy = setmetatable({}, { __call = function(self, command)
  local app, options = self.prepare(command)
  local function say(text)
    if not (command.flags.quiet or command.flags.json) then command.write_error(text .. "\n") end
  end
  if not command.flags.failed then build.run(app, common.state(command, app), say) end -- those hosts get the release that the others have
  if app.inventory then return on_new_hosts(command, app, options, say) end
  return common.execute(command, app, options)
end })

--- What the command line says of a run: the application, and what run.execute needs.
---@param command deployrt.Command
---@return deployrt.App
---@return table options
function deploy.prepare(command)
  local name, path = command.operands[1], command.operands[2]
  if name and not path and name:find("%.ya?ml$") then
    errors.raise("usage", ("which strategy? For example: %s rolling %s"):format(command.typed, name))
  end
  if not path then errors.raise("usage", ("which app.yml? For example: %s %s app.yml"):format(command.typed, name or "rolling")) end
  if command.flags.failed then failed.narrow(command) end
  local app = common.app(command, 2, true)
  local loaded = common.strategy(command, name, app)
  local values, unused = schema.validate_options(loaded.options, app.strategy or {}, app.place, loaded.name, strategy.is_option)
  local options = { strategy = loaded, values = values, notes = unused, kind = "deploy" }
  function options.check_first(release) plan.check_first(app, options, release) end
  return app, options
end

return deploy
