-- archive.lua -- The release on the controller: a directory or a tar archive, its content's hash, its bytes as a stream.
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Archive
---@field path string
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

local function filter_of(path)
  local file, err = io.open(path, "rb")
  if not file then errors.raise("release", err) end
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

--- Refuses what would be unpacked outside of its directory, and what cannot be read.
local function check_names(self)
  local result = self.controller:execute({ "tar", "-tf", self.path }, { timeout = 600 })
  if result.status ~= 0 then
    errors.raise("archive", ("%s is not a readable tar archive; pack it again"):format(self.path), { detail = result.stderr:sub(1, 500) })
  end
  for name in result.stdout:gmatch("[^\n]+") do
    local why = name:sub(1, 1) == "/" and "an absolute path" or ("/" .. name .. "/"):find("/../", 1, true) and "a path that leaves it"
    if why then errors.raise("archive", ("%s contains %s: %s; pack it again without"):format(self.path, why, name)) end
  end
end

--- Opens a release, hashes it and, when it is an archive, looks through its names.
---@async
---@param path string               absolute
---@param controller deployrt.Connection  this machine
---@return deployrt.Archive
function archive.open(path, controller)
  local stat, err = core.fs.stat(path)
  if not stat then errors.raise("release", "release.path: " .. err.message) end
  local self = setmetatable({ path = path, controller = controller, is_directory = stat.type == "directory", filter = "" }, Archive)
  if not self.is_directory then
    self.filter = filter_of(path)
    check_names(self)
  end
  local result = errors.check(core.pipe { from = self:source(), to = { file = "/dev/null" } })
  if result.from.status ~= 0 then errors.raise("release", ("cannot read %s: %s"):format(path, result.from.output)) end
  self.sha256, self.bytes = result.sha256, result.bytes
  return self
end

return archive
