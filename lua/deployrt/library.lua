-- library.lua -- Shared libraries of strategies: what app.yml requires, checked against deployrt.lock before any of it is used.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local read = require("deployrt.file").read
local lock = require "deployrt.library.lock"
local permission = require "deployrt.permission"
local version = require "deployrt.library.version"

local library = {}

---@class deployrt.Requirement   an entry of `require` in app.yml
---@field name string
---@field rock? string
---@field version? string   a constraint
---@field server? string
---@field git? string
---@field ref? string
---@field path? string
---@field allow? string[]   what its code may do

---@class deployrt.Libraries
---@field dir string
---@field list deployrt.Requirement[]
local Libraries = {}
Libraries.__index = Libraries

local folder = ".deployrt/lib"

--- Where the files of a library are, below the directory of app.yml.
---@param name? string  nil: of all
---@return string
function library.folder(name)
  return name and folder .. "/" .. name or folder
end

--- Whether what is locked is what app.yml asks for.
---@param wanted deployrt.Requirement
---@param locked? deployrt.LockedLibrary
---@return boolean
function library.is_wanted(wanted, locked)
  if not locked then return false end
  for _, key in ipairs { "rock", "server", "git", "ref", "path" } do
    if wanted[key] ~= locked[key] then return false end
  end
  return not wanted.rock or version.fits(locked.version or "", wanted.version)
end

--- Paths of all files below a directory, sorted, and of what is neither a file nor a directory: links and pipes, which no
--- library has, and which are not followed.
local function files_below(directory, prefix, files, others)
  local real = core.fs.realpath(directory)
  for _, name in ipairs(core.fs.list(directory) or {}) do
    local path = directory .. "/" .. name
    local facts = core.fs.realpath(path) == real .. "/" .. name and core.fs.stat(path)
    if facts and facts.type == "directory" then
      files_below(path, prefix .. name .. "/", files, others)
    else
      table.insert(facts and facts.type == "file" and files or others, prefix .. name)
    end
  end
  return files, others
end

--- SHA-256 of every file of a library's directory, by path; of what is no file, or cannot be read, something that is none.
---@param directory string
---@return table<string, string>
function library.sums(directory)
  local sums = {}
  local files, others = files_below(directory, "", {}, {})
  for _, path in ipairs(files) do
    local text = read(directory .. "/" .. path)
    sums[path] = text and core.sha256(text) or "none"
  end
  for _, path in ipairs(others) do sums[path] = "none" end
  return sums
end

