-- units.lua -- Durations and amounts as people write them.
local units = {}

local seconds = { ms = 0.001, s = 1, m = 60, h = 3600 }

--- "500ms", "30s", "5m", "1h" in seconds.
---@param text any
---@return number? seconds
---@return string? message
function units.duration(text)
  if text == 0 then return 0 end
  local number, unit = tostring(text):match("^(%d+%.?%d*)(%l+)$")
  if type(text) == "string" and number and seconds[unit] then return tonumber(number) * seconds[unit] end
  if tonumber(text) then return nil, ("expected a duration with its unit, such as \"%ss\", got %s"):format(text, text) end
  return nil, ("expected a duration such as 500ms, 30s, 5m or 1h, got '%s'"):format(tostring(text))
end

--- 2 or "25%".
---@param value any
---@return {count?: integer, percent?: number}? amount
---@return string? message
function units.amount(value)
  if type(value) == "table" and (value.count or value.percent) then return value end
  local percent = type(value) == "string" and tonumber(value:match("^(%d+%.?%d*)%%$"))
  if percent and percent > 0 and percent <= 100 then return { percent = percent } end
  local count = math.tointeger(tonumber(value))
  if count and count > 0 then return { count = count } end
  return nil, ("expected an amount such as 2 or 25%%, got '%s'"):format(tostring(value))
end

--- "5%" or 5 as a number of percent.
---@return number? percent
---@return string? message
function units.percent(value)
  local percent = tonumber(value) or type(value) == "string" and tonumber(value:match("^(%d+%.?%d*)%%$"))
  if percent and percent >= 0 and percent <= 100 then return percent end
  return nil, ("expected a percentage such as 5%%, got '%s'"):format(tostring(value))
end

--- How many of `total` an amount is: rounded down, at least 1, at most all.
---@param amount {count?: integer, percent?: number}
---@param total integer
---@return integer
function units.resolve_amount(amount, total)
  local count = amount.count or math.floor(total * amount.percent / 100)
  return math.max(1, math.min(count, math.max(total, 1)))
end

--- Seconds for people: "0.52s", "12.3s", "3m05s".
function units.format_duration(s)
  if s < 1 then return ("%.2fs"):format(s) end
  if s < 60 then return ("%.1fs"):format(s) end
  return ("%dm%02ds"):format(s // 60, math.floor(s % 60))
end

return units
