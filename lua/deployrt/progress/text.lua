-- progress/text.lua -- Text for terminals and logs: cleaned, measured, cut, coloured; times and durations.
local text = {}

--- A piece of a line: what it says, and its style ("bold", "dim", "red", ...).
---@alias deployrt.Span {[1]: string, [2]?: string}

local sgr = {
  bold = "1", dim = "2", red = "31", green = "32", yellow = "33", magenta = "35", cyan = "36",
  title = "1;36", success = "1;32", failure = "1;31", banner = "1;37;41", calm = "1;30;43",
}

local function repaired(value)
  local out, from = {}, 1
  while true do
    local count, bad = utf8.len(value, from)
    if count then
      out[#out + 1] = value:sub(from)
      return table.concat(out)
    end
    out[#out + 1] = value:sub(from, bad - 1) .. "\u{FFFD}"
    from = bad + 1
  end
end

--- Valid UTF-8, whatever came in; each bad byte becomes U+FFFD.
---@param value any
---@return string
function text.utf8(value)
  value = tostring(value)
  return utf8.len(value) and value or repaired(value)
end

--- Text that does nothing to a terminal: escape sequences and control characters are gone, line ends stay.
---@param value any
---@return string
function text.clean(value)
  value = text.utf8(value)
  if not value:find("[\0-\9\11-\31\127\194]") then return value end
  return (value:gsub("\27%[[0-?]*[ -/]*[@-~]", ""):gsub("\27%][^\7\27]*\7?", ""):gsub("\27[ -~]?", "")
    :gsub("\r+\n", "\n"):gsub("\194[\128-\159]", ""):gsub("[\0-\9\11-\31\127]", " "))
end

--- The same as a part of one line: a line end is a "?", so that nobody's words are taken for a line of ours.
---@param value any
---@return string
function text.line(value)
  local clean = text.clean(value)
  return clean:find("\n", 1, true) and clean:gsub("\n", "?") or clean
end

--- The lines of a text, cleaned, without blank ones at the end.
---@param value any
---@return string[]
function text.lines(value)
  local lines = {}
  for line in (text.clean(value):gsub("%s+$", "") .. "\n"):gmatch("(.-)%s*\n") do lines[#lines + 1] = line end
  return lines
end

local wide = {
  { 0x1100, 0x115F }, { 0x2E80, 0xA4CF }, { 0xAC00, 0xD7A3 }, { 0xF900, 0xFAFF }, { 0xFE30, 0xFE6F },
  { 0xFF00, 0xFF60 }, { 0xFFE0, 0xFFE6 }, { 0x1F300, 0x1F64F },
  { 0x1F680, 0x1F6FF }, { 0x1F900, 0x1F9FF }, { 0x20000, 0x3FFFD },
}
local narrow = {
  { 0x300, 0x36F }, { 0x200B, 0x200F }, { 0x202A, 0x202E }, { 0x2060, 0x206F }, { 0xFE00, 0xFE0F },
}

local function within(code, ranges)
  for _, range in ipairs(ranges) do
    if code >= range[1] and code <= range[2] then return true end
  end
  return false
end

local function code_width(code)
  if code < 0x300 or (code > 0x206F and code < 0x2E80) then return 1 end
  return within(code, narrow) and 0 or within(code, wide) and 2 or 1
end

--- Columns that a clean text takes.
---@param value string
---@return integer
function text.width(value)
  if not value:find("[\204-\244]") then return utf8.len(value) or #value end
  local width = 0
  for _, code in utf8.codes(value) do width = width + code_width(code) end
  return width
end

--- As much of a clean text as fits into `width` columns; the mark stands for what was cut.
---@param value string
---@param width integer
---@param mark? string  default "…"
---@return string
function text.cut(value, width, mark)
  if text.width(value) <= width then return value end
  mark = mark or "…"
  if width <= text.width(mark) then return mark:sub(1, (utf8.offset(mark, width + 1) or 1) - 1) end
  local room, used = width - text.width(mark), 0
  for at, code in utf8.codes(value) do
    used = used + code_width(code)
    if used > room then return value:sub(1, at - 1) .. mark end
  end
  return value
end

--- Fills up with blanks to `width` columns.
---@param value string
---@param width integer
---@return string
function text.pad(value, width)
  return value .. (" "):rep(width - text.width(value))
end

--- Columns that a line of spans takes.
---@param spans deployrt.Span[]
---@return integer
function text.spans_width(spans)
  local width = 0
  for _, span in ipairs(spans) do width = width + text.width(span[1]) end
  return width
end

local function cut_spans(spans, width, mark)
  if text.spans_width(spans) <= width then return spans end
  local out, left = {}, width
  for _, span in ipairs(spans) do
    local size = text.width(span[1])
    if size >= left then
      out[#out + 1] = { text.cut(span[1] .. mark, left, mark), span[2] }
      return out
    end
    out[#out + 1], left = span, left - size
  end
  return out
end

--- One line from spans of clean text.
---@param spans deployrt.Span[]
---@param opts {color?: boolean, width?: integer, mark?: string}  width: at most; mark: for what was cut
---@return string
function text.render(spans, opts)
  if opts.width then spans = cut_spans(spans, opts.width, opts.mark or "…") end
  local out, style = {}, nil
  for _, span in ipairs(spans) do
    if opts.color and span[2] ~= style and span[1] ~= "" then
      out[#out + 1] = (style and "\27[0m" or "") .. (span[2] and ("\27[%sm"):format(sgr[span[2]]) or "")
      style = span[2]
    end
    out[#out + 1] = span[1]
  end
  if style then out[#out + 1] = "\27[0m" end
  return table.concat(out)
end

--- A duration for people: 0.52s, 12.3s, 2m 05s, 1h 02m.
---@param seconds number
---@return string
function text.duration(seconds)
  if seconds < 9.995 then return ("%.2fs"):format(seconds) end
  if seconds < 59.95 then return ("%.1fs"):format(seconds) end
  local whole = math.floor(seconds + 0.5)
  if whole < 3600 then return ("%dm %02ds"):format(whole // 60, whole % 60) end
  return ("%dh %02dm"):format(whole // 3600, whole % 3600 // 60)
end

--- Elapsed time as a clock shows it: 0:12, 1:02:03.
---@param seconds number
---@return string
function text.elapsed(seconds)
  local whole = math.max(0, math.floor(seconds))
  if whole < 3600 then return ("%d:%02d"):format(whole // 60, whole % 60) end
  return ("%d:%02d:%02d"):format(whole // 3600, whole % 3600 // 60, whole % 60)
end

-- Days since 1970-01-01 as year, month, day; the year is counted from March, so that leap days come last.
local function civil(days)
  local z = days + 719468
  local day_of_era = z % 146097
  local year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
  local day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
  local from_march = (5 * day_of_year + 2) // 153
  local month = from_march < 10 and from_march + 3 or from_march - 9
  local year = year_of_era + z // 146097 * 400 + (month <= 2 and 1 or 0)
  return year, month, day_of_year - (153 * from_march + 2) // 5 + 1
end

--- ISO 8601 in UTC with milliseconds.
---@param epoch number  seconds since 1970
---@return string
function text.iso(epoch)
  local ms = math.floor(epoch * 1000 + 0.5)
  local year, month, day = civil(ms // 86400000)
  local rest = ms % 86400000
  return ("%04d-%02d-%02dT%02d:%02d:%02d.%03dZ"):format(year, month, day, rest // 3600000, rest // 60000 % 60,
    rest // 1000 % 60, rest % 1000)
end

--- 1 instance, 4 instances.
---@param count integer
---@param word string
---@return string
function text.count(count, word)
  return ("%d %s%s"):format(count, word, count == 1 and "" or "s")
end

--- A rate or a percentage: 120, 9.5, 0.
---@param value number
---@return string
function text.number(value)
  if value >= 9.95 or value == math.floor(value) then return ("%.0f"):format(value) end
  return ("%.1f"):format(value)
end

--- A key to sort names by, in which numbers count as numbers: web2 comes before web10.
---@param value any
---@return string
function text.natural(value)
  return (tostring(value):gsub("%d+", function(digits) return ("0"):rep(16 - #digits) .. digits end))
end

--- The keys of a table: `first` ones that it has, then the others by name.
---@param map table
---@param first any[]  may have holes
---@return any[]
function text.keys(map, first)
  local keys, seen = {}, {}
  for i = 1, 2 do
    local key = first[i]
    if key ~= nil and map[key] ~= nil and not seen[key] then keys[#keys + 1], seen[key] = key, true end
  end
  local rest = {}
  for key in pairs(map) do
    if not seen[key] then rest[#rest + 1] = key end
  end
  table.sort(rest, function(a, b) return text.natural(a) < text.natural(b) end)
  return table.move(rest, 1, #rest, #keys + 1, keys)
end

return text
