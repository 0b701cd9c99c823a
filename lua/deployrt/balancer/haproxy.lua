-- haproxy.lua -- HAProxy through its runtime API: the user's own, or one that deployrt runs.
local entries = require "deployrt.balancer.haproxy_entry"
local errors = require "deployrt.errors"
local checks = require "deployrt.balancer.haproxy_checks"
local config = require "deployrt.balancer.haproxy_config"
local managed = require "deployrt.balancer.haproxy_managed"
local outage = require "deployrt.balancer.outage"
local own = require "deployrt.balancer.haproxy_own"
local process = require "deployrt.balancer.haproxy_process"
local routes = require "deployrt.balancer.haproxy_route"
local route = require "deployrt.balancer.route"
local runtime = require "deployrt.balancer.haproxy_runtime"
local servers = require "deployrt.balancer.haproxy_servers"
local workers = require "deployrt.balancer.haproxy_workers"

---@class deployrt.HAProxy: deployrt.Driver
---@field options table   the entry of app.yml
---@field context table   app, host, slots, health
local HAProxy = {}
HAProxy.__index = HAProxy

local haproxy = { keys = entries.keys, rules = entries.rules, help = entries.help }

--- What HAProxy can do; one's own tells requests apart where it has the map for it.
---@param entry table
---@return table<deployrt.Capability, boolean>
function haproxy.capabilities(entry)
  return { many = true, share = true, stats = true, sessions = true, route = (entry.managed or entry.map) and true or false }
end

--- Opens a driver; nothing is asked of HAProxy yet.
---@param options table  type, socket, backend, managed, listen, drain
---@param context deployrt.DriverContext
---@return deployrt.HAProxy
function haproxy.open(options, context)
  local self = { options = options, context = context, host = context.host, addresses = {}, checking = {} }
  setmetatable(self, HAProxy)
  self.backend = options.backend or context.app
  if self.backend:find("[^%w_.:-]") then
    errors.raise("balancer", ("balancer.backend: HAProxy has no backend named '%s': letters, digits and _ . : - "
      .. "only"):format(self.backend))
  end
  self.paths = options.managed and process.paths(context.host.root, options.socket)
  self.socket = options.socket or self.paths.socket
  self.remembers = options.managed
  self.map, self.template = options.managed and self.paths.map or options.map, options.template
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
  unresolved = "there is no such name: is it right in balancer.socket?",
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

---@package
function HAProxy:observations()
  return { "show servers state " .. self.backend, ("show stat %s 6 -1"):format(self.backend), "show info" }
end

--- The servers of the routed backend, by slot; none where there is no such backend.
local function routed_slots(self, text)
  return servers.match(self, runtime.rows_of(text, routes.backend(self.backend)))
end

--- What HAProxy says now, in one round trip: rows by slot, all rows, and who answered.
---@package
function HAProxy:look()
  if self.options.managed then managed.keep_left(self) end
  local request = self:observations()
  if self.map then table.move(routes.observations(self.backend, self.map), 1, 3, #request + 1, request) end
  local text = self:ask(request)
  local rows, pid = runtime.rows_of(text, self.backend), text:match("\nPid: (%d+)")
  if pid and not self.options.managed then servers.keep_left(self, rows) end
  if text == "" then
    errors.raise("lost", ("HAProxy at %s: it closed the connection without an answer: it is ending"):format(self.socket), { host = self.host.name })
  end
  if not pid then self:fail("what answers there is not HAProxy's runtime API", text:sub(1, 300)) end
  local routed, slots = routed_slots(self, text), servers.match(self, rows)
  for name, row in pairs(slots) do slots[name] = routes.merge(row, routed[name]) end
  return {
    exists = text:find("# be_id", 1, true) ~= nil, rows = rows, slots = slots, pid = pid,
    routed = routed, route = routes.read(text, routed),
    instance = pid .. "/" .. (text:match("\nStart_time_sec: (%d+)") or "?"),
    version = text:match("\nVersion: ([%d.]+)") or "?", description = text:match("\ndescription: ([^\n]*)"),
  }
end

---@package
function HAProxy:look_at_backend()
  local seen = self:look()
  if seen.exists then return seen end
  self:fail(("it has no backend '%s' (any more): see `deployrt check --connect`"):format(self.backend))
end

--- What a managed HAProxy that does not run has in its configuration: it comes up with that.
local function nothing_runs(self)
  local slots, kept = {}, managed.kept_slots(self)
  for _, slot in ipairs(self.context.slots) do
    local state = kept[slot.name] or { state = "maint", weight = 0 }
    slots[slot.name] = { server = config.identifier(slot.name), state = state.state, up = false, weight = state.weight, sessions = 0, queue = 0,
      left = self.left and self.left[slot.name] }
  end
  return { slots = slots, instance = "none", down = true }
end

--- Upgraded connections by server, where they have a time of their own and there may be some: HAProxy has to list them all.
local function tunnels_of(self, seen)
  local draining = false
  for _, row in pairs(seen.slots) do draining = draining or row.state ~= "ready" and row.sessions > 0 end
  if not draining or not (self.options.drain and self.options.drain.long) then return {} end
  return runtime.tunnels(self:ask { "show sess" }, self.backend)
end

--- Whether workers of before a reload go on, whose requests may be on any slot. No worker gets an older one beside it later.
local function has_old_workers(self, seen)
  if self.alone == seen.instance or not self.socket:find("^/") then return false end
  if workers.old(self.host, seen.pid) > 0 then return true end
  self.alone = seen.instance
  return false
end

--- States, weights and sessions of the slots. A slot that HAProxy does not know is absent; a managed HAProxy that
--- does not run is `down`, and has all of them as it will come up with them.
--- Raises deployrt.Error: "balancer"; "missing", "refused", "denied", "timeout" where HAProxy is not to be had.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string, down?: boolean, route?: deployrt.Route}  another instance: restarted, reloaded
function HAProxy:read()
  local ok, seen = pcall(self.look_at_backend, self)
  local gone = not ok and (seen.code == "missing" or seen.code == "refused")
  if gone and self.options.managed then return nothing_runs(self) end
  if not ok then error(seen, 0) end
  local slots, tunnels, unseen = {}, tunnels_of(self, seen), nil
  for name, row in pairs(seen.slots) do
    if row.state ~= "ready" and row.up and unseen == nil then unseen = has_old_workers(self, seen) end
    slots[name] = {
      server = row.server, state = row.state, up = row.up, weight = row.weight, left = self.left and self.left[name],
      sessions = math.max(row.sessions, unseen and row.state ~= "ready" and 1 or 0), long = tunnels[row.server] and math.min(tunnels[row.server], row.sessions), queue = row.queue,
    }
  end
  return { slots = slots, instance = seen.instance, route = seen.route, others = servers.others(self, seen.rows, seen.slots) }
