-- archive.lua -- The release on the controller: a directory or a tar archive, its content's hash, its bytes as a stream.
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Archive
---@field path string
---@field place string  of app.yml that names it
---@field sha256 string
---@field filter string   command that decompresses, or ""
local Archive = {}
Archive.__index = Archive

local archive = {}

-- The same tree gives the same bytes: sorted names, no times, no owners.
local pack = { "tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu", "-cf", "-", "-C" }

local magic = {
  { "\x1f\x8b", "gzip -dc" }, { "BZh", "bzip2 -dc" }, { "\xfd7zXZ", "xz -dc" }, { "\x28\xb5\x2f\xfd", "zstd -dc" },
}

--- What is wrong with it is wrong with app.yml, where it is named.
local function refuse(self, code, message, fields)
  errors.raise(code, ("%s: release.path: %s"):format(self.place, message), fields)
end

local function filter_of(self)
  local file, err = io.open(self.path, "rb")
  if not file then refuse(self, "release", err .. ": have this user read it") end
  local head = file:read(8) or ""
  file:close()
  for _, entry in ipairs(magic) do
    if head:sub(1, #entry[1]) == entry[1] then return entry[2] end
  end
  return ""
end

--- Where the bytes come from, for core.pipe.
function Archive:source()
  if not self.is_directory then return { file = self.path } end
  local words = table.move(pack, 1, #pack, 1, {})
  words[#words + 1], words[#words + 2] = self.path, "."
  return { link = errors.check(self.controller:link()), command = words }
end

local function leaves(path)
  return path:sub(1, 1) == "/" or ("/" .. path .. "/"):find("/../", 1, true) ~= nil
end

--- What a line of `tar -tv` lists: a name and, of a symbolic link, where that leads.
local function entry_of(line)
  local listed = line:match("%d%d%d%d%-%d%d%-%d%d %d%d:%d%d:?%d* (.*)$") or line
  local name, target = listed:match("^(.-) %-> (.*)$")
  if line:sub(1, 1) == "l" and name then return name, target end
  return listed
end

--- The first directory of a path that is one of some links.
local function link_above(name, links)
  if not next(links) then return nil end
  for at in name:gmatch("()/") do
    if links[name:sub(1, at - 1)] then return name:sub(1, at - 1) end
  end
end

local end_mark = "\nblock %d+: %*%* Block of NULs %*%*\n$" -- what tar says where it finds the end of an archive, and not only that of the file

--- What GNU tar lists, an entry a line, behind its block, in words that no language changes. It has no complaint about an archive
--- that was cut off between two of them.
local function list_entries(self)
  local result = self.controller:execute({ "tar", "-tvRf", self.path }, { timeout = 600, env = { LC_ALL = "C" } })
  if result.status ~= 0 then
    refuse(self, "archive", self.path .. " is not a readable tar archive; pack it again", { detail = result.stderr:sub(1, 500) })
  end
  local first = ("\n" .. result.stdout):find(end_mark)
  if not first then
    refuse(self, "archive", self.path .. " has no end: it was cut off between two of its files, as by a full disk or a copy that did not finish; pack or copy it again")
  end
  return result.stdout:sub(1, first - 1)
end

--- Refuses what would be unpacked outside of its directory, also through a link of its own, and what cannot be read.
local function check_names(self)
  local links = {} -- that lead out of it
  for line in list_entries(self):gmatch("block %d+: ([^\n]+)") do
    local name, target = entry_of(line)
    local plain = name:gsub("^%./", ""):gsub("/$", "")
    local link = link_above(plain, links)
    local why = name:sub(1, 1) == "/" and "an absolute path" or leaves(name) and "a path that leaves it"
      or link and ("a path through its own link %s to %s"):format(link, links[link])
    if why then refuse(self, "archive", ("%s contains %s: %s; pack it again without"):format(self.path, why, name)) end
    links[plain] = target and leaves(target) and target or nil
  end
end

--- Opens the release of app.yml, hashes it and, when it is an archive, looks through its names.
---@async
---@param app deployrt.App          with a release.path
---@param controller deployrt.Connection  this machine
---@return deployrt.Archive
--- Raises deployrt.Error, with the place of release.path: "release" when it cannot be had, "archive" when that is no archive for us.
function archive.open(app, controller)
  local path = app.release.path
  local self = setmetatable({ path = path, place = app.place "release.path", controller = controller, filter = "" }, Archive)
  local stat, err = core.fs.stat(path)
  if not stat then
    local builds = app.hooks and app.hooks.build
    refuse(self, "release", err.message .. (builds and ": hooks.build has not made it" or ": make it first, or have hooks.build do so"))
  end
  self.is_directory = stat.type == "directory"
  if not self.is_directory then
    self.filter = filter_of(self)
    check_names(self)
  end
  local result = errors.check(core.pipe { from = self:source(), to = { file = "/dev/null" } })
  if result.from.status ~= 0 then refuse(self, "release", path .. " cannot be read: have this user read all of it", { detail = result.from.output:sub(1, 500) }) end
  self.sha256, self.bytes = result.sha256, result.bytes
  return self
end

--- The same, on a connection of its own, which is closed again: for what it is, and not for its bytes.
---@async
---@param app deployrt.App
---@return deployrt.Archive
--- Raises deployrt.Error: as open.
function archive.look(app)
  local here = connection.new({ name = "local" }, app.app)
  local closing <close> = setmetatable({}, { __close = function() here:close() end })
  return archive.open(app, here)
end

return archive
