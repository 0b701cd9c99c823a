-- nginx.lua -- nginx, by a file of its configuration that deployrt writes: an upstream, or a variable.
local access_log = require "deployrt.balancer.access_log"
local core = require "deployrt.core"
local entries = require "deployrt.balancer.nginx_entry"
local errors = require "deployrt.errors"
local file = require "deployrt.balancer.nginx_file"
local left = require "deployrt.balancer.left"
local outage = require "deployrt.balancer.outage"
local process = require "deployrt.balancer.nginx_process"
local routes = require "deployrt.balancer.nginx_route"
local syntax = require "deployrt.balancer.nginx_syntax"

---@class deployrt.Nginx: deployrt.Driver
---@field entry table     of app.yml
---@field context deployrt.DriverContext
---@field facts? deployrt.NginxFacts
---@field pid_file? string
---@field places? deployrt.NginxPlace[]  our file, and the one for routes
---@field known string[]  pids of workers that were seen
---@field closed table<string, number>  by slot: when this driver took traffic away from it
local Nginx = {}
Nginx.__index = Nginx

local nginx = { keys = entries.keys, rules = entries.rules, help = entries.help }

local reload_deadline, refusal_after = 20, 1 -- seconds
local late_request = 0.25 -- seconds in which a connection that an old worker had just accepted may still bring a request

--- An upstream splits traffic, and tells requests apart where it has a file for that; a variable points to one instance.
--- nginx counts nothing itself.
function nginx.capabilities(entry)
  local many = entry.style == "upstream"
  return { many = many, share = many, stats = entry.access_log ~= nil, sessions = true, route = many and entry.routes ~= nil }
end

--- What gives it a capability that it lacks, in words.
function nginx.remedy(entry, capability)
  if capability ~= "route" or entry.style ~= "upstream" then return nil end
  return "set `routes:` to a file of nginx's configuration that deployrt may write, see `deployrt help nginx`"
end

nginx.refusal = routes.refusal

--- Opens a driver; nothing is asked of nginx yet.
---@param entry table
---@param context deployrt.DriverContext
---@return deployrt.Nginx
function nginx.open(entry, context)
  local self = { entry = entry, context = context, host = context.host, known = {}, closed = {} }
  self.log = entry.access_log and access_log.open(entry.access_log)
  return setmetatable(self, Nginx)
end

---@package
function Nginx:fail(message, detail, code)
  errors.raise(code or "balancer", ("nginx (%s): %s"):format(self.entry.file, message), { host = self.host.name, detail = detail })
end

--- Where a file of ours is. What lies beside it is hidden, so that `include *` does not find it.
local function place_of(self, path, beginning)
  local real = process.real_path(self.host, path)
  if not real then
    self:fail(("there is no file %s: make it, have your configuration include it, and begin with what stands below"):format(path), beginning)
  end
  local directory, name = real:match("^(.*)/([^/]+)$")
  local aside = ("%s/.%s.deployrt-"):format(directory, name)
  return { file = real, next = aside .. "next", before = aside .. "before" }
end

--- A file for routes that is absent or empty breaks a configuration that uses its variables.
local function fail_broken(self, facts, problem)
  local entry = self.entry
  local of_routes = entry.routes and (problem:find(entry.routes, 1, true) or problem:find('unknown "' .. routes.variable(entry, ""), 1, true))
  if of_routes then
    self:fail(("nginx's configuration (%s) needs the file %s, and in it to begin with what stands below; nothing was changed"):format(
      facts.config, entry.routes), routes.beginning(entry) .. problem)
  end
  self:fail(("nginx's configuration (%s) is broken, or this user may not read it; nothing was changed. Mend it, then run this again"):format(
    facts.config), problem)
end

