-- etcd.lua -- A client of etcd v3 through its JSON gateway; any endpoint answers for the cluster.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Etcd
---@field endpoints string[]  in the order of trying: the one that answered last comes first
---@field timeout number      seconds until an operation gives up
---@field patience number     seconds until it turns to the next endpoint
local Etcd = {}
Etcd.__index = Etcd

local etcd = {}
local json = cjson.new()
local max_body = 64 * 1024 * 1024
local page = 64       -- keys that are read at once; one value has at most 1.5 MiB
local pause = 0.2     -- seconds between two rounds of the endpoints
local unavailable = { [1] = true, [4] = true, [14] = true } -- codes of gRPC: canceled, deadline exceeded, unavailable

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local digits, values = {}, {}
for i = 0, 63 do
  digits[i] = alphabet:sub(i + 1, i + 1)
  values[digits[i]] = i
end

--- Text as base64.
---@param text string
---@return string
function etcd.encode(text)
  local parts = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local word = a << 16 | (b or 0) << 8 | (c or 0)
    parts[#parts + 1] = digits[word >> 18] .. digits[word >> 12 & 63] .. (b and digits[word >> 6 & 63] or "=")
      .. (c and digits[word & 63] or "=")
  end
  return table.concat(parts)
end

--- Base64 as text.
---@param text string
---@return string
function etcd.decode(text)
  local parts = {}
  for a, b, c, d in text:gmatch("([%w+/])([%w+/])([%w+/=])([%w+/=])") do
    local word = values[a] << 18 | values[b] << 12 | (values[c] or 0) << 6 | (values[d] or 0)
    local bytes = string.char(word >> 16, word >> 8 & 255, word & 255)
    parts[#parts + 1] = d ~= "=" and bytes or bytes:sub(1, c ~= "=" and 2 or 1)
  end
  return table.concat(parts)
end

--- The key after all that begin with a prefix.
local function after(prefix)
  return prefix:sub(1, -2) .. string.char(prefix:byte(-1) + 1)
end

--- A value that nobody else has: what it is written into is recognised as one's own.
---@return string
function etcd.token()
  local file <close> = assert(io.open("/dev/urandom", "rb"))
  return core.sha256(file:read(32)):sub(1, 32)
end

--- Names a cluster; nothing is sent yet. An endpoint is "address:port", or a URL.
---@param options {endpoints: string[], timeout?: number, patience?: number}  seconds; default 10 and 2
---@return deployrt.Etcd
function etcd.open(options)
  return setmetatable({
    endpoints = table.move(options.endpoints, 1, #options.endpoints, 1, {}),
    timeout = options.timeout or 10, patience = options.patience or 2,
  }, Etcd)
end

--- One request to one endpoint: the answer; or nil, why not, and whether another endpoint would say the same.
local function ask(endpoint, path, body, timeout)
  local base = endpoint:find("://", 1, true) and endpoint:gsub("/$", "") or "http://" .. endpoint
  local response, err = core.http.request {
    url = base .. "/v3" .. path, method = "POST", body = body, timeout = timeout, max_body = max_body,
    headers = { ["Content-Type"] = "application/json" },
  }
  if not response then
    if err.code == "canceled" then error(err, 0) end
    return nil, err.code == "timeout" and ("no answer within %.1fs"):format(timeout) or err.message, false
  end
  local ok, answer = pcall(json.decode, response.body)
  if not ok or type(answer) ~= "table" then
    return nil, ("status %d without JSON: is this a client port of etcd 3.4 or later?"):format(response.status), false
  end
  if response.status == 200 and not answer.error then return answer end
  local failure = type(answer.error) == "table" and answer.error or answer
  local code = failure.code or failure.grpc_code
  return nil, tostring(failure.message or failure.error), not (unavailable[code] or response.status >= 500), code
end

local function raise(self, path, reasons, within, final)
  local what = path:gsub("^/", ""):gsub("/", " ")
  local lines = {}
  for i, endpoint in ipairs(self.endpoints) do
    local shown = endpoint:gsub("//[^/@]*@", "//") -- without a password
    lines[i] = ("%s: %s"):format(shown, reasons[endpoint] or "not asked")
  end
  table.sort(lines)
  if final then
    errors.raise("etcd", ("etcd refuses %s (%s): see `etcdctl endpoint status` and the key `etcd` below `state`"):format(what, final),
      { detail = table.concat(lines, "\n") })
  end
  errors.raise("etcd", ("etcd did not do %s within %.1fs (%s): see that more than half of its members run and reach one "
    .. "another (`etcdctl endpoint health`), then try again"):format(what, within, table.concat(lines, "; ")))
end

--- Sends one operation to one endpoint after the other until one answers. It may be carried out more than once.
---@async
---@param path string   below /v3
---@param fields table  of the request
---@param within? number  seconds; default the client's timeout
---@return table? answer  nil: not found
function Etcd:call(path, fields, within)
  within = within or self.timeout
  local body, reasons = json.encode(fields), {}
  local deadline, turn = core.now() + within, 0
  repeat
    local endpoint = self.endpoints[1]
    local left = math.max(0.05, deadline - core.now())
    local answer, why, final, code = ask(endpoint, path, body, math.min(self.patience, left))
    if answer then return answer end
    if final and code == 5 then return nil end
    reasons[endpoint] = why
    if final then raise(self, path, reasons, within, why) end
    if self.endpoints[1] == endpoint then table.insert(self.endpoints, table.remove(self.endpoints, 1)) end
    turn = turn + 1
    if turn % #self.endpoints == 0 then errors.check(core.sleep(math.min(pause, math.max(0, deadline - core.now())))) end
  until core.now() >= deadline
  raise(self, path, reasons, within)
end

--- Reads a key as the cluster has agreed on it.
---@async
---@param key string
---@param within? number  seconds
---@return string? value     nil when there is none
---@return string revision   of its last change; "0" when there is none
---@return string? lease     that it goes with
function Etcd:get(key, within)
  local answer = self:call("/kv/range", { key = etcd.encode(key) }, within)
  local found = answer and answer.kvs and answer.kvs[1]
  if not found then return nil, "0" end
  return etcd.decode(found.value or ""), found.mod_revision, found.lease
end

--- All keys that begin with a prefix, sorted, as of one instant.
---@async
---@param prefix string  not empty
---@return {key: string, value: string, revision: string}[]
function Etcd:list(prefix)
  local list, from, revision, more = {}, prefix, nil, true
  while more do
    local answer = self:call("/kv/range", {
      key = etcd.encode(from), range_end = etcd.encode(after(prefix)), limit = page, revision = revision,
    })
    for _, found in ipairs(answer.kvs or {}) do
      list[#list + 1] = { key = etcd.decode(found.key), value = etcd.decode(found.value or ""), revision = found.mod_revision }
    end
    revision, more = revision or answer.header.revision, answer.more
    if more then from = list[#list].key .. "\0" end
  end
  return list
end

---@class deployrt.EtcdCondition
---@field revision? string  the key's last change; "0": it is not there
---@field equals? string    its value
---@field lease? string     the key goes when this does
---@field guard? {key: string, value: string}  another key that must hold this value

local function conditions(key, options)
  local list = {}
  if options.revision then
    list[1] = { key = etcd.encode(key), target = "MOD", result = "EQUAL", mod_revision = options.revision }
  end
  if options.equals then
    list[#list + 1] = { key = etcd.encode(key), target = "VALUE", result = "EQUAL", value = etcd.encode(options.equals) }
  end
  if options.guard then
    local key64, value64 = etcd.encode(options.guard.key), etcd.encode(options.guard.value)
    list[#list + 1] = { key = key64, target = "VALUE", result = "EQUAL", value = value64 }
  end
  return #list > 0 and list or nil
end

--- Writes a key if the conditions hold. When an answer is lost the key is read back: a value that is the wanted one
--- counts as written, so give it a token where another writer might write the same.
---@async
---@param key string
---@param value string
---@param options deployrt.EtcdCondition
---@return boolean written
---@return string? present   what is there instead
---@return string? revision  of that
function Etcd:swap(key, value, options)
  local encoded = etcd.encode(key)
  local answer = self:call("/kv/txn", {
    compare = conditions(key, options),
    success = { { request_put = { key = encoded, value = etcd.encode(value), lease = options.lease } } },
    failure = { { request_range = { key = encoded } } },
  })
  if not answer then return false, nil, "0" end -- the lease is gone
  if answer.succeeded then return true end
  local range = answer.responses[1].response_range
  local found = range and range.kvs and range.kvs[1]
  if not found then return false, nil, "0" end
  local present = etcd.decode(found.value or "")
  return present == value, present, found.mod_revision
end

--- Writes a key, whatever it holds. It goes by the revision that was seen, so that a repeated request, which may
--- arrive late, never undoes a later one. False: the guard or the lease is gone.
---@async
---@param key string
---@param value string
---@param options? {lease?: string, guard?: {key: string, value: string}}
---@return boolean written
function Etcd:put(key, value, options)
  options = options or {}
  local _, revision = self:get(key)
  while true do
    local written, _, found = self:swap(key, value, { revision = revision, lease = options.lease, guard = options.guard })
    if written or found == revision then return written end
    revision = found
  end
end

--- Deletes a key, or all that begin with it. One that is not there is fine.
---@async
---@param key string
---@param options? {prefix?: boolean}
function Etcd:delete(key, options)
  local to = options and options.prefix and etcd.encode(after(key)) or nil
  self:call("/kv/deleterange", { key = etcd.encode(key), range_end = to })
end

--- A lease: what is written with it goes `ttl` seconds after the last sign of life.
---@async
---@param ttl integer  seconds
---@return string id
function Etcd:lease(ttl)
  return self:call("/lease/grant", { TTL = ttl }).ID
end

--- Gives a sign of life; false when the lease is gone.
---@async
---@param id string
---@param within? number  seconds
---@return boolean alive
function Etcd:keep_alive(id, within)
  local answer = self:call("/lease/keepalive", { ID = id }, within)
  return answer ~= nil and tonumber(answer.result and answer.result.TTL or 0) > 0
end

--- Seconds until a lease ends when no sign of life arrives; nil when it is gone.
---@async
---@param id string
---@return integer?
function Etcd:time_left(id)
  local answer = self:call("/lease/timetolive", { ID = id })
  local seconds = math.tointeger(tonumber(answer and answer.TTL or 0))
  return seconds and seconds >= 0 and seconds or nil
end

--- Ends a lease, with all that was written under it. One that is gone is fine.
---@async
---@param id string
---@param within? number  seconds
function Etcd:revoke(id, within)
  self:call("/lease/revoke", { ID = id }, within)
end

return etcd
