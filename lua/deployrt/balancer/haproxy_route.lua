-- haproxy_route.lua -- Routed requests in HAProxy: a second backend for them, and the rules that lead there.
local config = require "deployrt.balancer.haproxy_config"
local route = require "deployrt.balancer.route"
local runtime = require "deployrt.balancer.haproxy_runtime"

local haproxy_route = {}

--- The backend of the routed requests.
---@param backend string
---@return string
function haproxy_route.backend(backend)
  return backend .. "-routed"
end

local conditions = {}

function conditions.header(given)
  local name, value = route.pair(given)
  if not value then return ("{ req.hdr(%s) -m found }"):format(name) end
  return ("{ req.hdr(%s) -m str %s }"):format(name, config.quote(value))
end

function conditions.cookie(given)
  local name, value = route.pair(given)
  if not value then return ("{ req.cook(%s) -m found }"):format(name) end
  return ("{ req.cook(%s) -m str %s }"):format(name, config.quote(value))
end

function conditions.path(given)
  local below = given:gsub("/*$", "") .. "/"
  return ("{ path %s } || { path -m beg %s }"):format(config.quote(given), config.quote(below))
end

function conditions.source(given)
  return ("{ src %s }"):format(given)
end

local kinds = { "header", "cookie", "path", "source" }

local undecided = "!{ var(txn.side) -m found }"

local function sticky_lines(cookie, sticky, add)
  if not sticky then return end
  add(("http-request set-var(txn.side) str(new) if %s { var(txn.percent) -m int 10000 }"):format(undecided))
  add(("http-request set-var(txn.side) str(new) if %s { req.cook(%s) -m str %s }"):format(undecided, cookie, config.quote(sticky.new)))
  add(("http-request set-var(txn.side) str(old) if %s { req.cook(%s) -m str %s }"):format(undecided, cookie, config.quote(sticky.old)))
  add(("http-request set-var(txn.first) bool(true) if %s"):format(undecided))
end

local function cookie_lines(cookie, sticky, add)
  if not sticky then return end
  local set = "http-response add-header Set-Cookie '%s=%s; Path=/; HttpOnly; SameSite=Lax' if { var(txn.first) -m bool } %s{ var(txn.side) -m str new }"
  add(set:format(cookie, sticky.new, ""))
  add(set:format(cookie, sticky.old, "!"))
end

--- The lines of the frontend that tell requests apart. What rules say counts more than what a cookie does, and that more
--- than the percentage, which is in a map so that it changes at runtime.
---@param app string
---@param backend string
---@param map string   path of the file that the map begins with
---@param wanted deployrt.Route
---@return string
function haproxy_route.frontend(app, backend, map, wanted)
  local lines, cookie = {}, route.cookie(app)
  local function add(line) lines[#lines + 1] = "    " .. line .. "\n" end
  add(("http-request set-var(txn.percent) str(percent),map_str_int(%s,0)"):format(map))
  for _, rule in ipairs(wanted.rules) do
    for _, kind in ipairs(kinds) do
      if rule[kind] then add("http-request set-var(txn.side) str(new) if " .. conditions[kind](rule[kind])) end
    end
  end
  sticky_lines(cookie, wanted.sticky, add)
  add(("http-request set-var(txn.side) str(new) if %s { rand(10000),sub(txn.percent) lt 0 }"):format(undecided))
  cookie_lines(cookie, wanted.sticky, add)
  local routed = haproxy_route.backend(backend)
  add(("use_backend %s if { var(txn.side) -m str new } { nbsrv(%s) gt 0 }"):format(routed, routed))
  return table.concat(lines)
end

--- What one's own HAProxy needs to tell requests apart: lines to copy.
---@param backend string
---@param map string
---@return string
function haproxy_route.lines_for_own(backend, map)
  local routed = haproxy_route.backend(backend)
  return ("in the frontend:\n%sand a backend '%s' with the same servers as '%s', all of them `disabled`; %s begins with the line\n    percent 0"):format(
    haproxy_route.frontend(backend, backend, map, { rules = { { header = "X-Canary: 1" } }, slots = {}, percent = 0 }), routed, backend, map)
end

--- What to ask, besides what is asked of the backend itself.
---@param backend string
---@param map? string
---@return string[]
function haproxy_route.observations(backend, map)
  local routed = haproxy_route.backend(backend)
  return { "show servers state " .. routed, ("show stat %s 6 -1"):format(routed), map and "show map " .. map or nil }
end

--- The route that HAProxy has; nil when it tells nobody apart. `rows` are its servers, by slot.
---@param text string  what HAProxy answered
---@param rows table<string, deployrt.HAProxyServer>
---@return {percent: number, slots: string[]}?
function haproxy_route.read(text, rows)
  local percent = text:match("0x%x+ percent (%d+)")
  if not percent or not next(rows) then return nil end
  local slots = {}
  for name, row in pairs(rows) do
    if row.state == "ready" then slots[#slots + 1] = name end
  end
  table.sort(slots)
  return { percent = tonumber(percent) / 100, slots = slots }
end

--- The text of the file that the map begins with.
---@param wanted? deployrt.Route
---@return string
function haproxy_route.map(wanted)
  return ("percent %d\n"):format(wanted and route.parts(wanted.percent) or 0)
end

--- The commands that bring the routed servers and the percentage to what is wanted.
---@param backend string
---@param map string
---@param rows table<string, deployrt.HAProxyServer>  the routed backend's servers, by slot
---@param wanted deployrt.Route
---@return string[]
function haproxy_route.commands(backend, map, rows, wanted)
  local commands, has = {}, {}
  for _, name in ipairs(wanted.slots) do has[name] = true end
  for name, row in pairs(rows) do
    local state = has[name] and "ready" or row.state == "ready" and "drain" or row.state
    if state ~= row.state then
      commands[#commands + 1] = ("set server %s/%s state %s"):format(haproxy_route.backend(backend), row.server, state)
    end
  end
  table.sort(commands)
  commands[#commands + 1] = ("set map %s percent %d"):format(map, route.parts(wanted.percent))
  return commands
end

--- Adds what the routed backend knows of a slot to what the other one does. It is up where requests come from.
---@param row deployrt.HAProxyServer
---@param routed? deployrt.HAProxyServer
---@return deployrt.HAProxyServer
function haproxy_route.merge(row, routed)
  if not routed then return row end
  local sum = setmetatable({ sessions = row.sessions + routed.sessions, queue = row.queue + routed.queue, stat = {} }, { __index = row })
  if routed.state == "ready" and row.state ~= "ready" then sum.up = routed.up end
  for column, value in pairs(row.stat) do sum.stat[column] = value end
  for _, column in ipairs { "stot", "hrsp_5xx", "econ", "eresp", "hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_other" } do
    sum.stat[column] = tostring(runtime.number(row.stat, column) + runtime.number(routed.stat, column))
  end
  if runtime.number(routed.stat, "rtime") > 0 then sum.stat.rtime = routed.stat.rtime end
  return sum
end

return haproxy_route
