-- rollback.lua -- Straight back to an earlier release: one switch where it still runs or has room, else in halves.
local errors = require "deployrt.errors"
local history = require "deployrt.history"
local verbs = require "deployrt.verbs"

local rollback = setmetatable({ name = "rollback", api = 1, options = {} }, { __index = verbs })
rollback.__index = rollback

local function prepare(_, new)
  new:start()
  new:await_healthy()
end

local function replace(self, old)
  local new = self:successor(old)
  if new.port ~= old.port then
    prepare(self, new)
    self.balancer:swap(old, new)
    old:stop()
  else
    self.balancer:drain(old)
    old:stop()
    prepare(self, new)
    self.balancer:attach(new)
  end
end

--- What was adopted is started again from what its host knows of it, if it does not run still.
local function check_adopted(self, target)
  for _, host in ipairs(self.fleet.hosts) do
    local known = not target.obstacle and #host.origins > 0
    for _, member in ipairs(self.fleet:idle()) do known = known or member.host == host and self.fleet:is_target(member) end
    if not known then
      self:fail(("what served before was started by hand, and %s cannot start it again%s: use --to with another release"):format(
        host.name, target.obstacle and " (" .. target.obstacle .. ")" or ""))
    end
  end
end

function rollback:check()
  self.fleet:use_groups()
  if self.fleet.target.adopted then check_adopted(self, self.fleet.target) end
end

function rollback:deploy()
  local old = self.fleet:old()
  local staying = self.fleet:on_active_hosts(old)
  if #staying == 0 then return end -- the runtime fills those hosts, and takes the others out of service
  if self.fleet:lacking_slots() then
    if #staying == 1 then self:fill(true) end -- whoever else is to serve does so before the last is stopped
    for batch in self:batches(staying, "50%") do
      self:step(batch.label, function() self:each(batch, replace) end)
    end
    return
  end
  self:step("switch back", function()
    local new = self.fleet:second_set(old)
    self:each(new, prepare)
    self.balancer:switch(old, new)
    self:each(old, function(_, each) each:stop() end)
  end)
end

local changes = { succeeded = true, needs_attention = true, running = true }

--- The last run that changed what serves, a deployment, a rollback, or a stop: one that needs attention did so in part, and
--- one whose controller died perhaps.
local function last_change(runs)
  for i = #runs, 1, -1 do
    if changes[runs[i].outcome] and runs[i].strategy ~= "repl" then return runs[i] end
  end
end

--- The launch to go back to.
---@param state deployrt.State
---@param version? string  --to
---@return table launch
function rollback.target(state, version)
  local runs = history.all(state)
  local last = last_change(runs)
  if not last then errors.raise("nothing", "there is no run to roll back: see `deployrt history`") end
  if not version then
    if last.previous_launch then return last.previous_launch end
    errors.raise("nothing", ("nothing served before the last run that changed something (%s): there is nothing to go back to"):format(last.id))
  end
  for i = #runs, 1, -1 do
    for _, launch in ipairs { runs[i].launch or false, runs[i].previous_launch or false } do
      if launch and launch.release == version and (launch == runs[i].previous_launch or runs[i].outcome == "succeeded") then return launch end
    end
  end
  errors.raise("nothing", ("no successful run deployed release %s: see `deployrt history`"):format(version))
end

return rollback
