-- world/instance.lua -- Processes in slots: started, watched until healthy, stopped.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local health = require "deployrt.health"
local slot_name = require "deployrt.slot_name"
local template = require "deployrt.template"
local variables = require "deployrt.variables"
local world_balancer = require "deployrt.world.balancer"

local instance = {}
local json = cjson.new()

--- The values of ${...} for an instance.
local function values_of(host, port, launch)
  local directory = launch.packed and ("%s/releases/%s"):format(host.root, launch.release) or host.root
  return { port = port, host = host.name, release = launch.release, dir = directory }
end

local function parse(host, line)
  local port, state, pid, key, record = line:match("^(%d+)\t(%l+)\t(%d+)\t([^\t]*)\t(.*)$")
  if not state then
    errors.raise("host", ("%s: it answers something that is no instance: %q; is its shell a POSIX one, and silent?"):format(host.name, line:sub(1, 200)),
      { host = host.name })
  end
  local ok, launch = pcall(json.decode, record)
  local ending = state == "ending"
  return {
    host = host.name, port = math.tointeger(port), state = ending and "running" or state, ending = ending or nil,
    pid = math.tointeger(pid), key = key, launch = ok and type(launch) == "table" and launch or nil,
  }
end

--- What runs in one slot: {state = "running"|"exited"|"none", pid, launch}; ending: it was told to end, and runs still.
function instance.show(_, host, args)
  return parse(host, (host:call("process_show", { tostring(args.port) }):gsub("\n$", "")))
end

