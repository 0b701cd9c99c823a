-- verbs.lua -- What every strategy can do: step, each, batches, successor, observe, analyse, and the like.
local analysis = require "deployrt.analysis"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local hooks = require "deployrt.hooks"
local hosts = require "deployrt.host"
local membrane = require "deployrt.membrane"
local operation = require "deployrt.operation"
local options = require "deployrt.options"
local permission = require "deployrt.permission"
local sandbox = require "deployrt.sandbox"
local signature = require "deployrt.signature"
local trace = require "deployrt.trace"
local undo = require "deployrt.undo"
local units = require "deployrt.units"
local vigil = require "deployrt.vigil"

---@class deployrt.Strategy
---@field app table          app.yml, read only
---@field release table      version and the like of what is being deployed
---@field options table      the strategy's own options, with defaults
---@field fleet deployrt.Fleet
---@field balancer deployrt.Balancer
local verbs = {}

local takes = signature.of {
  step = "label: any, fn: fn", each = "list: list, fn: fn", batches = "list: list", successor = "old: instance",
  observe = "seconds: any, instances: instances?", keep = "instances: instances", hook = "name: text", approve = "question: any, answers: answers?",
}

--- Refuses what a verb does not take.
local function check(verb, ...)
  signature.check(verb, takes[verb], ...)
end

--- What a script says, as a text.
local function text_of(verb, value, default)
  if value == nil then return default end
  if type(value) == "string" or type(value) == "number" or type(value) == "boolean" then return errors.clip(tostring(value)) end
  errors.raise("usage", ("%s takes a text, not a %s"):format(verb, type(value)))
end

--- Runs `fn` as a named part of the run.
---@async
---@param label string
---@param fn fun(...): ...
---@param ... any  for it
---@return any ...  what it returns
function verbs:step(label, fn, ...)
  check("step", label, fn)
  operation.checkpoint()
  label = text_of("step", label, "nil")
  local run, scope = operation.current()
  run.control:hold(run, label)
  local child = scope:child(false, label)
  local started = core.now()
  run.emit { event = "step.started", step = label, path = child.path }
  local result = table.pack(pcall(operation.within, child, fn, ...))
  if not result[1] then run.failed_step = run.failed_step or label end
  run.emit { event = "step.finished", step = label, path = child.path, seconds = core.now() - started, ok = result[1] }
  if not result[1] then error(result[2], 0) end
  return table.unpack(result, 2, result.n)
end

local each_takes = { max = true, tolerate = true }

--- How many of so many may fail.
local function tolerated(value, count)
  if value == nil then return 0 end
  local amount, problem = units.amount(value, true)
  if not amount then errors.raise("usage", "each tolerates an amount of failures: " .. problem) end
  return units.resolve_amount(amount, count)
end

--- Undoes what a child did, at once. What cannot be undone now is tried again if the run is rolled back.
local take_back = operation.exempt(function(run, scope)
  local failures = operation.unwind(scope)
  for i = #failures, 1, -1 do
    local failure = failures[i]
    run.emit { event = "warning", message = ("%s is left as it is: %s"):format(failure.host or failure.label, errors.text(failure.error)) }
    scope:push(failure.entry)
    if failure.host then run.fleet.stranded[failure.host] = true end
  end
end)

--- The host that an item of `each` is, or is on.
---@return string? name
local function host_of(item)
  local object = membrane.behind(item)
  local host = type(object) == "table" and (rawget(object, "host") or object)
  return type(host) == "table" and type(rawget(host, "name")) == "string" and rawget(host, "name") or nil
end

--- Goes on without a part that failed: its host is left as it was; the next run, or `--failed`, sees to it.
local function give_up(run, scope, err, name)
  run.emit { event = "warning", message = ("tolerated%s: %s"):format(errors.is_gone(err) and ", unreachable" or "", errors.text(err)) }
  if name then run.fleet.given_up[name] = true end
  take_back(run, scope)
end

--- A child has failed: the run goes on without it, or its siblings give up, too. Nothing is tolerated that ends the run on
--- purpose; and a host counts once, whatever else there was to be done on it.
local function fail_child(run, group, scope, err, item)
  local name = host_of(item) or err.host
  if err.code == "abandoned" and #group.failures > 0 then return end
  if err.code == "given_up" or not group.abandoned and run.fleet.given_up[name or ""] then return take_back(run, scope) end
  table.insert(group.failures, err)
  group.abandoned = group.abandoned or run.stopping ~= nil or err.code == "withdrawn" or #group.failures > group.tolerates
  if not group.abandoned then give_up(run, scope, err, name) end
end

