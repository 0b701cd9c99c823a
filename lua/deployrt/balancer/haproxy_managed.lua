-- haproxy_managed.lua -- The HAProxy that deployrt runs itself: started, reloaded, stopped, losing no request.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local config = require "deployrt.balancer.haproxy_config"
local left = require "deployrt.balancer.left"
local process = require "deployrt.balancer.haproxy_process"
local read = require("deployrt.file").read
local routes = require "deployrt.balancer.haproxy_route"
local servers = require "deployrt.balancer.haproxy_servers"

local haproxy_managed = {}

local function require_program(driver)
  if driver.paths.program then return end
  driver.paths.program, driver.files = process.find_program(driver.host)
  if driver.paths.program then return end
  errors.raise("balancer", "haproxy is not installed: install it (apt install haproxy, dnf install haproxy), or use "
    .. "a running one with balancer.socket instead of balancer.managed", { host = driver.host.name })
end

--- What our HAProxy says, or nil when it does not run. One that is ending resets connections for a moment.
local function look(driver)
  local deadline = core.now() + 2
  while true do
    local ok, seen = pcall(driver.look, driver)
    if ok then return seen end
    if seen.code == "missing" or seen.code == "refused" then return nil end
    if seen.code ~= "lost" or core.now() > deadline then error(seen, 0) end
    errors.check(core.sleep(0.02))
  end
end

--- Waits until `condition` answers with something; nil when the time is over.
local function await(seconds, condition)
  local deadline = core.now() + seconds
  while true do
    local value = condition()
    if value or core.now() > deadline then return value end
    errors.check(core.sleep(0.02))
  end
end

--- Why one of the addresses cannot be had; nil where nobody listens there, or the HAProxy that answers.
local function listen_problem(driver)
  for _, key in ipairs { "listen", "stats" } do
    local address = driver.options[key]
    local owner = address and process.find_owner(driver.host, address)
    if owner and not (process.is_ours(driver.host, driver.paths, owner.pid) and look(driver)) then
      return ("balancer.%s %s is in use by %s: stop that, or choose another address"):format(key, address, owner.text)
    end
    local problem = address and not owner and process.try_to_bind(driver.host, driver.paths, address)
    if problem then return ("balancer.%s: HAProxy cannot listen at %s: %s"):format(key, address, problem) end
  end
end

--- An address that cannot be bound is found before it is wanted: a reload that fails so pauses HAProxy for good. Another
--- controller may be trying it, too, or be about to start ours there.
local function check_listen(driver)
  local problem
  await(2, function()
    problem = listen_problem(driver)
    return not problem
  end)
  if problem then driver:fail(problem) end
end

--- The page of balancer.maintenance, and where it lies beside the configuration: another page has another name.
---@return string? path
---@return string? page
local function maintenance_of(driver)
  local source = driver.options.maintenance
  if not source then return nil end
  local page = read(source)
  if not page then
    local place = driver.context.place and driver.context.place("maintenance") .. ": " or ""
    errors.raise("balancer", ("%sbalancer.maintenance: %s: it cannot be read as a file: it is the page that clients see while nothing serves"):format(place, source))
  end
  return ("%s/maintenance-%s.html"):format(driver.paths.directory, core.sha256(page):sub(1, 12)), page
end

