-- suggest.lua -- "Did you mean": the closest of some words.
local suggest = {}

--- Damerau-Levenshtein distance (optimal string alignment).
local function distance(a, b)
  local rows = { [0] = {} }
  for j = 0, #b do rows[0][j] = j end
  for i = 1, #a do
    rows[i] = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        best = math.min(best, rows[i - 2][j - 2] + 1)
      end
      rows[i][j] = best
    end
  end
  return rows[#a][#b]
end

local longest = 64 -- a longer word is no mistyped name

--- The closest candidate, if it is close enough to be what was meant: at most a third of the letters differ.
---@param word string
---@param candidates string[]
---@return string?
function suggest.closest(word, candidates)
  if #word > longest then return nil end
  local most = math.max(1, #word // 3)
  local best, least = nil, most + 1
  for _, candidate in ipairs(candidates) do
    local d = math.abs(#candidate - #word) <= most and distance(word:lower(), candidate:lower()) or least
    if d < least and d < #word then best, least = candidate, d end
  end
  return best
end

--- The end of an error: " (did you mean 'health'?)", or nothing.
---@param word string
---@param candidates string[]
---@return string
function suggest.hint(word, candidates)
  local close = suggest.closest(word, candidates)
  return close and (" (did you mean '%s'?)"):format(close) or ""
end

return suggest