--- Learns where things are, once; a configuration that is broken already is nothing to work with.
---@return string? dump  of the configuration, when it was asked for just now
local function learn(self, again)
  if self.facts and not again then return nil end
  local facts = process.find(self.host, self.entry.config)
  if not facts then self:fail("nginx is not installed there: install it (apt install nginx), or set balancer.host") end
  local dump, problem = process.dump(self.host, facts)
  if not dump then fail_broken(self, facts, problem) end
  self.pid_file, self.places = process.pid_file(facts, dump), { place_of(self, self.entry.file, file.beginning(self.entry, self.context.slots[1])) }
  if self.entry.routes then self.places[2] = place_of(self, self.entry.routes, routes.beginning(self.entry)) end
  self.modules = process.modules(facts, dump)
  self.facts = facts
  return dump
end

--- Slots that deployrt wrote into the file and that app.yml does not name any more go on as slots.
local function keep_left(self, text)
  if not self.left then left.keep(self, (file.others(self.entry, text, self.context.slots))) end
end

--- What runs and what the file says; nginx has to run.
local function look(self)
  learn(self)
  local seen = process.look(self.host, self.pid_file, self.places, self.known)
  self.known = {}
  for _, pids in ipairs { seen.workers, seen.leaving } do
    for pid in pairs(pids) do self.known[#self.known + 1] = pid end
  end
  if not seen.master then
    self:fail(("nginx does not run (its pid file is %s): start it (systemctl start nginx)"):format(self.pid_file), nil, "refused")
  end
  keep_left(self, seen.texts[1])
  return seen
end

local function states_of(self, text)
  local states, problem = file.read(self.entry, text, self.context.slots)
  if states then return states end
  self:fail(("the file %s part `%s`: write it as below, once"):format(problem,
    self.entry.style == "upstream" and "upstream " .. self.entry.upstream or "set $" .. self.entry.variable),
    file.beginning(self.entry, self.context.slots[1]))
end

--- What our files say: the states of the slots, and who is told apart.
---@class deployrt.NginxSituation
---@field states table<string, {state: deployrt.SlotState, weight: integer, more?: string}>
---@field route? deployrt.Route|false  nil: the file for routes stays as it is; false: nobody is told apart

---@return deployrt.NginxSituation
local function situation_of(self, seen)
  return { states = states_of(self, seen.texts[1]), route = self.entry.routes and routes.read(seen.texts[2]) or nil }
end

--- Slots that get requests: those of everybody, or those that are told apart.
local function open_slots(situation)
  local open = {}
  for name, state in pairs(situation.states) do open[name] = state.state == "ready" or nil end
  for _, name in ipairs(situation.route and situation.route.slots or {}) do open[name] = true end
  return open
end

--- Requests in flight at a slot that gets none any more: connections of old workers. One of them may have just accepted a
--- client whose first request is still to come.
local function sessions_of(self, seen, slot, is_open)
  local count = process.connections(seen, slot)
  local closed = self.closed[slot.name]
  local late = not is_open and closed and next(seen.leaving) and core.now() - closed < late_request
  return late and math.max(1, count) or count
end

--- The texts of our files for a situation, and what of them is deployrt's.
---@param situation deployrt.NginxSituation
---@return string[] texts
---@return string part
local function texts_for(self, seen, situation)
  local entry, slots = self.entry, self.context.slots
  local text, part = file.write(entry, seen.texts[1], slots, situation.states)
  if not entry.routes or situation.route == nil then return { text, seen.texts[2] }, part end
  local routing = routes.write(entry, {
    app = self.context.app, slots = slots, states = situation.states, keepalive = file.keepalive(entry, text),
  }, situation.route)
  return { text, routing }, part .. "\n" .. routing
end

--- The route as it stands in the file; what else stands there must be what follows from it.
local function route_of(self, seen, situation)
  local found = situation.route
  if not found then return nil end
  found.edited = texts_for(self, seen, situation)[2] ~= seen.texts[2] or nil
  return found
end

--- States and weights as the file has them, the requests in flight, and who is told apart. nginx tells no slow request from
--- a WebSocket.
--- Raises deployrt.Error: "balancer"; "refused" when nginx does not run.
---@async
---@return {slots: table<string, deployrt.DriverSlot>, instance: string, route?: deployrt.Route, others: deployrt.OtherServer[]}
function Nginx:read()
  local seen = look(self)
  local slots, situation = {}, situation_of(self, seen)
  local open = open_slots(situation)
  for _, slot in ipairs(self.context.slots) do
    local state = situation.states[slot.name]
    local sessions = sessions_of(self, seen, slot, open[slot.name])
    slots[slot.name] = {
      server = file.endpoint(slot), state = state.state, weight = state.weight, up = true, sessions = sessions, long = sessions, queue = 0,
      left = self.left[slot.name],
    }
  end
  local _, besides = file.others(self.entry, seen.texts[1], self.context.slots)
  return { slots = slots, instance = seen.master, route = route_of(self, seen, situation), others = besides }
end

--- Whether a word of some statement has this in it; `declares` tells by its words the one that does not count.
local function is_used(nodes, pattern, declares)
  local found = false
  syntax.each(nodes, function(node)
    for _, word in ipairs(declares(node.words) and {} or node.words) do found = found or (" " .. word):find(pattern) ~= nil end
  end)
  return found
end

--- A variable, with or without braces.
local function variable_pattern(name)
  return "%${?" .. name .. "%f[^%w_]"
end

--- With routes, the server block asks their variables where to go.
local function check_routes_used(self, nodes)
  for _, use in ipairs { { "target", "proxy_pass http://$%s;" }, { "cookie", "add_header Set-Cookie $%s always;" } } do
    local name, line = routes.variable(self.entry, use[1]), use[2]
    if not is_used(nodes, variable_pattern(name), function(words) return words[1] == "map" and words[3] == "$" .. name end) then
      self:fail(("nothing in nginx's configuration uses $%s of balancer.routes: write `%s` into a location of your server, and let the "
        .. "file begin with what stands below"):format(name, line:format(name)), routes.beginning(self.entry))
    end
  end
end

local function check_use(self, nodes)
  local entry = self.entry
  local used, advice
  if entry.routes then return check_routes_used(self, nodes) end
  if entry.style == "variable" then
    used = is_used(nodes, variable_pattern(entry.variable), function(words) return words[1] == "set" and words[2] == "$" .. entry.variable end)
    advice = ("proxy_pass $%s;"):format(entry.variable)
  else
    local name = entry.upstream:gsub("%p", "%%%0")
    used = is_used(nodes, "[/%s]" .. name .. "%f[^%w_.-]", function(words) return words[1] == "upstream" and words[2] == entry.upstream end)
    advice = ("proxy_pass http://%s;"):format(entry.upstream)
  end
  if not used then self:fail(("nothing in nginx's configuration uses it: write `%s` into a location of your server"):format(advice)) end
end

local function check_included(self, dump)
  local included = {}
  for _, each in ipairs(syntax.files(dump)) do included[process.real_path(self.host, each.path) or ""] = true end
  for i, place in ipairs(self.places) do
    if not included[place.file] then
      self:fail(("nginx's configuration (%s) does not include this file: write `include %s;` %s"):format(self.facts.config,
        i == 1 and self.entry.file or self.entry.routes, self.entry.style == "variable" and "into your server block" or "into its http block"))
    end
  end
end

local function check_log(self, nodes)
  local path, is_written = self.entry.access_log, false
  if not path then return end
  for _, node in ipairs(syntax.find(nodes, "access_log", path)) do is_written = is_written or node.words[3] == "deployrt" end
  if not is_written then
    self:fail(("balancer.access_log: nginx writes no `access_log %s deployrt;` : add that and the line below, at the level of http"):format(path),
      access_log.format)
  end
  local _, problem = self.log:read(self.host)
  if problem then self:fail("balancer.access_log cannot be read", problem) end
end

--- Whether nginx is there and will do what a run asks of it. Changes nothing.
--- Raises deployrt.Error: "balancer", "refused".
---@async
function Nginx:check()
  local dump = learn(self, true)
  check_included(self, dump)
  local seen = look(self)
  states_of(self, seen.texts[1])
  local nodes = syntax.parse(dump)
  check_use(self, nodes)
  check_log(self, nodes)
  local problem = process.not_allowed(self.host, self.places, not self.entry.reload and seen.pid)
  if not problem then return end
  self:fail(("this user may not %s: give him the right, or work as another user%s"):format(problem,
    problem:find("^signal") and ", or set balancer.reload, such as: sudo systemctl reload nginx" or ""))
end

--- A file can hold every slot at any time. Those that are left and out of service when a run begins are not written again.
---@param _ string?  run
---@param wanted? table<string, table>  slots that it has in hand
function Nginx:prepare(_, wanted)
  if wanted then left.forget(self, situation_of(self, look(self)).states, wanted) end
end

local function merge(states, changes)
  local merged = {}
  for name, state in pairs(states) do merged[name] = { state = state.state, weight = state.weight, more = state.more } end
  for _, change in ipairs(changes) do
    local slot = merged[change.slot]
    slot.state, slot.weight = change.state or slot.state, change.weight or slot.weight
  end
  return merged
end

--- The new workers serve, and none of the old ones accepts any more.
local function has_converged(before, seen)
  local fresh = false
  for pid in pairs(seen.workers) do
    if before.workers[pid] then return false, fresh end
    fresh = true
  end
  return fresh, fresh
end

local function refuse_reload(self, why, detail)
  process.put_back(self.host, self.places)
  self:fail(why .. "; the file is as it was, and traffic where it was", detail)
end

--- Waits until nginx does what the file says. A signal is not answered: a master that finds the configuration broken keeps
--- the old one, and says so only in its error log. A command that failed may have sent one all the same.
---@param problem? string  of the command
---@param detail? string
local function confirm(self, before, problem, detail)
  local began, tested = core.now(), false
  while true do
    local ok, seen = pcall(look, self)
    if not ok and seen.code ~= "refused" then error(seen, 0) end
    local converged, fresh
    if ok then converged, fresh = has_converged(before, seen) end
    local waited = core.now() - began
    if converged then return seen end
    if not fresh and not tested and waited > refusal_after then
      if problem then refuse_reload(self, problem .. ", and nginx did not reload: try it by hand", detail) end
      local broken = process.test(self.host, self.facts)
      if broken then refuse_reload(self, "nginx did not load its configuration", broken) end
      tested = true
    end
    if waited > reload_deadline then
      if not fresh then refuse_reload(self, ("nginx did not reload within %gs: look at its error log"):format(reload_deadline)) end
      self:fail(("old workers still accept connections %gs after the reload: look at nginx's error log"):format(reload_deadline))
    end
    errors.check(core.sleep(0.02))
  end
end

--- Puts texts in place that have passed nginx's tests; by themselves first, then with all the rest.
local function exchange(self, texts, part)
  local problem = process.test_part(self.host, self.facts, part, { style = self.entry.style, modules = self.modules })
  if problem then self:fail("nginx refuses what deployrt would write; nothing was changed", problem) end
  problem = process.exchange(self.host, self.facts, self.places, texts)
  if problem then self:fail("nginx refuses the configuration with the new file; the old one is in place", problem) end
end

--- Has nginx load our files, and waits until it has.
local function load_files(self)
  local before = look(self)
  local seen = confirm(self, before, process.reload(self.host, before.pid, self.entry.reload, reload_deadline))
  process.settle(self.host, self.places)
  return seen
end

--- Whether texts are those that are there; `same` says when two are.
local function are_there(texts, seen, same)
  for i, text in ipairs(texts) do
    if not same(text, seen.texts[i]) then return false end
  end
  return true
end

--- Puts texts in place, and has nginx load them if they mean something else to it.
local function put(self, seen, texts, part)
  if seen.owed or not are_there(texts, seen, file.same) then
    if not are_there(texts, seen, rawequal) then exchange(self, texts, part) end
    return load_files(self)
  end
  for i, place in ipairs(self.places) do
    local problem = texts[i] ~= seen.texts[i] and process.annotate(self.host, place, texts[i])
    if problem then self:fail(("%s cannot be written"):format(place.file), problem) end
  end
  return look(self)
end

local function check_known(self, states, changes)
  for _, change in ipairs(changes) do
    if not states[change.slot] then self:fail(change.slot .. " is not in app.yml") end
  end
end

local function verify(self, seen, wanted, texts)
  local states = states_of(self, seen.texts[1])
  for name, state in pairs(wanted.states) do
    local is = states[name]
    if is.state ~= state.state or is.weight ~= state.weight then
      self:fail(("%s should be %s with weight %d and is %s with weight %d: does somebody else change the file too?"):format(
        name, state.state, state.weight, is.state, is.weight))
    end
  end
  if self.entry.routes and seen.texts[2] ~= texts[2] then
    self:fail(("%s is not what was written there: does somebody else change it too?"):format(self.entry.routes))
  end
end

--- Remembers when slots lost their traffic.
local function note_closed(self, before, wanted)
  local was, is = open_slots(before), open_slots(wanted)
  for name in pairs(wanted.states) do
    if is[name] then self.closed[name] = nil elseif was[name] then self.closed[name] = core.now() end
  end
end

--- Brings our files to what is wanted, all in one change, and has nginx load them. What is so already is not written, and not
--- loaded. `look_ahead` says why nothing should be written.
---@param before deployrt.NginxSituation
---@param wanted deployrt.NginxSituation
---@param look_ahead fun(): string?, string?
local function bring(self, seen, before, wanted, look_ahead)
  local texts, part = texts_for(self, seen, wanted)
  if are_there(texts, seen, rawequal) and not seen.owed then return end
  local problem, detail = look_ahead()
  if problem then self:fail(problem, detail) end
  verify(self, put(self, seen, texts, part), wanted, texts)
  note_closed(self, before, wanted)
end

--- Writes states and weights, and has nginx load them.
--- Raises deployrt.Error: "balancer"; "refused" when nginx does not run.
---@async
---@param changes deployrt.SlotChange[]
---@param forward? "serve"|"gap"  what gets traffic now must answer
function Nginx:apply(changes, forward)
  local seen = look(self)
  local before = situation_of(self, seen)
  check_known(self, before.states, changes)
  bring(self, seen, before, { states = merge(before.states, changes), route = before.route }, function()
    return outage.expected(self.context, before.states, changes, forward)
  end)
end

--- Who gets the routed slots; nil: nobody is told apart.
--- Raises deployrt.Error: "balancer"; "refused" when nginx does not run.
---@async
---@param wanted? deployrt.Route
function Nginx:route(wanted)
  if not self.entry.routes then return end
  local seen = look(self)
  local before = situation_of(self, seen)
  local open, entering = open_slots(before), {}
  for _, name in ipairs(wanted and wanted.slots or {}) do
    if before.states[name] and not open[name] then entering[#entering + 1] = name end
  end
  bring(self, seen, before, { states = merge(before.states, {}), route = wanted or false }, function()
    return outage.silence(self.context, entering)
  end)
end

--- Counters of the slots from the access log, since this driver was opened.
---@async
---@return table<string, deployrt.SlotStats>
function Nginx:stats()
  if not self.log then return {} end
  local totals, problem = self.log:read(self.host)
  if not totals then self:fail("balancer.access_log cannot be read", problem) end
  local slots = {}
  for _, slot in ipairs(self.context.slots) do
    local total = totals[file.endpoint(slot)] or { requests = 0, errors = 0, seconds = 0, latency = 0 }
    slots[slot.name] = {
      requests = total.requests, errors = total.errors, seconds = total.seconds, latency = total.latency, sessions = 0,
    }
  end
  return slots
end

--- The file is what nginx starts with: nothing more is to be kept.
function Nginx:persist() end

--- nginx is the user's.
function Nginx:stop() end

return nginx
