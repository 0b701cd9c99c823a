-- caddy.lua -- Caddy, by its admin API: which upstreams a reverse proxy has.
local cjson = require "cjson"
local endpoint = require "deployrt.balancer.endpoint"
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
lasts `drain.timeout`. Upstreams that it adds have an @id that begins with `deployrt-` and the application; others are left as they are. Each change loads Caddy's configuration anew, which may reset connections that were just made.
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
  local problem = entry.admin and endpoint.problem(entry.admin, path .. ".admin", { path = "/run/caddy/admin.sock", port = 2019 })
  if problem then fail(path .. ".admin", problem) end
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
  return setmetatable({ entry = entry, context = context, host = context.host, admin = entry.admin or "127.0.0.1:2019", said = {}, left = {} }, Caddy)
end

---@package
function Caddy:fail(message, detail, code)
  errors.raise(code or "balancer", ("Caddy at %s: %s"):format(self.admin, message), { host = self.host.name, detail = detail })
end

local advice = {
  refused = "nobody answers there: is Caddy running, and is this the address of its admin API?",
  missing = "there is no such socket: is Caddy running, and is this the address of its admin API?",
  timeout = "no answer in time",
  unresolved = "there is no such name",
}

--- A request to the admin API, over a connection of its own.
---@return integer status
---@return string body
local function ask(self, method, path, body)
  local request = ("%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"):format(
    method, path, self.admin, #(body or ""), body or "")
  local ok, answer = pcall(self.host.talk, self.host, self.admin, request, 30)
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

local function dial_of(slot)
  return (slot.address:find(":", 1, true) and "[%s]:%d" or "%s:%d"):format(slot.address, slot.port)
end

--- The address of an upstream; a person's `localhost` is this machine too.
local function address_of(upstream)
  return ((upstream.dial or "?"):gsub("^localhost:", "127.0.0.1:"))
end

--- By what an upstream is known as one that deployrt added; such names are unique in Caddy.
local function mark(self, address)
  return ("deployrt-%s.%s-%s"):format(self.context.app, self.entry.id or self.entry.server, address)
end

--- From now on an address is a slot, although app.yml does not name it any more. Its name is all that tells it once it is no
--- upstream, so that is the address.
local function know_left(self, address)
  local host, port = address:match("^%[?(.-)%]?:(%d+)$")
  if not host or self.left[address] then return end
  self.left[address] = true
  local slots = table.move(self.context.slots, 1, #self.context.slots, 1, {})
  slots[#slots + 1] = { name = address, address = host, port = math.tointeger(port) }
  self.context = setmetatable({ slots = slots }, { __index = self.context })
end

--- Upstreams that are no slot's: those that deployrt added are slots that are left, the rest is the user's.
local function others(self, list)
  local mine, found = {}, {}
  for _, slot in ipairs(self.context.slots) do mine[dial_of(slot)] = true end
  for _, upstream in ipairs(list) do
    local address = address_of(upstream)
    if not mine[address] and upstream["@id"] == mark(self, address) then
      know_left(self, address)
    elseif not mine[address] then
      found[#found + 1] = { name = address, address = address, weight = 100, via = ("reverse_proxy '%s'"):format(self.entry.id or self.entry.server) }
    end
  end
  return found
end

--- The upstreams as Caddy has them, where, and those of them that are the user's own.
---@return table[] list
---@return string path
---@return deployrt.OtherServer[]
local function look(self)
  local path = path_of(self)
  local status, body = ask(self, "GET", path)
  local ok, list = pcall(cjson.decode, body)
  if status ~= 200 or not ok or type(list) ~= "table" then
    self:fail(("it has no upstreams at %s: see `deployrt help caddy`"):format(path), body)
  end
  return list, path, others(self, list)
end

local function states_of(self, list)
  local states, dialled = {}, {}
  for _, upstream in ipairs(list) do dialled[address_of(upstream)] = true end
  for _, slot in ipairs(self.context.slots) do
    local said, serves = self.said[slot.name], dialled[dial_of(slot)] == true
    local agrees = said and serves == (said.state == "ready" and said.weight > 0)
    states[slot.name] = agrees and said or { state = serves and "ready" or "maint", weight = 100 }
  end
  return states
end

--- States of the slots: an upstream is ready; one that is no upstream is out of service.
--- Raises deployrt.Error: "balancer"; "refused", "missing", "timeout" where Caddy is not to be had.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string, others: deployrt.OtherServer[]}
function Caddy:read()
  local slots, list, _, besides = {}, look(self)
  for name, state in pairs(states_of(self, list)) do
    slots[name] = { server = name, state = state.state, weight = state.weight, up = true, sessions = 0, queue = 0, left = self.left[name] }
  end
  return { slots = slots, instance = self.admin, others = besides }
end

--- Whether Caddy is there and has the reverse proxy. Changes nothing.
---@async
function Caddy:check()
  look(self)
end

--- Slots need not be known beforehand, but those that are left and have lost their traffic already.
---@param _ string?  run
---@param wanted? table<string, table>  slots that it has in hand
function Caddy:prepare(_, wanted)
  local named = {}
  for _, slot in ipairs(self.context.slots) do named[slot.name] = true end
  for name in pairs(wanted or {}) do
    if not named[name] then know_left(self, name) end
  end
end

--- The list with the slots that serve, and with what is none of ours as it is.
---@return table[]
local function upstreams(self, list, states)
  local out, found, mine = {}, {}, {}
  for _, upstream in ipairs(list) do found[address_of(upstream)] = upstream end
  for _, slot in ipairs(self.context.slots) do
    local address, state = dial_of(slot), states[slot.name]
    local upstream = found[address] or { dial = address }
    upstream["@id"], mine[address] = upstream["@id"] or mark(self, address), true
    if state.state == "ready" and state.weight > 0 then out[#out + 1] = upstream end
  end
  for _, upstream in ipairs(list) do
    if not mine[address_of(upstream)] then out[#out + 1] = upstream end
  end
  return out
end

--- Whom the upstreams of a list lead to, for comparison.
local function summary(list)
  local addresses = {}
  for i, upstream in ipairs(list) do addresses[i] = address_of(upstream) end
  table.sort(addresses)
  return table.concat(addresses, " ")
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
---@param forward? "serve"|"gap"  what gets traffic now must answer
function Caddy:apply(changes, forward)
  local list, path = look(self)
  local states = states_of(self, list)
  local wanted = merge(self, states, changes)
  local next_list = upstreams(self, list, wanted)
  if summary(next_list) ~= summary(list) then
    local problem, detail = outage.expected(self.context, states, changes, forward)
    if problem then self:fail(problem, detail) end
    local status, answer = ask(self, "PATCH", path, #next_list > 0 and cjson.encode(next_list) or "[]")
    if status ~= 200 then self:fail("it refused the change", answer) end
    if summary((look(self))) ~= summary(next_list) then self:fail("its upstreams are not as they were set: does somebody else change them too?") end
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
