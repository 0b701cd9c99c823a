-- config/rules.lua -- What app.yml must be beyond the types of its keys: hosts in one shape, combinations that can work.
-- A rule may meet an application some of whose keys were wrong, and so are missing.
local addresses = require "deployrt.config.address"
local core = require "deployrt.core"
local driver = require "deployrt.balancer.driver"
local library = require "deployrt.library"
local suggest = require "deployrt.suggest"
local variables = require "deployrt.variables"

local rules = {}

---@alias deployrt.config.Fail fun(path: string, message: string)

local function address_and_port(text)
  local place, port = text:match("^%[([%x:.]+)%]:?(%d*)$")
  if place then return place, port end
  place, port = text:match("^([^:]+):(%d+)$")
  return place or text, port or ""
end

--- "local", "web1", "deploy@10.0.0.11:2222", "[::1]:22" as the table that it stands for; nil when it is none of these.
---@param text string
---@return table?
function rules.host(text)
  local entry = { dir = ".deployrt", transport = "auto" }
  if text == "local" then
    entry.name = "local"
    return entry
  end
  local user, rest = text:match("^([%w_.][%w_.@+\\-]*)@([^@]+)$")
  local place, port = address_and_port(rest or text)
  entry.name, entry.address, entry.user, entry.port = place, place, user, math.tointeger(tonumber(port))
  local valid = addresses.is_one(place) and (port == "" or entry.port and entry.port >= 1 and entry.port <= 65535)
  return valid and entry or nil
end

local function is_here(entry)
  return entry.address == nil or entry.transport == "local"
end

local function host_of(given, path, fail)
  if type(given) == "string" then
    local entry = rules.host(given)
    if not entry then fail(path, ("%s: '%s' is not a host; write local, user@address or user@address:port"):format(path, given)) end
    return entry
  end
  if not given.name and not given.address then
    fail(path, ("%s: a host needs an address, or a name when it is this machine"):format(path))
    return nil
  end
  if (given.transport == "ssh" or given.transport == "openssh") and not given.address then
    fail(path, ("%s.transport: %s needs an address"):format(path, given.transport))
  end
  given.name = given.name or given.address
  return given
end

--- How a machine is reached; two hosts that are reached alike are one. A port, a user or a hop may lead elsewhere.
local function way_to(entry)
  if is_here(entry) then return nil end
  local user, port = entry.user and entry.user .. "@" or "", entry.port and ":" .. entry.port or ""
  return user .. entry.address .. port .. (entry.jump and " through " .. entry.jump or "")
end