local function text_of(driver, wanted)
  local routing = driver.routing
  local hard_stop = math.max(60, math.ceil(driver.options.drain and driver.options.drain.timeout or 0))
  return config.text({
    app = driver.context.app, socket = driver.paths.socket, listen = driver.options.listen, stats = driver.options.stats,
    maintenance = (maintenance_of(driver)),
    backend = driver.backend, health = driver.health or driver.context.health, maxconn = process.connections(driver.files, #driver.context.slots), hard_stop = hard_stop,
    routing = routing and routes.frontend(driver.context.app, driver.backend, driver.map, routing),
    routed = routing and routes.backend(driver.backend),
  }, driver.context.slots, wanted)
end

--- The name that a configuration has for each slot that it knows: by address, for a host may have another name by now, and
--- who has its name may be at another address.
---@param slots deployrt.Slot[]
---@param kept table<string, {state: string, weight: integer, address: string, port: integer}>
---@return table<string, string>  by slot
local function names_of(driver, slots, kept)
  local by_endpoint, names = {}, {}
  for name, server in pairs(kept) do
    for _, endpoint in ipairs(servers.endpoints(driver, server)) do by_endpoint[endpoint] = name end
  end
  for _, slot in ipairs(slots) do
    for _, endpoint in ipairs(servers.endpoints(driver, slot)) do names[slot.name] = names[slot.name] or by_endpoint[endpoint] end
  end
  return names
end

--- Servers of a configuration that are slots.
---@return table<string, table> found  of `kept`, by slot
---@return table<string, true> known   names in `kept`
local function servers_of(driver, slots, kept)
  local found, known = {}, {}
  for slot, name in pairs(names_of(driver, slots, kept)) do found[slot], known[name] = kept[name], true end
  return found, known
end

--- A configuration whose slots come up with these states.
---@param wanted table<string, {state?: string, weight?: integer}>  by slot; what is absent stays as it is
local function with_states(driver, text, wanted)
  local by_name, names = {}, names_of(driver, driver.context.slots, config.wanted(text))
  for slot, name in pairs(names) do by_name[name] = wanted[slot] end
  return config.with_states(text, by_name)
end

local function serves(server)
  return server.state == "ready" and server.weight > 0
end

local function serves_any(wanted, concerns)
  for name, server in pairs(wanted) do
    if serves(server) and (not concerns or concerns(name)) then return true end
  end
  return false
end

--- Servers that app.yml does not name any more stay known: what gets traffic, until a run has taken it away, and what gets
--- none, for a run that took it away may be taken up, and want to give it back.
---@param driver deployrt.HAProxy
function haproxy_managed.keep_left(driver)
  if driver.left then return end
  local kept, found = haproxy_managed.kept(driver), {}
  local _, known = servers_of(driver, driver.context.slots, kept)
  for name, server in pairs(kept) do
    found[#found + 1] = not known[name] and { name = name, endpoint = config.endpoint(server) } or nil
  end
  table.sort(found, function(a, b) return a.name < b.name end)
  left.keep(driver, found, config.identifier)
end

---@param driver deployrt.HAProxy
function haproxy_managed.check(driver)
  require_program(driver)
  local running, text = look(driver), text_of(driver, {})
  local same = running and running.description == config.fingerprint(text)
  if not same then check_listen(driver) end
  local on_disk = driver.host:read(driver.paths.config) or ""
  driver.outdated = running and not same and (running.description ~= config.fingerprint(on_disk) -- who wrote it died before the reload
    or config.settings(text) ~= config.settings(on_disk))
end

local function output(result)
  return ((result.stderr or "") .. (result.stdout or "")):sub(-2000)
end

local function put_in_place(driver, text)
  local made = process.make_directory(driver.host, driver.paths.socket_directory)
  if made.status ~= 0 then
    driver:fail(("%s is not a directory of ours: remove it"):format(driver.paths.socket_directory),
      output(made))
  end
  local path, page = maintenance_of(driver)
  if path then driver.host:write(path, page, "600") end
  if driver.routing then driver.host:write(driver.map, routes.map(driver.routing), "600") end
  local result = process.install(driver.host, driver.paths, text)
  if result.status ~= 0 then
    driver:fail("it refuses the configuration that deployrt wrote for it", output(result))
  end
end

local function bring_up(driver, text)
  put_in_place(driver, text)
  local result = process.start(driver.host, driver.paths)
  if result.status ~= 0 then driver:fail("it does not start", output(result)) end
  if not await(5, function() return look(driver) end) then
    driver:fail("it was started and does not answer", output(result))
  end
end

--- States and weights by slot: what runs, and for slots that do not, what the configuration on the disk says.
local function current_wanted(driver, seen, text)
  local wanted = servers_of(driver, driver.context.slots, config.wanted(text))
  for name, row in pairs(seen and seen.slots or {}) do wanted[name] = row end
  return wanted
end

--- States and weights in the configuration on the disk, by server; {} where there is none.
---@param driver deployrt.HAProxy
---@return table<string, {state: string, weight: integer, address: string, port: integer}>
function haproxy_managed.kept(driver)
  return config.wanted(driver.host:read(driver.paths.config) or "")
end

--- The same by slot: what a HAProxy that does not run comes up with.
---@param driver deployrt.HAProxy
---@return table<string, {state: string, weight: integer}>
function haproxy_managed.kept_slots(driver)
  return (servers_of(driver, driver.context.slots, haproxy_managed.kept(driver)))
end

--- Ends the process, softly at first, and by force when `patience` is over.
local function put_down(driver, patience)
  local host, paths = driver.host, driver.paths
  for _, try in ipairs { { "USR1", patience }, { "TERM", 5 }, { "KILL", 5 } } do
    if not process.signal(host, paths, try[1]) then return end
    if await(try[2], function() return not process.signal(host, paths, "0") end) then return end
  end
  driver:fail("it does not end, not even when killed", "see " .. paths.pid)
end

--- Sets what ran before: a configuration knows servers in service and out of it, and none that drain. A server may have
--- another name now.
local function restore(driver, seen)
  local commands, now = {}, driver:look().slots
  for name, row in pairs(seen.slots) do
    local where = now[name] and driver.backend .. "/" .. now[name].server
    local command = "set server %s weight %d;set server %s state %s"
    if where then commands[#commands + 1] = command:format(where, row.weight, where, row.state) end
  end
  table.sort(commands)
  if #commands > 0 then driver:ask(commands) end
end

--- Puts the old configuration back. A HAProxy whose reload failed has paused its listeners, and no further reload
--- revives it, so that it must start anew.
local function recover(driver, seen, old_text)
  put_down(driver, 0)
  local ok, err = pcall(bring_up, driver, old_text)
  if ok then
    restore(driver, seen)
    driver:fail("it could not reload, and was restarted with the configuration that it had")
  end
  driver:fail("it could not reload, and does not start with the configuration that it had either: look at "
    .. driver.paths.config, err.detail or err.message)
end

local function before_file(driver, run)
  return ("%s.before-%s"):format(driver.paths.config, run)
end

--- The configuration that runs: on the disk is another one when who wrote it died before the reload. What he found is there, too.
local function text_running(driver, seen, on_disk)
  if config.fingerprint(on_disk) == seen.description then return on_disk end
  local found = process.shell(driver.host, 'cat -- "$1".before-*', driver.paths.config).stdout
  return config.fingerprint(found) == seen.description and found or on_disk
end

--- The new process has taken over when it answers, and the old one accepts nothing any more.
local function reload(driver, seen, text, on_disk)
  local old_text = text_running(driver, seen, on_disk)
  put_in_place(driver, text)
  local done = process.signal(driver.host, driver.paths, "USR2") and await(10, function()
    local ok, now = pcall(look, driver)
    return ok and now and now.instance ~= seen.instance
  end) and await(5, function() return not process.is_listening(driver.host, seen.pid) end)
  if not done then recover(driver, seen, old_text) end
  restore(driver, seen)
end

--- Brings HAProxy to a configuration: it is started, or reloaded. The disk may have another one than what runs.
local function renew(driver, seen, text, on_disk)
  local name = config.fingerprint(text)
  if not seen or seen.description ~= name then
    check_listen(driver)
    if seen then reload(driver, seen, text, on_disk) else bring_up(driver, text) end
  elseif config.fingerprint(on_disk) ~= name then
    put_in_place(driver, text)
  end
end

--- Keeps the configuration that a run found ("": nothing ran), for its way back; an earlier run's is of no use any more. An
--- earlier life of this run may have kept it already.
local function keep_before(driver, run, text)
  if driver.host:read(before_file(driver, run)) then return end
  process.shell(driver.host, 'rm -f -- "$1".before-*', driver.paths.config)
  driver.host:write(before_file(driver, run), text, "600")
end

--- What a run changes it may want back. What comes up with traffic, as after a crash, is to stay.
local function keep_found(driver, run, seen, on_disk, wanted)
  if seen then return keep_before(driver, run, text_running(driver, seen, on_disk)) end
  if not serves_any(wanted) then keep_before(driver, run, "") end
end

--- What serves may fail checks that it was not started under, and would lose its traffic by them: where the new release has
--- others, HAProxy only looks whether something listens, until examine() says more.
---@param driver deployrt.HAProxy
---@param run? string  which may want back what it finds
---@param in_hand? table<string, table>  slots that it has in hand
function haproxy_managed.prepare(driver, run, in_hand)
  require_program(driver)
  local seen = look(driver)
  if seen and driver.put_back then return end
  local on_disk = driver.host:read(driver.paths.config) or ""
  local wanted = current_wanted(driver, seen, on_disk)
  if run then left.forget(driver, wanted, in_hand or {}) end
  local strict = text_of(driver, wanted)
  local is_same = on_disk == "" or config.checks(on_disk) == config.checks(strict)
  local text = is_same and strict or config.lenient(strict)
  local changes = not seen or seen.description ~= config.fingerprint(text)
  if run and changes then keep_found(driver, run, seen, on_disk, wanted) end
  renew(driver, seen, text, on_disk)
  driver.outdated, driver.lenient = nil, text ~= strict
end

--- From now on HAProxy checks health as the new release says; or, not strictly, whether something listens.
---@param driver deployrt.HAProxy
---@param strict boolean
function haproxy_managed.examine(driver, strict)
  require_program(driver)
  local seen, on_disk = look(driver), driver.host:read(driver.paths.config) or ""
  local text = text_of(driver, current_wanted(driver, seen, on_disk))
  renew(driver, seen, strict and text or config.lenient(text), on_disk)
end

--- Puts back the configuration that a run found, or that nothing ran; its states are as they are now. It is set up in no
--- other way in this run.
---@param driver deployrt.HAProxy
---@param run string
---@param lenient boolean  something serves that it may not have been written for
---@param is_other? fun(slot: string): boolean  slots of hosts that the run is not about; nil: there are none
function haproxy_managed.unprepare(driver, run, lenient, is_other)
  driver.put_back = true
  local text = driver.host:read(before_file(driver, run))
  if not text then return end
  require_program(driver)
  local seen, on_disk = look(driver), driver.host:read(driver.paths.config) or ""
  local wanted = current_wanted(driver, seen, on_disk)
  if text == "" then
    driver.stopped = not (is_other and serves_any(wanted, is_other)) -- a run on other hosts may have found it as this one left it
    return driver.stopped and haproxy_managed.stop(driver)
  end
  text = with_states(driver, text, wanted)
  renew(driver, seen, lenient and config.lenient(text) or text, on_disk)
  process.shell(driver.host, 'rm -f -- "$1"', before_file(driver, run))
end

--- The file is read each time: another run may have written what it wants of other slots.
---@param driver deployrt.HAProxy
---@param wanted table<string, {state?: string, weight?: integer}>
function haproxy_managed.persist(driver, wanted)
  local on_disk = driver.host:read(driver.paths.config)
  local text = on_disk and with_states(driver, on_disk, wanted)
  if text ~= on_disk then driver.host:write(driver.paths.config, text, "600") end
end

---@param driver deployrt.HAProxy
function haproxy_managed.stop(driver)
  put_down(driver, driver.options.drain and driver.options.drain.timeout or 30)
  process.remove(driver.host, driver.paths)
end

return haproxy_managed
