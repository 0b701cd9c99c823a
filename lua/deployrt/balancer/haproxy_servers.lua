-- haproxy_servers.lua -- Which server of a backend is which slot, and how a slot without one gets one.
local config = require "deployrt.balancer.haproxy_config"
local given = require "deployrt.balancer.haproxy_given"
local left = require "deployrt.balancer.left"
local slot_name = require "deployrt.slot_name"

local haproxy_servers = {}

--- The addresses by which HAProxy may know the slot: as given, or what the balancer's host resolves it to.
local function addresses_of(driver, slot)
  if slot.address:find("^[%d.]+$") or slot.address:find(":", 1, true) then return { slot.address } end
  local known = driver.addresses[slot.address]
  if known then return known end
  known = {}
  local found = driver.host:execute({ "getent", "ahosts", slot.address }, { timeout = 10 }).stdout or ""
  for address in found:gmatch("(%S+)%s+STREAM") do
    table.insert(known, address:find(":", 1, true) and #known + 1 or 1, address)
  end
  driver.addresses[slot.address] = known
  return known
end

--- How the names of servers begin that this application added: others may use the same backend. No application's name has a dot.
local function own_prefix(driver)
  return ("deployrt-%s."):format(driver.context.app)
end

--- What a server is called that is added for a slot. Its name may be taken, by one at an address that the slot had before.
local function own_name(driver, slot, address, rows)
  local name = own_prefix(driver) .. config.identifier(slot.name)
  for _, row in ipairs(rows) do
    if row.server == name then return slot_name.former(name, address) end
  end
  return name
end

local function file_under(lists, key, row)
  local list = lists[key]
  if list then list[#list + 1] = row else lists[key] = { row } end
end

--- Rows by address, by the host name that the configuration gives, and by their own name: many slots find theirs at once.
local function index_of(rows)
  local index = { ends = {}, hosts = {}, names = {} }
  for _, row in ipairs(rows) do
    file_under(index.ends, row.endpoint, row)
    if row.fqdn and row.fqdn ~= "-" then file_under(index.hosts, row.fqdn .. ":" .. row.endpoint:match("%d*$"), row) end
    index.names[row.server] = row
  end
  return index
end

--- Where HAProxy may have a slot, or a server of a configuration: as given, and what the balancer's host resolves that to.
---@async
---@param driver deployrt.HAProxy
---@param slot {address: string, port: integer}
---@return string[]
function haproxy_servers.endpoints(driver, slot)
  local list = { config.endpoint(slot) }
  for _, address in ipairs(addresses_of(driver, slot)) do
    if address ~= slot.address then list[#list + 1] = config.endpoint { address = address, port = slot.port } end
  end
  return list
end

--- The servers that are at the slot's address, whatever they are called.
local function servers_of(driver, slot, index)
  local found = index.hosts[slot.address .. ":" .. slot.port]
  if found then return found end
  found = {}
  for _, endpoint in ipairs(haproxy_servers.endpoints(driver, slot)) do
    local rows = index.ends[endpoint] or {}
    table.move(rows, 1, #rows, #found + 1, found)
  end
  return found
end

--- The server of each slot that has one: the one at its address, else the one that is named like it and at no other slot's.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return table<string, deployrt.HAProxyServer>  by slot
function haproxy_servers.match(driver, rows)
  local slots, taken, index = {}, {}, index_of(rows)
  for _, slot in ipairs(driver.context.slots) do
    local row = servers_of(driver, slot, index)[1]
    slots[slot.name], taken[row or slot] = row, true
  end
  for _, slot in ipairs(driver.context.slots) do
    local row = index.names[config.identifier(slot.name)]
    slots[slot.name] = slots[slot.name] or not taken[row or slot] and row or nil
  end
  return slots
end

--- A slot that two servers claim to be, and these.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return deployrt.Slot? slot
---@return deployrt.HAProxyServer? first
---@return deployrt.HAProxyServer? second
function haproxy_servers.ambiguous(driver, rows)
  local index = index_of(rows)
  for _, slot in ipairs(driver.context.slots) do
    local found = servers_of(driver, slot, index)
    if #found > 1 then return slot, found[1], found[2] end
  end
end

local function is_of_template(driver, row)
  local template = driver.template
  return template ~= nil and row.server:sub(1, #template) == template and row.server:find("^%d+$", #template + 1) ~= nil
end

--- What a server was, of which no slot of app.yml knows: who one of our own was stands in its name, and one of the template is where
--- an earlier run of this application has noted it. nil: it is somebody else's.
local function former_name(driver, row, noted)
  local prefix = own_prefix(driver)
  if row.server:sub(1, #prefix) == prefix then return row.server:sub(#prefix + 1) end
  return noted[row.server] == row.endpoint and ("%s@%s"):format(row.server, row.endpoint) or nil
end

--- An address in digits at which only one machine is.
local function is_certain(address)
  return address:find("^[%d.]+$") ~= nil and not address:find("^127%.")
end

--- A slot whose server, by the slot's name or its host's, is at another address, and that server: what is started would get
--- nothing, and who is there the slot's traffic.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return deployrt.Slot? slot
---@return deployrt.HAProxyServer? server
function haproxy_servers.misplaced(driver, rows)
  local slots, taken, names = haproxy_servers.match(driver, rows), {}, index_of(rows).names
  for _, row in pairs(slots) do taken[row] = true end
  for _, slot in ipairs(driver.context.slots) do
    local by_slot, by_host = slots[slot.name], names[slot_name.host(slot.name)]
    local row = by_slot or by_host
    local address, port = (row and row.endpoint or ""):match("^(.*):(%d+)$")
    local is_its = address ~= nil and (by_slot ~= nil or not taken[row] and port == tostring(slot.port))
    if is_its and is_certain(address) and is_certain(slot.address) and address ~= slot.address then return slot, row end
  end
end

--- Servers that deployrt set up for slots which app.yml does not name any more are slots as well.
---@async
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
function haproxy_servers.keep_left(driver, rows)
  if driver.left then return end
  local taken, found, noted = {}, {}, driver.template and given.read(driver) or {}
  for _, row in pairs(haproxy_servers.match(driver, rows)) do taken[row.server] = true end
  for _, row in ipairs(rows) do
    local name = not taken[row.server] and former_name(driver, row, noted)
    found[#found + 1] = name and { name = name, endpoint = row.endpoint } or nil
  end
  left.keep(driver, found, config.identifier)
end

--- Has later runs know which servers of the template this one leaves with traffic, whatever app.yml says then.
---@async
---@param driver deployrt.HAProxy
---@param slots table<string, deployrt.HAProxyServer>
---@param wanted table<string, {state?: deployrt.SlotState}>  by slot; who is absent is as it is now
function haproxy_servers.note_given(driver, slots, wanted)
  local list = {}
  for name, row in pairs(slots) do
    local state = wanted[name] and wanted[name].state or row.state
    if state == "ready" and is_of_template(driver, row) then list[row.server] = row.endpoint end
  end
  given.write(driver, list)
end

--- Who gets traffic and is no slot's.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@param slots table<string, deployrt.HAProxyServer>
---@return deployrt.OtherServer[]
function haproxy_servers.others(driver, rows, slots)
  local taken, list = {}, {}
  for _, row in pairs(slots) do taken[row.server] = true end
  for _, row in ipairs(rows) do
    local serves = not taken[row.server] and row.state == "ready" and row.up and row.weight > 0 and row.stat.bck ~= "1"
    if serves then list[#list + 1] = { name = row.server, address = row.endpoint, weight = row.weight, via = ("backend '%s'"):format(driver.backend) } end
  end
  return list
end

--- Slots that have no server.
---@param driver deployrt.HAProxy
---@param slots table<string, deployrt.HAProxyServer>
---@return deployrt.Slot[]
function haproxy_servers.missing(driver, slots)
  local list = {}
  for _, slot in ipairs(driver.context.slots) do
    if not slots[slot.name] then list[#list + 1] = slot end
  end
  return list
end

--- Lines for the user's configuration, where a server cannot be added at runtime.
---@param slots deployrt.Slot[]
---@return string
function haproxy_servers.lines(slots)
  local lines = {}
  for i, slot in ipairs(slots) do
    lines[i] = ("server %s %s check disabled"):format(config.identifier(slot.name), config.endpoint(slot))
  end
  return table.concat(lines, "\n")
end

local function endpoint_of(driver, slot)
  return addresses_of(driver, slot)[1] or slot.address, slot.port
end

--- The servers that are slots, or may become some: those of a server-template.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return deployrt.HAProxyServer[]
function haproxy_servers.candidates(driver, rows)
  local list, is_slot = {}, {}
  for _, row in pairs(haproxy_servers.match(driver, rows)) do is_slot[row] = true end
  for _, row in ipairs(rows) do list[#list + 1] = (is_slot[row] or is_of_template(driver, row)) and row or nil end
  return list
end

--- Whether a server is at the slot's host, whatever its port is.
local function is_at_host(driver, slot, row)
  if row.fqdn == slot.address then return true end
  for _, endpoint in ipairs(haproxy_servers.endpoints(driver, { address = slot.address, port = math.tointeger(row.endpoint:match("%d+$")) })) do
    if endpoint == row.endpoint then return true end
  end
  return false
end

--- Servers that are named like a slot, and are at its host with another port, in words: a sidecar may listen there, or nobody.
---@async
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return string[]
function haproxy_servers.at_other_ports(driver, rows)
  local notes, slots = {}, haproxy_servers.match(driver, rows)
  for _, slot in ipairs(driver.context.slots) do
    local row = slots[slot.name]
    if row and row.endpoint:match("%d+$") ~= tostring(slot.port) and is_at_host(driver, slot, row) then
      notes[#notes + 1] = ("HAProxy at %s: server %s of backend '%s' is at %s, and app.yml has that slot at %s: clients get no answer unless something there "
        .. "passes their requests on; if nothing does, write `%s` instead of its line, and reload HAProxy"):format(driver.socket, row.server, driver.backend,
        row.endpoint, config.endpoint(slot), haproxy_servers.lines { slot })
    end
  end
  return notes
end

--- The commands that make a server of a slot. It begins in maintenance, with its check on.
local function add_commands(driver, slot, rows)
  local address, port = endpoint_of(driver, slot)
  local where = ("%s/%s"):format(driver.backend, own_name(driver, slot, address, rows))
  local add = "add server %s %s check inter 500ms fall 3 rise 1 weight 100"
  return { add:format(where, config.endpoint { address = address, port = port }), "enable health " .. where }
end

--- The servers of the user's server-template that are out of service and no slot's: they wait for an address.
local function free_servers(driver, rows)
  local taken, free = {}, {}
  for _, row in pairs(haproxy_servers.match(driver, rows)) do taken[row.server] = true end
  for _, row in ipairs(rows) do
    if is_of_template(driver, row) and row.state == "maint" and not taken[row.server] then free[#free + 1] = row.server end
  end
  return free
end

--- Whether the server-template has too few free servers for these slots.
---@param driver deployrt.HAProxy
---@param slots deployrt.Slot[]  without a server
---@param rows deployrt.HAProxyServer[]
---@return boolean
function haproxy_servers.too_few(driver, slots, rows)
  return #slots > 0 and driver.template ~= nil and #free_servers(driver, rows) < #slots
end

--- The commands that give servers to slots: where there is a server-template its free ones, else dynamic ones.
---@param driver deployrt.HAProxy
---@param slots deployrt.Slot[]  without a server
---@param rows deployrt.HAProxyServer[]
---@param version string         of HAProxy
---@return string[]
function haproxy_servers.commands(driver, slots, rows, version)
  local commands = version:find("^2%.[45]%.") and not driver.template and { "experimental-mode on" } or {}
  local free = driver.template and free_servers(driver, rows)
  for i, slot in ipairs(slots) do
    if not free then
      table.move(add_commands(driver, slot, rows), 1, 2, #commands + 1, commands)
    elseif free[i] then
      commands[#commands + 1] = ("set server %s/%s addr %s port %d"):format(driver.backend, free[i], endpoint_of(driver, slot))
    end
  end
  return commands
end

--- What the user can do where a slot got no server.
---@param driver deployrt.HAProxy
---@param slots deployrt.Slot[]
---@return string what
---@return string lines  for the configuration
function haproxy_servers.advice(driver, slots)
  if not driver.template then return "adding one failed: add the lines below to it, and reload", haproxy_servers.lines(slots) end
  return ("no server of its server-template '%s' is free, that is in maintenance and no slot's: raise its number, and reload"):format(driver.template),
    ("server-template %s 1-%d 127.0.0.1:1 check disabled"):format(driver.template, #driver.context.slots)
end

return haproxy_servers
