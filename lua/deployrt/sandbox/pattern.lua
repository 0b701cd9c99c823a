-- pattern.lua -- Lua's patterns, matched in Lua: each step counts, so that no pattern runs longer than a script may.
-- What is sure to be quick goes to the string library itself.
local core = require "deployrt.core"

local pattern = {}

local byte, sub = string.byte, string.sub
local find, match, gmatch, gsub = string.find, string.match, string.gmatch, string.gsub
local percent, bracket, caret, dollar, dot, dash, star, plus, question = byte("%[^$.-*+?", 1, -1)
local open, close_bracket, open_group, close_group = bracket, byte("])(", 1), byte("(", 1), byte(")", 1)
local letter_b, letter_f, zero, nine = byte("bf09", 1, -1)

local quick = 2e5 -- steps that the string library may take at most

--- Whether no text of this length makes the pattern take long: each repetition may try every length.
local function is_quick(text, patt)
  if #patt > 100 then return false end
  local _, repetitions = gsub(patt, "[*+?-]", "")
  local _, others = gsub(patt, "%%[b%d]", "")
  return (#text + 1) ^ (repetitions + others + 1) <= quick
end

local classes = {}

--- Whether one byte is in a class such as %a; the library knows.
local function in_class(c, class)
  local known = classes[class]
  if not known then
    known = {}
    for i = 0, 255 do known[i] = find(string.char(i), "%" .. string.char(class)) ~= nil end
    classes[class] = known
  end
  return known[c]
end

--- Where the single item that begins at `p` ends.
local function item_end(m, p)
  local c = byte(m.pattern, p)
  p = p + 1
  if c == percent then
    if p > #m.pattern then error("malformed pattern (ends with '%')", 0) end
    return p + 1
  elseif c == open then
    if byte(m.pattern, p) == caret then p = p + 1 end
    repeat
      local inner = byte(m.pattern, p)
      if not inner then error("malformed pattern (missing ']')", 0) end
      p = p + 1
      if inner == percent then p = p + 1 end
    until byte(m.pattern, p) == close_bracket
    return p + 1
  end
  return p
end

--- Whether a byte is in the set [...] that lies between `p` and `last` (its closing bracket).
local function in_set(m, c, p, last)
  local patt, found = m.pattern, true
  if byte(patt, p + 1) == caret then
    found = false
    p = p + 1
  end
  p = p + 1
  while p < last do
    local here = byte(patt, p)
    if here == percent then
      if in_class(c, byte(patt, p + 1)) then return found end
      p = p + 2
    elseif byte(patt, p + 1) == dash and p + 2 < last then
      if here <= c and c <= byte(patt, p + 2) then return found end
      p = p + 3
    else
      if here == c then return found end
      p = p + 1
    end
  end
  return not found
end

local function matches_one(m, s, p, after)
  local c = byte(m.text, s)
  if not c then return false end
  local kind = byte(m.pattern, p)
  if kind == dot then return true end
  if kind == percent then return in_class(c, byte(m.pattern, p + 1)) end
  if kind == bracket then return in_set(m, c, p, after - 1) end
  return kind == c
end

local do_match

local function match_balance(m, s, p)
  local first, last = byte(m.pattern, p, p + 1)
  if not last then error("malformed pattern (missing arguments to '%b')", 0) end
  if byte(m.text, s) ~= first then return nil end
  local depth, at = 1, s + 1
  while true do
    local c = byte(m.text, at)
    if not c then return nil end
    if c == last then
      depth = depth - 1
      if depth == 0 then return at + 1 end
    elseif c == first then
      depth = depth + 1
    end
    at = at + 1
  end
end

local function match_capture(m, s, digit)
  local capture = m.captures[digit - zero]
  if not capture or capture.length == nil or digit == zero then error(("invalid capture index %%%d"):format(digit - zero), 0) end
  local text = sub(m.text, capture.from, capture.from + (capture.length == true and 0 or capture.length) - 1)
  core.charge(#text)
  if sub(m.text, s, s + #text - 1) == text then return s + #text end
end

local function frontier(m, s, p)
  if byte(m.pattern, p) ~= bracket then error("missing '[' after '%f' in pattern", 0) end
  local after = item_end(m, p)
  local before, here = s > 1 and byte(m.text, s - 1) or 0, byte(m.text, s) or 0
  if not in_set(m, before, p, after - 1) and in_set(m, here, p, after - 1) then return do_match(m, s, after) end
end

--- With as many repetitions as there are, then with fewer.
local function longest(m, s, p, after, least)
  local count = 0
  while matches_one(m, s + count, p, after) do count = count + 1 end
  while count >= least do
    local result = do_match(m, s + count, after + 1)
    if result then return result end
    count = count - 1
  end
end

local function shortest(m, s, p, after)
  while true do
    local result = do_match(m, s, after + 1)
    if result then return result end
    if not matches_one(m, s, p, after) then return nil end
    s = s + 1
  end
end

local function start_capture(m, s, p)
  local level = #m.captures + 1
  if level > 32 then error("too many captures", 0) end
  local position = byte(m.pattern, p + 1) == close_group
  m.captures[level] = { from = s, length = position or nil }
  local result = do_match(m, s, position and p + 2 or p + 1)
  if not result then m.captures[level] = nil end
  return result
end

local function end_capture(m, s, p)
  for level = #m.captures, 1, -1 do
    local capture = m.captures[level]
    if capture.length == nil then
      capture.length = s - capture.from
      local result = do_match(m, s, p + 1)
      if not result then capture.length = nil end
      return result
    end
  end
  error("invalid pattern capture", 0)
end

local function escaped(m, s, p)
  local kind = byte(m.pattern, p + 1)
  if kind == letter_b then
    s = match_balance(m, s, p + 2)
    return true, s and do_match(m, s, p + 4)
  elseif kind == letter_f then
    return true, frontier(m, s, p + 2)
  elseif kind and kind >= zero and kind <= nine then
    s = match_capture(m, s, kind)
    return true, s and do_match(m, s, p + 2)
  end
end

--- Where a match ends that begins at `s` in the text and at `p` in the pattern; nil when there is none.
function do_match(m, s, p)
  while p <= #m.pattern do
    local kind = byte(m.pattern, p)
    if kind == open_group then return start_capture(m, s, p) end
    if kind == close_group then return end_capture(m, s, p) end
    if kind == dollar and p == #m.pattern then return s == #m.text + 1 and s or nil end
    if kind == percent then
      local done, result = escaped(m, s, p)
      if done then return result end
    end
    local after = item_end(m, p)
    local repetition = byte(m.pattern, after)
    if repetition == star then return longest(m, s, p, after, 0) end
    if repetition == plus then return longest(m, s, p, after, 1) end
    if repetition == dash then return shortest(m, s, p, after) end
    local one = matches_one(m, s, p, after)
    if repetition == question then
      local result = one and do_match(m, s + 1, after + 1)
      if result then return result end
      p = after + 1
    elseif one then
      s, p = s + 1, after
    else
      return nil
    end
  end
  return s
end

local function capture_value(m, capture)
  if capture.length == nil then error("unfinished capture", 0) end
  if capture.length == true then return capture.from end
  return sub(m.text, capture.from, capture.from + capture.length - 1)
end

--- The captures of a match, or all of it when there are none and `whole` is given.
local function captures_of(m, whole, first, last)
  if #m.captures == 0 then return whole and { sub(m.text, first, last) } or {} end
  local list = {}
  for i, capture in ipairs(m.captures) do list[i] = capture_value(m, capture) end
  return list
end

local function new_match(text, patt)
  local anchored = byte(patt, 1) == caret
  return { text = text, pattern = anchored and sub(patt, 2) or patt, captures = {}, anchored = anchored }
end

--- The first match at or after `s`: where it begins and ends.
local function search(m, s)
  repeat
    m.captures = {}
    local after = do_match(m, s, 1)
    if after then return s, after - 1 end
    s = s + 1
  until m.anchored or s > #m.text + 1
end

local function plain_find(text, wanted, from)
  if wanted == "" then return from, from - 1 end
  while true do
    local at = find(text, sub(wanted, 1, 1), from, true)
    if not at then return nil end
    core.charge(at - from + #wanted)
    if sub(text, at, at + #wanted - 1) == wanted then return at, at + #wanted - 1 end
    from = at + 1
  end
end

local function check_text(value, position, name)
  if type(value) == "number" then return tostring(value) end
  if type(value) == "string" then return value end
  error(("bad argument #%d to '%s' (string expected, got %s)"):format(position, name, value == nil and "no value" or type(value)), 3)
end

local function start_of(text, init)
  init = math.tointeger(tonumber(init or 1)) or 1
  if init < 0 then init = math.max(#text + init + 1, 1) end
  return math.max(init, 1)
end

--- As string.find.
function pattern.find(text, patt, init, plain)
  text, patt = check_text(text, 1, "find"), check_text(patt, 2, "find")
  if plain and #text * #patt <= quick or not plain and is_quick(text, patt) then return find(text, patt, init, plain) end
  local from = start_of(text, init)
  if from > #text + 1 then return nil end
  if plain or not find(patt, "[%^%$%*%+%?%.%(%[%%%-]") then return plain_find(text, patt, from) end
  local m = new_match(text, patt)
  local first, last = search(m, from)
  if not first then return nil end
  return first, last, table.unpack(captures_of(m))
end

--- As string.match.
function pattern.match(text, patt, init)
  text, patt = check_text(text, 1, "match"), check_text(patt, 2, "match")
  if is_quick(text, patt) then return match(text, patt, init) end
  local from = start_of(text, init)
  if from > #text + 1 then return nil end
  local m = new_match(text, patt)
  local first, last = search(m, from)
  if not first then return nil end
  return table.unpack(captures_of(m, true, first, last))
end

--- As string.gmatch.
function pattern.gmatch(text, patt, init)
  text, patt = check_text(text, 1, "gmatch"), check_text(patt, 2, "gmatch")
  if is_quick(text, patt) then return gmatch(text, patt, init) end
  local m, from, last_end = { text = text, pattern = patt, captures = {} }, start_of(text, init), nil
  return function()
    while from <= #text + 1 do
      local first, last = search(m, from)
      if not first then
        from = #text + 2
        return nil
      end
      if last ~= last_end then
        from, last_end = last + 1, last
        return table.unpack(captures_of(m, true, first, last))
      end
      from = first + 1
    end
  end
end

local function expand(m, replacement, captures, whole)
  return (gsub(replacement, "%%(.?)", function(c)
    if c == "0" then return whole end
    if c == "%" then return "%" end
    local index = tonumber(c)
    if not index then error("invalid use of '%' in replacement string", 0) end
    local value = captures[index]
    if value == nil and not (index == 1 and #m.captures == 0) then
      error(("invalid capture index %%%d in replacement string"):format(index), 0)
    end
    return tostring(value or whole)
  end))
end

local function replaced(m, replacement, first, last)
  local whole, captures = sub(m.text, first, last), captures_of(m, true, first, last)
  core.charge(last - first + 1)
  local value
  if type(replacement) == "string" then return expand(m, replacement, captures, whole) end
  if type(replacement) == "table" then value = replacement[captures[1]] else value = replacement(table.unpack(captures)) end
  if not value then return whole end
  if type(value) ~= "string" and type(value) ~= "number" then error("invalid replacement value (a " .. type(value) .. ")", 0) end
  return tostring(value)
end

--- As string.gsub; a function may wait.
function pattern.gsub(text, patt, replacement, most)
  text, patt = check_text(text, 1, "gsub"), check_text(patt, 2, "gsub")
  if type(replacement) == "number" then replacement = tostring(replacement) end
  local kind = type(replacement)
  if kind ~= "string" and kind ~= "table" and kind ~= "function" then
    error(("bad argument #3 to 'gsub' (string/function/table expected, got %s)"):format(replacement == nil and "no value" or kind), 2)
  end
  if kind == "string" and #replacement <= 1000 and is_quick(text, patt) then return gsub(text, patt, replacement, most) end
  local m, parts, s, count, last_end = new_match(text, patt), {}, 1, 0, nil
  while count < (most or math.huge) do
    m.captures = {}
    local after = do_match(m, s, 1)
    if after and after ~= last_end then
      count = count + 1
      parts[#parts + 1] = replaced(m, replacement, s, after - 1)
      s, last_end = after, after
    elseif s <= #text then
      parts[#parts + 1] = sub(text, s, s)
      s = s + 1
    else
      break
    end
    if m.anchored then break end
  end
  parts[#parts + 1] = sub(text, s)
  return table.concat(parts), count
end

local repetitions = { [star] = true, [plus] = true, [dash] = true, [question] = true }

--- Where the item after one that matches by rules of its own begins; nil for one that does not.
local function special_end(m, p, second, closed)
  if second == letter_b then
    if p + 3 > #m.pattern then error("malformed pattern (missing arguments to '%b')", 0) end
    return p + 4
  elseif second == letter_f then
    if byte(m.pattern, p + 2) ~= bracket then error("missing '[' after '%f' in pattern", 0) end
    return item_end(m, p + 2)
  elseif second and second >= zero and second <= nine then
    if not closed[second - zero] then error(("invalid capture index %%%d"):format(second - zero), 0) end
    return p + 2
  end
end

--- Goes through a pattern, whatever it would be matched with.
local function walk(m)
  local p, count, groups, closed = byte(m.pattern, 1) == caret and 2 or 1, 0, {}, {}
  while p <= #m.pattern do
    local kind, second = byte(m.pattern, p, p + 1)
    local special = kind == percent and special_end(m, p, second, closed)
    if special then
      p = special
    elseif kind == open_group then
      p, count, groups[#groups + 1] = p + 1, count + 1, count + 1
      if count > 32 then error("too many captures", 0) end
    elseif kind == close_group then
      if #groups == 0 then error("invalid pattern capture", 0) end
      p, closed[table.remove(groups)] = p + 1, true
    else
      p = item_end(m, p)
      if repetitions[byte(m.pattern, p)] then p = p + 1 end
    end
  end
  if #groups > 0 then error("unfinished capture", 0) end
end

--- What makes a pattern malformed; nil when nothing does.
---@param patt string
---@return string?
function pattern.problem(patt)
  local ok, problem = pcall(walk, { pattern = patt })
  return not ok and problem or nil
end

return pattern
