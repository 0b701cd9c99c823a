-- library/lock.lua -- deployrt.lock: which libraries an application uses, and the SHA-256 of every file of theirs.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local read = require("deployrt.file").read

local lock = {}

---@class deployrt.LockedLibrary
---@field name string
---@field rock? string       of LuaRocks
---@field server? string
---@field version? string    of the rock that was taken
---@field git? string        else: the repository
---@field ref? string        what was asked for
---@field path? string
---@field commit? string     what it was then
---@field files table<string, string>  SHA-256 by path below the library's directory

local format = 1
local keys = { "name", "rock", "server", "version", "git", "ref", "path", "commit" }
local heading = "# Written by `deployrt lib`; keep it with app.yml. A run refuses shared code that is not as this says.\n"

---@param dir string  of app.yml
---@return string
function lock.path(dir)
  return dir .. "/deployrt.lock"
end

local function quoted(text)
  return '"' .. text:gsub('[%c"\\]', function(sign) return ("\\x%02x"):format(sign:byte()) end) .. '"'
end

local function lines_of(library)
  local lines = {}
  for _, key in ipairs(keys) do
    if library[key] then lines[#lines + 1] = ("    %s: %s"):format(key, quoted(library[key])) end
  end
  lines[1] = lines[1]:gsub("^ +", "  - ")
  lines[#lines + 1] = "    files:"
  local names = {}
  for name in pairs(library.files) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do lines[#lines + 1] = ("      %s: %s"):format(quoted(name), quoted(library.files[name])) end
  return table.concat(lines, "\n") .. "\n"
end

--- Writes it, sorted, so that two of the same are the same.
---@param dir string
---@param libraries deployrt.LockedLibrary[]
function lock.write(dir, libraries)
  table.sort(libraries, function(a, b) return a.name < b.name end)
  local parts = { heading, ("lock: %d\nlibraries:\n"):format(format) }
  for _, library in ipairs(libraries) do parts[#parts + 1] = lines_of(library) end
  errors.check(core.fs.write(lock.path(dir), table.concat(parts), tonumber("644", 8)))
end

local function is_library(library)
  if type(library) ~= "table" or type(library.name) ~= "string" or not library.name:find("^%w[%w._-]*$") or type(library.files) ~= "table" then return false end
  for _, key in ipairs(keys) do
    if library[key] ~= nil and type(library[key]) ~= "string" then return false end
  end
  for name, sum in pairs(library.files) do
    if type(name) ~= "string" or type(sum) ~= "string" then return false end
  end
  return true
end

--- The libraries that it names; none when there is no such file, or an empty one.
---@param dir string
---@return deployrt.LockedLibrary[]
--- Raises deployrt.Error: "library" when it cannot be read.
function lock.read(dir)
  local path = lock.path(dir)
  local tree, problem = core.yaml.parse(read(path) or "", path)
  if tree == core.yaml.null then return {} end
  local function damaged(why)
    errors.raise("library", ("%s is damaged%s: bring back what it was, or have `deployrt lib update` write it anew"):format(path, why))
  end
  if not tree then damaged(" (" .. problem.message .. ")") end
  if type(tree) ~= "table" then damaged "" end
  if tree.lock ~= format then
    errors.raise("library", ("%s is of another format (%s) than this deployrt writes (%d): use a newer deployrt, or `deployrt lib update`"):format(
      path, tostring(tree.lock), format))
  end
  local libraries = type(tree.libraries) == "table" and tree.libraries or {}
  for _, library in ipairs(libraries) do
    if not is_library(library) then damaged "" end
  end
  return libraries
end

return lock
