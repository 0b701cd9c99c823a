-- state/etcd.lua -- Runs, journals and the lock of an application in etcd, for a team; the local directory is a copy.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local etcd = require "deployrt.etcd"
local life = require "deployrt.life"
local files = require "deployrt.state"

---@class deployrt.EtcdState: deployrt.State
---@field files deployrt.State  the working copy on this machine
---@field client deployrt.Etcd
---@field held? {key: string, value: string}  the lock that this process took: without it nothing is written
local EtcdState = {}
EtcdState.__index = EtcdState

local state = {}
local json = cjson.new()
local beat_every, life_time, release_time = 5, 30, 5 -- seconds

--- Opens the state of an application in a cluster.
---@param app string
---@param directory? string  of the working copy, as in state.open
---@param options {endpoints: string[], timeout?: number, patience?: number}
---@return deployrt.EtcdState
function state.open(app, directory, options)
  local self = { files = files.open(app, directory), client = etcd.open(options), prefix = "/deployrt/" .. app }
  return setmetatable(self, EtcdState)
end

--- Whether the cluster answers.
---@async
--- Raises deployrt.Error: "etcd".
function EtcdState:check()
  self.client:get(self.prefix .. "/lock")
end

--- What can be asked of it now: where the cluster does not answer, what this machine knows.
---@async
---@return deployrt.State
---@return deployrt.Error? away  why that is not all
function EtcdState:at_hand()
  local ok, away = pcall(self.check, self)
  if ok then return self end
  away = errors.wrap(away)
  return self.files, errors.new(away.code, away.message .. "; what is said of runs is what this machine knows", { detail = away.detail })
end

local function run_key(self, id)
  return ("%s/runs/%s"):format(self.prefix, id)
end

local function journal_prefix(self, id)
  return ("%s/journal/%s/"):format(self.prefix, id)
end

local function refuse_fenced(self, what)
  errors.raise("etcd", ("%s was not written to etcd: this run's lock %s is gone or another controller took it over; "
    .. "stop here, and look at `deployrt status`"):format(what, self.held and self.held.key or "?"))
end

--- A new run's directory and id; ids sort by time.
---@return string id
---@return string path
function EtcdState:create()
  return self.files:create()
end

--- The directory of a run on this machine; it is made when it is not there.
---@param id string
---@return string path
function EtcdState:directory(id)
  return self.files:directory(id)
end

--- The path of a file about what this machine does for the application.
---@param name string
---@return string path
function EtcdState:file(name)
  return self.files:file(name)
end

--- Writes what is known of a run, whole, here and in etcd.
---@async
---@param id string
---@param record table
function EtcdState:save(id, record)
  self.files:directory(id)
  self.files:save(id, record)
  local written = self.client:put(run_key(self, id), json.encode(record), { guard = self.held })
  if not written then refuse_fenced(self, "the record of run " .. id) end
end

--- Forgets a run that never began.
---@async
---@param id string
function EtcdState:forget(id)
  self.client:delete(journal_prefix(self, id), { prefix = true })
  self.client:delete(run_key(self, id))
  self.files:forget(id)
end

local function group_key(self, name)
  return ("%s/groups/%s"):format(self.prefix, name)
end

--- Remembers a group of hosts that a command gives. That comes before a run and its lock.
---@async
---@param group deployrt.HostGroup
function EtcdState:save_group(group)
  self.client:put(group_key(self, group.name), json.encode(group))
end

---@async
---@param name string
function EtcdState:forget_group(name)
  self.client:delete(group_key(self, name))
end

--- All groups of hosts that are remembered, oldest first.
---@async
---@return deployrt.HostGroup[]
function EtcdState:groups()
  local list = {}
  for i, found in ipairs(self.client:list(self.prefix .. "/groups/")) do list[i] = json.decode(found.value) end
  table.sort(list, function(a, b) return a.since < b.since end)
  return list
end

--- Has etcd learn how runs ended that this machine could not tell it, because it was away.
local function catch_up(self, list)
  local here
  for i, record in ipairs(list) do
    if not record.finished then
      here = here or self.files:by_id()
      local mine = here[record.id]
      if mine and mine.finished then
        list[i] = mine
        pcall(self.client.put, self.client, run_key(self, mine.id), json.encode(mine), { guard = self.held })
      end
    end
  end
  return list
end