--- What is wrong with the files of a library: the first that is missing, changed or added; nil when nothing is.
---@param dir string
---@param locked deployrt.LockedLibrary
---@return string?
function library.difference(dir, locked)
  local place = library.folder(locked.name)
  local sums = library.sums(dir .. "/" .. place)
  local names = {}
  for name in pairs(locked.files) do names[#names + 1] = name end
  for name in pairs(sums) do names[#names + 1] = not locked.files[name] and name or nil end
  table.sort(names)
  for _, name in ipairs(names) do
    if not sums[name] then return ("%s/%s is missing"):format(place, name) end
    if not locked.files[name] then return ("%s/%s is not in deployrt.lock"):format(place, name) end
    if sums[name] ~= locked.files[name] then return ("%s/%s is not what deployrt.lock says"):format(place, name) end
  end
end

local function verify(dir, wanted, locked, file)
  if not locked then
    errors.raise("library", ("the library %s is not in deployrt.lock: run `deployrt lib install %s`, and keep the lock with %s"):format(wanted.name, file, file))
  end
  if not library.is_wanted(wanted, locked) then
    errors.raise("library", ("deployrt.lock has another %s (%s) than %s asks for: run `deployrt lib update %s %s`"):format(
      wanted.name, locked.version or locked.ref or locked.commit, file, file, wanted.name))
  end
  local problem = library.difference(dir, locked)
  if not problem then return end
  local missing = not core.fs.stat(dir .. "/" .. library.folder(wanted.name))
  errors.raise("library", missing and ("the library %s is not installed here: run `deployrt lib install %s`"):format(wanted.name, file)
    or ("%s: nothing of the library %s is run. If nobody should have changed it, `deployrt lib install %s` brings the locked one back"):format(
      problem, wanted.name, file))
end

local function by_name(list)
  local map = {}
  for _, each in ipairs(list) do map[each.name] = each end
  return map
end

--- The libraries of an application, each as deployrt.lock says.
---@param app {dir: string, file: string, require?: deployrt.Requirement[]}
---@return deployrt.Libraries
--- Raises deployrt.Error: "library" when one is missing, or other code than the lock says.
function library.open(app)
  local list = app.require or {}
  local locked = #list > 0 and by_name(lock.read(app.dir)) or {}
  for _, wanted in ipairs(list) do verify(app.dir, wanted, locked[wanted.name], app.file) end
  return setmetatable({ dir = app.dir, list = list }, Libraries)
end

--- Raises when a file is of a library whose code is not as the lock of its directory says.
---@param dir string   of app.yml
---@param path string
--- Raises deployrt.Error: "library".
function library.check_file(dir, path)
  local name = library.of_path(path, dir)
  if not name then return end
  local locked = by_name(lock.read(dir))[name]
  verify(dir, locked or { name = name }, locked, "app.yml")
end

--- The libraries that lie in a directory, where no app.yml says which.
---@param dir string
---@return deployrt.Libraries
function library.here(dir)
  return library.open { dir = dir, file = "APP.yml", require = lock.read(dir) }
end

--- The libraries of a run that keeps its scripts: nothing is looked up, only what they may do is known.
---@param app {dir: string, require?: deployrt.Requirement[]}
---@return deployrt.Libraries
function library.kept(app)
  return setmetatable({ dir = app.dir, list = app.require or {} }, Libraries)
end

--- A file of a library: the path shown to people is relative to app.yml.
local function source(self, name, path)
  local place = library.folder(name) .. "/" .. path
  local text = read(self.dir .. "/" .. place)
  return text and { text = text, path = place, library = name }
end

--- The script of a strategy: `NAME.lua` in a library, at its top or in one of its directories.
---@param name string
---@return {text: string, path: string, library: string}?
--- Raises deployrt.Error: "library" when several libraries have one.
function Libraries:strategy(name)
  local found, places = nil, {}
  for _, each in ipairs(self.list) do
    for _, path in ipairs((files_below(self.dir .. "/" .. library.folder(each.name), "", {}, {}))) do
      if path == name .. ".lua" or path:match("^[^/]+/([^/]+)%.lua$") == name then
        found = source(self, each.name, path)
        places[#places + 1] = found.path
      end
    end
  end
  if #places < 2 then return found end
  table.sort(places)
  errors.raise("library", ("several libraries have a strategy '%s': %s; name one by its path"):format(name, table.concat(places, ", ")))
end

--- A module: "acme.waves" is acme/waves.lua of the library that asks, or of another one.
---@param name string
---@param from? string  the library that asks
---@return {text: string, path: string, library: string}?
function Libraries:module(name, from)
  local path = name:gsub("%.", "/") .. ".lua"
  local order = {}
  for _, each in ipairs(self.list) do table.insert(order, each.name == from and 1 or #order + 1, each.name) end
  for _, each in ipairs(order) do
    local found = source(self, each, path)
    if found then return found end
  end
end

--- A path without empty parts, "." and "..".
local function tidy(path)
  local parts = {}
  for part in path:gmatch("[^/]+") do
    if part == ".." and #parts > 0 and parts[#parts] ~= ".." then
      parts[#parts] = nil
    elseif part ~= "." then
      parts[#parts + 1] = part
    end
  end
  return "/" .. table.concat(parts, "/")
end

local inside = "/" .. folder:gsub("%p", "%%%0") .. "/([^/]+)/"

--- The library that a file belongs to, however its path is written and whatever links it goes through.
---@param path string  as a user gives it: ".deployrt/lib/acme/waves.lua"
---@param dir? string  where a relative path begins; default: the working directory
---@return string? name
function library.of_path(path, dir)
  if dir and path:sub(1, 1) ~= "/" then path = dir .. "/" .. path end
  return (core.fs.realpath(path) or ""):match(inside) or tidy(path):match(inside)
end

--- What the code of a library may do; nil: everything, for what is no library's.
---@param name? string
---@return deployrt.Grant?
function Libraries:grant(name)
  if not name then return nil end
  local allow
  for _, each in ipairs(self.list) do allow = each.name == name and each.allow or allow end
  return permission.grant(name, allow or permission.default)
end

return library
