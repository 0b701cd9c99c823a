-- inventory.lua -- Hosts that a command gives: all there are, or a new group for each deployment, given back when it is left.
-- A group is remembered before its hosts are made and until they were given back, so that none is ever forgotten.
local cjson = require "cjson"
local config = require "deployrt.config"
local controller = require "deployrt.controller"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local inventory = {}

---@class deployrt.HostGroup
---@field name string
---@field status "pending"|"serving"|"leaving"  pending: a run is to decide
---@field since number    seconds since the epoch
---@field hosts? table[]  as app.hosts; nil while they are being made

---@class deployrt.HostGroups  those of a run
---@field app deployrt.App
---@field state deployrt.State
---@field known deployrt.HostGroup[]  that were there before it
---@field new? deployrt.HostGroup
local Groups = {}
Groups.__index = Groups

--- Whether each deployment gets hosts of its own.
---@param app deployrt.App
---@return boolean
function inventory.is_elastic(app)
  return app.inventory ~= nil and app.inventory.release ~= nil
end

--- The hosts that a command prints, of one group where it has a name.
local function ask(app, group)
  local result = controller.run(app, app.inventory.command, { what = "hosts.command", env = { GROUP = group } })
  local how = controller.failure(result)
  if how then errors.raise("inventory", ("hosts.command %s: nothing was changed"):format(how), { detail = (result.stdout .. result.stderr):sub(-4000) }) end
  local hosts = config.hosts(result.stdout, "hosts.command", app.dir)
  for _, entry in ipairs(hosts) do entry.group = group or entry.group end
  return hosts
end

local function check_names(app, hosts)
  local seen = {}
  for _, entry in ipairs(app.all_hosts) do seen[entry.name] = true end
  for _, entry in ipairs(hosts) do
    if seen[entry.name] then
      errors.raise("inventory", ("hosts.command gave '%s', which serves already: a new group needs hosts with other names; nothing was changed"):format(entry.name))
    end
  end
end

local function add_hosts(app, hosts)
  for _, entry in ipairs(hosts or {}) do
    table.insert(app.all_hosts, entry)
    if app.hosts ~= app.all_hosts then table.insert(app.hosts, entry) end
  end
end

--- The group that serves: the newest, where an older one was not given back yet.
local function serving_of(groups)
  local found
  for _, group in ipairs(groups) do
    if group.status == "serving" then found = group end
  end
  return found
end

--- Fills in app.hosts where app.yml has a command for them. Of a new group for each deployment, those that are there now.
---@async
---@param app deployrt.App
---@param state deployrt.State
---@param names? string[]  --host
---@param for_run? boolean  only the group that serves: a run brings its own beside it
--- Raises deployrt.Error: "inventory", "interrupted".
function inventory.fill(app, state, names, for_run)
  if not app.inventory then return end
  app.hosts, app.all_hosts = {}, {}
  app.all_hosts = app.hosts
  if inventory.is_elastic(app) then
    app.groups = setmetatable({ app = app, state = state, known = state:groups() }, Groups)
    local serving = serving_of(app.groups.known)
    for _, group in ipairs(app.groups.known) do
      if group == serving or group.status == "pending" and not for_run then add_hosts(app, group.hosts) end
    end
  else
    add_hosts(app, ask(app, nil))
  end
  local problem = names and config.keep_hosts(app, names)
  if problem then errors.raise("config", problem) end
end

--- Refuses what cannot work with a new group for each deployment.
---@param app deployrt.App
---@param strategy deployrt.Loaded
--- Raises deployrt.Error: "inventory".
function inventory.check(app, strategy)
  if inventory.is_elastic(app) and not strategy.groups then
    errors.raise("inventory", ("strategy '%s' replaces instances on their hosts, and hosts.release says that each deployment gets hosts of its own: "
      .. "use blue_green or canary_blue_green, or leave hosts.release out"):format(strategy.name))
  end
end

--- The groups that are there now are given back once the run has succeeded.
local function let_leave(groups)
  for _, group in ipairs(groups.known) do
    for _, entry in ipairs(group.hosts or {}) do entry.leaves = true end
  end
end