--- Hosts as a list of tables with unique names, each another machine, at most one of them this one.
---@param app table
---@param fail deployrt.config.Fail
function rules.hosts(app, fail)
  local list, seen, here, reached = {}, {}, nil, {}
  if app.hosts and app.hosts.command then app.inventory = app.hosts end -- deployrt.inventory fills them in
  for i, given in ipairs(app.hosts or {}) do
    local path = ("hosts[%d]"):format(i)
    local entry = host_of(given, path, fail)
    local way = entry and way_to(entry)
    if entry and seen[entry.name] then
      fail(path, ("hosts: '%s' is there twice; give each host a name of its own"):format(entry.name))
    elseif entry and here and is_here(entry) then
      fail(path, ("hosts: '%s' and '%s' are both this machine; one is enough"):format(here, entry.name))
    elseif way and reached[way] then
      fail(path, ("hosts: '%s' and '%s' are both at %s, and would take the same process.ports; one is enough"):format(reached[way], entry.name, way))
    end
    if entry then
      seen[entry.name], list[#list + 1] = true, entry
      if is_here(entry) then here = here or entry.name else reached[way] = reached[way] or entry.name end
    end
  end
  app.hosts, app.all_hosts = list, list
end

local function names_of(hosts)
  local names = {}
  for i, entry in ipairs(hosts) do names[i] = entry.name end
  return names
end

--- Keys that every balancer takes.
local common = { type = true, host = true, drain = true, options = true }

--- A built-in driver says which keys it takes; what a driver of the user's takes is its own business.
local function check_keys(each, path, fail)
  local module = driver.built_in(each.type or "")
  if not module then return end
  local taken = {}
  for _, key in ipairs(module.keys) do taken[key] = true end
  for key in pairs(each) do
    if not common[key] and not taken[key] and not key:find("^x%-") then
      fail(path .. "." .. key, ("%s.%s: %s has no such key"):format(path, key, each.type))
    end
  end
  if module.rules then module.rules(each, path, fail) end
end

--- A managed balancer must not want a port that instances on the same machine have.
local function check_port(each, key, path, app, fail)
  local port = tonumber((each[key] or ""):match(":(%d+)$"))
  local at = path .. "." .. key
  if not port then return end
  if port < 1 or port > 65535 then return fail(at, ("%s: %d is no port"):format(at, port)) end
  for _, entry in ipairs(app.hosts) do
    if each.host == entry.name or not each.host and is_here(entry) then
      for _, slot in ipairs(app.process and app.process.ports or {}) do
        if slot == port then fail(at, ("%s: port %d is one of process.ports"):format(at, port)) end
      end
    end
  end
end

local everywhere = { [""] = true, ["*"] = true, ["0.0.0.0"] = true, ["::"] = true, ["[::]"] = true }

--- Where a managed balancer listens for requests, and where it shows its statistics.
local function check_listen(each, path, app, fail)
  check_port(each, "listen", path, app, fail)
  check_port(each, "stats", path, app, fail)
  local address, port = (each.listen or ""):match("^(.*):(%d+)$")
  local other, same = (each.stats or ""):match("^(.*):(%d+)$")
  if port and port == same and (address == other or everywhere[address] or everywhere[other]) then
    fail(path .. ".stats", ("%s.stats: at %s visitors would get the statistics, and not the service: give it another port than `listen`"):format(path, each.stats))
  end
end

--- deployrt runs one HAProxy of an application on a machine: a second one would take the first one's place.
local function check_single(each, path, app, machines, fail)
  local machine = each.host or ""
  for _, entry in ipairs(app.hosts) do
    if entry.name == each.host and is_here(entry) then machine = "" end
  end
  if machines[machine] then
    fail(path .. ".managed", ("%s.managed: %s is run on that machine already; one HAProxy can listen at one address: put the other on another host"):format(
      path, machines[machine]))
  end
  machines[machine] = path
end

--- app.balancers: a list, whether one, several or none were given. Needs the hosts in shape.
---@param app table
---@param fail deployrt.config.Fail
function rules.balancers(app, fail)
  local given = app.balancer
  local many = given and #given > 0
  app.balancers = many and given or given and next(given) and { given } or {}
  local machines = {}
  for i, each in ipairs(app.balancers) do
    local path = many and ("balancer[%d]"):format(i) or "balancer"
    check_keys(each, path, fail)
    check_listen(each, path, app, fail)
    if each.managed then check_single(each, path, app, machines, fail) end
    local known = not each.host or app.inventory ~= nil
    for _, entry in ipairs(app.hosts) do known = known or entry.name == each.host end
    if not known then
      fail(path .. ".host", ("%s.host: there is no host named '%s'%s"):format(path, each.host,
        suggest.hint(each.host, names_of(app.hosts))))
    end
  end
end

--- How many instances serve: of hosts in groups, one group does.
local function capacity(app)
  local groups, largest = {}, 0
  for _, entry in ipairs(app.hosts) do
    local group = entry.group or ""
    groups[group] = (groups[group] or 0) + (app.process and app.process.instances or 1)
    largest = math.max(largest, groups[group])
  end
  return largest
end

--- A balancer that knows one instance at a time is not for several.
---@param app table
---@param fail deployrt.config.Fail
function rules.capacity(app, fail)
  local count = capacity(app)
  for i, each in ipairs(app.balancers) do
    local module = driver.built_in(each.type or "")
    if count > 1 and module and not module.capabilities(each).many then
      fail(#app.balancers > 1 and ("balancer[%d]"):format(i) or "balancer",
        ("balancer: %s sends traffic to one instance only, and %d are to serve"):format(driver.label(each), count))
    end
  end
end

--- There are as many ports as instances; a name is an open value or a secret, not both.
---@param app table
---@param fail deployrt.config.Fail
function rules.process(app, fail)
  local process = app.process or {}
  if process.instances and process.ports and process.instances > #process.ports then
    fail("process.instances", ("process.instances: %d instances need as many ports, and process.ports has %d"):format(
      process.instances, #process.ports))
  end
  for _, name in ipairs(require("deployrt.config.check").names_of(process.secrets or {})) do
    if (process.env or {})[name] ~= nil then
      fail("process.env." .. name, ("process.env: %s is one of process.secrets too"):format(name))
    end
    if variables.is_kept(name) then
      fail("process.secrets." .. name, ("process.secrets: shells keep %s for themselves, and do not pass a secret on as it is: give it another name"):format(name))
    end
  end
end

--- One way to probe; tcp when none is given.
---@param app table
---@param fail deployrt.config.Fail
---@param given fun(path: string): boolean  whether app.yml says anything there
function rules.health(app, fail, given)
  local health = app.health
  if not health then return end
  local kinds = (given "health.http" and 1 or 0) + (health.tcp and 1 or 0) + (given "health.command" and 1 or 0)
  if kinds > 1 then fail("health", "health: one of http, tcp and command, not several") end
  if kinds == 0 and health.tcp == false then
    fail("health.tcp", "health.tcp: without it nothing is probed; give http or command instead")
  end
  if kinds == 0 then health.tcp = true end
  for _, key in ipairs { "status", "body" } do
    if health[key] ~= nil and not given "health.http" then
      fail("health." .. key, ("health.%s is of an answer over HTTP; give health.http too"):format(key))
    end
  end
  for _, each in ipairs(app.balancers or {}) do
    if each.managed and health.http and health.http:find("${", 1, true) then
      fail("health.http", "health.http: a managed balancer probes all instances at the same path, so ${...} cannot stand in it")
      break
    end
  end
end

--- The name of a library that app.yml gives none: of the rock, or the last part of the repository's place.
local function library_name(entry)
  return entry.name or entry.rock or entry.git and entry.git:gsub("/+$", ""):gsub("%.git$", ""):match("[%w._-]+$")
end

local function check_library(entry, path, fail)
  if (entry.rock ~= nil) == (entry.git ~= nil) then
    return fail(path, ("%s: one of rock and git says where the library comes from"):format(path))
  end
  for _, key in ipairs(entry.rock and { "ref", "path" } or { "version", "server" }) do
    if entry[key] then fail(path .. "." .. key, ("%s.%s is for %s"):format(path, key, entry.rock and "git" or "a rock")) end
  end
end

--- Where the driver is that a library brings, in words: its type is a path like that of any other, and no module.
local function brought(type_name, app)
  local file = driver.is_file(type_name) and type_name or type_name:gsub("%.", "/") .. ".lua"
  for _, each in ipairs(app.require) do
    local path = library.folder(each.name) .. "/" .. file
    if core.fs.stat(app.dir .. "/" .. path) then return ("; that of the library %s is ./%s"):format(each.name, path) end
  end
  return #app.require > 0 and ("; one that a library brings is ./%s/..., once `deployrt lib install` has fetched it"):format(library.folder("LIBRARY")) or ""
end

--- app.require: a list of deployrt.Requirement, each with a name of its own. A driver of a library must be allowed, any other one
--- be there.
---@param app table
---@param fail deployrt.config.Fail
function rules.libraries(app, fail)
  local list, by_name = {}, {}
  for i, given in ipairs(app.require or {}) do
    local path, entry = ("require[%d]"):format(i), type(given) == "string" and { rock = given } or given
    check_library(entry, path, fail)
    entry.name = library_name(entry)
    if entry.name and by_name[entry.name] then fail(path, ("%s: there is a library '%s' already; give this one another name"):format(path, entry.name)) end
    if entry.name then list[#list + 1], by_name[entry.name] = entry, entry end
  end
  app.require = list
  for i, each in ipairs(app.balancers or {}) do
    local path, name = #app.balancers > 1 and ("balancer[%d]"):format(i) or "balancer", library.of_path(each.type or "", app.dir)
    local allow = table.concat(name and by_name[name] and by_name[name].allow or {}, " ")
    if name and not allow:find("driver", 1, true) then
      fail(path .. ".type", ("%s.type: the library %s may not bring a driver, which has all rights: if you trust it with that, "
        .. "add driver to its `allow` (require:)"):format(path, name))
    elseif not name and each.type and driver.is_missing(each.type, app.dir) then
      fail(path .. ".type", ("%s.type: %s cannot be read: a type is %s, or the path of a driver in Lua%s"):format(path, each.type,
        table.concat(driver.names(), ", "), brought(each.type, app)))
    end
  end
end

--- Keeps only the hosts that --host names; `all_hosts` stay known, for the balancer.
---@param app table
---@param names string[]
---@return string? problem
function rules.keep_hosts(app, names)
  local kept, by_name, wanted = {}, {}, {}
  for _, entry in ipairs(app.hosts) do by_name[entry.name] = entry end
  for _, name in ipairs(names) do
    if not by_name[name] then
      local all = names_of(app.hosts)
      return ("--host: there is no host '%s'%s; there are: %s"):format(name, suggest.hint(name, all), table.concat(all, ", "))
    end
    wanted[name] = true
  end
  for _, entry in ipairs(app.hosts) do kept[#kept + 1] = wanted[entry.name] and entry or nil end
  app.hosts = kept
end

return rules
