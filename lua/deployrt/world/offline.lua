-- world/offline.lua -- An application of which nothing is looked at: no host is dialled, and some other release is taken to serve.
local driver = require "deployrt.balancer.driver"
local ssh = require "deployrt.ssh"

local offline = {}

--- What serves, for who reads the plan.
offline.release = "what serves now"

local Link = {}
Link.__index = Link

function Link:state() return "open" end

--- The only question that is asked of a host before there is a world: where things are.
function Link:call() return "/\t/\tunknown\tnobody\n", 0 end

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

--- What a pretended world begins with: on each host the first slots serve, of hosts in groups those of the first one.
---@param app deployrt.App
---@return {hosts: table<string, table>, balancer: table}
function offline.assume(app)
  local launch = { release = offline.release, settings = "", command = {} }
  local hosts, slots, group = {}, {}, app.all_hosts[1] and app.all_hosts[1].group
  for _, entry in ipairs(app.all_hosts) do
    local known = { name = entry.name, slots = {}, listening = {}, origins = {}, releases = {} }
    for i, port in ipairs(app.process.ports) do
      local serves = entry.group == group and i <= app.process.instances
      if serves then known.slots[i] = { host = entry.name, port = port, state = "running", pid = i, launch = launch } end
      slots[("%s-%d"):format(entry.name, port)] = { state = serves and "ready" or "maint", weight = 100, up = serves, sessions = 0 }
    end
    hosts[entry.name] = known
  end
  return { hosts = hosts, balancer = { slots = #app.balancers > 0 and slots or {} } }
end

return offline