end

local window = 512 -- TIME_STATS_SAMPLES: the mean gives each request's time that share, whatever the manual says of 1024

--- Counters of the slots since HAProxy started, and the mean latency of the last requests.
---@async
---@return table<string, deployrt.SlotStats>
function HAProxy:stats()
  local slots = {}
  for name, row in pairs(self:look_at_backend().slots) do
    local function number(column) return runtime.number(row.stat, column) end
    slots[name] = {
      requests = number("stot"), errors = number("hrsp_5xx") + number("econ") + number("eresp"),
      sessions = row.sessions, latency = number("rtime") / 1000, window = window,
    }
  end
  return slots
end

local function set(self, row, what, value)
  return ("set server %s/%s %s %s"):format(self.backend, row.server, what, value)
end

--- A server that gets traffic gets its weight first, and one that loses it loses it first.
local function commands_for(self, row, change)
  local weight = change.weight and change.weight ~= row.weight and set(self, row, "weight", change.weight) or nil
  local state = change.state and change.state ~= row.state and set(self, row, "state", change.state) or nil
  if change.state ~= "ready" then return { state or weight, state and weight } end
  local list = { weight or state, weight and state }
  if checks.is_to_be_trusted(row) then list[#list + 1] = set(self, row, "health", "up") end
  return list
end

local function all_commands(self, slots, changes)
  local commands, now = {}, {}
  for _, change in ipairs(changes) do
    local row = now[change.slot] or slots[change.slot]
    for _, command in ipairs(commands_for(self, row, change)) do commands[#commands + 1] = command end
    now[change.slot] = { server = row.server, checked = row.checked, state = change.state or row.state, weight = change.weight or row.weight }
  end
  return commands
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
  local slots, wrong = servers.match(self, runtime.rows_of(text, self.backend)), {}
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

--- All slots of the changes, known to HAProxy, all rows, and who answered: one that forgot them (reload, restart) is prepared anew.
local function look_for(self, changes)
  local ok, seen = pcall(self.look_at_backend, self)
  local gone = not ok and (seen.code == "missing" or seen.code == "refused")
  if not ok and not (gone and self.options.managed) then error(seen, 0) end
  if ok and all_known(seen.slots, changes) then return seen.slots, seen.rows, seen.instance end
  self:prepare()
  seen = self:look_at_backend()
  for _, change in ipairs(changes) do
    if not seen.slots[change.slot] then self:fail(describe(self, change) .. ": it is not in app.yml") end
  end
  return seen.slots, seen.rows, seen.instance
end

--- Sets states and weights, in order and with one request, and reads them back. What is so already is not sent.
--- Raises deployrt.Error: "balancer", with the difference; and those of read.
---@async
---@param changes deployrt.SlotChange[]
---@param forward? "serve"|"gap"  what gets traffic now must answer
---@return table<string, {state: deployrt.SlotState}> found  the slots as they were
function HAProxy:apply(changes, forward)
  local slots = look_for(self, changes)
  if #all_commands(self, slots, changes) == 0 then return slots end
  local problem, detail = outage.expected(self.context, slots, changes, forward)
  if problem then self:fail(problem, detail) end
  local request = all_commands(self, slots, changes)
  table.move(self:observations(), 1, 2, #request + 1, request)
  verify(self, self:ask(request), changes)
  return slots
end

local function drained(names)
  local changes = {}
  for i, name in ipairs(names) do changes[i] = { slot = name, state = "drain" } end
  return changes
end

--- The slots among these that one's own HAProxy checks, as its configuration says, which deployrt does not know: they are to pass
--- before they get traffic. A managed one checks what deployrt has checked already.
---@async
---@param names string[]  of slots that get none now
---@return string[] checked
function HAProxy:checked(names)
  if self.options.managed then return {} end
  local slots, rows = look_for(self, drained(names))
  for _, name in ipairs(names) do self.checking[name] = nil end
  return checks.of(slots, rows, names)
end

--- Has HAProxy check slots that are in drain. It is told again when it was restarted, or somebody else has changed a state.
---@async
---@param names string[]  as checked() told them
---@return string? problem  why not all have passed by now
function HAProxy:pass_checks(names)
  local slots, _, instance = look_for(self, drained(names))
  local request = {}
  for _, name in ipairs(names) do
    local begun = slots[name].state == "drain" and self.checking[name] == instance
    local commands = begun and {} or checks.begin(slots[name], self.backend, function(...) return self:ask { ... } end)
    table.move(commands, 1, #commands, #request + 1, request)
    self.checking[name] = instance
  end
  if #request > 0 then self:ask(request) end
  local problem = checks.first_problem(#request > 0 and look_for(self, drained(names)) or slots, names)
  return problem and ("HAProxy at %s, backend '%s': %s"):format(self.socket, self.backend, problem)
end

--- Whether HAProxy is there and will do what a run asks of it. Changes nothing.
--- Raises deployrt.Error: "balancer", and those of read.
---@async
---@return string[]? notes  what people should know
function HAProxy:check()
  if self.options.managed then return managed.check(self) end
  return own.check(self)
end

--- Controllers that run on different hosts at the same time have one HAProxy: each sees it as the others have left it.
local function set_up(self, action, ...)
  self.host:alone(self.host.root, action, self, ...)
end

--- Makes every slot known: one's own HAProxy gets the missing ones as dynamic servers, in maintenance; a managed
--- one is started where it does not run, and reloaded where it runs with other slots or another address.
---@async
---@param run? string  that may want back the configuration which it finds
---@param wanted? table<string, table>  slots that the run has in hand
function HAProxy:prepare(run, wanted)
  if self.options.managed then set_up(self, managed.prepare, run, wanted) else own.prepare(self, wanted) end
end

--- Managed: the configuration that the run found is put back, if prepare() changed it.
---@async
---@param run string
---@param lenient boolean  something serves that it may not have been written for
---@param is_other? fun(slot: string): boolean  slots of hosts that the run is not about
function HAProxy:unprepare(run, lenient, is_other)
  if self.options.managed then set_up(self, managed.unprepare, run, lenient, is_other) end
end

--- Managed: HAProxy checks health as the new release says, or only whether something listens.
---@async
---@param strict boolean
function HAProxy:examine(strict)
  if self.options.managed then set_up(self, managed.examine, strict) end
end

--- Brings the routed servers and the percentage to what is wanted, and reads them back.
local function set_route(self, wanted)
  local seen = self:look_at_backend()
  self:ask(routes.commands(self.backend, self.map, seen.routed, wanted))
  local now = self:look_at_backend().route
  if route.is_same(now, wanted) then return end
  self:fail(("%g%% of the requests should be routed to %s, and %s are: does somebody else change it too?"):format(wanted.percent,
    table.concat(wanted.slots, ", "), now and ("%g%% to %s"):format(now.percent, table.concat(now.slots, ", ")) or "none"))
end

--- Who gets the routed slots; nil: nobody is told apart. The rules of one's own HAProxy stand in its configuration.
--- Raises deployrt.Error: "balancer", and those of read.
---@async
---@param wanted? deployrt.Route
function HAProxy:route(wanted)
  self.routing = wanted
  if self.options.managed then self:prepare() end
  if wanted then
    set_route(self, wanted)
  elseif not self.options.managed then
    set_route(self, { slots = {}, percent = 0, rules = {} })
  end
end

--- A restart comes up with these states and weights: by the configuration of a managed HAProxy, by the state file of one's
--- own; without one, one's own is left alone.
---@async
---@param wanted table<string, {state?: deployrt.SlotState, weight?: integer}>  by slot
function HAProxy:persist(wanted)
  if self.options.managed then return set_up(self, managed.persist, wanted) end
  if not self.options.state_file then return end
  local text = self:ask { "show servers state" }
  if text:find("# be_id", 1, true) then self.host:write(self.options.state_file, text, "644") end
end

--- With a server-template: which of its servers are this application's is noted for the runs to come.
---@async
---@param wanted table<string, {state?: deployrt.SlotState, weight?: integer}>  by slot
function HAProxy:conclude(wanted)
  if self.template then servers.note_given(self, self:look_at_backend().slots, wanted) end
end

--- Managed: ends HAProxy once its requests are done, and removes its files. One's own is left alone.
---@async
function HAProxy:stop()
  if self.options.managed then set_up(self, managed.stop) end
end

return haproxy
