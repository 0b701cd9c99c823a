-- inventory.lua -- Hosts that a command gives: all there are, or a new group for each deployment, given back when it is left.
-- A group is remembered before its hosts are made and until they were given back, so that none is ever forgotten.
local archive = require "deployrt.archive"
local cjson = require "cjson"
local config = require "deployrt.config"
local controller = require "deployrt.controller"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local life = require "deployrt.life"
local shared = require "deployrt.inventory.shared"

local inventory = {}

---@class deployrt.HostGroup
---@field name string
---@field status "pending"|"serving"|"leaving"  pending: a run is to decide
---@field since number    seconds since the epoch
---@field owner string    who has it made, where
---@field life string     of the controller that has it made
---@field release? string that it was made for; nil: not known beforehand
---@field hosts? table[]  as app.hosts; nil while they are being made
---@field again? boolean  it could not be given back before: a run that came since has not compared its machines with its own
---@field unsettled? boolean  its run could not be rolled back completely: perhaps it gets traffic still

---@class deployrt.HostGroups  those of a run
---@field app deployrt.App
---@field state deployrt.State
---@field known deployrt.HostGroup[]  that were there before it, oldest first
---@field new? deployrt.HostGroup
local Groups = {}
Groups.__index = Groups

--- Whether each deployment gets hosts of its own.
---@param app deployrt.App
---@return boolean
function inventory.is_elastic(app)
  return app.inventory ~= nil and app.inventory.release ~= nil
end

--- The release that a run will deploy, as far as it can be told beforehand: by its content, where it has no version.
local function release_of(app)
  local release = app.release
  if release.version or not release.path then return release.version end
  return archive.look(app).sha256:sub(1, 12)
end

--- The hosts that a command prints, of one group where it has a name.
local function ask(app, group, release)
  local result = controller.run(app, app.inventory.command, { what = "hosts.command", env = { GROUP = group, RELEASE = release } })
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
  local groups, me = app.groups, core.whoami()
  groups.new = { name = ("g%x-%s"):format(math.floor(core.time() * 1000), core.sha256(me.pid .. core.time()):sub(1, 4)),
    status = "pending", since = core.time(), owner = ("%s@%s"):format(me.user, me.host), life = life.of(), release = release_of(app) }
  groups.state:save_group(groups.new)
  say(("making the hosts of group %s"):format(groups.new.name))
  local ok, hosts = pcall(ask, app, groups.new.name, groups.new.release)
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

--- Gives back what earlier runs left, so that there is room for new hosts. It comes after the lock of those that serve was
--- looked at.
---@async
---@param app deployrt.App
---@param warn fun(message: string)
--- Raises deployrt.Error: "locked" when another run is under way with its hosts, or was interrupted; "interrupted".
function inventory.clear(app, warn)
  if not inventory.is_elastic(app) then return end
  app.groups:refuse_busy()
  app.groups:refuse_interrupted()
  app.groups:clear(warn)
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

