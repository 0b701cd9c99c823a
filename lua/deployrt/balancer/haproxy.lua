-- haproxy.lua -- HAProxy through its runtime API (management guide, section 9.3): one's own, or one that deployrt runs.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local config = require "deployrt.balancer.haproxy_config"
local suggest = require "deployrt.suggest"

---@class deployrt.HAProxy: deployrt.Driver
---@field options table   of app.yml
---@field context table   app, host, slots, health
local HAProxy = {}
HAProxy.__index = HAProxy

local haproxy = {}

---@class deployrt.Driver
---@field check fun(self)    raises what would stop a run; changes nothing
---@field prepare fun(self)  makes every slot known to the balancer
---@field read fun(self): {slots: table<string, {server: string, state: string, up: boolean, weight: integer, sessions: integer, queue: integer}>, instance: string}
---@field apply fun(self, changes: {slot: string, state?: string, weight?: integer}[])
---@field stats fun(self): table<string, {requests: integer, errors: integer, sessions: integer, latency: number}>
---@field persist fun(self, wanted: table)
---@field stop fun(self)

---@param options table
---@param context {app: string, host: deployrt.Host, slots: table[], health?: table}
---@return deployrt.HAProxy
function haproxy.open(options, context)
  local self = setmetatable({ options = options, context = context, host = context.host, servers = {} }, HAProxy)
  self.backend = options.backend or context.app
  self.directory = context.host.root .. "/balancer"
  self.socket = options.socket or self.directory .. "/haproxy.sock"
  if #self.socket > 100 then self.socket = ("/tmp/deployrt-%s.sock"):format(core.sha256(self.socket):sub(1, 16)) end
  return self
end

local function raise(self, message, detail)
  errors.raise("balancer", ("HAProxy (%s): %s"):format(self.socket, message), { host = self.host.name, detail = detail })
end

--- Sends commands as one request; HAProxy parts the answers by empty lines, so that the caller knows their shapes.
local function ask(self, commands)
  local ok, answer = pcall(self.host.talk, self.host, self.socket, table.concat(commands, ";") .. "\n", 10)
  if ok then return answer end
  answer.message = ("HAProxy: no answer at its socket %s (%s): is it running, and is `stats socket` there for this user?"):format(
    self.socket, answer.message)
  error(answer, 0)
end

