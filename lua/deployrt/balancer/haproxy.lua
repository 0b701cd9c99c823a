-- haproxy.lua -- HAProxy through its runtime API: the user's own, or one that deployrt runs.
local errors = require "deployrt.errors"
local config = require "deployrt.balancer.haproxy_config"
local managed = require "deployrt.balancer.haproxy_managed"
local runtime = require "deployrt.balancer.haproxy_runtime"
local suggest = require "deployrt.suggest"

---@class deployrt.Driver
---@field check fun(self)    raises what would stop a run; changes nothing
---@field prepare fun(self)  makes every slot known to the balancer
---@field read fun(self): {slots: table<string, deployrt.DriverSlot>, instance: string}
---@field apply fun(self, changes: deployrt.SlotChange[])
---@field stats fun(self): table<string, deployrt.SlotStats>
---@field persist fun(self, wanted: table<string, {state?: string, weight?: integer}>)
---@field stop fun(self)

---@alias deployrt.SlotState "ready"|"drain"|"maint"

---@class deployrt.DriverSlot
---@field server string     the balancer's name of it
---@field state deployrt.SlotState
---@field up boolean        as the balancer's health check sees it; true without one
---@field weight integer
---@field sessions integer  requests in flight
---@field queue integer     requests that wait for it

---@class deployrt.Slot
---@field name string
---@field address string
---@field port integer

---@class deployrt.SlotChange
---@field slot string
---@field state? deployrt.SlotState
---@field weight? integer   0 to 256

---@class deployrt.SlotStats
---@field requests integer
---@field errors integer    5xx answers, failed connections and broken answers
---@field sessions integer
---@field latency number    seconds

---@class deployrt.HAProxy: deployrt.Driver
---@field options table   the entry of app.yml
---@field context table   app, host, slots, health
local HAProxy = {}
HAProxy.__index = HAProxy

local haproxy = {}

--- Opens a driver; nothing is asked of HAProxy yet.
---@param options table  type, socket, backend, managed, listen, drain
---@param context {app: string, host: deployrt.Connection, slots: deployrt.Slot[], health?: table}
---@return deployrt.HAProxy
function haproxy.open(options, context)
  local self = { options = options, context = context, host = context.host, addresses = {} }
  setmetatable(self, HAProxy)
  self.backend = options.backend or context.app
  if self.backend:find("[^%w_.:-]") then
    errors.raise("balancer", ("balancer.backend: HAProxy has no backend named '%s': letters, digits and _ . : - "
      .. "only"):format(self.backend))
  end
  self.paths = options.managed and managed.paths(context.host.root, options.socket)
  self.socket = options.socket or self.paths.socket
  return self
end

---@package
function HAProxy:fail(message, detail)
  errors.raise("balancer", ("HAProxy at %s: %s"):format(self.socket, message),
    { host = self.host.name, detail = detail })
end

local advice = {
  missing = "there is no such socket: is HAProxy running, and is this the path of its `stats socket`?",
  refused = "nobody answers there: is HAProxy running?",
  denied = "this user may not use it: give its `stats socket` line a user, group or mode that lets it",
  timeout = "no answer in time: HAProxy hangs, or something else listens there",
}

--- Sends commands as one request. An error keeps its code, so that callers can wait for a restarting HAProxy.
---@package
function HAProxy:ask(commands)
  local request = table.concat(commands, ";") .. "\n"
  local ok, answer = pcall(self.host.talk, self.host, self.socket, request, 10)
  if ok then return answer end
  local text = type(answer) == "table" and advice[answer.code]
  if not text then error(answer, 0) end
  errors.raise(answer.code, ("HAProxy at %s: %s"):format(self.socket, text),
    { host = self.host.name, detail = answer.message })
end

