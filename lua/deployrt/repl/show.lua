-- repl/show.lua -- Values as a person reads them: instances by label and state, tables one level deep and in order.
local show = {}

local kinds = {} -- of the views that scripts hold, by the name that getmetatable gives

kinds["deployrt.instance"] = function(instance)
  return ("%s  %s  %s%s"):format(instance.label, instance.release, instance.state, instance.pid and ("  pid %d"):format(instance.pid) or "")
end

kinds["deployrt.host"] = function(host)
  return host.name .. (host.group and ("  group %s"):format(host.group) or "") .. (host.current and ("  current %s"):format(host.current) or "")
end

kinds["deployrt.fleet"] = function(fleet)
  local lines = {}
  for i, instance in ipairs(fleet:instances()) do lines[i] = kinds["deployrt.instance"](instance) end
  return #lines > 0 and table.concat(lines, "\n") or "nothing runs"
end

kinds["deployrt.balancer"] = function(balancer)
  local names, lines = {}, {}
  for name in pairs(balancer.slots or {}) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local slot = balancer.slots[name]
    lines[i] = ("%s  %s  weight %s"):format(name, slot.state, tostring(slot.weight))
  end
  return #lines > 0 and table.concat(lines, "\n") or "no balancer"
end

local function kind_of(value)
  local meta = type(value) == "table" and getmetatable(value)
  return type(meta) == "string" and meta or nil
end

--- In one line, as a part of something.
local function brief(value)
  if type(value) == "string" then return (("%q"):format(value):gsub("\\\n", "\\n")) end
  local kind = kind_of(value)
  if kind == "deployrt.instance" or kind == "deployrt.host" then return kinds[kind](value) end
  if type(value) ~= "table" then return (tostring(value):gsub("^(%l+): .*", "%1")) end
  if kind then return (kind:gsub("^deployrt%.", "")) end
  return next(value) == nil and "{}" or "{...}"
end

local function before(a, b)
  if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
  return type(a) < type(b)
end

local function table_lines(value)
  local keys, lines = {}, {}
  for key in next, value do keys[#keys + 1] = key end
  table.sort(keys, before)
  for i, key in ipairs(keys) do lines[i] = ("%s = %s"):format(type(key) == "string" and key or ("[%s]"):format(brief(key)), brief(rawget(value, key))) end
  return #lines > 0 and table.concat(lines, "\n") or "{}"
end

--- A value as lines.
---@param value any
---@return string
function show.value(value)
  local kind = kind_of(value)
  if kind and kinds[kind] then return kinds[kind](value) end
  if type(value) == "table" and not kind then return table_lines(value) end
  return brief(value)
end

--- What an expression gave; nil when it gave nothing.
---@param values {n: integer}
---@return string?
function show.values(values)
  local parts = {}
  for i = 1, values.n do parts[i] = show.value(values[i]) end
  return values.n > 0 and table.concat(parts, "\n") or nil
end

return show
