-- library/rock.lua -- What a rockspec says of its rock. LuaRocks builds nothing of it: the Lua files that it names are copied, and one
-- that asks for more is refused.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local sandbox = require "deployrt.sandbox"

local rock = {}

local function set(text)
  local out = {}
  for word in text:gmatch("[%w_]+") do out[word] = true end
  return out
end

-- What may stand in each table. Anything else changes what is copied or run, as `platforms` does, or is unknown to us.
local top = set "rockspec_format package version description supported_platforms source dependencies build test test_dependencies deploy"
local inner = {
  source = set "url tag branch dir file md5",
  build = set "type modules install copy_directories",
}
local kinds = set "builtin module none"
local protocols = { file = true, http = true, https = true, git = true, ["git+file"] = true, ["git+http"] = true, ["git+https"] = true, ["git+ssh"] = true }

local function refuse(wanted, problem, ...)
  errors.raise("library", ("the rock %s %s: a library of strategies is Lua only"):format(wanted.rock, problem:format(...)))
end

local function refuse_key(wanted, prefix, key)
  refuse(wanted, "has '%s%s' in its rockspec, which is not for one that only brings Lua files", prefix, tostring(key))
end

--- Refuses keys that are not known to be harmless.
local function check_keys(wanted, t, known, prefix)
  for key in pairs(t) do
    if not known[key] then refuse_key(wanted, prefix, key) end
  end
end

--- A table of the rockspec, or an empty one where it has none.
local function part(wanted, of, key, name)
  local value = of[key]
  if value ~= nil and type(value) ~= "table" then refuse(wanted, "has no table '%s' in its rockspec, but a %s", name or key, type(value)) end
  return value or {}
end

local function check_dependencies(wanted, list)
  for key, each in pairs(list) do
    if math.type(key) ~= "integer" then refuse_key(wanted, "dependencies.", key) end
    local name = tostring(each):match("^[^%s<>=~]+")
    if name ~= "lua" then refuse(wanted, "depends on '%s'; name that in app.yml's require too, and leave it out of the rockspec", tostring(name)) end
  end
end

--- A path below a directory, as the rockspec has it.
local function is_inside(path)
  return type(path) == "string" and path:find("^[^/%-]") and not ("/" .. path .. "/"):find("/../", 1, true) and not path:find("%c")
end

local function check_source(wanted, source)
  for _, key in ipairs { "tag", "branch", "dir", "file", "md5" } do
    if source[key] ~= nil and not is_inside(source[key]) then refuse(wanted, "has '%s' for its source.%s", tostring(source[key]), key) end
  end
end

--- Where the file of a module goes, as LuaRocks has it.
local function place_of(name, path)
  local file = name:gsub("%.", "/")
  return path:match("[^/]*$") == "init.lua" and not name:find("%.init$") and file .. "/init.lua" or file .. ".lua"
end

--- Adds modules to `files`: by their place, the path in the rock.
local function add_modules(wanted, files, modules)
  for name, path in pairs(modules) do
    if math.type(name) == "integer" and type(path) == "string" then name = path:match("([^/]*)%.lua$") end -- install.lua lists some without a name
    if type(path) ~= "string" or not path:find("%.lua$") then refuse(wanted, "has a module that is not Lua (%s)", tostring(name)) end
    if type(name) ~= "string" or not ("." .. name):find("^[%.%w_%-]+$") or ("." .. name .. "."):find("..", 1, true) or not is_inside(path) then
      refuse(wanted, "has a module '%s' in '%s', which is no place in it", tostring(name), path)
    end
    files[place_of(name, path)] = path
  end
end

---@class deployrt.Rock
---@field source table                 as its rockspec has it, checked
---@field files table<string, string>  by the place where a file is to go, its path in the rock
---@field whole boolean                it names none: all of them

--- Reads a rockspec.
---@async
---@param wanted deployrt.Requirement
---@param text string
---@return deployrt.Rock
--- Raises deployrt.Error: "library" where the rock would run programs or compile while it is installed, or needs others.
function rock.read(wanted, text)
  local spec = {}
  sandbox.run(text, wanted.rock .. ".rockspec", spec)
  local build, source = part(wanted, spec, "build"), part(wanted, spec, "source")
  local kind = build.type or "builtin"
  if not kinds[kind] then refuse(wanted, "builds with '%s'", tostring(kind)) end
  check_dependencies(wanted, part(wanted, spec, "dependencies"))
  check_keys(wanted, spec, top, "")
  check_keys(wanted, build, inner.build, "build.")
  check_keys(wanted, source, inner.source, "source.")
  check_source(wanted, source)
  local files = {}
  if kind ~= "none" then add_modules(wanted, files, part(wanted, build, "modules", "build.modules")) end
  add_modules(wanted, files, part(wanted, part(wanted, build, "install", "build.install"), "lua", "build.install.lua"))
  return { source = source, files = files, whole = kind ~= "none" and build.modules == nil }
end

--- What an archive of a source is called while LuaRocks has it: it unpacks one wherever the names inside lead, but no Lua file.
rock.as_fetched = "source.lua"

