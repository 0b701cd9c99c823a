-- caddy.lua -- Caddy, by its admin API: which upstreams a reverse proxy has.
local cjson = require "cjson"
local errors = require "deployrt.errors"
local outage = require "deployrt.balancer.outage"

---@class deployrt.Caddy: deployrt.Driver
---@field entry table
---@field context deployrt.DriverContext
---@field said table<string, {state: deployrt.SlotState, weight: integer}>  what Caddy cannot keep: drain or maint, and weights
local Caddy = {}
Caddy.__index = Caddy

local caddy = { keys = { "admin", "id", "server" } }

caddy.help = [[
caddy: deployrt sets the upstreams of one reverse_proxy through Caddy's admin API (Caddy 2, on this machine or on a host).
    balancer: {type: caddy, admin: "127.0.0.1:2019", id: shop, drain: {timeout: 5s}}
  With a JSON configuration, give the handler a name:
    {"@id": "shop", "handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:8080"}]}
  With a Caddyfile, which has no names, name the server (srv0, ...), where it has one reverse_proxy:
    balancer: {type: caddy, server: srv0}

What it cannot do: split traffic by weights (no canary), count requests, or say how many are in flight, so that a drain always
lasts `drain.timeout`. Each change loads Caddy's configuration anew, which may reset connections that were just made.
Caddy keeps a change over a restart only with `caddy run --resume`; else deployrt sets it again when a run sees that it is gone.
]]

--- Combinations of keys that cannot work.
---@param entry table
---@param path string
---@param fail deployrt.config.Fail
function caddy.rules(entry, path, fail)
  if (entry.id == nil) == (entry.server == nil) then
    fail(path, ("%s: either `id`, the @id of a reverse_proxy, or `server`, which has one; see `deployrt help caddy`"):format(path))
  end
end

--- Upstreams are in a list, or not.
function caddy.capabilities()
  return { many = true }
end

--- Opens a driver; nothing is asked of Caddy yet.
---@param entry table
---@param context deployrt.DriverContext
---@return deployrt.Caddy
function caddy.open(entry, context)
  return setmetatable({ entry = entry, context = context, host = context.host, admin = entry.admin or "127.0.0.1:2019", said = {} }, Caddy)
end

---@package
function Caddy:fail(message, detail, code)
  errors.raise(code or "balancer", ("Caddy at %s: %s"):format(self.admin, message), { host = self.host.name, detail = detail })
end

local advice = {
  refused = "nobody answers there: is Caddy running, and is this the address of its admin API?",
  missing = "there is no such socket: is Caddy running, and is this the address of its admin API?",
  timeout = "no answer in time",
}