local function start_child(self, group, item, fn)
  local run, scope, caller = operation.current(), group:child(), coroutine.running()
  group.running = group.running + 1
  return core.spawn(function()
    trace.called_from(caller)
    scope:mark "began"
    local ok, err = pcall(operation.within, scope, fn, self, item)
    if not ok then fail_child(run, group, scope, errors.wrap(err), item) end
    scope:mark "ended"
    group.running = group.running - 1
    group.freed:set()
  end)
end

--- How many failed, those whose hosts are away apart from those where something went wrong.
local function tell_of(run, failures)
  if #failures == 0 then return end
  local unreachable = 0
  for _, err in ipairs(failures) do unreachable = unreachable + (errors.is_gone(err) and 1 or 0) end
  run.emit { event = "log", message = ("going on without %d that failed and %d that cannot be reached"):format(#failures - unreachable, unreachable) }
end

--- Calls `fn(self, item)` for all items side by side, and waits for all of them. Raises their errors together.
---@async
---@param list any[]
---@param fn fun(self: deployrt.Strategy, item: any)
---@param opts? {max?: integer, tolerate?: integer|string}  max: at most so many at a time; tolerate: an amount of failures
function verbs:each(list, fn, opts)
  check("each", list, fn)
  opts = options.check("each", opts, each_takes)
  operation.checkpoint()
  if opts.max ~= nil and not (math.tointeger(opts.max) and opts.max >= 1) then
    errors.raise("usage", ("each does at most `max` at a time: a whole number from 1 on, not %s"):format(tostring(opts.max)))
  end
  local run, scope = operation.current()
  local group, tasks = scope:child(true), {}
  group.tolerates, group.failures, group.running, group.freed = tolerated(opts.tolerate, #list), {}, 0, core.event()
  for i, item in ipairs(list) do
    while opts.max and group.running >= opts.max do
      group.freed:clear()
      group.freed:wait()
    end
    if group.abandoned then break end
    tasks[i] = not run.fleet.given_up[host_of(item) or ""] and start_child(self, group, item, fn) or nil
  end
  for _, task in pairs(tasks) do task:wait() end
  if group.abandoned then error(errors.several(group.failures), 0) end
  tell_of(run, group.failures)
  operation.checkpoint()
end

--- Cuts a list into batches of an amount, each with a label.
---@param list any[]
---@param amount table|integer|string  2 or "25%"
---@return fun(): any[]?
function verbs:batches(list, amount)
  check("batches", list)
  local known, problem = units.amount(amount)
  if not known then errors.raise("usage", "batches takes an amount: " .. problem) end
  local size = units.resolve_amount(known, #list)
  local count, number = math.ceil(#list / math.max(size, 1)), 0
  return function()
    if number >= count then return nil end
    local batch = table.move(list, number * size + 1, math.min((number + 1) * size, #list), 1, {})
    number = number + 1
    batch.label = ("batch %d of %d"):format(number, count)
    return batch
  end
end

--- What replaces an instance: in a free slot of its host, else in the same slot.
---@param old deployrt.Instance
---@return deployrt.Instance
function verbs:successor(old)
  check("successor", old)
  return self.fleet:candidate(old.host) or self.fleet:candidate(old.host, old.port)
end

local longest = 366 * 24 * 3600 -- seconds

local function check_seconds(seconds)
  if type(seconds) == "number" and seconds >= 0 and seconds <= longest then return seconds end
  errors.raise("usage", ("a time is a number of seconds from 0 to %d, not %s"):format(longest, tostring(seconds)))
end

--- Instances of the new release that a host lacks, idle ones before others that are yet to be started.
---@param beside boolean?  old ones that serve are no lack, and a lack that finds no free slot is none yet
local function add_missing(fleet, host, list, beside)
  local count = fleet.process.instances
  for _, member in ipairs(fleet:on(host)) do
    if member.state == "serving" and (beside or fleet:is_target(member)) then count = count - 1 end
  end
  for i = 1, count do
    local new = fleet:candidate(host)
    if not new and not beside then
      errors.raise("room", ("%s lacks %d of its %d instances of release %s, and no slot is free there: process.ports needs more, or the strategy left "
        .. "others where they were"):format(host.name, count - i + 1, fleet.process.instances, fleet.target.release), { host = host.name })
    end
    list[#list + 1] = new
  end
end

--- Brings up what is missing with the new release, on all hosts at once: everything on a first run. The runtime does so
--- itself after a strategy; one that would take traffic away from the last instance does it before.
---@async
---@param beside? boolean  only what is missing beside the old ones that serve, as far as slots are free
function verbs:fill(beside)
  permission.check "balancer"
  local run = operation.current()
  local fleet, missing = run.fleet, {}
  fleet:release_slots()
  for _, host in ipairs(fleet:kept_hosts(fleet:active_hosts())) do add_missing(fleet, host, missing, beside) end
  if #missing == 0 then return end
  verbs.step(self, "start what is missing", function()
    verbs.each(self, missing, function(_, member)
      member:start()
      member:await_healthy()
    end)
    run.balancer:attach(missing)
  end)
end

--- Waits, unless the run is stopped meanwhile.
---@async
---@param seconds number
function verbs:sleep(seconds)
  operation.sleep(check_seconds(seconds))
end

--- Watches the new instances for a while: each must stay healthy.
---@async
---@param seconds number
---@param instances? deployrt.Instance[]  default: all of the new release that serve
function verbs:observe(seconds, instances)
  check("observe", seconds, instances)
  local run = operation.current()
  if run.rehearsing then return operation.sleep(check_seconds(seconds)) end -- there is nobody to ask
  local deadline, watch = operation.now() + check_seconds(seconds), vigil.new()
  while operation.now() < deadline do
    watch:look(instances or self.fleet:new())
    operation.sleep(math.max(0.001, math.min(run.app.health.interval, deadline - operation.now()))) -- a clock of whole microseconds moves on
  end
end

--- Compares new and old on the same traffic while it comes in. Raises as soon as the new side is worse, returns as soon as
--- it is shown to be no worse, and at the latest after `seconds`. What is not given is taken from the strategy's options.
---@async
---@param opts deployrt.AnalyseOptions
---@return "pass"|"inconclusive" verdict  inconclusive: there was too little to tell; never a pass
--- Raises deployrt.Error: "analysis".
function verbs:analyse(opts)
  return analysis.watch(self, opts)
end

--- Marks instances that stay up without traffic after the run, until the next one.
---@param instances deployrt.Instance[]
function verbs:keep(instances)
  check("keep", instances)
  self.fleet:keep(instances)
end

--- Runs a hook of app.yml, if it has one of this name; `before_traffic` once in a run: traffic for a new instance does so, too.
---@async
---@param name string
---@param env? table<string,string>
function verbs:hook(name, env)
  check("hook", name)
  if env then permission.check "host.run" end -- a variable can make any program do anything
  env = hosts.environment(env)
  if name == "before_traffic" then hooks.once(name, env) else hooks.run(name, env) end
end

--- A gate: waits until a person lets the run through, with `deployrt approve`; --yes does so beforehand.
---@async
---@param question? string   what the person is to decide
---@param answers? string[]  `deployrt approve ANSWER` gives one of them; --yes the first
---@return string? answer
function verbs:approve(question, answers)
  check("approve", question, answers)
  return operation.gate(text_of("approve", question, "a person must approve"), membrane.import(answers))
end

--- Says something to whoever watches.
---@param text string
function verbs:log(text)
  local run = operation.current()
  run.emit { event = "log", message = text_of("log", text, "nil") }
end

--- Why a script ends the run.
local function reason_of(verb, value)
  return errors.of_script(text_of(verb, value, "the strategy ended the run, and did not say why"))
end

--- Ends the run as failed; everything is rolled back.
---@param message string
---@param key? string  what of app.yml is to be changed, "process.ports": the message begins with its place
function verbs:fail(message, key)
  local text = reason_of("fail", message)
  errors.raise("failed", key and ("%s: %s"):format(operation.current().app.place(text_of("fail", key)), text) or text)
end

--- Ends the run as decided otherwise, which is no failure: everything is rolled back, and the exit code is 0.
---@param message string
function verbs:withdraw(message)
  errors.raise("withdrawn", reason_of("withdraw", message))
end

local longest_undo = 600 -- seconds

--- Registers something of one's own to be done on rollback. It has ten minutes: nobody else knows whether it would come to an end.
---@param fn fun()
function verbs:undo(fn)
  if type(fn) ~= "function" then errors.raise("usage", ("undo takes a function, not a %s: self:undo(function() ... end)"):format(type(fn))) end
  local _, scope = operation.current()
  local own, grant = undo.root("undo" .. scope:next_id()), core.locals().grant
  local function held()
    core.locals().grant = grant
    operation.limit_own_undo(longest_undo)
    return fn()
  end
  scope:push { label = "the strategy's own undo", run = function() operation.within(own, sandbox.call, held) end }
end

--- Forgets how to undo what was done so far: by this task, and before its `each` began. Tasks beside it can still be undone.
---@async
function verbs:commit()
  operation.commit()
end

return verbs
