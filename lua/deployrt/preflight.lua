-- preflight.lua -- What is looked at before a run changes anything: whether it can be done, and whether there is anything to do.
local adoption = require "deployrt.adoption"
local agreement = require "deployrt.world.agreement"
local driver = require "deployrt.balancer.driver"
local elsewhere = require "deployrt.elsewhere"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local operation = require "deployrt.operation"
local script = require "deployrt.script"

local preflight = {}

local function check_content(self)
  self.releases = {}
  local answers = fleet.together(self.session.hosts, function(host)
    return operation.observe { name = "release.list", host = host, args = {} }
  end)
  for i, host in ipairs(self.session.hosts) do
    self.releases[host.name] = answers[i]
    local has = answers[i][self.target.release]
    if has and self.target.sha256 and has.sha256 ~= self.target.sha256 then
      errors.raise("content", ("%s has a release %s with other content: give the new one another version (release.version)"):format(
        host.name, self.target.release), { host = host.name })
    end
    if self.target.packed and not has and not self.has_archive then
      errors.raise("missing", ("%s does not have release %s, and only a deployment brings it there: deploy it again%s"):format(host.name, self.target.release,
        self.kind == "rollback" and ", or, if the host came later, take it out of app.yml (hosts:) to roll back without it" or ""), { host = host.name })
    end
  end
end

--- What the balancers say that are there. A run that is taken up goes on without one of several, as it did in its life before.
---@return string[] notes
local function ask_balancers(self)
  local notes, away = driver.check_all(self.session.drivers, self.resumed)
  for index, err in pairs(away) do notes[#notes + 1] = agreement.leave_behind(self.world.context, index, err) end
  return notes
end

--- Whether the balancers are there, and can do what the strategy needs. A stop asks for nothing: it only takes away.
---@async
---@param self table  the run
---@param notes? string[]  what people should know besides
function preflight.balancers(self, notes)
  self.notes = self.kind ~= "stop" and ask_balancers(self) or {}
  table.move(notes or {}, 1, notes and #notes or 0, #self.notes + 1, self.notes)
  driver.check_needs(self.app, self.strategy, self.script.options)
end

--- Looks at everything that could stop the run, and changes nothing.
---@async
---@param self table  the run
function preflight.look(self)
  self.fleet:discover(self.kind == "stop")
  elsewhere.note(self.balancer, self.notes)
  if self.kind ~= "stop" then self.fleet:check_ports() end
  adoption.look(self)
  check_content(self)
  if self.without_script then return end
  self.checking = true
  local ok, err = pcall(script.call, self, "check")
  self.checking = false
  if not ok then error(err, 0) end
  if self.check_first and #self.fleet.members == 0 and #self.fleet.exited == 0 then self.check_first(self.target.release) end
end

--- Whether all is as the run would leave it.
---@param self table  the run
---@return boolean
function preflight.is_unchanged(self)
  if self.balancer.down or self.balancer.differ or self.balancer.outdated then return false end
  if self.balancer:has_left() then return false end
  local fresh, active = {}, self.fleet:active_hosts()
  for _, member in ipairs(self.fleet.members) do
    if not self.fleet:is_target(member) and not member.kept and member.state == "serving" then return false end
    if self.fleet:is_target(member) and member.state == "serving" then
      fresh[member.host.name] = (fresh[member.host.name] or 0) + 1
    end
  end
  for _, host in ipairs(active) do
    local target = self.fleet.target
    local is_current = not target.packed or host.current == target.release
    if fresh[host.name] ~= self.app.process.instances or not is_current then return false end
  end
  return true
end

return preflight