--- The addresses by which HAProxy may know the slot: as given, or what the balancer's host resolves it to.
local function addresses_of(self, slot)
  if slot.address:find("^[%d.]+$") or slot.address:find(":", 1, true) then return { slot.address } end
  local known = self.addresses[slot.address]
  if known then return known end
  known = {}
  local found = self.host:execute({ "getent", "ahosts", slot.address }, { timeout = 10 }).stdout or ""
  for address in found:gmatch("(%S+)%s+STREAM") do
    table.insert(known, address:find(":", 1, true) and #known + 1 or 1, address)
  end
  self.addresses[slot.address] = known
  return known
end

local function own_name(slot)
  return "deployrt-" .. config.identifier(slot.name)
end

local function is_at(self, slot, row)
  if row.fqdn == slot.address then return row.endpoint:match("%d+$") == tostring(slot.port) end
  for _, address in ipairs(addresses_of(self, slot)) do
    if row.endpoint == config.endpoint { address = address, port = slot.port } then return true end
  end
  return false
end

--- The servers that are the slot: by address, whatever they are called, else the one that is named like it.
local function servers_of(self, slot, rows)
  local found, named = {}, nil
  for _, row in ipairs(rows) do
    if is_at(self, slot, row) then found[#found + 1] = row end
    if row.server == config.identifier(slot.name) then named = row end
  end
  return #found > 0 and found or { named }
end

local function match_slots(self, rows)
  local slots = {}
  for _, slot in ipairs(self.context.slots) do slots[slot.name] = servers_of(self, slot, rows)[1] end
  return slots
end

local function observations(self)
  return { "show servers state " .. self.backend, ("show stat %s 6 -1"):format(self.backend), "show info" }
end

--- What HAProxy says now, in one round trip: rows by slot, all rows, and who answered.
---@package
function HAProxy:look()
  local text = self:ask(observations(self))
  local rows, pid = runtime.rows_of(text), text:match("\nPid: (%d+)")
  if not pid then self:fail("what answers there is not HAProxy's runtime API", text:sub(1, 300)) end
  return {
    exists = text:find("# be_id", 1, true) ~= nil, rows = rows, slots = match_slots(self, rows), pid = pid,
    instance = pid .. "/" .. (text:match("\nStart_time_sec: (%d+)") or "?"),
    version = text:match("\nVersion: ([%d.]+)") or "?", description = text:match("\ndescription: ([^\n]*)"),
  }
end

local function look_at_backend(self)
  local seen = self:look()
  if seen.exists then return seen end
  self:fail(("it has no backend '%s' (any more): see `deployrt check --connect`"):format(self.backend))
end

--- A managed HAProxy that does not run keeps every slot out of service.
local function nothing_runs(self)
  local slots = {}
  for _, slot in ipairs(self.context.slots) do
    local server = config.identifier(slot.name)
    slots[slot.name] = { server = server, state = "maint", up = false, weight = 0, sessions = 0, queue = 0 }
  end
  return { slots = slots, instance = "none" }
end

--- States, weights and sessions of the slots. A slot that HAProxy does not know is absent; a managed HAProxy that
--- does not run has all of them, out of service.
--- Raises deployrt.Error: "balancer"; "missing", "refused", "denied", "timeout" where HAProxy is not to be had.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string}  another instance: restarted, reloaded
function HAProxy:read()
  local ok, seen = pcall(look_at_backend, self)
  local gone = not ok and (seen.code == "missing" or seen.code == "refused")
  if gone and self.options.managed then return nothing_runs(self) end
  if not ok then error(seen, 0) end
  local slots = {}
  for name, row in pairs(seen.slots) do
    slots[name] = {
      server = row.server, state = row.state, up = row.up, weight = row.weight,
      sessions = row.sessions, queue = row.queue,
    }
  end
  return { slots = slots, instance = seen.instance }
end

--- Counters of the slots since HAProxy started, and the mean latency of the last 1024 requests.
---@async
---@return table<string, deployrt.SlotStats>
function HAProxy:stats()
  local slots = {}
  for name, row in pairs(look_at_backend(self).slots) do
    local function number(column) return runtime.number(row.stat, column) end
    slots[name] = {
      requests = number("stot"), errors = number("hrsp_5xx") + number("econ") + number("eresp"),
      sessions = row.sessions, latency = number("rtime") / 1000,
    }
  end
  return slots
end

local function set(self, row, what, value)
  return ("set server %s/%s %s %s"):format(self.backend, row.server, what, value)
end

--- A server that gets traffic gets its weight first, and one that loses it loses it first.
local function commands_for(self, row, change)
  local weight = change.weight and change.weight ~= row.weight and set(self, row, "weight", change.weight)
  local state = change.state and change.state ~= row.state and set(self, row, "state", change.state)
  local first, second = state, weight
  if change.state == "ready" then first, second = weight, state end
  return first or second or nil, first and second or nil
end

local function all_commands(self, slots, changes)
  local commands, now = {}, {}
  for _, change in ipairs(changes) do
    local row = now[change.slot] or slots[change.slot]
    local first, second = commands_for(self, row, change)
    commands[#commands + 1] = first
    commands[#commands + 1] = second
    now[change.slot] = {
      server = row.server, state = change.state or row.state, weight = change.weight or row.weight,
    }
  end
  return commands
end

--- Slots that get traffic after the changes and did not before.
local function entering(slots, changes)
  local names = {}
  for _, change in ipairs(changes) do
    local enters = change.state == "ready" and slots[change.slot].state ~= "ready"
    if enters then names[#names + 1] = change.slot end
  end
  return names
end

local function takes_traffic(slots, changes)
  for _, change in ipairs(changes) do
    local row = slots[change.slot]
    local leaves = (change.state or "ready") ~= "ready" or change.weight == 0
    if leaves and row.state == "ready" and row.weight > 0 and row.up then return true end
  end
  return false
end

local function slot_named(self, name)
  for _, slot in ipairs(self.context.slots) do
    if slot.name == name then return slot end
  end
end

--- Before traffic moves: HAProxy counts a server as up until its first check, so its host connects to each one
--- itself. The change is refused when nobody who is to take over can be reached from there.
local function refuse_outage(self, slots, changes)
  local names, reached, why = entering(slots, changes), false, nil
  if #names == 0 or not takes_traffic(slots, changes) then return end
  for _, name in ipairs(names) do
    local slot = slot_named(self, name)
    local ok, err = self.host:reaches(slot.address, slot.port, 2)
    reached, why = reached or ok, why or err
  end
  if reached then return end
  self:fail(("it cannot reach %s, so traffic stays where it is: can %s connect to it?"):format(
    table.concat(names, ", "), self.host.name), type(why) == "table" and why.message or why)
end

local function describe(self, change, row)
  if not row then return ("%s has no server any more"):format(change.slot) end
  return ("%s (%s/%s) should be %s with weight %d and is %s with weight %d"):format(change.slot, self.backend,
    row.server, change.state or row.state, change.weight or row.weight, row.state, row.weight)
end

--- The last word of several changes of one slot.
local function outcome(changes)
  local final, order = {}, {}
  for _, change in ipairs(changes) do
    local known = final[change.slot]
    if not known then order[#order + 1] = change.slot end
    known = known or {}
    final[change.slot] = {
      slot = change.slot, state = change.state or known.state, weight = change.weight or known.weight,
    }
  end
  return final, order
end

local function verify(self, text, changes)
  local slots, wrong = match_slots(self, runtime.rows_of(text)), {}
  local final, order = outcome(changes)
  for _, name in ipairs(order) do
    local change, row = final[name], slots[name]
    if not row or (change.state or row.state) ~= row.state or (change.weight or row.weight) ~= row.weight then
      wrong[#wrong + 1] = describe(self, change, row)
    end
  end
  if #wrong == 0 then return end
  local said = runtime.complaint(text)
  if said:find("Permission denied", 1, true) then
    self:fail("it allows no changes: give its `stats socket` line `level admin`", said)
  end
  local why = said == "" and ": does somebody else change it too?" or ": HAProxy refused"
  self:fail(table.concat(wrong, "; ") .. why, said)
end

local function all_known(slots, changes)
  for _, change in ipairs(changes) do
    if not slots[change.slot] then return false end
  end
  return true
end

--- All slots of the changes, known to HAProxy: one that forgot them (reload, restart) is prepared anew.
local function look_for(self, changes)
  local ok, seen = pcall(look_at_backend, self)
  local gone = not ok and (seen.code == "missing" or seen.code == "refused")
  if not ok and not (gone and self.options.managed) then error(seen, 0) end
  if ok and all_known(seen.slots, changes) then return seen.slots end
  self:prepare()
  local slots = look_at_backend(self).slots
  for _, change in ipairs(changes) do
    if not slots[change.slot] then self:fail(describe(self, change) .. ": it is not in app.yml") end
  end
  return slots
end

--- Sets states and weights, in order and with one request, and reads them back. What is so already is not sent.
--- Raises deployrt.Error: "balancer", with the difference; and those of read.
---@async
---@param changes deployrt.SlotChange[]
function HAProxy:apply(changes)
  local slots = look_for(self, changes)
  if #all_commands(self, slots, changes) == 0 then return end
  refuse_outage(self, slots, changes)
  local request = all_commands(self, slots, changes)
  table.move(observations(self), 1, 2, #request + 1, request)
  verify(self, self:ask(request), changes)
end

local function names_of_backends(stats)
  local names = {}
  for _, row in ipairs(stats) do
    if row.svname == "BACKEND" then names[#names + 1] = row.pxname end
  end
  return names
end

local function check_level(self, text)
  local level = text:match("^(%l+)\n")
  if level == "admin" then return end
  self:fail(("its socket allows no changes (level %s): write `level admin` on its `stats socket` line, and reload "
    .. "it"):format(level or "unknown"))
end

local function check_backend(self, stats)
  local names = names_of_backends(stats)
  for _, row in ipairs(stats) do
    if row.svname == "BACKEND" and row.pxname == self.backend then return row end
  end
  local close = suggest.closest(self.backend, names)
  self:fail(("it has no backend '%s'%s; it has: %s"):format(self.backend,
    close and (" (did you mean '%s'?)"):format(close) or "",
    #names > 0 and table.concat(names, ", ") or "none"))
end

local function missing_slots(self, slots)
  local list = {}
  for _, slot in ipairs(self.context.slots) do
    if not slots[slot.name] then list[#list + 1] = slot end
  end
  return list
end

--- Lines for the user's configuration, where a server cannot be added at runtime.
local function server_lines(slots)
  local lines = {}
  for i, slot in ipairs(slots) do
    lines[i] = ("server %s %s check disabled"):format(config.identifier(slot.name), config.endpoint(slot))
  end
  return table.concat(lines, "\n")
end

--- HAProxy refuses an `add server` without an address: nothing is added, and the reason tells what it can do.
local function check_weights(self, text, backend)
  local is_static = text:find("must use a dynamic load balancing", 1, true) or backend.algo == "static-rr"
  if not is_static then return end
  self:fail(("backend '%s' uses `balance %s`, which takes no weights at runtime: use roundrobin, leastconn or "
    .. "random, or `hash-type consistent` with a hash"):format(self.backend, backend.algo or "?"))
end

local function check_slots(self, rows, text)
  local missing = missing_slots(self, match_slots(self, rows))
  if #missing > 0 and text:find("Unknown command", 1, true) then
    self:fail(("backend '%s' has no server for %s, and adding one at runtime needs HAProxy 2.4: add the lines "
      .. "below to it"):format(self.backend, missing[1].name), server_lines(missing))
  end
  for _, slot in ipairs(self.context.slots) do
    local found = servers_of(self, slot, rows)
    if #found > 1 then
      self:fail(("servers %s and %s of backend '%s' are the same instance (%s): remove one of them"):format(
        found[1].server, found[2].server, self.backend, found[1].endpoint))
    end
  end
end

local function check_own(self)
  local text = self:ask({ "show cli level", "show stat", "show servers state " .. self.backend,
    ("add server %s/deployrt-probe"):format(self.backend) })
  check_level(self, text)
  check_weights(self, text, check_backend(self, runtime.parse_stat(text)))
  check_slots(self, runtime.rows_of(text), text)
end

--- Whether HAProxy is there and will do what a run asks of it. Changes nothing.
--- Raises deployrt.Error: "balancer", and those of read.
---@async
function HAProxy:check()
  if self.options.managed then managed.check(self) else check_own(self) end
end

--- The command that makes a server of a slot. It begins in maintenance, with its check on.
local function add_commands(self, slot, rows)
  local where = ("%s/%s"):format(self.backend, own_name(slot))
  local commands = {}
  for _, row in ipairs(rows) do
    if row.server == own_name(slot) then -- of another address, from an earlier run
      commands = { ("set server %s state maint"):format(where), "del server " .. where }
    end
  end
  local endpoint = config.endpoint { address = addresses_of(self, slot)[1] or slot.address, port = slot.port }
  local add = "add server %s %s check inter 500ms fall 3 rise 1 weight 100"
  commands[#commands + 1] = add:format(where, endpoint)
  commands[#commands + 1] = "enable health " .. where
  return commands
end

--- Slots that the user's HAProxy does not know become dynamic servers, in maintenance.
local function add_missing(self)
  local seen = look_at_backend(self)
  local missing, request = missing_slots(self, seen.slots), {}
  if #missing == 0 then return end
  if seen.version:find("^2%.[45]%.") then request[1] = "experimental-mode on" end
  for _, slot in ipairs(missing) do
    local commands = add_commands(self, slot, seen.rows)
    table.move(commands, 1, #commands, #request + 1, request)
  end
  table.move(observations(self), 1, 2, #request + 1, request)
  local text = self:ask(request)
  local left = missing_slots(self, match_slots(self, runtime.rows_of(text)))
  if #left == 0 then return end
  self:fail(("backend '%s' has no server for %s (%s), and adding one failed: add the lines below to it, and "
    .. "reload"):format(self.backend, left[1].name, config.endpoint(left[1])),
    runtime.complaint(text) .. "\n" .. server_lines(left))
end

--- Makes every slot known: one's own HAProxy gets the missing ones as dynamic servers, in maintenance; a managed
--- one is started where it does not run, and reloaded where it runs with other slots or another address.
---@async
function HAProxy:prepare()
  if self.options.managed then managed.prepare(self) else add_missing(self) end
end

--- Managed: a restart comes up with these states and weights. One's own configuration is left alone.
---@async
---@param wanted table<string, {state?: deployrt.SlotState, weight?: integer}>  by slot
function HAProxy:persist(wanted)
  if self.options.managed then managed.persist(self, wanted) end
end

--- Managed: ends HAProxy once its requests are done, and removes its files. One's own is left alone.
---@async
function HAProxy:stop()
  if self.options.managed then managed.stop(self) end
end

return haproxy
