-- config/keep.lua -- What a run keeps of the texts that its app.yml comes from: all but the secrets that stand in them themselves.
local core = require "deployrt.core"

local keep = { removed = "(not kept)" }

--- Whether a value of process.secrets says only where the secret comes from. Where text stands beside a reference, a part of
--- the secret may be in that.
---@param value any
---@return boolean
function keep.is_reference(value)
  return tostring(value):find("^%${%l+:[^}]*}$") ~= nil
end

--- Whether a later life of the run needs a scalar as it stands there: no secret is needed, and nothing that only aliases
--- name. What they put elsewhere is needed by that.
local function is_needed(keys, value)
  if keys[1]:find("^x%-") then return false end
  if keys[1] ~= "process" or keys[2] ~= "secrets" then return true end
  return value == core.yaml.null or value == "" or keep.is_reference(value)
end

--- Sorts all scalars by whether they are needed, by where they begin.
local function sort_scalars(node, marks, keys, needed, others)
  local depth = #keys + 1
  for key, value in pairs(node) do
    keys[depth] = tostring(key)
    local mark = marks[node][key]
    if type(value) == "table" then
      sort_scalars(value, marks, keys, needed, others)
    elseif is_needed(keys, value) then
      needed[mark.from] = mark
    else
      others[mark.from] = mark
    end
    keys[depth] = nil
  end
end

--- A text in which those scalars are replaced; all others keep their lines.
local function replace(text, marks)
  table.sort(marks, function(a, b) return a.from > b.from end)
  for _, mark in ipairs(marks) do
    local first, after = utf8.offset(text, mark.from), utf8.offset(text, mark.to + 1)
    local written = text:sub(first, after - 1)
    local anchor = mark.anchor and ("&%s "):format(mark.anchor) or ""
    text = ('%s%s"%s"%s%s'):format(text:sub(1, first - 1), anchor, keep.removed, written:gsub("[^\n]", ""), text:sub(after))
  end
  return text
end

--- The text of a file without the secrets that stand in it.
---@param text string
---@param root table  what it was parsed to
---@param marks deployrt.YamlMarks
---@return string
function keep.text(text, root, marks)
  local needed, others, list = {}, {}, {}
  sort_scalars(root, marks, {}, needed, others)
  for from, mark in pairs(others) do
    if not needed[from] then list[#list + 1] = mark end
  end
  return replace(text, list)
end

--- The same of a value that was set at a key.
---@param keys string[]  of the dotted path
---@param text string    of the value
---@param value any      what that was parsed to
---@param marks deployrt.YamlMarks
---@return string
function keep.setting(keys, text, value, marks)
  local root, mark, places = value, { from = 1, to = utf8.len(text) }, setmetatable({}, { __index = marks })
  for i = #keys, 1, -1 do
    root = { [keys[i]] = root }
    places[root], mark = { [keys[i]] = mark }, {}
  end
  return keep.text(text, root, places)
end

return keep
