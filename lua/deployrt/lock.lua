-- lock.lua -- One run at a time: a lock on every host of the application, with an epoch and signs of life.
local advice = require "deployrt.advice"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local life = require "deployrt.life"
local waiting = require "deployrt.waiting"

local lock = {}

local beat_every = 1   -- seconds
local slowest_beat = 5 -- seconds: of a large fleet, where signs of life are work
local beats_a_second = 1000
lock.dead_after = 30   -- seconds without a sign of life
lock.way_back = "rolling back" -- the step of a run that does

---@class deployrt.LockState
---@field run string
---@field epoch integer
---@field owner string   who started it, where
---@field since integer  when the run began, in seconds since the epoch
---@field age number     seconds since its last sign of life
---@field dead boolean   nobody works on it any more
---@field step string    what it did last
---@field host string
---@field place? string  where it is, if not on a host
---@field over? boolean  its run has ended
---@field away? boolean  its host was away when its run ended
---@field needs_attention? boolean  its run has ended, and its rollback is incomplete
---@field left? integer  seconds until it goes by itself

local function parse(host, text)
  local run, epoch, owner, since, alive, beat, now, step =
    text:gsub("^locked: ", ""):gsub("\n$", ""):match("([^\t]*)\t(%d+)\t([^\t]*)\t(%d+)\t([^\t]*)\t(%d+)\t(%d+)\t([^\t]*)")
  if not run then return { run = "?", epoch = 0, owner = "?", since = 0, age = 0, dead = false, step = "", host = host.name } end
  local age = tonumber(now) - tonumber(beat)
  local silent = math.abs(age) > lock.dead_after -- a sign from the future: the clock was set back, and nobody gave one since
  return {
    run = run, epoch = math.tointeger(epoch), owner = owner, since = math.tointeger(since), age = age,
    dead = silent or life.is_gone(alive), step = step, host = host.name,
  }
end

local function read_once(host)
  local ok, err = pcall(host.call, host, "lock_read")
  if ok then return parse(host, err) end
  if err.code == "locked" then return parse(host, err.message) end
  return nil, err.code ~= "host" and err or nil -- a host where nobody holds it answers no more than that
end

--- Who holds the lock of a host; nil when nobody does.
---@async
---@param host deployrt.Connection
---@return deployrt.LockState?
---@return deployrt.Error? away  why the host does not say
function lock.read(host)
  local state, away = read_once(host)
  if state and state.dead then return read_once(host) end -- it may have let go and ended between the look at the lock and at its process
  return state, away
end