--- Puts hosts beside those that serve which nobody has made, as a plan needs them: as many as serve now.
---@param app deployrt.App
---@return integer count
function inventory.imagine(app)
  local hosts = {}
  for i = 1, math.max(1, #app.hosts) do
    local name = "new-" .. i
    hosts[i] = { name = name, address = name, group = "new", imagined = true }
  end
  let_leave(app.groups)
  add_hosts(app, hosts)
  return #hosts
end

--- Has a new group of hosts made, where app.yml says so, and puts them beside those that serve.
---@async
---@param app deployrt.App
---@param say fun(text: string)
--- Raises deployrt.Error: "inventory" (what was made is given back), "interrupted".
function inventory.provision(app, say)
  if not inventory.is_elastic(app) then return end
  local groups = app.groups
  groups.new = { name = ("g%x-%s"):format(math.floor(core.time() * 1000), core.sha256(core.whoami().pid .. core.time()):sub(1, 4)),
    status = "pending", since = core.time() }
  groups.state:save_group(groups.new)
  say(("making the hosts of group %s"):format(groups.new.name))
  local ok, hosts = pcall(ask, app, groups.new.name)
  local problem = not ok and hosts or nil
  groups.new.hosts = ok and hosts or {}
  if ok then ok, problem = pcall(check_names, app, hosts) end
  if not ok then
    groups:give_back_new(say)
    error(problem, 0)
  end
  groups.state:save_group(groups.new)
  let_leave(groups)
  add_hosts(app, groups.new.hosts)
end

--- What a later life of the run must know of its hosts.
---@param app deployrt.App
---@return table?
function inventory.keep(app)
  if not app.inventory then return nil end
  return { hosts = app.all_hosts, only = app.hosts ~= app.all_hosts and app.hosts or nil, known = app.groups and app.groups.known, new = app.groups and app.groups.new }
end

--- The same hosts as when the run began.
---@param app deployrt.App
---@param state deployrt.State
---@param kept table
function inventory.restore(app, state, kept)
  app.all_hosts, app.hosts = kept.hosts, kept.only or kept.hosts
  if kept.known then app.groups = setmetatable({ app = app, state = state, known = kept.known, new = kept.new }, Groups) end
end

--- Gives hosts back; a group whose hosts could not be is remembered, and tried again after the next run.
local function give_back(self, group, warn)
  local text = cjson.new().encode { group = group.name, hosts = group.hosts or {} }
  local ok, result = pcall(controller.run, self.app, self.app.inventory.release, { what = "hosts.release", env = { GROUP = group.name }, stdin = text .. "\n" })
  local how = not ok and errors.text(errors.wrap(result)) or ok and controller.failure(result)
  if not how then return self.state:forget_group(group.name) end
  local said = ok and (result.stdout .. result.stderr):sub(-1000):gsub("%s+$", "") or ""
  warn(("hosts.release for group %s %s: its hosts are still there; it is tried again after the next run%s"):format(group.name, how, said ~= "" and "\n" .. said or ""))
end

--- Notes how the run ended, before anybody is told: which group serves from now on, and which are left.
---@param outcome string
function Groups:decide(outcome)
  if outcome == "needs_attention" or not self.new then return end
  self.new.status = outcome == "succeeded" and "serving" or "leaving"
  self.state:save_group(self.new)
  if outcome ~= "succeeded" then return end
  for _, group in ipairs(self.known) do
    group.status = "leaving"
    self.state:save_group(group)
  end
end

--- Gives back the hosts of the groups that are left.
---@async
---@param warn fun(message: string)
function Groups:give_back(warn)
  for _, group in ipairs(self.known) do
    if group.status == "leaving" then give_back(self, group, warn) end
  end
  if self.new and self.new.status == "leaving" then give_back(self, self.new, warn) end
end

--- Gives back what was made for a run that did not come about.
---@async
---@param warn fun(message: string)
function Groups:give_back_new(warn)
  if not self.new or self.new.status ~= "pending" then return end
  self.new.status = "leaving"
  self.state:save_group(self.new)
  give_back(self, self.new, warn)
end

--- Gives back all hosts: nothing runs on them any more.
---@async
---@param warn fun(message: string)
function Groups:give_back_all(warn)
  for _, group in ipairs(self.known) do give_back(self, group, warn) end
end

return inventory
