-- plan.lua -- What a run would do: the same strategy in a pretended world that begins as the real one is now.
local core = require "deployrt.core"
local inventory = require "deployrt.inventory"
local offline = require "deployrt.world.offline"
local pace = require "deployrt.pace"
local run = require "deployrt.run"

local plan = {}

local words = {
  ["release.upload"] = "upload", ["release.remove"] = "remove", ["release.activate"] = "current", ["instance.start"] = "start",
  ["instance.stop"] = "stop", ["instance.restore"] = "start again", ["balancer.apply"] = "traffic", ["balancer.route"] = "route", ["balancer.restore"] = "traffic back",
  ["stranger.adopt"] = "adopt", ["stranger.disown"] = "let go", ["stranger.forget"] = "forget",
  ["balancer.prepare"] = "prepare", ["balancer.unprepare"] = "set up the balancer as before",
  ["balancer.examine"] = "health checks of the balancer", ["balancer.agree"] = "balancers kept alike", ["host.run"] = "run", ["host.hook"] = "hook",
}

local function subject(spec)
  return spec.instance or spec.note or spec.host or ""
end

--- A journal that only remembers.
---@param now fun(): number
local function memory(app, now)
  local records, steps = {}, pace.new(#app.hosts * app.process.instances)
  local function write(_, record)
    steps:step(now())
    records[#records + 1] = record
  end
  return { records = records, write = write, sync = function() end }
end

local most = 20 -- of what would be undone; more of it nobody reads

--- What would be put back, the last first, each once: the first of them in words, and how many there are.
local function undo_of(scope, found)
  for i = #scope.entries, 1, -1 do
    local entry = scope.entries[i]
    if entry.entries then
      undo_of(entry, found)
    elseif entry.back or entry.label then -- the strategy's own has no operation
      local word, subject_of = words[entry.back] or entry.back or entry.label, entry.instance or entry.host or ""
      local known = found.known[word] or {}
      found.known[word] = known
      if not known[subject_of] then
        known[subject_of], found.count = true, found.count + 1
        if found.count <= most then found[found.count] = subject_of == "" and word or word .. " " .. subject_of end
      end
    end
  end
  return found
end

--- What a failure would undo by now, in words; as a list in the event.
local function tell_undo(root, event)
  local back = undo_of(root, { known = {}, count = 0 })
  event.undo, event.undo_count = table.move(back, 1, #back, 1, {}), back.count
  local rest = back.count > most and (" and %d more"):format(back.count - most) or ""
  return back.count > 0 and "a failure up to here undoes: " .. table.concat(back, ", ") .. rest or "nothing to undo up to here"
end

local function has_build(app)
  return app.hooks and app.hooks.build
end

local function rehearse(app, options)
  if options.offline then
    app.site, options.begin = offline.site(), offline.assume(app)
  elseif inventory.is_elastic(app) then
    app.site, options.begin = offline.beside(), offline.imagined(app)
  end
  local ok, err = pcall(run.rehearse, app, options)
  if ok then return end
  if err.code == "release" and has_build(app) then err.message = err.message .. "; a plan does not run hooks.build" end
  error(err, 0)
end

local function ignore() end

--- Looks at all that a run looks at before it changes something, the strategy's own check included.
---@async
---@param app deployrt.App
---@param options table  as for run.execute
--- Raises deployrt.Error: what would stop the run beforehand.
function plan.check(app, options)
  options.journal, options.emit, options.begun, options.proceed = memory(app, core.now), ignore, ignore, ignore
  if inventory.is_elastic(app) then inventory.imagine(app) end
  local ok, err = pcall(rehearse, app, options)
  if not ok and not (err.code == "release" and has_build(app)) then error(err, 0) end -- the build makes it
end

--- What check() refuses from app.yml alone, for a run that finds nothing of the application yet: the next one would be impossible.
--- A gap needs no leave, for there is no service that it would be in.
---@async
---@param app deployrt.App
---@param options {strategy: deployrt.Strategy, values: table}
---@param release string  the one being deployed, whose files are known to be there
--- Raises deployrt.Error: what is impossible.
function plan.check_first(app, options, release)
  if inventory.is_elastic(app) then return end -- there is room for whatever serves: the hosts are made anew
  local assumed, values = {}, {}
  for key, value in pairs(app) do assumed[key] = value end
  for key, value in pairs(options.values) do values[key] = key == "allow_gap" or value end
  assumed.release = { version = release, keep = app.release.keep }
  local looking = core.spawn(plan.check, assumed, { strategy = options.strategy, values = values, kind = "deploy", offline = true })
  local ok, err = looking:wait()
  if not ok then error(err, 0) end
end

---@class deployrt.Plan
---@field lines {at: number, text: string, event?: table}[]
---@field seconds number     that it waits at least
---@field effects integer
---@field records table[]    INTENT of each effect, as the journal of the run would have them
---@field undo? string[]        what a failure at the end would undo, the last first; undo_count: how much that is in all
---@field undo_count? integer
---@field failure? deployrt.Error  of the script: what comes before it is planned

--- Rehearses a run.
---@async
---@param app deployrt.App
---@param options table  as for run.execute, and `offline`: hosts and balancer are not looked at
---@return deployrt.Plan
--- Raises deployrt.Error: what would stop the run before it says anything.
function plan.make(app, options)
  local found = { lines = {}, effects = 0 }
  local rehearsal
  local function now() return rehearsal and rehearsal.world:now() or 0 end
  local log = memory(app, now)
  local function add(depth, text, event, at)
    table.insert(found.lines, { at = at or now(), text = ("  "):rep(depth) .. text, event = event })
  end
  local show = {}
  show["step.started"] = function(event) add(0, "== " .. event.step, event) end
  local told = 0 -- so many effects come before the last word on what would be undone
  show["step.finished"] = function(event)
    add(1, tell_undo(rehearsal.root, event), event)
    told = found.effects
  end
  show["plan.finished"] = function(event) -- a strategy may do all of it outside of steps
    local back = tell_undo(rehearsal.root, event)
    found.undo, found.undo_count = event.undo, event.undo_count
    if found.effects > told then add(1, back) end
  end
  show.op = function(event)
    if not event.effect then return end
    found.effects = found.effects + 1
    local text = ("%-11s %s%s"):format(words[event.op] or event.op, subject(event), event.release and "  " .. event.release or "")
    add(1, (text:gsub("%s+$", "")), event)
  end
  show.traffic = function(event, since)
    local shares = {}
    for release, share in pairs(event.share) do shares[#shares + 1] = ("%s %g%%"):format(release, share) end
    table.sort(shares)
    if #shares > 0 then add(1, "            = " .. table.concat(shares, ", "), event, since) end
  end
  show.log = function(event) add(1, "log         " .. event.message, event) end
  show.warning = function(event) add(1, "warning     " .. event.message, event) end
  options.journal = log
  options.emit = function(event, since)
    if show[event.event] then show[event.event](event, since) end
  end
  options.begun = function(self) rehearsal = self end
  if has_build(app) then
    show.log { event = "log", message = "hooks.build would run before; this is the plan for the release as it is now" }
  end
  if inventory.is_elastic(app) and (options.offline or run.is_needed(app, nil, options.force)) then
    show.log { event = "log", message = ("hosts.command would make the hosts before, of which %d are assumed; afterwards hosts.release gives back those that serve now"):format(
      inventory.imagine(app)) }
  end
  local ok, err = pcall(rehearse, app, options)
  if not ok and not (rehearsal and found.lines[1]) then error(err, 0) end
  found.failure = not ok and err or nil
  if ok and not rehearsal.unchanged then rehearsal.emit { event = "plan.finished" } end
  found.seconds, found.records = rehearsal.world:now(), log.records
  found.release, found.previous, found.unchanged = rehearsal.target.release, rehearsal.previous, rehearsal.unchanged
  found.made = core.time()
  return found
end

return plan
