-- journal.lua -- What a run did, appended record by record: a checksum, a length and one JSON object a line.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

---@class deployrt.Journal
local Journal = {}
Journal.__index = Journal

local journal = {}
local json = cjson.new()
json.encode_sparse_array(true)
json.encode_keep_buffer(true)

--- The same text for the same value, whatever the order of its keys.
---@return string
function journal.canonical(value)
  if type(value) ~= "table" then return type(value) == "string" and ("%q"):format(value) or tostring(value) end
  local keys, parts = {}, {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) ~= type(b) then return type(a) < type(b) end
    return a < b
  end)
  for i, key in ipairs(keys) do parts[i] = journal.canonical(key) .. "=" .. journal.canonical(value[key]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

---@param path string
---@return deployrt.Journal
function journal.create(path)
  local file = errors.check(core.fs.append(path))
  return setmetatable({ file = file, written = 0, synced = 0 }, Journal)
end

--- Appends a record; it is in the file, but perhaps not yet on the disk.
---@param record table
function Journal:write(record)
  local text = json.encode(record)
  errors.check(self.file:write(("%s %d %s\n"):format(core.sha256(text):sub(1, 8), #text, text)))
  self.written = self.written + 1
end

--- Returns when all that was written so far is on the disk. Tasks that write at the same time share one sync.
---@async
function Journal:sync()
  local wanted = self.written
  while self.synced < wanted do
    if self.syncing then
      errors.check(self.syncing:wait())
    else
      self.syncing = core.event()
      local covers = self.written
      local ok, err = self.file:sync()
      local event = self.syncing
      self.syncing = nil
      if ok then self.synced = covers end
      event:set()
      errors.check(ok, err)
    end
  end
end

function Journal:close()
  self.file:close()
end

--- Reads the records of a journal. A torn end is cut; damage before it raises, with its line.
---@param path string
---@return table[]
function journal.read(path)
  local file = io.open(path, "rb")
  if not file then return {} end
  local text = file:read("a")
  file:close()
  local records, at, number = {}, 1, 0
  while at <= #text do
    number = number + 1
    local sum, length, start = text:match("^(%x+) (%d+) ()", at)
    local body = start and text:sub(start, start + length - 1)
    local whole = body and #body == tonumber(length) and text:sub(start + length, start + length) == "\n"
    if not whole or core.sha256(body):sub(1, 8) ~= sum then
      local next_line = text:find("\n", at, true)
      if not next_line or next_line == #text then break end
      errors.raise("journal", ("%s:%d: this record is damaged"):format(path, number))
    end
    records[#records + 1] = json.decode(body)
    at = start + length + 1
  end
  return records
end

return journal