--- What hosts.release reads. An empty list is no object, and cjson does not tell them apart.
local function encode(group)
  local json, hosts = cjson.new(), group.hosts or {}
  return ('{"group":%s,"hosts":%s}\n'):format(json.encode(group.name), #hosts > 0 and json.encode(hosts) or "[]")
end

--- Whether the controller that has a group made may still be at work with it. One of another machine is believed to be for
--- as long as hosts.command may take.
local function is_in_hand(group)
  if group.status ~= "pending" or not group.life or life.is_gone(group.life) then return false end
  return life.is_here(group.life) or core.time() - group.since < controller.longest
end

--- Whether hosts.command still makes a group whose controller died: what it has made by then would be left.
local function is_still_made(group)
  return group.hosts == nil and controller.is_running("GROUP", group.name)
end

--- The run that a group was made for, when it has not ended: its resumption or its abort decides.
local function run_of(self, group)
  for _, run in ipairs(self.state:runs()) do
    if not run.finished and run.life and run.life == group.life then return run end
  end
end

local function refuse(message, ...)
  errors.raise("locked", message:format(...))
end

local function when(seconds)
  return os.date("%Y-%m-%d %H:%M:%S", math.floor(seconds))
end

--- Refuses to go on beside a controller of this machine that has hosts made, or beside what a dead one left at it.
--- Raises deployrt.Error: "locked".
function Groups:refuse_busy()
  for _, group in ipairs(self.known) do
    if is_in_hand(group) and life.is_here(group.life) then
      refuse("a run of %s, begun %s, is under way with the hosts of group %s: wait for it, or see `deployrt status %s`", group.owner,
        when(group.since), group.name, self.app.file)
    elseif group.status == "pending" and is_still_made(group) then
      refuse("hosts.command for group %s, begun %s, still runs, and its controller died: wait until it has ended, or end it; then the group is given back",
        group.name, when(group.since))
    end
  end
end

--- Refuses to begin another run before one has ended that hosts were made for.
--- Raises deployrt.Error: "locked".
function Groups:refuse_interrupted()
  for _, group in ipairs(self.known) do
    local run = group.status ~= "serving" and run_of(self, group)
    if run then
      refuse("run %s of %s@%s, begun %s with the hosts of group %s, has not ended: wait for it, or when its controller died, finish it with "
        .. "`deployrt resume %s`, or roll it back with `deployrt abort %s`", run.id, run.user, run.controller, when(run.started), group.name,
        self.app.file, self.app.file)
    end
  end
end

--- Whether nobody will come to use a group, or to decide about it.
local function is_left(self, group)
  if group.status == "serving" or group.unsettled or is_in_hand(group) or is_still_made(group) then return false end
  return not run_of(self, group)
end

--- The groups besides one that serve, or that somebody comes to decide about.
local function used_besides(self, group)
  local others = {}
  for _, each in ipairs(self.known) do others[#others + 1] = each ~= group and not is_left(self, each) and each or nil end
  if self.new and self.new ~= group and not is_left(self, self.new) then others[#others + 1] = self.new end
  return others
end

--- Leaves alone a group of which a machine is needed besides, and forgets it: by the next run, that machine may be anybody's.
---@return boolean
local function spare(self, group, warn, looks)
  local reason = shared.reason(self.app, group, used_besides(self, group), looks)
  if not reason then return false end
  local names = {}
  for i, entry in ipairs(group.hosts) do names[i] = entry.name end
  warn(("group %s (%s) is not given back, and hosts.release was not called: %s; give back by hand what nothing runs on"):format(group.name,
    table.concat(names, ", "), reason))
  local forgotten, err = pcall(self.state.forget_group, self.state, group.name)
  if not forgotten then warn(("group %s is still remembered: %s"):format(group.name, errors.text(errors.wrap(err)))) end
  return true
end

--- Gives hosts back; a group whose hosts could not be is remembered, and tried again with the next run.
---@param looks? boolean  whether no run has compared its machines with those that serve
---@return "given"|"spared"|nil done
---@return deployrt.Error? err  when the command was not even heard to its end
local function give_back(self, group, warn, looks)
  if spare(self, group, warn, looks or group.again or false) then return "spared" end
  local env = { GROUP = group.name, RELEASE = group.release or "" }
  local ok, result = pcall(controller.run, self.app, self.app.inventory.release, { what = "hosts.release", env = env, stdin = encode(group) })
  local how = not ok and errors.text(errors.wrap(result)) or ok and controller.failure(result)
  if not how then
    local forgotten, err = pcall(self.state.forget_group, self.state, group.name)
    if not forgotten then
      warn(("group %s was given back, and is still remembered: hosts.release gets it again with the next run: %s"):format(group.name, errors.text(errors.wrap(err))))
    end
    return forgotten and "given" or nil
  end
  group.again = true
  local said = ok and (result.stdout .. result.stderr):sub(-1000):gsub("%s+$", "") or ""
  warn(("hosts.release for group %s %s: its hosts are still there; it is tried again with the next run%s"):format(group.name, how, said ~= "" and "\n" .. said or ""))
  return nil, not ok and errors.wrap(result) or nil
end

--- Gives back the groups that are left already: those that could not be given back, and those whose controller died before
--- a run began with them.
---@async
---@param warn fun(message: string)
---@return integer count
--- Raises deployrt.Error: "interrupted".
function Groups:clear(warn)
  local kept, count = {}, 0
  for _, group in ipairs(table.move(self.known, 1, #self.known, 1, {})) do
    local done, err
    if is_left(self, group) then done, err = give_back(self, group, warn, true) end
    if err and err.code == "interrupted" then error(err, 0) end
    if done == "given" then count = count + 1 end
    if not done then kept[#kept + 1] = group end
  end
  self.known = kept
  return count
end

--- Notes how the run ended, before anybody is told: which group serves from now on, and which are left. An earlier life may
--- have died when it had decided otherwise. What serves is saved before what leaves, so that one group does at each moment.
---@param outcome string
function Groups:decide(outcome)
  local new, well, decided = self.new, outcome == "succeeded", {}
  if not new then return end
  new.unsettled = outcome == "needs_attention" or nil
  new.status = new.unsettled and new.status or well and "serving" or "leaving"
  for _, group in ipairs(self.known) do
    if not is_in_hand(group) then
      group.status = well and "leaving" or group.status
      decided[#decided + 1] = group
    end
  end
  table.insert(decided, well and 1 or #decided + 1, new)
  for _, group in ipairs(decided) do self.state:save_group(group) end
end

--- Gives back the hosts of the groups that are left.
---@async
---@param warn fun(message: string)
function Groups:give_back(warn)
  for _, group in ipairs(self.known) do
    if group.status == "leaving" then give_back(self, group, warn) end
  end
  if self.new and self.new.status == "leaving" then give_back(self, self.new, warn, true) end
end

--- Gives back what was made for a run that did not come about.
---@async
---@param warn fun(message: string)
function Groups:give_back_new(warn)
  if not self.new or self.new.status ~= "pending" then return end
  self.new.status = "leaving"
  self.state:save_group(self.new)
  give_back(self, self.new, warn, true)
end

--- Gives back all hosts: nothing runs on them any more. Those that another machine has made just now are its own.
---@async
---@param warn fun(message: string)
function Groups:give_back_all(warn)
  for _, group in ipairs(self.known) do
    if is_in_hand(group) then
      warn(("group %s is being made by %s: its hosts are not given back"):format(group.name, group.owner))
    else
      give_back(self, group, warn)
    end
  end
end

return inventory
