-- world/offline.lua -- An application of which nothing is looked at: no host is dialled, and some other release is taken to serve.
-- Of hosts that nobody has made yet that holds in any case: they are empty.
local driver = require "deployrt.balancer.driver"
local slot_name = require "deployrt.slot_name"
local ssh = require "deployrt.ssh"
local world = require "deployrt.world"

local offline = {}

--- What serves, for who reads the plan.
offline.release = "what serves now"

local Link = {}
Link.__index = Link

function Link:state() return "open" end

--- The only question that is asked of a host before there is a world: where things are.
function Link:call() return "/\t/\tunknown\tnobody\t\t\n", 0 end

function Link:close() end

local function nothing() end

--- Where the application would be; this machine itself is there.
---@return deployrt.Site
function offline.site()
  return {
    dial = function(entry, opts)
      if not entry.address then return ssh.connect(entry, opts) end
      return setmetatable({}, Link)
    end,
    driver = function(entry, opts)
      return { check = nothing, prepare = nothing, stop = nothing, can = driver.module(entry.type, opts.dir).capabilities(entry) }
    end,
    world = function(context) return { context = context } end,
  }
end

local function empty(entry)
  return { name = entry.name, slots = {}, listening = {}, origins = {}, releases = {} }
end

--- The real application, with hosts beside it that were only imagined.
---@return deployrt.Site
function offline.beside()
  return {
    dial = function(entry, opts)
      if not entry.imagined then return ssh.connect(entry, opts) end
      return setmetatable({}, Link)
    end,
    driver = driver.open, world = world.real,
  }
end

--- What is known of imagined hosts.
---@param app deployrt.App
---@return {hosts: table<string, table>}
function offline.imagined(app)
  local hosts = {}
  for _, entry in ipairs(app.all_hosts) do
    if entry.imagined then hosts[entry.name] = empty(entry) end
  end
  return { hosts = hosts }
end

--- What a pretended world begins with: on each host the first slots serve, of hosts in groups those of the first one.
---@param app deployrt.App
---@return {hosts: table<string, table>, balancer: table}
function offline.assume(app)
  local launch = { release = offline.release, settings = "", command = {} }
  local hosts, slots, group = {}, {}, app.all_hosts[1] and app.all_hosts[1].group
  for _, entry in ipairs(app.all_hosts) do
    local known = empty(entry)
    for i, port in ipairs(app.process.ports) do
      local serves = entry.group == group and not entry.imagined and i <= app.process.instances
      if serves then known.slots[i] = { host = entry.name, port = port, state = "running", pid = i, launch = launch } end
      slots[slot_name.of(entry.name, port)] = { state = serves and "ready" or "maint", weight = 100, up = serves, sessions = 0 }
    end
    hosts[entry.name] = known
  end
  return { hosts = hosts, balancer = { slots = #app.balancers > 0 and slots or {} } }
end

return offline
