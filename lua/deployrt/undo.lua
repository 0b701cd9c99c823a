-- undo.lua -- A tree that mirrors steps and `each`: what would put the world back, and the unwinding of it.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Scope
---@field path string       along the task's path: "/1/2"
---@field parallel boolean  its children ran side by side, and are undone side by side
---@field began? integer     of a child that ran beside others: its place among all of their beginnings and ends
---@field ended? integer
---@field entries table[]   operations that undo, and scopes, in the order in which they came
local Scope = {}
Scope.__index = Scope

local undo = {}

--- The root of a run's tree, or of what one compensation does.
---@param path? string
---@return deployrt.Scope
function undo.root(path)
  return setmetatable({ path = path or "", entries = {}, children = 0, operations = 0 }, Scope)
end

--- A new scope below this one.
---@param parallel? boolean
---@param label? string
---@return deployrt.Scope
function Scope:child(parallel, label)
  self.children = self.children + 1
  local child = setmetatable({
    path = self.path .. "/" .. self.children, parent = self, parallel = parallel or false, label = label,
    entries = {}, children = 0, operations = 0,
  }, Scope)
  self.entries[#self.entries + 1] = child
  return child
end

--- The number of the next operation: "/1/2#7".
function Scope:next_id()
  self.operations = self.operations + 1
  return ("%s#%d"):format(self.path == "" and "/" or self.path, self.operations)
end

--- Registers a compensation: a function that puts back one thing.
---@param compensation {label: string, run: fun()}
function Scope:push(compensation)
  self.entries[#self.entries + 1] = compensation
end

--- Takes a compensation back, for an effect that is known not to have happened.
function Scope:remove(compensation)
  for i = #self.entries, 1, -1 do
    if self.entries[i] == compensation then table.remove(self.entries, i) end
  end
end

local function flatten(entries, list)
  for _, entry in ipairs(entries) do
    if getmetatable(entry) == Scope then flatten(entry.entries, list) else list[#list + 1] = entry end
  end
end

--- What a commit here concerns: for this scope and each above it, what it holds but for the one below.
---@return fun(): deployrt.Scope?, table[], deployrt.Scope?  scope, its other entries, the scope below
local function upwards(self)
  local scope, below = self, nil
  return function()
    local here, rest, under = scope, {}, below
    for _, entry in ipairs(here and here.entries or {}) do
      if entry ~= under then rest[#rest + 1] = entry end
    end
    below, scope = here, here and here.parent
    return here, rest, under
  end
end

--- Forgets what was done so far: in this scope, and before it above. What runs beside it is still to be undone.
---@return table[] forgotten  compensations
function Scope:commit()
  local forgotten = {}
  for scope, rest, below in upwards(self) do
    if not scope.parallel then
      local before = {}
      flatten(rest, before)
      table.move(forgotten, 1, #forgotten, #before + 1, before)
      forgotten, scope.entries = before, { below }
    end
  end
  return forgotten
end

--- What runs beside this scope, as paths: what is below `all`, and not below `but`.
---@return {all: string, but: string}[]
function Scope:beside()
  local list = {}
  for scope, _, below in upwards(self) do
    if scope.parallel then list[#list + 1] = { all = scope.path, but = below and below.path or scope.path } end
  end
  return list
end

--- Whether others run beside this scope, or may.
---@return boolean
function Scope:is_beside_others()
  local scope = self
  while scope and not scope.parallel do scope = scope.parent end
  return scope ~= nil
end

--- Whether this scope or one above it was given up because a sibling failed.
function Scope:is_abandoned()
  local scope = self
  while scope do
    if scope.abandoned then return scope.abandoned end
    scope = scope.parent
  end
end

--- A child that runs beside others begins, or ends. Who began after another had ended may build on what that one did.
---@param what "began"|"ended"
function Scope:mark(what)
  self.parent.marks = (self.parent.marks or 0) + 1
  self[what] = self.parent.marks
end

--- Children that did something, the last to begin first, each with how many before it in this order began after it had ended.
local function latest_first(children)
  local order, later = {}, {}
  for _, child in ipairs(children) do
    if #child.entries > 0 then order[#order + 1] = child end
  end
  table.sort(order, function(a, b) return a.began > b.began end)
  for i, child in ipairs(order) do
    local count = 0
    while child.ended and order[count + 1].began > child.ended do count = count + 1 end
    later[i] = count
  end
  return order, later
end

--- Undoes children side by side where they ran so, and those that began after another had ended before that one.
local function unwind_parallel(scope, run, failures)
  local order, later = latest_first(scope.entries)
  local tasks, done, first, advanced = {}, {}, 0, core.event() -- first: so many at the beginning of the order are undone
  for i, child in ipairs(order) do
    tasks[i] = core.spawn(function()
      while first < later[i] do advanced:wait() end
      undo.unwind(child, run, failures)
      done[i] = true
      while done[first + 1] do first = first + 1 end
      advanced:set()
      advanced:clear()
    end)
  end
  for _, task in ipairs(tasks) do task:wait() end
end

--- Undoes a scope: in reverse, side by side where it ran so. Goes on past failures and collects them.
---@async
---@param scope deployrt.Scope
---@param run fun(compensation: table)  performs one compensation, raises when it fails
---@param failures table[]              {label, host, error, entry} of each that failed
function undo.unwind(scope, run, failures)
  if scope.parallel then return unwind_parallel(scope, run, failures) end
  while #scope.entries > 0 do
    local entry = table.remove(scope.entries)
    if getmetatable(entry) == Scope then
      undo.unwind(entry, run, failures)
    else
      local ok, err = pcall(run, entry)
      if not ok then failures[#failures + 1] = { label = entry.label, host = entry.host, error = errors.wrap(err), entry = entry } end
    end
  end
end

return undo