--- What runs in all slots of a host, which ports are listened on, and what `current` points to.
function instance.list(_, host)
  local found = { slots = {}, listening = {}, origins = {}, current = nil }
  for line in host:call("process_list"):gmatch("[^\n]+") do
    local kind = line:match("^%l+")
    if kind == "listening" or kind == "origins" then
      for port in line:gmatch("\t(%d+)") do table.insert(found[kind], math.tointeger(port)) end
    elseif line:find("^current") then
      found.current = line:match("\t(.+)$")
    else
      found.slots[#found.slots + 1] = parse(host, line)
    end
  end
  return found
end

--- Who listens on a port, in words; nil when nobody does.
function instance.owner(_, host, args)
  local text = host:call("port_owner", { tostring(args.port) }):gsub("%s+$", "")
  return text ~= "" and text or nil
end

local function secrets_text(context, launch)
  local words = {}
  for name in pairs(launch.secrets or {}) do
    words[#words + 1] = ("export %s=%s\n"):format(name, core.quote { context.secrets:value(name, launch.secrets[name]) })
  end
  return table.concat(words)
end

local function log_end(host, port, lines)
  local ok, text = pcall(host.call, host, "process_log", { tostring(port), tostring(lines or 10) })
  return ok and text or nil
end

--- Directory and command; what was adopted has a script on its host that becomes the same program again.
local function program_of(host, port, launch, values)
  if not launch.adopted then return values.dir, template.expand_all(launch.command, values) end
  if launch.obstacle then
    errors.raise("adopted", ("%s:%d: what was adopted there cannot be started again (%s): start it by hand"):format(host.name, port, launch.obstacle),
      { host = host.name })
  end
  return "/", { "env", "-i", "/bin/sh", ("%s/instances/%d.origin"):format(host.root, port) }
end

--- Starts a launch in a slot; done already when the slot runs what this very operation started.
function instance.start(context, host, args, key)
  local launch = args.launch
  local values = values_of(host, args.port, launch)
  local directory, command = program_of(host, args.port, launch, values)
  local words = { tostring(args.port), key, directory, json.encode(launch), secrets_text(context, launch) }
  local env, argv = variables.passable(template.expand_all(launch.env or {}, values), command)
  for name, value in pairs(env) do words[#words + 1] = name .. "=" .. value end
  words[#words + 1] = "--"
  table.move(argv, 1, #argv, #words + 1, words)
  local ok, answer = pcall(host.call, host, "process_start", words)
  if ok then return { pid = math.tointeger(answer:match("%d+")) } end
  if answer.code == "stranger" then
    answer.message = ("%s: %s; stop it, or give app.yml other ports"):format(host.name, answer.message)
  end
  error(answer, 0)
end

local function died(host, port, launch)
  errors.raise("exited", ("%s:%d: the process of release %s exited before it was healthy"):format(host.name, port, launch.release),
    { host = host.name, detail = log_end(host, port) })
end

--- How long to wait before the next probe: soon after the start it is worth looking often, and what is found late is
--- late by a tenth of the start at most.
local function pause_after(elapsed, settings)
  return math.min(math.max(0.005, elapsed / 10), settings.interval)
end

local last_probe = 0.5  -- seconds that a probe gets at least, also at the deadline
local show_every = 0.02 -- seconds: looking whether the process lives costs as much as a probe

--- Whether the process in a slot lives, asked while something else is waited for.
local function ask_aside(context, host, args)
  return core.spawn(function() return instance.show(context, host, args).state == "running" end)
end

--- Why it was not enough: what the last probe found, or how many of them succeeded, and what the one before those found.
local function reason_of(successes, settings, why)
  if successes == 0 then return why end
  return ("%d of its probes succeeded in a row, and health.successes is %d, one each %gs%s"):format(successes, settings.successes,
    settings.interval, why and "; before that: " .. why or "")
end

--- Waits until so many probes in a row succeed. A process that exits fails at once, with the end of its log; so does one that
--- left behind what answers for it.
function instance.await_healthy(context, host, args)
  local settings, launch = args.health, args.launch
  local values = values_of(host, args.port, launch)
  local started, shown, successes, why = core.now(), 0, 0, nil
  while true do
    local left = started + settings.deadline - core.now()
    local aside = successes > 0 and successes + 1 >= settings.successes and ask_aside(context, host, args) -- the last probe, perhaps
    local healthy, reason = health.probe(host, args.port, settings, values, context.secrets, math.max(left, last_probe))
    successes = healthy and successes + 1 or 0
    why = reason or why
    local enough = successes >= settings.successes
    if aside or enough or core.now() - shown >= show_every and not healthy then
      local ok, lives = (aside or ask_aside(context, host, args)):wait()
      if not ok then error(lives, 0) end
      if not lives then died(host, args.port, launch) end
      shown = core.now()
    end
    if enough then return { seconds = core.now() - started } end
    local elapsed = core.now() - started
    if elapsed >= settings.deadline then
      errors.raise("unhealthy", ("%s:%d: release %s is not healthy after %gs: %s"):format(
        host.name, args.port, launch.release, settings.deadline, reason_of(successes, settings, why)), { host = host.name, detail = log_end(host, args.port) })
    end
    context.check_stop()
    context.rest(math.min(healthy and settings.interval or pause_after(elapsed, settings), settings.deadline - elapsed))
  end
end

--- One look: {healthy, reason}.
function instance.probe(context, host, args)
  if instance.show(context, host, args).state ~= "running" then return { healthy = false, reason = "it does not run" } end
  local healthy, reason = health.probe(host, args.port, args.health, values_of(host, args.port, args.launch), context.secrets)
  return { healthy = healthy, reason = reason }
end

local function is_same(a, b)
  return a ~= nil and a.release == b.release and a.settings == b.settings
end

--- The pid that is to end, and whether there is one: the run's own, or what was started in its place, or what the slot holds.
--- What runs there instead is left alone.
local function pid_to_stop(context, host, args)
  local successors, pid = context.successors[slot_name.of(host.name, args.port)] or {}, args.pid
  while successors[pid] do pid = successors[pid] end
  if pid then return pid end
  local found = instance.show(context, host, args)
  local another = args.settings and found.launch and not is_same(found.launch, args)
  return found.state ~= "none" and not another and found.pid or nil
end

--- Signals until the process is gone: first the polite signal, at the deadline KILL.
---@param stop {signal: string, timeout: number}
local function end_process(context, host, port, pid, stop)
  local words = { tostring(port), tostring(pid) }
  local function signal(name) return host:call("process_signal", { words[1], words[2], name }):find("sent", 1, true) ~= nil end
  local started, pause, killed = core.now(), 0.001, false
  local stopped = signal(stop.signal)
  while host:call("process_forget", words):find("running", 1, true) do
    if not killed and core.now() - started > stop.timeout then
      killed = true
      if signal("KILL") then
        context.warn(("%s:%d: pid %d is killed: it did not end within %gs of %s"):format(host.name, port, pid, stop.timeout, stop.signal))
      end
    elseif killed and core.now() - started > stop.timeout + 10 then
      errors.raise("stuck", ("%s:%s: pid %s survives SIGKILL; is its disk or network file system hanging?"):format(host.name, port, pid),
        { host = host.name })
    end
    core.sleep(pause)
    pause = math.min(pause * 2, 0.1)
  end
  return { stopped = stopped, killed = killed, seconds = core.now() - started }
end

--- Ends the process of a slot; nothing to do when it is gone.
function instance.stop(context, host, args)
  local pid = pid_to_stop(context, host, args)
  if not pid then return { stopped = false } end
  local slot = slot_name.of(host.name, args.port)
  if context.kept_open[slot] or context.kept_routed[slot] then
    errors.raise("serving", ("%s:%d still gets traffic, because what it replaced could not be put back"):format(host.name, args.port), { host = host.name })
  end
  world_balancer.await_strays(context, slot)
  return end_process(context, host, args.port, pid, args)
end

--- Whether this run's strategy started it: what was put back has the key of another operation.
---@param context table
---@param found {key?: string}
---@return boolean
function instance.is_own_start(context, found)
  local own = context.run_id .. "-"
  return found.key ~= nil and found.key:sub(1, #own) == own
end

--- Ends what stands in the way of what is put back: it was told to end already, or it is the run's own, and the copy of the
--- journal that the run was taken up from does not know of it.
local function make_room(context, host, port, found)
  local slot = slot_name.of(host.name, port)
  local unknown = instance.is_own_start(context, found) and not (context.kept_open[slot] or context.kept_routed[slot])
  if not (found.ending or unknown) then return end
  if unknown then world_balancer.take_out(context, slot) end
  end_process(context, host, port, found.pid, context.app.process.stop)
end

--- Ends what runs of a release and stands in the way of its removal, if it is the run's own.
---@param context table
---@param host deployrt.Connection
---@param version string
function instance.end_own(context, host, version)
  for _, found in ipairs(instance.list(context, host).slots) do
    local of_release = found.state == "running" and found.launch and found.launch.release == version
    if of_release then make_room(context, host, found.port, found) end
  end
end

--- Starts it again; nil where the run itself had started it, and its release has been taken back meanwhile: it needs no place
--- any more.
local function start_again(context, host, args, key)
  local ok, result = pcall(instance.start, context, host, args, key)
  if not ok and not (args.own and result.code == "missing") then error(result, 0) end
  context.gone[slot_name.of(host.name, args.port)] = not ok or nil
  return ok and result or nil
end

--- Puts back what was found in a slot: starts it again if it ran and runs no more, and waits for its health, also where a
--- life of the run that ended first had started it. A process that was told to end by one does so, and is started anew. One
--- that was never stopped is as it was found: healthy or not.
function instance.restore(context, host, args, key)
  local found = instance.show(context, host, args)
  local slot = slot_name.of(host.name, args.port)
  context.gone[slot], context.closed[slot], context.new[slot] = nil, nil, nil
  local result = { pid = found.pid }
  if found.state == "running" and not found.ending and found.pid == args.pid then return result end
  if found.state ~= "running" or found.ending or not is_same(found.launch, args.launch) then
    if found.state == "running" then make_room(context, host, args.port, found) end
    if found.state == "exited" then host:call("process_forget", { tostring(args.port), tostring(found.pid) }) end
    result = start_again(context, host, args, key)
  end
  if not result then return {} end
  if args.health then instance.await_healthy(context, host, args) end
  return result
end

return instance
