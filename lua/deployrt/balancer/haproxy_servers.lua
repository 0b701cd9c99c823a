-- haproxy_servers.lua -- Which server of a backend is which slot, and how a slot without one gets one.
local config = require "deployrt.balancer.haproxy_config"

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

local function own_name(driver, slot)
  return own_prefix(driver) .. config.identifier(slot.name)
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

--- The servers that are the slot: by address, whatever they are called, else the one that is named like it.
local function servers_of(driver, slot, index)
  local found = index.hosts[slot.address .. ":" .. slot.port]
  if found then return found end
  found = {}
  for _, address in ipairs(addresses_of(driver, slot)) do
    local rows = index.ends[config.endpoint { address = address, port = slot.port }] or {}
    table.move(rows, 1, #rows, #found + 1, found)
  end
  return #found > 0 and found or { index.names[config.identifier(slot.name)] }
end

--- The server of each slot that has one.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
---@return table<string, deployrt.HAProxyServer>  by slot
function haproxy_servers.match(driver, rows)
  local slots, index = {}, index_of(rows)
  for _, slot in ipairs(driver.context.slots) do slots[slot.name] = servers_of(driver, slot, index)[1] end
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

--- Servers that deployrt added for slots which app.yml does not name any more are slots as well: who they were stands in their
--- names. They are looked for once: those that lose their traffic stay known.
---@param driver deployrt.HAProxy
---@param rows deployrt.HAProxyServer[]
function haproxy_servers.keep_left(driver, rows)
  if driver.left then return end
  local taken, named, slots, prefix = {}, {}, {}, own_prefix(driver)
  for name, row in pairs(haproxy_servers.match(driver, rows)) do taken[row.server], named[name] = true, true end
  for i, slot in ipairs(driver.context.slots) do slots[i], named[slot.name] = slot, true end
  driver.left = {}
  for _, row in ipairs(rows) do
    local name = row.server:sub(1, #prefix) == prefix and row.server:sub(#prefix + 1)
    local address, port = row.endpoint:match("^%[?(.-)%]?:(%d+)$")
    if name and address and not taken[row.server] and not named[name] then
      driver.left[name], slots[#slots + 1] = true, { name = name, address = address, port = math.tointeger(port) }
    end
  end
  driver.context = setmetatable({ slots = slots }, { __index = driver.context })
end

--- Those of them that are out of service when a run begins are of no use to it.
---@param driver deployrt.HAProxy
---@param slots table<string, deployrt.HAProxyServer>
---@param wanted table<string, table>  slots that the run has in hand
function haproxy_servers.forget_left(driver, slots, wanted)
  local kept = {}
  for _, slot in ipairs(driver.context.slots) do
    local is_over = driver.left[slot.name] and not wanted[slot.name] and not (slots[slot.name] and slots[slot.name].state == "ready")
    if is_over then driver.left[slot.name] = nil else kept[#kept + 1] = slot end
  end
  driver.context = setmetatable({ slots = kept }, { __index = driver.context })
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

--- The commands that make a server of a slot. It begins in maintenance, with its check on.
local function add_commands(driver, slot, rows)
  local where = ("%s/%s"):format(driver.backend, own_name(driver, slot))
  local commands = {}
  for _, row in ipairs(rows) do
    if row.server == own_name(driver, slot) then -- of another address, from an earlier run
      commands = { ("set server %s state maint"):format(where), "del server " .. where }
    end
  end
  local address, port = endpoint_of(driver, slot)
  local add = "add server %s %s check inter 500ms fall 3 rise 1 weight 100"
  commands[#commands + 1] = add:format(where, config.endpoint { address = address, port = port })
  commands[#commands + 1] = "enable health " .. where
  return commands
end

--- The servers of the user's server-template that are out of service and no slot's: they wait for an address.
local function free_servers(driver, rows)
  local taken, free = {}, {}
  for _, row in pairs(haproxy_servers.match(driver, rows)) do taken[row.server] = true end
  for _, row in ipairs(rows) do
    local number = row.server:sub(1, #driver.template) == driver.template and row.server:sub(#driver.template + 1)
    if number and number:find("^%d+$") and row.state == "maint" and not taken[row.server] then free[#free + 1] = row.server end
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
      local added = add_commands(driver, slot, rows)
      table.move(added, 1, #added, #commands + 1, commands)
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
