-- inventory/shared.lua -- Whether a machine of a group is needed besides: a command may give again what it gave before.
local connection = require "deployrt.connection"
local fleet = require "deployrt.fleet"
local ssh_config = require "deployrt.ssh_config"

local shared = {}

--- What a host says of itself: which machine it is, and whether an instance of the application runs there. Nothing where it is away.
local function ask(app, entry)
  local line = connection.new(entry, app.app, app.site and app.site.dial)
  local closing <close> = setmetatable({}, { __close = function() line:close() end })
  local there, processes = pcall(function()
    line:connect()
    return line:call("process_list")
  end)
  return { machine = line.machine, runs = there and ("\n" .. processes):find("\n%d+\trunning\t") ~= nil }
end

--- By what each host is told from others.
local function signs_of(app, hosts, looks)
  local read = ssh_config.reader()
  return fleet.together(hosts, function(entry)
    local said = looks and ask(app, entry) or {}
    return { entry = entry, runs = said.runs, ["name " .. entry.name] = true, ["machine " .. (said.machine or "")] = said.machine ~= nil or nil,
      [("address %s:%d"):format(connection.address(entry, read), entry.port or 22)] = true }
  end)
end

local function is_same(one, other)
  for sign in pairs(one) do
    if sign:find(" ", 1, true) and other[sign] then return true end
  end
  return false
end

local function name_of(entry, other)
  return entry.name == other.name and ("'%s'"):format(entry.name) or ("'%s', which is the same machine as '%s',"):format(entry.name, other.name)
end

--- Why a group must not be given back, in words: who gives hosts back by the group's name would take also what serves.
---@async
---@param app deployrt.App
---@param group deployrt.HostGroup
---@param others deployrt.HostGroup[]  that are in use
---@param looks boolean                no run has compared the machines: they are asked which they are, and what runs there
---@return string?  nil: it may
function shared.reason(app, group, others, looks)
  local own = signs_of(app, group.hosts or {}, looks)
  for _, other in ipairs(#own > 0 and others or {}) do
    for _, theirs in ipairs(signs_of(app, other.hosts or {}, looks)) do
      for _, each in ipairs(own) do
        if is_same(each, theirs) then return ("%s is in group %s too, which is in use"):format(name_of(each.entry, theirs.entry), other.name) end
      end
    end
  end
  for _, each in ipairs(own) do
    if each.runs then return ("an instance of %s runs on '%s'"):format(app.app, each.entry.name) end
  end
end

return shared
