-- signature.lua -- What verbs take, one after the other or by name: what a script gives otherwise is refused in words.
local errors = require "deployrt.errors"

local signature = {}

--- The kind of an object of the runtime, or of the view that a script has of it.
local function kind_of(value)
  local meta = type(value) == "table" and getmetatable(value)
  if not meta then return nil end
  if type(meta) == "string" then return meta:match("^deployrt%.(%l+)$") end
  return type(meta) == "table" and rawget(meta, "kind") or nil
end

local function shown(value)
  local kind = kind_of(value) or type(value)
  if kind == "string" then return ("'%s'"):format(errors.clip((value:gsub("%c", "?")))) end
  if kind == "number" or kind == "boolean" or kind == "nil" then return tostring(value) end
  return (kind:find("^[aeiou]") and "an " or "a ") .. kind
end

local function is_a(kind)
  return function(value) return kind_of(value) == kind end
end

local function is(kind)
  return function(value) return type(value) == kind end
end

local function is_list(value)
  return type(value) == "table" and not kind_of(value)
end

--- A test of lists: their items pass `fits`, and there are so many at least.
local function is_list_of(fits, least)
  return function(value)
    if not is_list(value) or #value < (least or 0) then return false end
    for i = 1, #value do
      local ok, why = fits(value[i])
      if not ok then return false, ("and item %d is %s"):format(i, why or shown(value[i])) end
    end
    return true
  end
end

local is_instance, is_host = is_a "instance", is_a "host"
local is_list_of_instances = is_list_of(is_instance)

local function is_some(value)
  if is_instance(value) then return true end
  return is_list_of_instances(value)
end

local unsendable = "a text with a NUL byte, which no command line can hold: have the command decode it, such as from base64"

--- What hosts are told goes through a shell.
local function is_text(value)
  if type(value) ~= "string" then return false end
  return not value:find("\0", 1, true), "not " .. unsendable
end

local function is_word(value)
  if type(value) == "string" then return not value:find("\0", 1, true), unsendable end
  return type(value) == "number"
end

local function is_whole(value)
  return type(value) == "number" and math.tointeger(value) ~= nil
end

--- Somebody types it behind `deployrt approve`.
local function is_answer(value)
  return type(value) == "string" and value ~= "" and not value:find("^%-") and not value:find("%c")
end

--- By name: a test, which may say more, and its words.
local kinds = {
  any = { function() return true end },
  instance = { is_instance, "an instance" }, instances = { is_list_of_instances, "a list of instances" },
  some = { is_some, "an instance or a list of them" },
  host = { is_host, "a host" }, hosts = { is_list_of(is_host), "a list of hosts" },
  port = { math.tointeger, "a port" }, whole = { is_whole, "a whole number" },
  count = { function(value) return is_whole(value) and value >= 1 end, "a whole number from 1 on" }, number = { is "number", "a number" },
  seconds = { function(value) return type(value) == "number" and value >= 0 end, "a number of seconds" },
  text = { is_text, "a text" }, list = { is_list, "a list" }, table = { is_list, "a table" }, fn = { is "function", "a function" },
  words = { is_list_of(is_word, 1), "a list of words, such as { \"ls\", \"-l\" }," },
  answers = { is_list_of(is_answer, 1), "a list of texts that can be typed" },
}

--- What an argument takes: "instances", or "instances?" where it may be left out.
local function takes_of(kind)
  local takes = kinds[kind:match("^%l+")]
  return { fits = takes[1], words = takes[2], optional = kind:find("?", 1, true) ~= nil }
end

local function refuse(verb, name, takes, value)
  local _, why = takes.fits(value) -- the second is of a value that it refuses
  errors.raise("usage", ("%s takes %s as `%s`, %s"):format(verb, takes.words, name, why or "not " .. shown(value)))
end

--- Refuses a value that is not of the kind.
---@param verb string  who takes it, for the error
---@param name string  of the argument
---@param kind string  "instances", or "instances?" where it may be left out
---@param value any
--- Raises deployrt.Error: "usage".
function signature.check_value(verb, name, kind, value)
  local takes = takes_of(kind)
  if not (takes.fits(value) or value == nil and takes.optional) then refuse(verb, name, takes, value) end
end

---@class deployrt.Signature
---@field [integer] {name: string, fits: fun(value: any): boolean?, string?, words: string, optional: boolean}

--- Reads signatures: `share = "percent: number, new: instances, opts: table?"`.
---@param texts table<string, string>  by verb
---@return table<string, deployrt.Signature>
function signature.of(texts)
  local verbs = {}
  for verb, text in pairs(texts) do
    local list = {}
    for name, kind in text:gmatch("([%w_]+): (%l+%??)") do
      local takes = takes_of(kind)
      takes.name, list[#list + 1] = name, takes
    end
    verbs[verb] = list
  end
  return verbs
end

--- Refuses arguments that a verb does not take.
---@param verb string
---@param takes? deployrt.Signature  nil: whatever is given
---@param ... any
--- Raises deployrt.Error: "usage".
function signature.check(verb, takes, ...)
  for i = 1, takes and #takes or 0 do
    local each, value = takes[i], (select(i, ...))
    if not (each.fits(value) or value == nil and each.optional) then refuse(verb, each.name, each, value) end
  end
end

return signature
