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

--- A whole number is an integer, however JSON had it.
local function whole(value)
  if math.type(value) == "float" then return math.tointeger(value) or value end
  if type(value) ~= "table" then return value end
  for key, each in next, value do
    local kind = type(each)
    if kind == "number" or kind == "table" then value[key] = whole(each) end
  end
  return value
end

--- A value as a journal would give it back: plain data, with the shapes that JSON has.
---@generic T
---@param value T
---@return T
function journal.plain(value)
  if type(value) ~= "table" then return whole(value) end
  return whole(json.decode(json.encode(value)))
end

local function by_type_and_value(a, b)
  if type(a) ~= type(b) then return type(a) < type(b) end
  return a < b
end

--- Appends a value's text to parts, and returns how many they are then.
local function append(value, parts, count)
  if type(value) == "string" then
    parts[count + 1] = ("%q"):format(value)
    return count + 1
  elseif type(value) ~= "table" then
    parts[count + 1] = tostring(whole(value))
    return count + 1
  end
  local keys, named = {}, true
  for key in next, value do
    keys[#keys + 1] = key
    named = named and type(key) == "string"
  end
  table.sort(keys, not named and by_type_and_value or nil)
  local mark = "{"
  for _, key in ipairs(keys) do
    parts[count + 1] = mark
    count = append(key, parts, count + 1) + 1
    parts[count], mark = "=", ","
    count = append(value[key], parts, count)
  end
  parts[count + 1] = #keys == 0 and "{}" or "}"
  return count + 1
end

--- The same text for the same value, whatever the order of its keys.
---@return string
function journal.canonical(value)
  local parts = {}
  append(value, parts, 0)
  return table.concat(parts)
end

local function read_file(path)
  local file = io.open(path, "rb")
  if not file then return "" end
  local text = file:read("a")
  file:close()
  return text
end

---@class deployrt.Disk  where journals are
---@field read fun(path: string): string  "" where there is no file
---@field write fun(path: string, text: string): true?, deployrt.Error?
---@field append fun(path: string): table?, deployrt.Error?  an object with write, sync and close
journal.disk = { read = read_file, write = core.fs.write, append = core.fs.append }

--- Opens a journal to append to it; a torn end is cut off first.
---@param path string
---@param disk? deployrt.Disk
---@return deployrt.Journal
function journal.open(path, disk)
  disk = disk or journal.disk
  local text = disk.read(path)
  local records, good, lines = journal.parse(text, path)
  if #text > good then errors.check(disk.write(path, text:sub(1, good))) end
  local file = errors.check(disk.append(path))
  return setmetatable({ path = path, file = file, lines = lines, written = #records, synced = #records }, Journal)
end

--- The file cannot be written: nothing more goes there, so that what it has stays whole. Copies on hosts go on.
local function break_off(self, err)
  self.broken = self.broken or errors.new("journal", ("cannot write the journal %s: %s; make room there"):format(self.path, err.message:gsub("^journal: ", "")))
  self.synced = self.written
  if not self.on_broken then error(self.broken, 0) end
  if not self.told then self.on_broken(self.broken) end
  self.told = true
end

--- From now on a file that cannot be written stops nobody: what undoes or ends a run is not given up for it.
---@param tell fun(err: deployrt.Error)  called once, if it is so
function Journal:endure(tell)
  self.on_broken = tell
end

--- Appends a record; it is in the file, but perhaps not yet on the disk.
---@param record table  gets the number `n`
--- Raises deployrt.Error: "journal", as sync() does.
function Journal:write(record)
  record.n = #self.lines + 1
  local text = json.encode(record)
  local line = ("%s %d %s\n"):format(core.sha256(text):sub(1, 8), #text, text)
  self.lines[record.n] = line
  self.written = self.written + 1
  local ok, err = self.broken == nil, self.broken
  if ok then ok, err = self.file:write(line) end
  if not ok then break_off(self, err) end
end

---@class deployrt.Mirror  what the copy of a journal on a host lacks
---@field sent integer  records that are on their way, or there
---@field torn boolean  the copy may end within a record
local Mirror = {}
Mirror.__index = Mirror

local most_at_once = 48 * 1024 -- bytes: sent as words of a shell

--- A copy that is kept elsewhere: whoever talks to that place takes with him what it lacks.
---@param begun? boolean  another controller began it, and may have left it torn
---@return deployrt.Mirror
function Journal:mirror(begun)
  return setmetatable({ lines = self.lines, sent = 0, torn = begun or false }, Mirror)
end

--- The next records for the copy. They may be sent twice: a copy is read by the numbers of its records. Behind what may be torn
--- they begin with an end of line.
---@return string
function Mirror:take()
  local first, size = self.sent + 1, 0
  while self.lines[self.sent + 1] and size < most_at_once do
    self.sent = self.sent + 1
    size = size + #self.lines[self.sent]
  end
  if first > self.sent then return "" end
  local mark = self.torn and "\n" or ""
  self.torn = false
  return mark .. table.concat(self.lines, "", first, self.sent)
end

--- What was taken since then has not arrived, or not all of it: it is sent again.
---@param sent integer  what was sent before
function Mirror:put_back(sent)
  self.sent, self.torn = math.min(sent, self.sent), true
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
      if not ok and err.code == "canceled" then error(err, 0) end
      if not ok then break_off(self, err) end
    end
  end
end

function Journal:close()
  self.file:close()
end

--- The record at a place of the text, and where the next one begins; nil when it is not whole.
local function record_at(text, at)
  local sum, length, start = text:match("^(%x+) (%d+) ()", at)
  local body = start and text:sub(start, start + length - 1)
  if not body or #body ~= tonumber(length) or text:sub(start + length, start + length) ~= "\n" then return nil end
  if core.sha256(body):sub(1, 8) ~= sum then return nil end
  return whole(json.decode(body)), start + length + 1
end

local function lines_between(text, at, stop)
  local lines = {}
  for line in text:sub(at, stop - 1):gmatch("[^\n]*\n") do lines[#lines + 1] = line end
  return lines
end

--- The records of a journal's text. A torn end is left out.
---@param text string
---@param path string  for messages
---@return table[] records
---@return integer good  bytes that are whole
---@return string[] lines
--- Raises deployrt.Error: "journal" when a record in the middle is damaged, with its line.
function journal.parse(text, path)
  local records, at = {}, 1
  while at <= #text do
    local record, following = record_at(text, at)
    if not record then
      local next_line = text:find("\n", at, true)
      if not next_line or next_line == #text then break end
      errors.raise("journal", ("%s:%d: this record is damaged; the run cannot be resumed from here: "
        .. "restore the file, or undo what it still tells with `deployrt abort --force`"):format(path, #records + 1),
        { records = records, good = at - 1 })
    end
    records[#records + 1], at = record, following
  end
  return records, at - 1, lines_between(text, 1, at)
end

--- The records among lines of several journals; what is not whole is left out.
---@param text string
---@return table[]
function journal.whole(text)
  local list = {}
  for line in text:gmatch("[^\n]*\n") do list[#list + 1] = record_at(line, 1) end
  return list
end

--- The records of a copy, which may have some twice, or be cut anywhere: those up to the first that is missing.
---@param text string
---@return string whole  the text of a journal
---@return integer count
function journal.restore(text)
  local by_number, whole_lines = {}, {}
  for line in text:gmatch("[^\n]*\n") do
    local record = record_at(line, 1)
    if record then by_number[record.n or 0] = line end
  end
  while by_number[#whole_lines + 1] do whole_lines[#whole_lines + 1] = by_number[#whole_lines + 1] end
  return table.concat(whole_lines), #whole_lines
end

--- Reads the records of a journal; none when there is no file.
---@param path string
---@param disk? deployrt.Disk
---@return table[] records
---@return integer good   bytes that are whole
---@return string[] lines
function journal.read(path, disk)
  return journal.parse((disk or journal.disk).read(path), path)
end

return journal
