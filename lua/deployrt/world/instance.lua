-- world/instance.lua -- Processes in slots: started, watched until healthy, stopped.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local health = require "deployrt.health"
local template = require "deployrt.template"

local instance = {}
local json = cjson.new()

--- The values of ${...} for an instance.
local function values_of(host, port, launch)
  local directory = launch.packed and ("%s/releases/%s"):format(host.root, launch.release) or host.root
  return { port = port, host = host.name, release = launch.release, dir = directory }
end

local function parse(host, line)
  local port, state, pid, key, record = line:match("^(%d+)\t(%l+)\t(%d+)\t([^\t]*)\t(.*)$")
  local ok, launch = pcall(json.decode, record or "")
  return {
    host = host.name, port = math.tointeger(port), state = state, pid = math.tointeger(pid), key = key,
    launch = ok and type(launch) == "table" and launch or nil,
  }
end

--- What runs in one slot: {state = "running"|"exited"|"none", pid, launch}.
function instance.show(_, host, args)
  return parse(host, (host:call("process_show", { tostring(args.port) }):gsub("\n$", "")))
end

--- What runs in all slots of a host, which ports are listened on, and what `current` points to.
function instance.list(_, host)
  local found = { slots = {}, listening = {}, current = nil }
  for line in host:call("process_list"):gmatch("[^\n]+") do
    if line:find("^listening") then
      for port in line:gmatch("\t(%d+)") do found.listening[#found.listening + 1] = math.tointeger(port) end
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

--- Starts a launch in a slot; done already when the slot runs what this very operation started.
function instance.start(context, host, args, key)
  local launch = args.launch
  local values = values_of(host, args.port, launch)
  local words = { tostring(args.port), key, values.dir, json.encode(launch), secrets_text(context, launch) }
  for name, value in pairs(launch.env or {}) do words[#words + 1] = name .. "=" .. template.expand(tostring(value), values) end
  words[#words + 1] = "--"
  for _, word in ipairs(launch.command) do words[#words + 1] = template.expand(word, values) end
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

--- Waits until so many probes in a row succeed. A process that exits fails at once, with the end of its log.
function instance.await_healthy(context, host, args)
  local settings, launch = args.health, args.launch
  local values = values_of(host, args.port, launch)
  local started, successes, why, pause = core.now(), 0, "no probe yet", 0.01
  while true do
    local healthy, reason = health.probe(host, args.port, settings, values)
    successes = healthy and successes + 1 or 0
    why = reason or why
    if successes >= settings.successes then return { seconds = core.now() - started } end
    if not healthy and instance.show(context, host, args).state ~= "running" then died(host, args.port, launch) end
    if core.now() - started > settings.deadline then
      errors.raise("unhealthy", ("%s:%d: release %s is not healthy after %gs: %s"):format(
        host.name, args.port, launch.release, settings.deadline, why), { host = host.name, detail = log_end(host, args.port) })
    end
    context.check_stop()
    core.sleep(healthy and settings.interval or math.min(pause, settings.interval))
    pause = pause * 1.5 -- soon after the start it is worth looking often
  end
end

--- One look: {healthy, reason}.
function instance.probe(context, host, args)
  if instance.show(context, host, args).state ~= "running" then return { healthy = false, reason = "it does not run" } end
  local healthy, reason = health.probe(host, args.port, args.health, values_of(host, args.port, args.launch))
  return { healthy = healthy, reason = reason }
end

--- Signals until the process is gone: first the polite signal, at the deadline KILL.
function instance.stop(context, host, args)
  local found = instance.show(context, host, args)
  if found.state == "none" or (args.pid and found.pid ~= args.pid) then return { stopped = false } end
  local port, pid = tostring(args.port), tostring(found.pid)
  local started, pause, killed = core.now(), 0.002, false
  if found.state == "running" then host:call("process_signal", { port, pid, args.signal }) end
  while found.state == "running" do
    core.sleep(pause)
    pause = math.min(pause * 2, 0.1)
    found = instance.show(context, host, args)
    if found.state == "running" and not killed and core.now() - started > args.timeout then
      host:call("process_signal", { port, pid, "KILL" })
      killed = true
    elseif killed and core.now() - started > args.timeout + 10 then
      errors.raise("stuck", ("%s:%s: pid %s survives SIGKILL; is its disk or network file system hanging?"):format(host.name, port, pid),
        { host = host.name })
    end
  end
  host:call("process_forget", { port, pid })
  return { stopped = true, killed = killed, seconds = core.now() - started }
end

local function is_same(a, b)
  return a ~= nil and a.release == b.release and a.settings == b.settings
end

--- Puts back what was found in a slot: starts it again if it ran and runs no more, and waits for its health.
function instance.restore(context, host, args, key)
  local found = instance.show(context, host, args)
  if found.state == "running" and is_same(found.launch, args.launch) then return { pid = found.pid } end
  if found.state == "exited" then host:call("process_forget", { tostring(args.port), tostring(found.pid) }) end
  local started = instance.start(context, host, args, key)
  if args.health then instance.await_healthy(context, host, args) end
  return started
end

return instance