--- All runs of the team, oldest first.
---@async
---@return table[]
function EtcdState:runs()
  local list = {}
  for _, found in ipairs(self.client:list(self.prefix .. "/runs/")) do
    local ok, record = pcall(json.decode, found.value)
    if ok then list[#list + 1] = record end
  end
  return catch_up(self, list)
end

--- Whether a run is known, and has ended.
---@async
---@param id string
---@return boolean
function EtcdState:is_over(id)
  local text = self.client:get(run_key(self, id))
  local ok, record = pcall(json.decode, text or "")
  return ok and record.finished ~= nil
end

--- The last successful run: what serves now came from it.
---@async
---@return table?
function EtcdState:last_success()
  return files.last_success(self:runs())
end

--- Writes one chunk of a journal. Chunks count from 1; writing one again is fine when it is the same.
---@async
---@param id string
---@param n integer
---@param text string  at most 1 MiB
function EtcdState:append_journal(id, n, text)
  local key = ("%s%08d"):format(journal_prefix(self, id), n)
  local written, present = self.client:swap(key, text, { revision = "0", guard = self.held })
  if written then return end
  if present then
    errors.raise("etcd", ("chunk %d of the journal of run %s is in etcd with other content: another controller works on this run; "
      .. "stop here, and look at `deployrt status`"):format(n, id))
  end
  refuse_fenced(self, ("chunk %d of the journal of run %s"):format(n, id))
end

--- The journal of a run as far as it is in etcd, and the number of its chunks. A chunk that is missing raises.
---@async
---@param id string
---@return string text
---@return integer chunks
function EtcdState:read_journal(id)
  local parts, prefix = {}, journal_prefix(self, id)
  for n, found in ipairs(self.client:list(prefix)) do
    if tonumber(found.key:sub(#prefix + 1)) ~= n then
      errors.raise("etcd", ("chunk %d of the journal of run %s is missing in etcd (next is %s): "
        .. "resume from the machine that began the run, or from a host's copy"):format(n, id, found.key))
    end
    parts[n] = found.value
  end
  return table.concat(parts), #parts
end

---@class deployrt.EtcdLockState: deployrt.LockState  `dead`: its process was one of this machine, and is gone
---@field life string    what tells its process from all others
---@field token string   of this very taking
---@field lease string   that it goes with
---@field left integer   seconds until then when no sign of life arrives
---@field over boolean   its run has ended

local function holder_of(text)
  local ok, holder = pcall(json.decode, text or "")
  if ok and type(holder) == "table" and holder.run then return holder end
  return text and { run = "?", epoch = 0, owner = "somebody", life = "", since = 0, token = "" }
end

--- Whether the run of a lock has ended, as far as etcd or this machine knows: one may have ended while etcd was away.
local function is_ended(self, id)
  return self:is_over(id) or self.files:is_over(id)
end

local function read_once(self)
  local text, _, lease = self.client:get(self.prefix .. "/lock")
  local holder = holder_of(text)
  if not holder then return nil end
  local left = lease and self.client:time_left(lease)
  holder.lease, holder.left, holder.age = lease, left or 0, life_time - (left or 0)
  holder.place, holder.host, holder.step, holder.since = "in etcd", "etcd", "", math.floor(holder.since)
  holder.dead, holder.over = life.is_gone(holder.life), is_ended(self, holder.run)
  return holder
end

--- Who holds the lock of the application; nil when nobody does, or its holder gave no sign of life.
---@async
---@return deployrt.EtcdLockState?
function EtcdState:read_lock()
  local holder = read_once(self)
  if holder and holder.dead then return read_once(self) end -- it may have let go and ended between the look at the lock and at its process
  return holder
end

--- Removes a lock; one that another controller has taken since stays.
---@async
---@param holder deployrt.EtcdLockState
function EtcdState:break_lock(holder)
  if holder.lease then self.client:revoke(holder.lease) else self.client:delete(self.prefix .. "/lock") end
end

---@class deployrt.EtcdLock
---@field state deployrt.EtcdState
---@field lease string
---@field value string
---@field options table
local EtcdLock = {}
EtcdLock.__index = EtcdLock

local function refuse_locked(self, holder)
  local left = (self:read_lock() or holder).left or life_time
  local what = life.is_gone(holder.life) and "and its controller is dead: finish it with `deployrt resume`, or roll it back with `deployrt abort`"
    or ("wait for it, or see `deployrt status`; if its controller is dead, the lock goes by itself within %ds"):format(left)
  errors.raise("locked", ("run %s of %s (epoch %d), begun %s, holds the lock in etcd: %s"):format(holder.run, holder.owner, holder.epoch,
    os.date("%Y-%m-%d %H:%M:%S", math.floor(holder.since)), what), { lock = holder })
end

--- Whether a holder may be robbed: by a later life of its run; by anybody when its run has ended and its process is gone.
local function is_free_of(self, holder, options)
  if holder.run == options.run and holder.epoch < options.epoch then return true end
  return life.is_gone(holder.life) and is_ended(self, holder.run)
end

--- Writes the lock where nobody holds it who keeps it.
local function seize(self, key, value, options, lease)
  local text, revision = self.client:get(key)
  for _ = 1, 10 do
    local holder = holder_of(text)
    if holder and not is_free_of(self, holder, options) then refuse_locked(self, holder) end
    local written
    written, text, revision = self.client:swap(key, value, { revision = revision, lease = lease })
    if written then return end
  end
  errors.raise("etcd", ("the lock %s changed hands 10 times while it was asked for: try again"):format(key))
end

--- What took the lock away, nil while it is held; and when the lease ends if no sign of life arrives, nil when this
--- task was canceled.
local function look(self, good_until)
  local client, key = self.state.client, self.state.prefix .. "/lock"
  local asked = core.now()
  local ok, alive = pcall(client.keep_alive, client, self.lease, math.max(0.1, good_until - asked))
  if not ok and alive.code == "canceled" then return nil, nil end
  if not ok and core.now() < good_until then return nil, good_until end
  if not ok then
    return errors.new("locked", ("the lock in etcd could not be kept alive for %ds, so another run may take it: this controller must "
      .. "stop; see `etcdctl endpoint health`"):format(self.options.ttl), { detail = errors.wrap(alive).message })
  end
  local found, value = pcall(client.get, client, key, math.max(0.1, good_until - core.now()))
  if not found and value.code == "canceled" then return nil, nil end
  if found and value ~= self.value then
    local holder = holder_of(value)
    return errors.new("locked", holder and ("run %s of %s (epoch %d) took the lock in etcd over: this controller must stop"):format(
      holder.run, holder.owner, holder.epoch) or "the lock in etcd is gone: this controller must stop; see `deployrt status`")
  end
  if not alive then return errors.new("locked", "the lease of the lock in etcd ran out: this controller must stop; see `deployrt status`") end
  return nil, asked + self.options.ttl
end

local function keep(self, good_until)
  local lost
  while good_until and core.sleep(math.max(0, math.min(self.options.beat, good_until - core.now()))) do
    if not self.active then return end
    lost, good_until = look(self, good_until)
  end
  local told = self.active and lost
  self.active = false
  if told and self.options.lost then self.options.lost(lost) end
end

--- Takes the lock of the application, and keeps it until it is released. While it is held, and after it was lost,
--- records and journals are written only if etcd still shows this very lock. A later epoch of the same run takes it
--- over from an earlier one; nobody else does while the holder lives. It is kept by a child of the calling task: when
--- that raises or is canceled, keeping ends, and the lock goes with its lease.
---@async
---@param options {run: string, epoch: integer, since?: number, owner: string, life: string, lost?: fun(err: deployrt.Error), ttl?: integer, beat?: number}  since: when the run began, default now; lost: called once, from a task; ttl, beat: seconds, default 30 and 5
---@return deployrt.EtcdLock
--- Raises deployrt.Error: "locked" (its field lock: the holder), "etcd".
function EtcdState:take_lock(options)
  local settings = setmetatable({ ttl = options.ttl or life_time, beat = options.beat or beat_every }, { __index = options })
  local key, asked = self.prefix .. "/lock", core.now()
  local lease = self.client:lease(settings.ttl)
  local value = json.encode {
    run = options.run, epoch = options.epoch, owner = options.owner, life = options.life, since = options.since or core.time(), token = etcd.token(),
  }
  local ok, err = pcall(seize, self, key, value, options, lease)
  if not ok then
    pcall(self.client.revoke, self.client, lease)
    error(err, 0)
  end
  self.held = { key = key, value = value }
  local held = setmetatable({ state = self, lease = lease, value = value, options = settings, active = true }, EtcdLock)
  held.task = core.spawn(keep, held, asked + settings.ttl)
  return held
end

--- Whether it is held, as far as is known here.
---@return boolean
function EtcdLock:is_held()
  return self.active
end

--- Gives no more signs of life: the lock goes with its lease.
---@async
function EtcdLock:stop()
  self.active = false
  self.task:cancel()
  self.task:wait()
end

--- Gives the lock back; nothing happens to one that another controller took over. When etcd is away, it goes with its lease.
---@async
function EtcdLock:release()
  self:stop()
  pcall(self.state.client.revoke, self.state.client, self.lease, release_time)
  if self.state.held and self.state.held.value == self.value then self.state.held = nil end
end

return state
