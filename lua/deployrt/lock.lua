-- lock.lua -- One run at a time: a lock on every host of the application, with a sign of life.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local lock = {}

local beat_every = 5   -- seconds
lock.dead_after = 30   -- seconds without a sign of life

---@class deployrt.LockState
---@field run string
---@field owner string   who started it, where
---@field since integer  seconds since the epoch
---@field age number     seconds since its last sign of life
---@field host string

local function parse(host, text)
  local run, epoch, owner, since, beat, now = text:gsub("^locked: ", ""):match("([^\t]+)\t(%d+)\t([^\t]*)\t(%d+)\t(%d+)\t(%d+)")
  if not run then return { run = "?", epoch = 0, owner = "?", since = 0, age = 0, host = host.name } end
  return {
    run = run, epoch = math.tointeger(epoch), owner = owner, since = math.tointeger(since),
    age = tonumber(now) - tonumber(beat), host = host.name,
  }
end

--- Who holds the lock of a host; nil when nobody does.
---@async
---@return deployrt.LockState?
function lock.read(host)
  local ok, err = pcall(host.call, host, "lock_read")
  if ok then return parse(host, err) end
  if err.code == "locked" then return parse(host, err.message) end
  return nil
end

--- What to say to somebody who finds the lock taken.
---@param state deployrt.LockState
---@param file string  app.yml as the user named it
function lock.refusal(state, file)
  local since = os.date("%Y-%m-%d %H:%M:%S", state.since)
  if state.age > lock.dead_after then
    return ("run %s of %s, begun %s, gave no sign of life for %ds and left the lock on %s: finish it with `deployrt resume %s`, "
      .. "roll it back with `deployrt abort %s`, or remove the lock with `deployrt unlock %s`"):format(
      state.run, state.owner, since, state.age, state.host, file, file, file)
  end
  return ("run %s of %s, begun %s, is under way (it holds the lock on %s): wait for it, or see `deployrt status %s`"):format(
    state.run, state.owner, since, state.host, file)
end

--- Takes the lock of one host. What a run that has ended left there, because the host was away, is removed.
local function take_one(host, run, owner, is_over)
  local ok, err = pcall(host.call, host, "lock_take", { run, "1", owner })
  local left = not ok and err.code == "locked" and parse(host, err.message)
  if left and is_over(left.run) then
    host:call("lock_break", { left.run })
    ok, err = pcall(host.call, host, "lock_take", { run, "1", owner })
  end
  return ok, err
end

--- Takes the lock on all hosts, in order of their names, or on none.
---@async
---@param hosts deployrt.Connection[]
---@param run string  id
---@param file string
---@param is_over fun(run: string): boolean  whether a run is known to have ended
---@return {release: fun()} held
function lock.take(hosts, run, file, is_over)
  local me, sorted, taken = core.whoami(), table.move(hosts, 1, #hosts, 1, {}), {}
  table.sort(sorted, function(a, b) return a.name < b.name end)
  local function release()
    for _, host in ipairs(taken) do pcall(host.call, host, "lock_release", { run }) end
    taken = {}
  end
  for _, host in ipairs(sorted) do
    local ok, err = take_one(host, run, ("%s@%s"):format(me.user, me.host), is_over)
    if not ok then
      release()
      if err.code == "locked" then errors.raise("locked", lock.refusal(parse(host, err.message), file), { host = host.name }) end
      error(err, 0)
    end
    taken[#taken + 1] = host
  end
  local active = true -- a cancellation may be swallowed by the call that it interrupts
  local beating = core.spawn(function()
    while active and core.sleep(beat_every) do
      for _, host in ipairs(taken) do pcall(host.call, host, "lock_beat", { run }) end
    end
  end)
  return {
    release = function()
      active = false
      beating:cancel()
      beating:wait()
      release()
    end,
  }
end

return lock
