-- fleet.lua -- What runs where, found by looking at hosts and balancer, never from memory.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local instance = require "deployrt.instance"
local operation = require "deployrt.operation"
local rounds = require "deployrt.rounds"
local signature = require "deployrt.signature"
local slot_name = require "deployrt.slot_name"

---@class deployrt.Fleet
---@field hosts deployrt.Host[]
---@field target table                launch of the release being deployed
---@field members deployrt.Instance[] every instance that runs
---@field given_up table<string, boolean>  names of hosts that the run goes on without
---@field successors table<string, table<integer, integer>>  by slot: the pid of the process that was started in the place of one
---@field stranded table<string, boolean>  those of them where not all was taken back
local Fleet = { kind = "fleet", takes = signature.of {
  on = "host: host", at = "host: host, port: port", candidate = "host: host, port: port?", free_port = "host: host",
  kept_hosts = "hosts: hosts?", on_active_hosts = "list: instances", keep = "instances: instances", second_set = "old: instances",
  gap = "batch: instances", is_target = "member: instance", state_of = "member: instance",
} }
Fleet.__index = Fleet

local fleet = {}

--- Does `action(item)` for all items side by side and raises what went wrong, together.
---@async
function fleet.together(list, action)
  operation.check_can_wait()
  local tasks, failures, results = {}, {}, {}
  for i, item in ipairs(list) do tasks[i] = core.spawn(action, item) end
  for i, task in ipairs(tasks) do
    local ok, result = task:wait()
    if not ok then failures[#failures + 1] = errors.wrap(result) end
    results[i] = result
  end
  if #failures > 0 then error(errors.several(failures), 0) end
  return results
end

---@param hosts deployrt.Host[]
---@param process table  app.process
---@param balancer deployrt.Balancer
function fleet.new(hosts, process, balancer)
  return setmetatable({ hosts = hosts, process = process, balancer = balancer, members = {}, places = {}, by_host = {}, reserved = {}, listening = {},
    given_up = {}, stranded = {}, successors = {} }, Fleet)
end

--- The instances of a host.
---@param host deployrt.Host
---@return deployrt.Instance[]
function Fleet:on(host)
  return self.by_host[host.name] or {}
end

--- What the balancer says of a member.
---@param member deployrt.Instance
---@return "serving"|"draining"|"idle"
function Fleet:state_of(member)
  if not self.balancer:exists() or self.balancer.unknown then return "serving" end
  if self.balancer:is_serving(member) then return "serving" end
  local slot = self.balancer.slots[member.slot]
  return slot and (slot.state == "drain" or slot.sessions > 0) and "draining" or "idle"
end

--- Looks at all hosts and the balancer.
---@async
---@param anyhow? boolean  also where the balancer is away
function Fleet:discover(anyhow)
  if anyhow then self.balancer:look() else self.balancer:refresh() end
  self:discover_hosts()
end

--- Looks at all hosts; what their instances get of the traffic is as the balancer was seen last.
---@async
function Fleet:discover_hosts()
  self.members, self.places, self.by_host, self.exited, self.in_order = {}, {}, {}, {}, nil
  local answers = fleet.together(self.hosts, function(host)
    return operation.observe { name = "instance.list", host = host, args = {} }
  end)
  for i, host in ipairs(self.hosts) do
    host.current, host.origins = answers[i].current, answers[i].origins or {}
    self.listening[host.name] = answers[i].listening
    for _, slot in ipairs(answers[i].slots) do
      local launch = slot.launch or { release = "unknown", settings = "", command = {} }
      local member = instance.new { host = host, port = slot.port, launch = launch, pid = slot.pid, key = slot.key }
      if slot.state == "running" then
        member.state = self:state_of(member)
        self:add(member)
      else
        self.exited[#self.exited + 1] = member
      end
    end
  end
  self.balancer:settle(self.members)
end

local function listens(self, host, port)
  for _, each in ipairs(self.listening[host.name] or {}) do
    if each == port then return true end
  end
  return false
end

--- Slots on which something listens that is none of ours.
---@return {host: deployrt.Host, port: integer}[]
function Fleet:strangers()
  local found = {}
  for _, host in ipairs(self.hosts) do
    for _, port in ipairs(self.process.ports) do
      if listens(self, host, port) and not self:at(host, port) then found[#found + 1] = { host = host, port = port } end
    end
  end
  return found
end

--- Whether requests get through to a slot: the balancer sends them there, and does not find it down.
local function gets_requests(balancer, name, slot)
  return balancer:is_serving { slot = name } and slot.up ~= false
end

--- Whether instances run, and no request gets through to any, though the balancer runs too.
---@return boolean
---@return boolean? down  the balancer would send requests, and finds all of that down
function Fleet:is_idle()
  local balancer, down = self.balancer, false
  if not balancer:exists() or balancer.down or #self.members == 0 then return false end
  for name, slot in pairs(balancer.slots) do
    if gets_requests(balancer, name, slot) then return false end
    down = down or balancer:is_serving { slot = name }
  end
  return true, down
end

--- Balancers know the slots of app.yml: what runs on another port would lose its traffic before anything replaces it.
--- Raises deployrt.Error: "config".
function Fleet:check_ports()
  if not self.balancer:exists() then return end
  local known = {}
  for _, port in ipairs(self.process.ports) do known[port] = true end
  for _, member in ipairs(self.members) do
    if not known[member.port] then
      errors.raise("config", ("%s runs release %s, and process.ports does not have that port any more: keep it behind the new ones until a "
        .. "deployment has replaced what runs there"):format(member.label, member.release), { host = member.host.name })
    end
  end
end

--- Notes an instance that was started; forget() is its opposite.
---@param member deployrt.Instance
function Fleet:add(member)
  local at, name = #self.members + 1, member.host.name
  self.members[at], self.places[member], self.in_order = member, at, nil
  self.by_host[name] = self.by_host[name] or {}
  table.insert(self.by_host[name], member)
end

--- Has an object that is known already stand for an instance that was found.
---@param found deployrt.Instance
---@param known deployrt.Instance
function Fleet:exchange(found, known)
  self:forget(found)
  self:add(known)
end

local function remove(list, member)
  for i = #list, 1, -1 do
    if list[i] == member then table.remove(list, i) end
  end
end

--- Notes that an instance runs no more; its slot is free.
---@param member deployrt.Instance
function Fleet:forget(member)
  local at, last = self.places[member], self.members[#self.members]
  if at then
    self.members[at], self.places[last] = last, at -- nobody counts on their order
    self.members[#self.members], self.places[member], self.in_order = nil, nil, nil
    remove(self:on(member.host), member)
  end
  self.reserved[member.host.name .. member.port] = nil
  local ports = self.listening[member.host.name] or {}
  for i = #ports, 1, -1 do
    if ports[i] == member.port then table.remove(ports, i) end
  end
end

--- Notes that an instance was started again. Who asked for something before still means the process that it was.
---@param label string
---@param pid integer
function Fleet:renew(label, pid)
  for _, member in ipairs(self.members) do
    if member.label == label and member.pid ~= pid then
      local known = self.successors[member.slot] or {}
      self.successors[member.slot], known[member.pid or 0], member.pid = known, pid, pid
      known[pid] = nil -- one that had this pid before is long gone
    end
  end
end

--- The instance that runs in a slot; nil: none does.
---@param host deployrt.Host
---@param port integer
---@return deployrt.Instance?
function Fleet:at(host, port)
  for _, member in ipairs(self:on(host)) do
    if member.port == port then return member end
  end
end

--- Whether an instance is of the release and the settings that are being deployed.
---@param member deployrt.Instance
---@return boolean
function Fleet:is_target(member)
  return member.launch.release == self.target.release and member.launch.settings == self.target.settings
end

--- Those that are accepted; hosts take turns.
local function select(self, accept)
  self.in_order = self.in_order or rounds.sort(self.members)
  return rounds.select(self.in_order, accept)
end

--- Whether an instance serves, as far as the run is about it.
local function serves(self, member)
  return member.state == "serving" and not self.given_up[member.host.name]
end

--- The instances that serve and are to be replaced: first those that the balancer finds down; hosts take turns, so that a batch
--- spreads over them.
---@return deployrt.Instance[]
function Fleet:old()
  local down, up = {}, {}
  for _, member in ipairs(select(self, function(m) return not self:is_target(m) and serves(self, m) end)) do
    local slot = self.balancer.slots[member.slot]
    table.insert(slot and slot.up == false and down or up, member)
  end
  return table.move(up, 1, #up, #down + 1, down)
end

--- The instances of the release being deployed that serve.
---@return deployrt.Instance[]
function Fleet:new()
  return select(self, function(m) return self:is_target(m) and serves(self, m) end)
end

--- The instances that run without traffic.
---@return deployrt.Instance[]
function Fleet:idle()
  return select(self, function(m) return m.state ~= "serving" end)
end

--- All that run.
---@return deployrt.Instance[]
function Fleet:instances()
  return select(self, function() return true end)
end

--- How many instances serve when all is well, on hosts that the run goes on with.
---@return integer
function Fleet:capacity()
  return #self:kept_hosts(self:active_hosts()) * self.process.instances
end

--- The hosts that the run has not given up.
---@param hosts? deployrt.Host[]  default: all
---@return deployrt.Host[]
function Fleet:kept_hosts(hosts)
  local list = {}
  for _, host in ipairs(hosts or self.hosts) do
    if not self.given_up[host.name] then list[#list + 1] = host end
  end
  return list
end

--- Has instances stay up without traffic after the run, until the next one; not on hosts that are given back.
---@param instances deployrt.Instance[]
function Fleet:keep(instances)
  for _, member in ipairs(instances) do member.kept = not member.host.leaves end
end

--- With host groups, those of the group that serves; otherwise all.
---@return deployrt.Host[]
function Fleet:active_hosts()
  return self.active or self.hosts
end

local function in_group(self, group, wanted)
  local list = {}
  for _, host in ipairs(self.hosts) do
    if (host.group == group) == wanted then list[#list + 1] = host end
  end
  return list
end

--- The group of hosts that alone serves: false when several do, nil when none does or there are no groups.
---@return string|false|nil
function Fleet:serving_group()
  local group
  for _, member in ipairs(self.members) do
    local own = member.host.group or false
    if member.state == "serving" then
      if group ~= nil and own ~= group then return false end
      group = own
    end
  end
  return group ~= nil and #in_group(self, group or nil, false) > 0 and group or nil
end

--- Has only one group of hosts serve, the one that does so now or the first, where hosts have groups, and not several serve. A
--- rollback goes by where its release served before: in one group, which it does not leave or comes back to, or in several.
function Fleet:use_groups()
  local group, back = self:serving_group(), self.target.group
  if back and #in_group(self, back, true) == 0 then back = nil end
  if back and (not group or group == back) then
    self.active = in_group(self, back, true)
  elseif group ~= false and back ~= false then
    group = group or self.hosts[1].group
    if not group or #in_group(self, group, false) == 0 then return end
    self.active, self.standby = in_group(self, group, true), in_group(self, back or group, back ~= nil)
  end
end

--- The other group's hosts: {} when groups are not in use.
function Fleet:standby_hosts()
  return self.standby or {}
end

--- Those of some instances that are on hosts which are to serve.
---@param list deployrt.Instance[]
---@return deployrt.Instance[]
function Fleet:on_active_hosts(list)
  local active, found = {}, {}
  for _, host in ipairs(self:active_hosts()) do active[host] = true end
  for _, member in ipairs(list) do found[#found + 1] = active[member.host] and member or nil end
  return found
end

--- Whether the release being deployed can run there: what was adopted once knows only the port that it had.
local function fits(self, host, port)
  if not self.target.adopted then return true end
  for _, each in ipairs(host.origins) do
    if each == port then return true end
  end
  return false
end

--- A port of the host that nothing runs on and nobody has been promised; nil when there is none.
---@param host deployrt.Host
---@return integer?
function Fleet:free_port(host)
  for _, port in ipairs(self.process.ports) do
    if fits(self, host, port) and not self:at(host, port) and not self.reserved[host.name .. port] and not listens(self, host, port) then return port end
  end
end

--- Raises when a slot cannot be used: by the release being deployed, or because of what runs there until the end.
local function check_slot(self, host, port)
  local member, known = self:at(host, port), self.target.adopted
  for _, each in ipairs(self.process.ports) do known = known or each == port end
  if not (member or known) then errors.raise("usage", ("process.ports has no port %s"):format(tostring(port))) end
  if member and member.lasts then
    errors.raise("busy", ("%s: what was adopted there could not be started again (%s), so it is stopped only after the run has succeeded: "
      .. "give process.ports a spare slot, or stop it by hand"):format(member.label, member.launch.obstacle), { host = host.name })
  end
  if not fits(self, host, port) then
    errors.raise("missing", ("%s:%d: what served before was started by hand on another port, and is not known there"):format(host.name, port), { host = host.name })
  end
end

--- An instance of the target release for a slot of the host: one that idles there already, or a new one.
---@param host deployrt.Host
---@param port? integer  default: a free one
---@return deployrt.Instance? instance  nil when no slot is free
function Fleet:candidate(host, port)
  for _, member in ipairs(self:on(host)) do
    if self:is_target(member) and member.state ~= "serving" and not self.reserved[host.name .. member.port] then
      self.reserved[host.name .. member.port] = true
      return member
    end
  end
  port = port or self:free_port(host)
  if not port then return nil end
  check_slot(self, host, port)
  self.reserved[host.name .. port] = true
  local new = instance.new { host = host, port = port, launch = self.target }
  new.on_start = function() self:add(new) end
  return new
end

--- Nobody needs any more what was promised and not used.
function Fleet:release_slots()
  self.reserved = {}
end

--- Tells the balancer's slots that are not what this run is about: those of hosts that `--host` leaves out, and of addresses
--- that hosts had before.
---@return fun(slot: string): boolean
function Fleet:elsewhere()
  local own = {}
  for _, host in ipairs(self.hosts) do own[host.name] = true end
  return function(name) return slot_name.successor(name) ~= nil or not own[slot_name.host(name)] end
end

local function serves_elsewhere(self)
  local is_elsewhere = self:elsewhere()
  for name, slot in pairs(self.balancer.slots) do
    if gets_requests(self.balancer, name, slot) and is_elsewhere(name) then return true end
  end
  return false
end

--- Why nothing would serve while a batch is replaced, in words; nil when something does, or nothing of it is healthy now.
---@async
---@param batch deployrt.Instance[]
---@param on_the_spot? boolean  each in its own slot, whatever is free
---@return string?
function Fleet:gap(batch, on_the_spot)
  local count = #self:old()
  if not self.balancer:exists() or #batch < count or count < self:capacity() then return nil end -- what is lacking is filled first
  local full = on_the_spot or self:full_host()
  if not full or #self:new() > 0 or serves_elsewhere(self) then return nil end
  for _, member in ipairs(batch) do
    if member:is_healthy() then
      return ("%sall that serve (%d) would be replaced together"):format(on_the_spot and "" or full .. " has no free slot, and ", #batch)
    end
  end
end

--- The name of a host that has no slot free beside its old instances; nil when all have, or some instance idles.
---@return string?
function Fleet:full_host()
  if #self:idle() > 0 then return nil end
  for _, member in ipairs(self:old()) do
    if not self:free_port(member.host) then return member.host.name end
  end
end

--- Where a full second set finds no room, and what makes some, in words; nil when there is room.
---@return string?
---@return string? remedy
function Fleet:lacking_slots()
  if #self:old() == 0 or #self:standby_hosts() > 0 then return nil end
  local need = {}
  for _, member in ipairs(self:old()) do need[member.host] = (need[member.host] or 0) + 1 end
  for _, host in ipairs(self:active_hosts()) do
    local room = 0
    for _, port in ipairs(self.process.ports) do
      local member = self:at(host, port)
      if fits(self, host, port) and (not member or member.state ~= "serving") then room = room + 1 end
    end
    local wanted = math.max(need[host] or 0, self.process.instances) -- what has died there is started, too
    if room < wanted then
      return ("%s has %d free slots for %d instances"):format(host.name, room, wanted), self:serving_group() == false
        and "hosts of several groups serve, so no group is free: take those of all but one out of service with `deployrt stop --host`, or add ports to process.ports"
        or "add ports to process.ports, or hosts of another group"
    end
  end
end

--- A new instance for each old one: on the other group's hosts where there are groups, else in spare slots.
---@param old deployrt.Instance[]
---@return deployrt.Instance[]
function Fleet:second_set(old)
  local set, hosts = {}, self:standby_hosts()
  if #hosts > 0 then
    self.active = hosts
    for _, host in ipairs(hosts) do
      for _ = 1, self.process.instances do set[#set + 1] = self:candidate(host) end
    end
    return set
  end
  for _, member in ipairs(self:on_active_hosts(old)) do set[#set + 1] = self:candidate(member.host) end
  return set
end

return fleet
