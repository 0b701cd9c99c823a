-- units.lua -- Durations and amounts as people write them.
local units = {}

---@alias deployrt.Amount {count?: integer, percent?: number}

local seconds = { ms = 0.001, s = 1, m = 60, h = 3600 }

local function shown(value)
  return type(value) == "table" and "a list or a mapping" or ("'%s'"):format(tostring(value))
end

--- "500ms", "30s", "5m", "1h" in seconds. A bare number is refused, because nobody knows its unit; 0 has none.
---@param value any
---@return number? seconds
---@return string? message
function units.duration(value)
  if value == 0 then return 0 end
  if type(value) == "string" then
    local number, unit = value:match("^(%d+%.?%d*)(%l+)$")
    local result = number and seconds[unit] and tonumber(number) * seconds[unit]
    if result and result < math.huge then return result end
  end
  local bare = type(value) ~= "table" and tostring(value):match("^%d+%.?%d*$")
  if bare then return nil, ('expected a duration with its unit, such as "%ss", got %s'):format(bare, bare) end
  return nil, ("expected a duration such as 500ms, 30s, 5m or 1h, got %s"):format(shown(value))
end

local function percentage(value)
  return type(value) == "string" and tonumber(value:match("^(%d+%.?%d*)%%$")) or nil
end

local function is_between(value, low, high)
  return type(value) == "number" and value > low and value <= high
end

--- A value that a script gave, without the address of a table.
local function told(value)
  return (type(value) == "number" or type(value) == "string") and tostring(value) or "a " .. type(value)
end

--- What is wrong with an amount in parts; nil when nothing is.
local function problem_of(amount, least)
  local count, percent = amount.count, amount.percent
  if count ~= nil and not (math.type(count) == "integer" and count >= least) then
    return ("its `count` is a whole number from %d on, not %s"):format(least, told(count))
  elseif percent ~= nil and not is_between(percent, 0, 100) then
    return ("its `percent` is a number above 0 and at most 100, not %s"):format(told(percent))
  end
end

--- 2 or "25%", or one of these in parts.
---@param value any
---@param may_be_none? boolean  0 and "0%" are amounts, too
---@return deployrt.Amount? amount
---@return string? message
function units.amount(value, may_be_none)
  local least = may_be_none and 0 or 1
  if type(value) == "table" and (value.count or value.percent) then
    local problem = problem_of(value, least)
    return not problem and value or nil, problem
  end
  local percent = percentage(value)
  if percent and percent > 0 and percent <= 100 then return { percent = percent } end
  local count = percent == 0 and 0 or type(value) ~= "table" and math.tointeger(tonumber(value))
  if count and count >= least then return { count = count } end
  return nil, ("expected an amount such as 2 or 25%%, got %s"):format(shown(value))
end

--- "5%" or 5 as a number of percent, from 0 to 100.
---@param value any
---@return number? percent
---@return string? message
function units.percent(value)
  local percent = type(value) == "number" and value or percentage(value)
  if percent and percent >= 0 and percent <= 100 then return percent end
  return nil, ("expected a percentage such as 5%%, got %s"):format(shown(value))
end

--- How many of `total` an amount is: rounded down, at least 1, at most all; none of none.
---@param amount deployrt.Amount
---@param total integer
---@return integer
function units.resolve_amount(amount, total)
  if amount.count == 0 then return 0 end
  local count = amount.count or math.floor(total * amount.percent / 100)
  return math.max(1, math.min(count, math.max(total, 1)))
end

--- Seconds for people: "0.52s", "12.3s", "3m05s", "2h07m".
---@param s number  seconds
---@return string
function units.format_duration(s)
  if s < 0.995 then return ("%.2fs"):format(s) end
  if s < 59.95 then return ("%.1fs"):format(s) end
  local whole = math.floor(s + 0.5)
  if whole < 3600 then return ("%dm%02ds"):format(whole // 60, whole % 60) end
  return ("%dh%02dm"):format(whole // 3600, whole % 3600 // 60)
end

local sizes = { "KiB", "MiB", "GiB", "TiB" }

--- Bytes for people: "512 B", "1.5 KiB", "20.0 MiB".
---@param n integer  bytes
---@return string
function units.format_bytes(n)
  if n < 1024 then return ("%d B"):format(n) end
  local i = 1
  n = n / 1024
  while n >= 1023.95 and sizes[i + 1] do
    n, i = n / 1024, i + 1
  end
  return ("%.1f %s"):format(n, sizes[i])
end

return units
