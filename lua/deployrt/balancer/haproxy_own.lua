-- haproxy_own.lua -- The user's own HAProxy: whether it will do what a run asks of it, and servers for the slots that it lacks.
local config = require "deployrt.balancer.haproxy_config"
local left = require "deployrt.balancer.left"
local routes = require "deployrt.balancer.haproxy_route"
local runtime = require "deployrt.balancer.haproxy_runtime"
local servers = require "deployrt.balancer.haproxy_servers"
local suggest = require "deployrt.suggest"

local haproxy_own = {}

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

--- HAProxy refuses an `add server` without an address: nothing is added, and the reason tells what it can do.
local function check_weights(self, text, backend)
  local is_static = text:find("must use a dynamic load balancing", 1, true) or backend.algo == "static-rr"
  if not is_static then return end
  self:fail(("backend '%s' uses `balance %s`, which takes no weights at runtime: use roundrobin, leastconn or "
    .. "random, or `hash-type consistent` with a hash"):format(self.backend, backend.algo or "?"))
end

--- Slots that cannot get a server.
local function refuse_missing(self, slots, complaint)
  local what, lines = servers.advice(self, slots)
  self:fail(("backend '%s' has no server for %s (%s), and %s"):format(self.backend, slots[1].name, config.endpoint(slots[1]), what), complaint .. lines)
end

local function check_slots(self, rows, text)
  local missing = servers.missing(self, servers.match(self, rows))
  if #missing > 0 and not self.template and text:find("Unknown command", 1, true) then
    self:fail(("backend '%s' has no server for %s, and adding one at runtime needs HAProxy 2.4: add the lines "
      .. "below to it"):format(self.backend, missing[1].name), servers.lines(missing))
  end
  if servers.too_few(self, missing, rows) then refuse_missing(self, missing, "") end
  local slot, first, second = servers.ambiguous(self, rows)
  if slot then
    self:fail(("servers %s and %s of backend '%s' are the same instance (%s): remove one of them"):format(
      first.server, second.server, self.backend, first.endpoint))
  end
  local astray, server = servers.misplaced(self, rows)
  if astray then
    self:fail(("server %s of backend '%s' is at %s, and app.yml has that slot at %s: write the line below instead of its, and reload HAProxy; or give the host "
      .. "the address that it has here, and what ssh needs instead in ~/.ssh/config (HostName)"):format(server.server, self.backend, server.endpoint,
      config.endpoint(astray)), servers.lines { astray })
  end
end

--- With a map, one's own HAProxy has what tells requests apart.
local function check_route(self)
  if not self.map or self:look().route then return end
  self:fail(("it has no map %s, or no backend '%s' with these servers: it needs the lines below"):format(self.map,
    routes.backend(self.backend)), routes.lines_for_own(self.backend, self.map))
end

--- The names of the servers for which something holds.
---@param rows deployrt.HAProxyServer[]
---@param holds fun(row: deployrt.HAProxyServer): boolean
---@return string[]
local function servers_that(rows, holds)
  local names = {}
  for _, row in ipairs(rows) do names[#names + 1] = holds(row) and row.server or nil end
  table.sort(names)
  return names
end

--- A backup gets traffic when nobody else does: what deployrt starts there would serve nobody.
local function check_backups(self, rows)
  local names = servers_that(rows, function(row) return row.stat.bck == "1" end)
  if #names == 0 then return end
  self:fail(("%s of backend '%s' %s `backup`, which gets traffic only while no other server does, and no share of it: take that off, and reload HAProxy"):format(
    table.concat(names, ", "), self.backend, #names == 1 and "is" or "are"))
end

--- Agents set weights and states, too.
---@param notes string[]  gets what people should know of that
local function note_agents(self, rows, notes)
  local names = servers_that(rows, function(row) return (row.stat.agent_status or "") ~= "" end)
  if #names == 0 then return end
  notes[#notes + 1] = ("HAProxy at %s: the agents (`agent-check`) of %s of backend '%s' may set weights and states, too: shares of traffic are not exact then; have them say "
    .. "`up` and `down` and no more, or take them off"):format(self.socket, table.concat(names, ", "), self.backend)
end

--- Whether one's own HAProxy will do what a run asks of it. Changes nothing.
---@async
---@param self deployrt.HAProxy
---@return string[] notes  what people should know
function haproxy_own.check(self)
  local text = self:ask({ "show cli level", "show stat", "show servers state " .. self.backend,
    ("add server %s/deployrt-probe"):format(self.backend) })
  check_level(self, text)
  check_weights(self, text, check_backend(self, runtime.parse_stat(text)))
  local rows = runtime.rows_of(text, self.backend)
  local candidates = servers.candidates(self, rows)
  check_slots(self, rows, text)
  check_backups(self, candidates)
  check_route(self)
  local notes = servers.at_other_ports(self, rows)
  note_agents(self, candidates, notes)
  return notes
end

--- Slots that the user's HAProxy does not know get a server, in maintenance.
---@async
---@param self deployrt.HAProxy
---@param wanted? table<string, table>  slots that the run has in hand
function haproxy_own.prepare(self, wanted)
  local seen = self:look_at_backend()
  if wanted then left.forget(self, seen.slots, wanted) end
  local missing = servers.missing(self, seen.slots)
  if #missing == 0 then return end
  local request = servers.commands(self, missing, seen.rows, seen.version)
  table.move(self:observations(), 1, 2, #request + 1, request)
  local text = self:ask(request)
  local refused = servers.missing(self, servers.match(self, runtime.rows_of(text, self.backend)))
  if #refused > 0 then refuse_missing(self, refused, runtime.complaint(text) .. "\n") end
end

return haproxy_own