local function split(line, separator)
  local fields = {}
  for field in (line .. separator):gmatch("([^" .. separator .. "]*)" .. separator) do fields[#fields + 1] = field end
  return fields
end

--- Tables of `show stat` and `show servers state`: a header line that begins with "# ", then a line an entry.
local function parse_table(text, separator)
  local names, rows = nil, {}
  for line in text:gmatch("[^\n]+") do
    if line:find("^# ") then
      names = split(line:sub(3), separator)
    elseif names then
      local row = {}
      for i, field in ipairs(split(line, separator)) do row[names[i] or i] = field end
      rows[#rows + 1] = row
    end
  end
  return rows
end

-- srv_admin_state (server-t.h): 0x01, 0x02, 0x20 and 0x40 are maintenance, 0x08 and 0x10 drain
local function state_of(row)
  local admin = math.tointeger(row.srv_admin_state) or 0
  if admin & 0x63 ~= 0 then return "maint" end
  if admin & 0x18 ~= 0 then return "drain" end
  return "ready"
end

local function slot_by_address(self)
  local map = {}
  for _, slot in ipairs(self.context.slots) do
    map[slot.address .. ":" .. slot.port] = slot
    map[slot.name] = slot
  end
  return map
end

--- A managed HAProxy that does not run keeps every slot out of service.
local function nothing_runs(self)
  local slots = {}
  for _, slot in ipairs(self.context.slots) do
    slots[slot.name] = { server = slot.name, state = "maint", up = false, weight = 0, sessions = 0, queue = 0 }
  end
  return { slots = slots, instance = "none" }
end

local gone = { missing = true, refused = true }

--- States, weights and sessions of all slots.
function HAProxy:read()
  local ok, answer = pcall(ask, self, { "show servers state " .. self.backend, "show stat", "show info" })
  if not ok and self.options.managed and gone[answer.code] then return nothing_runs(self) end
  if not ok then error(answer, 0) end
  local state_text = answer:match("(# be_id.-\n)\n") or ""
  local stat_text = answer:match("(# pxname.-\n)\n") or ""
  if state_text == "" then raise(self, ("there is no backend '%s'"):format(self.backend), answer:sub(1, 300)) end
  local slots, stats, known = {}, {}, slot_by_address(self)
  for _, row in ipairs(parse_table(stat_text, ",")) do
    if row.pxname == self.backend then stats[row.svname] = row end
  end
  for _, row in ipairs(parse_table(state_text, " ")) do
    local slot = known[row.srv_addr .. ":" .. row.srv_port] or known[row.srv_name]
    if slot then
      local stat = stats[row.srv_name] or {}
      self.servers[slot.name] = row.srv_name
      slots[slot.name] = {
        server = row.srv_name, state = state_of(row), weight = math.tointeger(row.srv_uweight) or 0,
        up = row.srv_op_state ~= "0", sessions = math.tointeger(stat.scur) or 0, queue = math.tointeger(stat.qcur) or 0,
      }
    end
  end
  return { slots = slots, instance = (answer:match("\nPid: (%d+)") or "?") .. "/" .. (answer:match("\nStart_time_sec: (%d+)") or "?") }
end

local function latency_of(row)
  return (tonumber(row.rtime) or 0) / 1000
end

--- Counters of the slots since HAProxy started.
function HAProxy:stats()
  local slots = {}
  local by_server = {}
  if next(self.servers) == nil then self:read() end
  for slot, server in pairs(self.servers) do by_server[server] = slot end
  for _, row in ipairs(parse_table(ask(self, { "show stat" }), ",")) do
    local slot = row.pxname == self.backend and by_server[row.svname]
    if slot then
      local function number(name) return math.tointeger(row[name]) or 0 end
      slots[slot] = {
        requests = number("stot"), errors = number("hrsp_5xx") + number("econ") + number("eresp"), sessions = number("scur"),
        latency = latency_of(row),
      }
    end
  end
  return slots
end

local function commands_for(self, slot, change)
  local where, list = ("%s/%s"):format(self.backend, slot.server), {}
  if change.weight and change.weight ~= slot.weight then list[#list + 1] = ("set server %s weight %d"):format(where, change.weight) end
  if change.state and change.state ~= slot.state then list[#list + 1] = ("set server %s state %s"):format(where, change.state) end
  return list
end

local function verify(self, changes)
  local slots = self:read().slots
  for _, change in ipairs(changes) do
    local slot = slots[change.slot]
    if not slot or (change.state and slot.state ~= change.state) or (change.weight and slot.weight ~= change.weight) then
      raise(self, ("server for %s should be %s with weight %s and is %s with weight %s"):format(change.slot, change.state or "as it was",
        change.weight or "as it was", slot and slot.state or "gone", slot and slot.weight or "?"))
    end
  end
end

--- Sets states and weights with one request, so that they take effect together, and reads them back.
function HAProxy:apply(changes)
  local slots, commands = self:read().slots, {}
  for _, change in ipairs(changes) do
    local slot = slots[change.slot]
    if not slot then raise(self, ("no server for %s in backend '%s': was it removed meanwhile?"):format(change.slot, self.backend)) end
    table.move(commands_for(self, slot, change), 1, 2, #commands + 1, commands)
  end
  if #commands == 0 then return end
  local answer = ask(self, commands)
  if answer:find("Permission denied", 1, true) then raise(self, "its socket does not allow changes: give it `level admin`") end
  verify(self, changes)
end

local function backends(self)
  local list, seen = {}, {}
  for _, row in ipairs(parse_table(ask(self, { "show stat" }), ",")) do
    if row.svname == "BACKEND" and not seen[row.pxname] then
      seen[row.pxname] = true
      list[#list + 1] = row.pxname
    end
  end
  return list, seen
end

local function check_own(self)
  local list, seen = backends(self)
  if not seen[self.backend] then
    local close = suggest.closest(self.backend, list)
    raise(self, ("there is no backend '%s'%s; it has: %s"):format(self.backend, close and (" (did you mean '%s'?)"):format(close) or "",
      table.concat(list, ", ")))
  end
  if ask(self, { "show env" }):find("Permission denied", 1, true) then
    raise(self, "its socket does not allow changes: give `stats socket` the option `level admin`")
  end
end

local function answers(self)
  return pcall(self.host.talk, self.host, self.socket, "show info\n", 2)
end

--- Whether HAProxy is there and will do what a run asks of it.
function HAProxy:check()
  if not self.options.managed then return check_own(self) end
  local found = self.host:execute({ "/bin/sh", "-c", "PATH=$PATH:/usr/sbin:/usr/local/sbin; command -v haproxy" }, { timeout = 10 })
  if found.status ~= 0 then
    errors.raise("balancer", "haproxy is not installed: install it (apt install haproxy), or name your own with balancer.socket", { host = self.host.name })
  end
  self.program = found.stdout:match("[^\n]+")
end

local function managed_text(self, wanted)
  return config.text({ app = self.context.app, socket = self.socket, listen = self.options.listen, backend = self.backend,
    health = self.context.health }, self.context.slots, wanted)
end

local function run_haproxy(self, words)
  local result = self.host:execute({ self.program, table.unpack(words) }, { timeout = 15 })
  if result.status ~= 0 then raise(self, "it does not start", (result.stderr .. result.stdout):sub(-1500)) end
end

local function start_managed(self, wanted)
  local file = self.directory .. "/haproxy.cfg"
  self.host:write(file, managed_text(self, wanted))
  run_haproxy(self, { "-c", "-q", "-f", file })
  run_haproxy(self, { "-W", "-D", "-f", file, "-p", self.directory .. "/haproxy.pid" })
  local deadline = core.now() + 5
  while not answers(self) do
    if core.now() > deadline then raise(self, "it was started and does not answer") end
    core.sleep(0.01)
  end
end

--- What runs now and what app.yml says may differ in slots or address; HAProxy takes both from a reload.
local function reload_managed(self, wanted)
  local file = self.directory .. "/haproxy.cfg"
  self.host:write(file, managed_text(self, wanted))
  run_haproxy(self, { "-c", "-q", "-f", file })
  local pid = (self.host:read(self.directory .. "/haproxy.pid") or ""):match("%d+")
  local before = self:read().instance
  self.host:execute({ "kill", "-USR2", pid or "0" }, { timeout = 5 })
  local deadline = core.now() + 10
  while true do
    local ok, now = pcall(self.read, self)
    if ok and now.instance ~= before then return end
    if core.now() > deadline then raise(self, "it was told to reload and did not") end
    core.sleep(0.02)
  end
end

local function managed_wanted(self)
  local wanted = {}
  for name, slot in pairs(self:read().slots) do wanted[name] = { state = slot.state, weight = slot.weight } end
  return wanted
end

--- The lines of a configuration that need a reload when they change: the address, and which servers there are.
local function shape(text)
  return (text:gsub(" weight %d+", ""):gsub(" disabled", ""))
end

local function prepare_managed(self)
  if not self.program then self:check() end
  if not answers(self) then
    local saved = self.wanted or {}
    return start_managed(self, saved)
  end
  local wanted = managed_wanted(self)
  local present = self.host:read(self.directory .. "/haproxy.cfg") or ""
  if shape(present) ~= shape(managed_text(self, wanted)) then reload_managed(self, wanted) end
end

--- Slots that the user's HAProxy does not know become dynamic servers, in maintenance.
local function add_missing(self)
  local slots = self:read().slots
  for _, slot in ipairs(self.context.slots) do
    if not slots[slot.name] then
      local where = ("%s/deployrt-%s"):format(self.backend, slot.name)
      local answer = ask(self, { ("add server %s %s:%d check inter 500ms fall 3 rise 1 weight 100"):format(where, slot.address, slot.port) })
      if not answer:find("New server registered", 1, true) then
        raise(self, ("it has no server %s:%d in backend '%s', and adding one failed: %s"):format(slot.address, slot.port, self.backend,
          answer:gsub("%s+$", "")), "add a line to the backend: server " .. slot.name .. " " .. slot.address .. ":" .. slot.port .. " check disabled")
      end
      ask(self, { "enable health " .. where })
    end
  end
end

--- Managed: starts HAProxy, or reloads it when slots changed. One's own: adds the servers that are missing.
function HAProxy:prepare()
  if self.options.managed then prepare_managed(self) else add_missing(self) end
end

--- Managed: the configuration says what a restart should come up with.
function HAProxy:persist(wanted)
  if not self.options.managed then return end
  self.wanted = wanted
  self.host:write(self.directory .. "/haproxy.cfg", managed_text(self, wanted))
end

local function is_running(self, pid)
  local result = self.host:execute({ "/bin/sh", "-c", 'grep -q "^State:.[^Z]" "/proc/$1/status" 2>/dev/null', "sh", pid }, { timeout = 5 })
  return result.status == 0
end

--- Managed: ends HAProxy, softly first, and removes its files. One's own is left alone.
function HAProxy:stop()
  if not self.options.managed then return end
  local pid = (self.host:read(self.directory .. "/haproxy.pid") or ""):match("%d+")
  if pid and answers(self) then
    self.host:execute({ "kill", "-USR1", pid }, { timeout = 5 })
    local deadline = core.now() + 5
    while is_running(self, pid) do
      if core.now() > deadline then self.host:execute({ "kill", "-TERM", pid }, { timeout = 5 }) end
      if core.now() > deadline + 5 then raise(self, "pid " .. pid .. " does not end") end
      core.sleep(0.02)
    end
  end
  for _, name in ipairs { "haproxy.cfg", "haproxy.pid" } do self.host:call("file_remove", { self.directory .. "/" .. name }) end
  self.host:call("file_remove", { self.socket })
end

return haproxy
