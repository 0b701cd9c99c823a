-- library/version.lua -- Versions of libraries, and what app.yml asks of them: ">= 1.2, < 2".
local errors = require "deployrt.errors"

local version = {}

local function numbers_in(text)
  local list = {}
  for word in text:gmatch("%d+") do list[#list + 1] = math.tointeger(tonumber(word)) end
  return list
end

local function compare_lists(a, b)
  for i = 1, math.max(#a, #b) do
    local x, y = a[i] or 0, b[i] or 0
    if x ~= y then return x < y and -1 or 1 end
  end
  return 0
end

--- What stands before the first letter, and the rest: 2.0rc1, 2.0-beta and scm come before a release.
local function split(text)
  return text:match("^([^%a]*)(.*)$")
end

--- -1, 0 or 1. Missing parts count as 0; what has letters comes before the same without.
---@param one string
---@param other string
---@return integer
function version.compare(one, other)
  local first, rest = split(one)
  local second, other_rest = split(other)
  local order = compare_lists(numbers_in(first), numbers_in(second))
  if order ~= 0 then return order end
  if (rest == "") ~= (other_rest == "") then return rest == "" and 1 or -1 end
  return compare_lists(numbers_in(rest), numbers_in(other_rest))
end

--- A version without the rock's own revision: "1.2.0-3" is 1.2.0.
local function bare(text)
  return (text:gsub("%-%d+$", ""))
end

local tests = {
  ["=="] = function(order) return order == 0 end, ["~="] = function(order) return order ~= 0 end,
  [">="] = function(order) return order >= 0 end, ["<="] = function(order) return order <= 0 end,
  [">"] = function(order) return order > 0 end, ["<"] = function(order) return order < 0 end,
}
tests["="] = tests["=="]

--- "~> 1.2" is any 1.2.x.
local function is_within(text, wanted)
  local a, b = numbers_in(text), numbers_in(wanted)
  for i, part in ipairs(b) do
    if (a[i] or 0) ~= part then return false end
  end
  return true
end

--- The conditions of a constraint: {{operator, version}}.
---@param constraint string  as LuaRocks writes it: ">= 1.2, < 2", "~> 1.2", "1.2.0"
---@return table[]?
---@return string? problem
function version.parse(constraint)
  local list = {}
  for each in constraint:gmatch("[^,]+") do
    local operator, wanted = each:match("^%s*([<>=~]*)%s*(%w[%w._-]*)%s*$")
    operator = operator == "" and "==" or operator
    if not wanted or not wanted:find("%d") or operator ~= "~>" and not tests[operator] then
      return nil, ('\'%s\' is no version: write it like ">= 1.2, < 2", "~> 1.2" or "1.2.0"'):format(constraint)
    end
    list[#list + 1] = { operator, wanted }
  end
  return list
end

--- Whether a version is what was asked for. The rock's revision counts only where it is asked for.
---@param text string
---@param constraint? string  nil: any
---@return boolean
function version.fits(text, constraint)
  local list, problem = version.parse(constraint or ">= 0")
  if not list then errors.raise("library", problem) end
  for _, condition in ipairs(list) do
    local operator, wanted = condition[1], condition[2]
    local given = wanted:find("%-%d+$") and text or bare(text)
    local fits = operator == "~>" and is_within(given, wanted) or operator ~= "~>" and tests[operator](version.compare(given, wanted))
    if not fits then return false end
  end
  return true
end

return version