--- What the archive of a source is called; nil where it is no archive.
local function archive_name(wanted, source)
  if source.url:find("^git") then return nil end
  local name = (source.file or source.url):match("[^/]*$")
  if not is_inside(name) then refuse(wanted, "comes from '%s', which has no file's name", source.url) end
  return name
end

--- A rockspec that has nothing but the source. LuaRocks gets this one: it would evaluate the rock's own once more, and perhaps to
--- something else than what was checked. With "." for a directory it leaves no copy of it in the source, where a link may lead out.
---@param wanted deployrt.Requirement
---@param read deployrt.Rock
---@return string text
---@return string? archive  what the archive is called that it leaves as rock.as_fetched; nil: it leaves a directory, beside nothing
--- Raises deployrt.Error: "library" where the source is not to be had by what is known to run nothing of it.
function rock.source_only(wanted, read)
  local url, lines = read.source.url, {}
  if type(url) ~= "string" or not protocols[url:match("^(.-)://")] then
    refuse(wanted, "comes from '%s', and not by http, https, git or as a file", tostring(url))
  end
  local archive = archive_name(wanted, read.source)
  local source = setmetatable({ file = archive and rock.as_fetched, dir = "." }, { __index = read.source })
  for key in pairs(inner.source) do
    if source[key] then lines[#lines + 1] = ("%s = %q"):format(key, source[key]) end
  end
  return ('package = "library" version = "1-1" description = { license = "" } source = { %s } build = { type = "builtin", modules = {} }'):format(
    table.concat(lines, ", ")), archive
end

--- Refuses a rock with files that are not below its top.
---@param wanted deployrt.Requirement
---@param listed string  a name a line
--- Raises deployrt.Error: "library".
function rock.check_names(wanted, listed)
  for name in listed:gmatch("[^\n]+") do
    if not is_inside(name) then refuse(wanted, "has a file '%s', which is no place in it", name) end
  end
end

--- Refuses a rock with links: LuaRocks packs what they point to, and never one itself.
---@param wanted deployrt.Requirement
---@param listed string  what is neither a file nor a directory, a name a line
--- Raises deployrt.Error: "library".
function rock.check_links(wanted, listed)
  local name = listed:match("^rock/([^\n]*)")
  if name then refuse(wanted, "has a link '%s'", name) end
end

--- Refuses a built rock that has more than Lua.
---@param wanted deployrt.Requirement
---@param directory string
--- Raises deployrt.Error: "library".
function rock.check_built(wanted, directory)
  if core.fs.stat(directory .. "/lib") then refuse(wanted, "has compiled files, below lib") end
end

--- What lies in a rock beside its rockspec: its source.
---@param wanted deployrt.Requirement
---@param names string[]
---@return string
--- Raises deployrt.Error: "library".
function rock.source_name(wanted, names)
  local found = {}
  for _, name in ipairs(names) do
    if not name:find("%.rockspec$") then found[#found + 1] = name end
  end
  if #found == 1 then return found[1] end
  errors.raise("library", ("the rock %s has %d files and directories beside its rockspec: `luarocks pack` puts one there, which is its source"):format(
    wanted.rock, #found))
end

--- Where a path of a rock really is; nil where nothing is. Links are not followed.
local function real_path(wanted, directory, path)
  path = path:gsub("^%./+", ""):gsub("/+$", "")
  if path == "" then path = "." end
  local found = core.fs.realpath(directory .. "/" .. path)
  if found and path ~= "." and found ~= core.fs.realpath(directory) .. "/" .. path then
    refuse(wanted, "has a link where its rockspec names '%s'", path)
  end
  return found and path
end

--- The directory of a rock's source that its files are named from: what the rockspec says, what the source is called, or the only one.
---@param wanted deployrt.Requirement
---@param read deployrt.Rock
---@param directory string  where the source has been unpacked
---@param name string       of its archive or directory
---@return string
--- Raises deployrt.Error: "library" where it is not there, or a link.
function rock.top(wanted, read, directory, name)
  local called = name:find("%.lua$") and "." or name:gsub("%.[^.]+$", ""):gsub("%.tar$", "")
  local listed = core.fs.list(directory) or {}
  local found = real_path(wanted, directory, read.source.dir or called) or not read.source.dir
    and (real_path(wanted, directory, name) or #listed == 1 and real_path(wanted, directory, listed[1]))
  if found then return found end
  errors.raise("library", ("the source of the rock %s has no directory '%s': its rockspec says in source.dir which one it is"):format(
    wanted.rock, read.source.dir or called))
end

--- The files that a rock brings, where its source has been unpacked: pairs of a path there and its place.
---@param wanted deployrt.Requirement
---@param read deployrt.Rock
---@param directory string
---@return string[]
--- Raises deployrt.Error: "library" where one is missing, or a link.
function rock.files(wanted, read, directory)
  local list = {}
  for place, path in pairs(read.files) do
    local found = real_path(wanted, directory, path)
    if not found then errors.raise("library", ("the rock %s has no file '%s', which its rockspec names"):format(wanted.rock, path)) end
    table.move({ found, place }, 1, 2, #list + 1, list)
  end
  return list
end

return rock
