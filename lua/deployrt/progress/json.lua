-- progress/json.lua -- One JSON object a line, for machines; keys come in a fixed order.
local cjson = require "cjson"
local core = require "deployrt.core"
local text = require "deployrt.progress.text"

local json = {}

local scalar = cjson.new()
local lists = { left = true, instances = true, undo = true, files = true }
local known = {
  "time", "run", "event", "app", "strategy", "step", "path", "op", "host", "instance", "release", "previous",
  "hosts", "instances", "name", "verdict", "evidence", "outcome", "exit", "ok", "seconds", "effect", "note", "reason", "message",
  "error", "command", "share", "requests", "errors", "failed", "latency", "old", "new", "metrics", "left",
  "undo", "undo_count", "changes", "unchanged",
}
local rank = {}
for i, key in ipairs(known) do rank[key] = i end

local function comes_before(a, b)
  local x, y = rank[a] or math.huge, rank[b] or math.huge
  if x ~= y then return x < y end
  return tostring(a) < tostring(b)
end

-- cjson escapes the slash, which JSON does not ask for.
local function encode_string(value)
  return (scalar.encode(text.utf8(value)):gsub("\\(.)", function(char) return char == "/" and "/" or nil end))
end

local function encode_number(value)
  if value ~= value or value == math.huge or value == -math.huge then return "null" end
  if math.tointeger(value) then return ("%d"):format(math.tointeger(value)) end
  return (("%.6f"):format(value):gsub("0+$", ""):gsub("%.$", ""))
end

local encode

local function encode_list(value)
  local items = {}
  for i, item in ipairs(value) do items[i] = encode(item) end
  return "[" .. table.concat(items, ",") .. "]"
end

local function encode_object(value)
  local keys, items = {}, {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, comes_before)
  for i, key in ipairs(keys) do items[i] = encode_string(tostring(key)) .. ":" .. encode(value[key], key) end
  return "{" .. table.concat(items, ",") .. "}"
end

function encode(value, key)
  local kind = type(value)
  if value == cjson.null then return "null" end
  if kind == "table" then
    if #value > 0 or (next(value) == nil and lists[key]) then return encode_list(value) end
    return encode_object(value)
  end
  if kind == "number" then return encode_number(value) end
  if kind == "boolean" then return tostring(value) end
  return encode_string(tostring(value))
end

--- Plain data as JSON on one line; keys come in a fixed order.
---@param value any
---@return string
function json.encode(value)
  return encode(value)
end

--- An event as JSON on one line, without the line's end. `time`, `run` and `event` come first.
---@param event table
---@return string
function json.line(event)
  local out = {}
  for key, value in pairs(event) do out[key] = value end
  if out.run == nil then out.run = cjson.null end
  return encode_object(out)
end

--- An object of what is told now, as a line; `run` is null where there is none.
---@param event string
---@param fields table
---@return string
function json.now(event, fields)
  local object = { time = text.iso(core.time()), event = event }
  for key, value in pairs(fields) do object[key] = value end
  return json.line(object) .. "\n"
end

--- The view of --json.
---@param options deployrt.ProgressOptions
function json.open(options)
  local view = {}
  function view.event(_, event)
    if event.event ~= "state" then options.write(json.line(event) .. "\n") end
    if event.event == "run.finished" and event.outcome ~= "succeeded" and event.message then
      options.write_error("deployrt: " .. event.message .. "\n")
    end
  end
  function view.tick() end
  function view.close() end
  return view
end

return json