--- Hosts in the order in which a run takes them.
local function by_name(connections)
  local sorted = table.move(connections, 1, #connections, 1, {})
  table.sort(sorted, function(a, b) return a.name < b.name end)
  return sorted
end

---@class deployrt.Holder
---@field held deployrt.LockState
---@field lines deployrt.Connection[]  its hosts

--- The runs that hold the lock of some of the hosts: those that are under way before those that were interrupted. One that any host
--- hears is under way, though others have not heard of it for long.
---@async
---@param connections deployrt.Connection[]
---@param is_over? fun(run: string): boolean  locks of such runs do not count
---@return deployrt.Holder[]
function lock.holders(connections, is_over)
  local sorted, all, seen = by_name(connections), {}, {}
  local states = fleet.together(sorted, lock.read)
  for i, line in ipairs(sorted) do
    local held = states[i]
    local known = held and seen[held.run]
    if known then
      table.insert(known.lines, line)
      if known.held.dead then known.held = held end
    elseif held and not (is_over and is_over(held.run)) then
      seen[held.run] = { held = held, lines = { line } }
      table.insert(all, seen[held.run])
    end
  end
  local live, dead = {}, {}
  for _, each in ipairs(all) do table.insert(each.held.dead and dead or live, each) end
  return table.move(dead, 1, #dead, #live + 1, live)
end

--- The first of them.
---@async
---@param connections deployrt.Connection[]
---@param is_over? fun(run: string): boolean
---@return deployrt.LockState? held  nil: nobody
function lock.find(connections, is_over)
  local first = lock.holders(connections, is_over)[1]
  return first and first.held
end

--- What a lock tells of its run, and what may be done.
---@param state deployrt.LockState
---@param file string  app.yml as the user named it
---@return string
---@return boolean? under_way
function lock.describe(state, file)
  local since, step = os.date("%Y-%m-%d %H:%M:%S", state.since), state.step ~= "" and (", at '%s'"):format(state.step) or ""
  local place = state.place or "on " .. state.host
  local to_resume, to_abort = advice.resume(file, state.run), advice.abort(file, state.run)
  if state.over and state.left then
    return ("run %s of %s, begun %s, has ended, and its lock is still %s: it goes by itself within %ds"):format(state.run, state.owner, since, place, state.left)
  elseif state.needs_attention then
    return ("run %s of %s, begun %s, needs attention: `%s` goes on with its rollback, and removes the lock %s"):format(
      state.run, state.owner, since, to_abort, place)
  elseif state.over and state.away then
    return ("run %s of %s, begun %s, has ended while %s was away: `%s`, or the next run, removes the lock that it has left there"):format(
      state.run, state.owner, since, state.host, to_resume)
  elseif state.over and state.dead then
    return ("run %s of %s, begun %s, has ended, and its controller died: `%s` does what it had left to do, and removes the lock %s"):format(
      state.run, state.owner, since, to_resume, place)
  elseif state.dead then
    return ("run %s of %s, begun %s, was interrupted%s and left the lock %s: finish it with `%s`, or roll it back with `%s`"):format(
      state.run, state.owner, since, step, place, to_resume, to_abort)
  end
  local waits = waiting.is_so(state.step)
  return ("run %s of %s, begun %s, is under way%s (it holds the lock %s, last sign of life %ds ago): %s"):format(
    state.run, state.owner, since, waits and " and " .. state.step or step, place, state.age,
    waits and waiting.command(file, waiting.places(state.step)) .. " lets it go on" or "wait for it"), true
end

--- What to say to somebody who finds the lock taken.
---@param state deployrt.LockState
---@param file string
---@return string
function lock.refusal(state, file)
  local text, under_way = lock.describe(state, file)
  return under_way and ("%s, or see `deployrt status %s`"):format(text, file) or text
end

--- Raises "locked" when a run that has not ended holds the lock of some host, and says so once.
---@async
---@param connections deployrt.Connection[]
---@param file string
---@param is_over fun(run: string): boolean
function lock.refuse_held(connections, file, is_over)
  local held = lock.find(connections, is_over)
  if held then errors.raise("locked", lock.refusal(held, file), { host = held.host, lock = held }) end
end

---@class deployrt.Lock
---@field connections deployrt.Connection[]  those that it is held on
local Lock = {}
Lock.__index = Lock

--- Takes the lock of one host. What a run that has ended left there, because the host was away, is removed. The first life of a
--- run begins the copy of its journal with it; a later one finds it, and adds to it with what it asks.
local function take_one(self, host, is_over)
  local text = self.epoch == 1 and host.mirror and host.mirror:take() or ""
  local function try()
    local ok, err = pcall(host.call, host, "lock_take", { self.run, tostring(self.epoch), self.owner, tostring(self.since), self.life, text })
    return ok, err, not ok and err.code == "locked" and parse(host, err.message) or nil
  end
  local ok, err, held = try()
  if held and held.dead then held = lock.read(host) end -- as there, it may have let go
  if held and held.run ~= self.run and is_over(held.run) then
    host:call("lock_release", { held.run })
    host.last_run, held = held.run, nil
  end
  if not ok and err.code == "locked" and not held then ok, err, held = try() end
  if held then errors.raise("locked", lock.refusal(held, self.file), { host = host.name, lock = held }) end
  if not ok then error(err, 0) end
  host.guard = { run = self.run, epoch = tostring(self.epoch) }
  return err
end

--- A run that came and went since this one looked at the host made what was seen there old.
local function check_fresh(self, host, last)
  if last == host.last_run then return end
  errors.raise("locked", ("run %s ended on %s while this one began, and may have changed what this one had looked at: start it again (see `deployrt status %s`)"):format(
    last, host.name, self.file), { host = host.name })
end

--- Takes the lock on all hosts, in the order of their names, or on none. A later life of an interrupted run leaves what it has
--- got by then, and what it has not: the run is still to be finished, and nobody else may begin.
---@async
---@param connections deployrt.Connection[]
---@param opts {run: string, epoch: integer, since: number, file: string, is_over: fun(run: string): boolean, looked?: boolean}
---  since: when the run began; looked: what is there was looked at since the hosts were connected
---@return deployrt.Lock
--- Raises deployrt.Error: "locked" with what is known of the holder.
function lock.take(connections, opts)
  local me = core.whoami()
  local self = setmetatable({
    run = opts.run, epoch = opts.epoch, since = math.floor(opts.since), file = opts.file, owner = ("%s@%s"):format(me.user, me.host), life = life.of(),
    connections = {}, step = opts.epoch == 1 and "" or nil, told = core.event(), heard = {}, beaten = core.now(), confirmed = core.now(),
  }, Lock)
  for _, host in ipairs(by_name(connections)) do
    local ok, err = pcall(take_one, self, host, opts.is_over)
    if ok then
      self.connections[#self.connections + 1] = host
      if opts.looked then ok, err = pcall(check_fresh, self, host, err) end
    end
    if not ok then
      if err.code ~= "locked" then self.in_doubt = host end
      if self.epoch == 1 then self:release() end
      error(err, 0)
    end
  end
  local ok, err = pcall(self.check, self) -- whoever slept in between has perhaps lost the first of them again
  if ok then return self end
  if self.epoch == 1 then self:release() end
  error(err, 0)
end

--- A sign of life to a host. A later life of a run leaves the step that hosts have, until it tells one. What it confirms was so when it was asked, however late its answer is read.
local function ask(self, host)
  local asked = core.now()
  local ok, answer = pcall(host.call, host, "lock_beat", { self.run, tostring(self.epoch), self.step })
  if ok then self.confirmed = math.max(self.confirmed, asked) end
  if not ok and answer.code == "superseded" then self.lost = answer end
  return ok, answer
end

local function beat_one(self, host, failures)
  local ok, answer = ask(self, host)
  if not ok then
    if answer.code == "superseded" then failures[#failures + 1] = answer end
    return
  end
  for line in answer:gmatch("([^\n]+)\n") do
    if not self.active then return end
    if not self.heard[line] then
      self.heard[line] = true
      self.on_control(line)
    end
  end
end

local function beat_aside(self, host)
  if host.beating then return end
  host.beating = true
  core.spawn(function()
    local failures = {}
    beat_one(self, host, failures)
    host.beating = false
    if failures[1] then self.on_lost(failures[1]) end
  end)
end

--- A sign of life to all hosts. One that is away does not keep the others waiting.
local function beat(self)
  self.beaten = core.now()
  for _, host in ipairs(self.connections) do beat_aside(self, host) end
end

--- Tells the first host which step the run is at. It waits for nothing, and starts nothing in the caller's task.
---@param step string
function Lock:tell(step)
  self.step = step
  self.told:set()
end

--- Seconds between two signs of life to the same host, which is asked for what people want. The first host hears each second.
local function pause_between(self)
  return math.max(beat_every, math.min(slowest_beat, #self.connections / beats_a_second))
end

--- Gives signs of life until stop().
---@param on_lost fun(err: deployrt.Error)    another controller has taken over
---@param on_control fun(line: string)        somebody asks something of the run: each line once, in the order in which it was asked
function Lock:keep(on_lost, on_control)
  self.on_lost, self.on_control = on_lost, on_control
  self.active = true -- a cancellation may be swallowed by the call that it interrupts
  self.beating = core.spawn(function()
    while self.active do
      self.told:wait(beat_every)
      self.told:clear()
      if not self.active then return end
      if core.now() - self.beaten >= pause_between(self) then beat(self) else beat_aside(self, self.connections[1]) end
    end
  end)
end

--- Whether this controller slept for so long that others may have believed it dead; asks the hosts then.
---@async
--- Raises deployrt.Error: "superseded".
function Lock:check()
  if self.lost then error(self.lost, 0) end
  if core.now() - self.confirmed < 3 * beat_every then return end
  fleet.together(self.connections, function(host) ask(self, host) end)
  if self.lost then error(self.lost, 0) end
end

--- Gives no more signs of life.
---@async
function Lock:stop()
  self.active = false
  if not self.beating then return end
  self.told:set()
  self.beating:cancel()
  self.beating:wait()
  self.beating = nil
end

--- A host whose answer was lost has perhaps given its lock.
local function let_go(self)
  local held = self.connections
  held[#held + 1], self.in_doubt = self.in_doubt, nil
  self.active, self.connections = false, {}
  fleet.together(held, function(host) pcall(host.call, host, "lock_release", { self.run, tostring(self.epoch) }) end)
  return held
end

--- Another controller has it: hosts go on refusing what is asked of them as its holder, and what is held still is let go.
--- Any task may say so, also one that gave a sign of life.
---@async
---@param err deployrt.Error  "superseded"
function Lock:give_up(err)
  self.lost = self.lost or err
  let_go(self)
end

--- Lets go of the lock on all hosts that can be reached.
---@async
function Lock:release()
  self:stop()
  for _, host in ipairs(let_go(self)) do host.guard = nil end
end

return lock
