-- turns.lua -- In which order operations hand their results to a script: as they come, or as a journal has them.
-- A script's tasks share what they know, so the order matters: one result is handed out at a time, and the next one only
-- when all that it set going has come to rest. That is why a replay takes the same way as the run did.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Turns
---@field live boolean     whether the journal is exhausted
---@field failed? deployrt.Error  why the replay stopped
---@field unwinding boolean  whether the journal tells of a rollback that had begun
local Turns = {}
Turns.__index = Turns

local turns = {}

--- The strategy's own operations take turns; what is undone or repaired does not share what tasks know.
local function takes_turns(id)
  return id:sub(1, 1) == "/"
end

--- Whether an earlier life had started an instance again, before it went on.
local function is_mending(record)
  return record.ok and record.op == "instance.restore" and record.id:find("^repair") ~= nil
end

--- Sorts the records of an earlier life of the run.
local function index(self, records)
  for _, record in ipairs(records) do
    self.unwinding = self.unwinding or record.type == "ROLLBACK"
    if record.type == "INTENT" or record.type == "WAIT" then
      self.intents[record.id] = record
    elseif record.type == "DONE" then
      self.dones[record.id] = record
      if takes_turns(record.id) or is_mending(record) then self.order[#self.order + 1] = record end
    elseif record.type == "PROCESS" then
      self.processes[record.id] = record.process
    elseif record.type == "SIGNAL" then
      self.order[#self.order + 1] = record
    end
  end
end

--- The turns of a run. With records of an earlier life it replays them first.
---@param records? table[]  of the journal
---@return deployrt.Turns
function turns.new(records)
  local self = setmetatable({
    intents = {}, dones = {}, processes = {}, order = {}, at = 1, waiting = {}, queue = {}, first = 1, last = 0, live = records == nil,
    arrived = core.event(), going_live = core.event(),
  }, Turns)
  index(self, records or {})
  return self
end

--- What the journal has of an operation.
---@param id string
---@return table? intent
---@return table? done
function Turns:past(id)
  return self.intents[id], self.dones[id]
end

--- Which process an operation was, in an earlier life of the run.
---@param id string
---@return string? process  as from life.of(); nil: it is not known to have begun
function Turns:process(id)
  return self.processes[id]
end

--- When that was done which an operation undoes; nil: it undoes nothing.
local function origin(self, id)
  local intent = self.intents[id:match("^undo(.*)") or false]
  return intent and intent.n
end

--- Whether a later operation of the same name did what concerns the same thing: one that failed is not to be tried again then. On
--- the way back that is one which undoes what was done before: another one may have failed, too, and was only tried again later.
---@param id string
---@param op string
---@param concerns fun(args: table): boolean
---@return boolean
function Turns:is_overtaken(id, op, concerns)
  local this, from = self.dones[id], origin(self, id)
  for other, done in pairs(self.dones) do
    local intent, its = self.intents[other], origin(self, other)
    local did = done.op == op and done.ok and not (done.result and done.result.skipped)
    local comes_first = from and its and its > from
    if did and done.n > this.n and not comes_first and intent and concerns(intent.args) then return true end
  end
  return false
end

--- Operations that were begun, and of which nobody knows whether they were done.
---@return table[]
function Turns:in_doubt()
  local list = {}
  for id, intent in pairs(self.intents) do
    if not self.dones[id] and intent.type == "INTENT" then list[#list + 1] = intent end
  end
  return list
end

local function raise_failure(self)
  if self.failed then error(self.failed, 0) end
end

--- Stops the replay: nobody gets a result any more.
---@param err deployrt.Error
function Turns:fail(err)
  self.failed = self.failed or err
  for _, event in pairs(self.waiting) do event:set() end
  self.waiting = {}
  self.going_live:set()
  self.arrived:set()
end

--- The error of a replay that takes another way than the run did.
---@param message string  the first difference
---@return deployrt.Error
function turns.mismatch(message)
  return errors.new("mismatch", message .. "; nothing was changed. Undo from the journal alone with `deployrt abort --force`")
end

--- Waits until it is this operation's turn.
---@async
---@param id string
function Turns:await(id)
  if not takes_turns(id) then return end
  raise_failure(self)
  local event = core.event()
  if self.dones[id] then
    self.waiting[id] = event
  else
    self.last = self.last + 1
    self.queue[self.last] = event
  end
  self.arrived:set()
  event:wait()
  raise_failure(self)
end

--- Waits until the journal is exhausted: what comes now has not happened before.
---@async
---@return boolean waited
function Turns:await_live()
  local waits = not self.live
  if waits then errors.check(self.going_live:wait()) end -- set for good
  raise_failure(self)
  return waits
end

local function settle()
  core.sleep(0)
end

local patience = 5 -- seconds: a task may have to wait for another that is being canceled

--- The event of the task that asks for an operation; nil when none does so in time.
local function await_arrival(self, id)
  local deadline = core.now() + patience
  while not self.waiting[id] and not self.failed and not self.over and core.now() < deadline do
    self.arrived:clear()
    self.arrived:wait(math.max(0, deadline - core.now()))
  end
  return self.waiting[id]
end

--- Hands out the next recorded result.
local function replay_one(self, hooks)
  local record = self.order[self.at]
  self.at = self.at + 1
  if record.type == "SIGNAL" then return hooks.signal(record) end
  if is_mending(record) then return hooks.mended(self.intents[record.id], record) end
  local event = await_arrival(self, record.id)
  if self.failed or self.over then return end
  if not event then
    return self:fail(turns.mismatch(("the journal goes on with %s (%s), and the strategy does not ask for it"):format(record.id, record.op or "?")))
  end
  self.waiting[record.id] = nil
  event:set()
end

--- Whether somebody waits for a turn that is not in the journal.
---@return boolean
function Turns:is_busy()
  return self.first <= self.last
end

--- Ends serve().
function Turns:close()
  self.over = true
  self.arrived:set()
end

--- The task that hands out turns, until close().
---@async
---@param hooks {signal: fun(record: table), mended: fun(intent: table, done: table), live: fun()}  of a journal: what else
---  than results came then; live: it is exhausted; may wait, and raise
function Turns:serve(hooks)
  while not (self.failed or self.over) do
    settle()
    if self.order[self.at] then
      replay_one(self, hooks)
    elseif not self.live then
      self.live = true -- for the hook; everybody else still waits
      local ok, err = pcall(hooks.live)
      if not ok then return self:fail(errors.wrap(err)) end
      self.going_live:set()
    elseif self:is_busy() then
      local event = self.queue[self.first]
      self.queue[self.first], self.first = nil, self.first + 1
      event:set()
    elseif not self.over then
      self.arrived:clear()
      self.arrived:wait()
    end
  end
end

--- Turns for looking around outside any run: at once, and nothing has a past.
turns.none = { live = true, past = function() end, await = function() end, await_live = function() end, fail = function() end }

return turns