--- A request to the admin API, over a connection of its own.
---@return integer status
---@return string body
local function ask(self, method, path, body)
  local request = ("%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"):format(
    method, path, self.admin, #(body or ""), body or "")
  local ok, answer = pcall(self.host.talk, self.host, (self.admin:gsub("^localhost:", "127.0.0.1:")), request, 30)
  if not ok then
    local text = type(answer) == "table" and advice[answer.code]
    if not text then error(answer, 0) end
    self:fail(text, answer.message, answer.code)
  end
  local status, rest = answer:match("^HTTP/1%.%d (%d+)[^\n]*\r?\n.-\r?\n\r?\n(.*)$")
  if not status then self:fail("what answers there is no admin API", answer:sub(1, 300)) end
  return math.tointeger(status), rest
end

--- The paths of all reverse proxies below a part of the configuration.
local function find_proxies(value, path, found)
  if type(value) ~= "table" then return found end
  if value.handler == "reverse_proxy" then found[#found + 1] = path end
  for key, each in pairs(value) do
    find_proxies(each, ("%s/%s"):format(path, math.type(key) and key - 1 or key), found)
  end
  return found
end

--- Where the upstreams are in the API.
local function path_of(self)
  if self.entry.id then return ("/id/%s/upstreams"):format(self.entry.id) end
  local root = "/config/apps/http/servers/" .. self.entry.server
  local status, body = ask(self, "GET", root .. "/")
  if status ~= 200 then self:fail(("it has no server '%s': see `deployrt help caddy`"):format(self.entry.server), body) end
  local found = find_proxies(cjson.decode(body), root, {})
  if #found ~= 1 then
    self:fail(("server '%s' has %d reverse proxies: give the one that is meant an @id, and use balancer.id"):format(self.entry.server, #found))
  end
  return found[1] .. "/upstreams"
end

local function endpoint(slot)
  return (slot.address:find(":", 1, true) and "[%s]:%d" or "%s:%d"):format(slot.address, slot.port)
end

--- The upstreams as Caddy has them, and where.
local function look(self)
  local path = path_of(self)
  local status, body = ask(self, "GET", path)
  local ok, list = pcall(cjson.decode, body)
  if status ~= 200 or not ok or type(list) ~= "table" then
    self:fail(("it has no upstreams at %s: see `deployrt help caddy`"):format(path), body)
  end
  return list, path
end

local function states_of(self, list)
  local states, dialled = {}, {}
  for _, upstream in ipairs(list) do dialled[(upstream.dial or ""):gsub("^localhost:", "127.0.0.1:")] = true end
  for _, slot in ipairs(self.context.slots) do
    local said, serves = self.said[slot.name], dialled[endpoint(slot)] == true
    local agrees = said and serves == (said.state == "ready" and said.weight > 0)
    states[slot.name] = agrees and said or { state = serves and "ready" or "maint", weight = 100 }
  end
  return states
end

--- States of the slots: an upstream is ready; one that is no upstream is out of service.
--- Raises deployrt.Error: "balancer"; "refused", "missing", "timeout" where Caddy is not to be had.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string}
function Caddy:read()
  local slots = {}
  for name, state in pairs(states_of(self, (look(self)))) do
    slots[name] = { server = name, state = state.state, weight = state.weight, up = true, sessions = 0, queue = 0 }
  end
  return { slots = slots, instance = self.admin }
end

--- Whether Caddy is there and has the reverse proxy. Changes nothing.
---@async
function Caddy:check()
  look(self)
end

--- Slots need not be known beforehand.
function Caddy:prepare() end

--- The list with the slots that serve, and with what is none of ours as it is.
local function upstreams(self, list, states)
  local out, mine = {}, {}
  for _, slot in ipairs(self.context.slots) do
    mine[endpoint(slot)] = true
    if states[slot.name].state == "ready" and states[slot.name].weight > 0 then out[#out + 1] = { dial = endpoint(slot) } end
  end
  for _, upstream in ipairs(list) do
    if not mine[(upstream.dial or ""):gsub("^localhost:", "127.0.0.1:")] then out[#out + 1] = upstream end
  end
  return #out > 0 and cjson.encode(out) or "[]"
end

local function merge(self, states, changes)
  local merged = {}
  for name, state in pairs(states) do merged[name] = { state = state.state, weight = state.weight } end
  for _, change in ipairs(changes) do
    local slot = merged[change.slot]
    if not slot then self:fail(change.slot .. " is not in app.yml") end
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
  end
  return merged
end

--- Sets the upstreams in one request, and reads them back.
---@async
---@param changes deployrt.SlotChange[]
---@param forward? boolean  what gets traffic now must answer
function Caddy:apply(changes, forward)
  local list, path = look(self)
  local states = states_of(self, list)
  local wanted = merge(self, states, changes)
  local body = upstreams(self, list, wanted)
  if body ~= upstreams(self, list, states) then
    local problem, detail = outage.expected(self.context, states, changes, forward)
    if problem then self:fail(problem, detail) end
    local status, answer = ask(self, "PATCH", path, body)
    if status ~= 200 then self:fail("it refused the change", answer) end
    if body ~= upstreams(self, look(self), wanted) then self:fail("its upstreams are not as they were set: does somebody else change them too?") end
  end
  self.said = wanted
end

--- Caddy counts nothing by upstream.
function Caddy:stats()
  return {}
end

--- What Caddy keeps, it keeps itself.
function Caddy:persist() end

--- Caddy is the user's.
function Caddy:stop() end

return caddy
