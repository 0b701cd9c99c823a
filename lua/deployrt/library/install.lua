-- library/install.lua -- Brings .deployrt/lib and deployrt.lock to what app.yml requires: all of it, or nothing.
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local fetch = require "deployrt.library.fetch"
local library = require "deployrt.library"
local life = require "deployrt.life"
local lock = require "deployrt.library.lock"

local install = {}

local function remove_tree(controller, path)
  controller:execute({ "rm", "-rf", "--", path }, { timeout = 60 })
end

--- What differs from the files that were locked under the same version.
local function check_same(wanted, locked, sums)
  for name, sum in pairs(sums) do
    if locked.files[name] ~= sum then
      errors.raise("library", ("%s %s is not what it was when it was locked: %s has changed. Look at it, and take it with `deployrt lib update`"):format(
        wanted.name, locked.version or locked.commit, name))
    end
  end
  for name in pairs(locked.files) do
    if not sums[name] then
      errors.raise("library", ("%s %s is not what it was when it was locked: %s is gone. Look at it, and take it with `deployrt lib update`"):format(
        wanted.name, locked.version or locked.commit, name))
    end
  end
end

--- Fetches one library into `to`; returns its part of the lock.
local function fetch_one(place, wanted, locked, to)
  local work = ("%s/source/%s"):format(place.part, wanted.name)
  errors.check(core.fs.mkdir(work))
  local job = { controller = place.controller, dir = place.dir, work = work }
  local taken = fetch.get(job, wanted, locked and (locked.version or locked.commit), to)
  remove_tree(place.controller, work)
  local sums = library.sums(to)
  if locked then check_same(wanted, locked, sums) end
  return { name = wanted.name, rock = wanted.rock, server = wanted.server, git = wanted.git, ref = wanted.ref, path = wanted.path,
    version = taken.version, commit = taken.commit, files = sums }
end

--- Puts a fetched directory into its place. What was there goes last.
local function put(place, name)
  local target, aside = ("%s/%s"):format(place.lib, name), ("%s/old/%s"):format(place.part, name)
  os.rename(target, aside)
  local ok, problem = os.rename(("%s/new/%s"):format(place.part, name), target)
  if ok then return end
  os.rename(aside, target)
  errors.raise("library", ("%s could not be put into its place: %s"):format(name, problem))
end

--- Libraries that app.yml requires no more.
local function remove_others(place, app)
  local known = {}
  for _, wanted in ipairs(app.require) do known[wanted.name] = true end
  for _, name in ipairs(core.fs.list(place.lib) or {}) do
    if not known[name] and not name:find("^%.") then remove_tree(place.controller, place.lib .. "/" .. name) end
  end
end

local prefix, patience = ".part-", 3600 -- seconds for a directory that does not say whose it is

--- Whether nobody works in what an installation left half done. Its name says whose it is, as life.of() does.
local function is_left(path, name)
  if life.is_gone((name:sub(#prefix + 1):gsub("%+", " "))) then return true end
  local facts = name:find("^%.part%-%d+$") and core.fs.stat(path)
  return facts and core.time() - facts.mtime > patience
end

local function remove_left(place)
  for _, name in ipairs(core.fs.list(place.lib) or {}) do
    local path = place.lib .. "/" .. name
    if name:sub(1, #prefix) == prefix and is_left(path, name) then remove_tree(place.controller, path) end
  end
end

local function open_place(app)
  local lib = app.dir .. "/" .. library.folder()
  local place = { dir = app.dir, lib = lib, part = ("%s/%s%s"):format(lib, prefix, (life.of():gsub(" ", "+"))),
    controller = connection.new({ name = "local" }, app.app) }
  remove_left(place)
  for _, path in ipairs { app.dir .. "/.deployrt", lib, place.part, place.part .. "/source", place.part .. "/new", place.part .. "/old" } do
    errors.check(core.fs.mkdir(path))
  end
  return place
end

---@class deployrt.LibraryChange
---@field name string
---@field before? string  version or commit
---@field now string
---@field fetched boolean

--- What is locked, by name. A lock that cannot be read is none to those who take the newest of everything.
local function locked_before(app, is_new)
  local ok, list = pcall(lock.read, app.dir)
  local before = {}
  for _, wanted in ipairs(app.require) do
    if not ok and not is_new(wanted) then error(list, 0) end
  end
  for _, each in ipairs(ok and list or {}) do before[each.name] = each end
  return before
end

local function bring(place, app, is_new, change)
  local before, list, fetched = locked_before(app, is_new), {}, {}
  for i, wanted in ipairs(app.require) do
    local locked = before[wanted.name]
    local keep = not is_new(wanted) and library.is_wanted(wanted, locked) and locked or nil
    local done = keep and not library.difference(app.dir, keep)
    list[i] = done and keep or fetch_one(place, wanted, keep, ("%s/new/%s"):format(place.part, wanted.name))
    if not done then fetched[#fetched + 1] = wanted.name end
    change { name = wanted.name, before = locked and (locked.version or locked.commit), now = list[i].version or list[i].commit, fetched = not done }
  end
  for _, name in ipairs(fetched) do put(place, name) end
  lock.write(app.dir, list)
  remove_others(place, app)
end

--- Installs what app.yml requires: what the lock has, where it fits, else the newest.
---@async
---@param app deployrt.App
---@param is_new fun(wanted: deployrt.Requirement): boolean  whether to take the newest in spite of the lock
---@param change fun(change: deployrt.LibraryChange)         told of each
--- Raises deployrt.Error: "library"; nothing was changed then.
function install.bring(app, is_new, change)
  local place = open_place(app)
  local closing <close> = setmetatable({}, { __close = function()
    remove_tree(place.controller, place.part)
    place.controller:close()
  end })
  bring(place, app, is_new, change)
end

return install
