-- haproxy_config.lua -- The configuration of the HAProxy that deployrt runs itself.
local core = require "deployrt.core"

local haproxy_config = {}

local head = [[
# Written by deployrt for the application %s; changes are overwritten.
global
    master-worker
    noreuseport
    maxconn %d
    hard-stop-after %ds
    stats socket %s mode 600 level admin expose-fd listeners

defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout queue 10s
    timeout http-keep-alive 60s
    timeout tunnel 1h
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response response-timeout

frontend %s-in
    bind %s
    http-request disable-l7-retry unless METH_GET
%s    default_backend %s

backend %s
    balance roundrobin
]]

local routed_head = [[

backend %s
    balance roundrobin
]]

local stats_lines = [[
frontend deployrt-stats
    bind %s
    monitor-uri /monitor
    http-request use-service prometheus-exporter if { path /metrics }
    stats enable
    stats uri /
    stats refresh 5s

]]

--- Words of the configuration in single quotes, where nothing is expanded.
---@param word string
---@return string
function haproxy_config.quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local quote = haproxy_config.quote

--- Codes that mean healthy, as `http-check expect status` lists them.
local function statuses(wanted)
  if type(wanted) ~= "table" then return wanted or "200-299" end
  local list = {}
  for i, each in ipairs(wanted) do
    list[i] = type(each) == "table" and ("%d-%d"):format(each.from or each[1], each.to or each[2]) or each
  end
  return table.concat(list, ",")
end

local function maintenance_line(path)
  if not path then return "" end
  return ('    http-error status 503 content-type "text/html; charset=utf-8" file %s hdr Retry-After 10 hdr Cache-Control no-store\n'):format(quote(path))
end

local function check_lines(health)
  if not health or not health.http then return "" end
  local path = quote(health.http)
  return ("    option httpchk GET %s\n"):format(path)
    .. ("    http-check send meth GET uri %s ver HTTP/1.1 hdr Host localhost\n"):format(path)
    .. ("    http-check expect status %s\n"):format(statuses(health.status))
end

--- A name that HAProxy takes for a server.
---@param name string
---@return string
function haproxy_config.identifier(name)
  return (name:gsub("[^%w_.:-]", "_"))
end

--- An address as HAProxy writes it in front of a port: IPv6 in brackets.
function haproxy_config.endpoint(slot)
  return (slot.address:find(":", 1, true) and "[%s]:%d" or "%s:%d"):format(slot.address, slot.port)
end

--- The lines that need a reload when they change: all but weights and states, which are set at runtime.
local function shape(text)
  return (text:gsub(" weight %d+", ""):gsub(" disabled", ""):gsub("    description [^\n]*\n", ""))
end

--- Names the shape of a configuration; a running HAProxy tells it back as its description.
---@param text string
---@return string
function haproxy_config.fingerprint(text)
  return "deployrt-" .. core.sha256(shape(text)):sub(1, 16)
end

--- Has a configuration say its own name.
local function sealed(text)
  return (text:gsub("    noreuseport\n", "%0    description " .. haproxy_config.fingerprint(text) .. "\n", 1))
end

--- How a configuration checks the health of its servers; "": by connecting.
---@param text string
---@return string
function haproxy_config.checks(text)
  local lines = {}
  for line in (text:match("^(.-)\n    server ") or text):gmatch("\n    ([^\n]*)") do
    if line:find("^option httpchk") or line:find("^http%-check") then lines[#lines + 1] = line end
  end
  return table.concat(lines, "\n")
end

--- The same configuration, for whose checks a server is healthy when it accepts connections.
---@param text string
---@return string
function haproxy_config.lenient(text)
  return sealed((text:gsub("    description [^\n]*\n", ""):gsub("    option httpchk[^\n]*\n", ""):gsub("    http%-check[^\n]*\n", "")))
end

--- What of a configuration does not depend on which slots there are.
---@param text string
---@return string
function haproxy_config.settings(text)
  return (shape(text):gsub("\n    server [^\n]*", ""):gsub("\n    maxconn %d+", ""))
end

---@class deployrt.HAProxyConfig
---@field app string
---@field socket string          path of the runtime API
---@field listen string
---@field backend string
---@field health? table          app.health
---@field maintenance? string    path of the page that is shown while nothing serves
---@field stats? string          where its statistics are to be had
---@field maxconn integer
---@field hard_stop integer      seconds that an old process may live on after a reload
---@field routing? string        lines of the frontend that tell requests apart
---@field routed? string         the backend that they lead to

local function server_lines(slots, wanted)
  local lines = {}
  for i, slot in ipairs(slots) do
    local state = wanted[slot.name] or {}
    lines[i] = ("    server %s %s check inter 500ms fall 3 rise 1 weight %d%s\n"):format(
      haproxy_config.identifier(slot.name), haproxy_config.endpoint(slot), state.weight or 100,
      state.state == "ready" and "" or " disabled")
  end
  return table.concat(lines)
end

--- The text of the configuration.
---@param settings deployrt.HAProxyConfig
---@param slots {name: string, address: string, port: integer}[]
---@param wanted table<string, {state?: string, weight?: integer}>  slots that are absent come up disabled
---@return string
function haproxy_config.text(settings, slots, wanted)
  local checks = check_lines(settings.health)
  local lines = { head:format(settings.app, settings.maxconn, settings.hard_stop, quote(settings.socket),
    haproxy_config.identifier(settings.app), settings.listen, settings.routing or "", settings.backend, settings.backend),
    maintenance_line(settings.maintenance), checks, server_lines(slots, wanted) }
  if settings.routed then
    table.move({ routed_head:format(settings.routed), checks, server_lines(slots, {}) }, 1, 3, #lines + 1, lines)
  end
  if settings.stats then lines[#lines + 1] = "\n" .. stats_lines:format(settings.stats) end
  return sealed(table.concat(lines))
end

--- A configuration up to the end of the backend that states are kept in.
local function own_part(text)
  return text:match("^(.-\nbackend .-)\nbackend ") or text
end

--- The same configuration, whose servers come up with these states and weights.
---@param text string
---@param wanted table<string, {state?: string, weight?: integer}>  by name; what is absent stays as it is
---@return string
function haproxy_config.with_states(text, wanted)
  local own = own_part(text)
  local changed = own:gsub("(\n    server (%S+) [^\n]- weight )(%d+)([^\n]*)", function(line, name, weight, rest)
    local new = wanted[name] or {}
    local tail = not new.state and rest or new.state == "ready" and "" or " disabled"
    return line .. (new.weight or weight) .. tail
  end)
  return changed .. text:sub(#own + 1)
end

--- What the servers of a configuration come up with, by their names.
---@param text string
---@return table<string, {state: string, weight: integer, address: string, port: integer}>
function haproxy_config.wanted(text)
  local wanted = {}
  for name, address, port, weight, rest in own_part(text):gmatch("\n    server (%S+) (%S-):(%d+) [^\n]- weight (%d+)([^\n]*)") do
    local state = rest:find("disabled", 1, true) and "maint" or "ready"
    wanted[name] = { weight = math.tointeger(weight), state = state, address = address:gsub("[%[%]]", "") .. "", port = math.tointeger(port) }
  end
  return wanted
end

return haproxy_config
