-- config/source.lua -- From files and --set to one tree of values, in which every key knows where it was written.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local keep = require "deployrt.config.keep"
local setting = require "deployrt.config.setting"
local suggest = require "deployrt.suggest"
local check = require "deployrt.config.check"

---@class deployrt.config.Mark  where a key or an item was written
---@field file string     as errors name it: a file, or "--set"
---@field line? integer
---@field column? integer
---@field source? string  the value as written, when it is no text
---@field order integer   errors come in the order of files

---@class deployrt.config.Source
---@field root table      the values
---@field marks table<table, table<any, deployrt.config.Mark>>
---@field file string     as it was given
---@field files table<string, string>  the texts that were read, by path, as a run keeps them
---@field settings string[]  the same of `--set`
local Source = {}
Source.__index = Source

local source = {}

local null = core.yaml.null
local largest = 1 << 20 -- bytes; a longer file is no app.yml

local function is_mapping(value)
  return type(value) == "table" and #value == 0
end

--- The text of a file: from the copies that a run keeps, else from the disk.
local function read(self, path, from)
  local kept = self.kept and self.kept[path]
  if kept then return kept end
  local file, problem = io.open(path, "rb")
  if not file then
    local reason = problem:sub(1, #path + 2) == path .. ": " and problem:sub(#path + 3) or problem
    errors.raise("config", ("%s%s: %s"):format(from, path, reason:sub(1, 1):lower() .. reason:sub(2)))
  end
  local text, err = file:read(largest + 1)
  file:close()
  if err then errors.raise("config", ("%s%s: this is a directory; name the file in it"):format(from, path)) end
  if not text or not text:find("%S") then
    errors.raise("config", ("%s%s: this file is empty; it needs at least `app:` and `process:`"):format(from, path))
  end
  if #text > largest then errors.raise("config", ("%s%s: too large for an app.yml"):format(from, path)) end
  return text
end

--- Takes over the marks of a parsed text; `file` is how errors name it.
local function adopt(self, found, file)
  self.order = self.order + 1
  for node, places in pairs(found) do
    for key, mark in pairs(places) do
      if type(mark) == "table" then
        places[key] = { file = file, line = mark.line, column = mark.column, source = mark.source, order = self.order }
      end
    end
    self.marks[node] = places
  end
end

--- Values over a base: mappings merge, everything else replaces.
local function merge(self, base, over)
  if not is_mapping(base) or not is_mapping(over) then return over end
  local out, places = {}, {}
  for _, tree in ipairs { base, over } do
    for key, value in pairs(tree) do
      out[key] = out[key] ~= nil and value ~= null and merge(self, out[key], value) or value
      places[key] = (self.marks[tree] or {})[key]
    end
  end
  self.marks[out] = places
  return out
end

local function parse(self, path, from)
  local text = read(self, path, from)
  local value, found = self.parse(text, path)
  if value == nil then errors.raise("config", found.message) end
  if value == null then errors.raise("config", ("%s%s: this file is empty; it needs at least `app:` and `process:`"):format(from, path)) end
  if not is_mapping(value) then
    local what = type(value) == "table" and "a list" or "a single value"
    errors.raise("config", ("%s:1:1: expected a mapping that begins with `app:`, got %s"):format(path, what))
  end
  self.files[path] = keep.text(text, value, found)
  adopt(self, found, path)
  return value
end

--- Reads a file and those that it extends.
local function load(self, path, from, chain)
  local value = parse(self, path, from)
  chain[#chain + 1] = path
  local base = value.extends
  if type(base) ~= "string" or base == "" then return value end
  if base:sub(1, 1) ~= "/" then base = (path:match("^(.*/)") or "") .. base end
  local here = ("%s: extends: "):format(source.text(self.marks[value].extends))
  for i, earlier in ipairs(chain) do
    if (core.fs.realpath(earlier) or earlier) == (core.fs.realpath(base) or base) then
      errors.raise("config", ("%s%s leads back to itself (%s)"):format(here, base, table.concat(chain, " > ", i) .. " > " .. base))
    end
  end
  return merge(self, load(self, base, here, chain), value)
end

--- Opens app.yml.
---@param path string
---@param parser fun(text: string, name: string): any, table
---@param kept? table<string, string>  texts of files that are not to be read from the disk
---@return deployrt.config.Source
function source.open(path, parser, kept)
  local self = setmetatable({ file = path, parse = parser, marks = {}, order = 0, kept = kept, files = {}, settings = {} }, Source)
  self.root = load(self, path, "", {})
  return self
end

--- The same of what a command printed, as if it stood below a key.
---@param key string
---@param value any
---@param found table  the marks that it was parsed with
---@param label string  how errors name it
---@return deployrt.config.Source
function source.printed(key, value, found, label)
  local self = setmetatable({ file = label, marks = {}, order = 0, files = {}, root = { [key] = value } }, Source)
  adopt(self, found, label)
  return self
end

local function unknown(shown, key, known, before)
  local hint = suggest.closest(key, check.names_of(known))
  local prefix = before ~= "" and before .. "." or ""
  errors.raise("config", ("--set: unknown key '%s'%s"):format(shown,
    hint and (" (did you mean '%s%s'?)"):format(prefix, hint) or ""))
end

--- The declaration of a key below another; nil when anything may stand there.
local function below(spec, key, before)
  local shown = before ~= "" and before .. "." .. key or key
  if not spec or spec.type == "any" or key:find("^x%-") then return nil end
  for _, each in ipairs(spec.either or {}) do
    if each.keys then spec = each end
  end
  if spec.type == "map" then return type(spec.of) == "string" and { type = spec.of } or spec.of end
  if not spec.keys then
    errors.raise("config", ("--set: unknown key '%s': %s has no keys below it, set it as a whole"):format(shown, before))
  end
  return spec.keys[key] or unknown(shown, key, spec.keys, before)
end

local function key_list(path, text)
  local keys = {}
  for key in (path .. "."):gmatch("([^.]*)%.") do
    if key == "" then errors.raise("config", ("--set %s: expected key=value, such as process.instances=2"):format(text)) end
    keys[#keys + 1] = key
  end
  return keys
end

--- Puts a value below the root, making mappings on the way.
local function put(self, keys, value, mark)
  local node = self.root
  for i = 1, #keys - 1 do
    if type(node[keys[i]]) ~= "table" then
      node[keys[i]] = {}
      self.marks[node] = self.marks[node] or {}
      self.marks[node][keys[i]] = mark
    elseif #node[keys[i]] > 0 then
      errors.raise("config", ("--set: unknown key '%s': %s is a list here, set it as a whole"):format(table.concat(keys, "."),
        table.concat(keys, ".", 1, i)))
    end
    node = node[keys[i]]
  end
  node[keys[#keys]] = value
  self.marks[node] = self.marks[node] or {}
  self.marks[node][keys[#keys]] = mark
end

--- Applies `a.b=value`, with a value as setting.parse() takes it.
---@param text string
---@param root deployrt.Spec
--- Raises deployrt.Error: "config".
function Source:set(text, root)
  local path, value_text = text:match("^([^=%s]+)=(.*)$")
  if not path then errors.raise("config", ("--set %s: expected key=value, such as process.instances=2"):format(text)) end
  local keys, spec = key_list(path, text), root
  for i, key in ipairs(keys) do spec = below(spec, key, table.concat(keys, ".", 1, i - 1)) end
  local value, found = setting.parse(value_text, "--set " .. path, self.parse)
  if value == nil then errors.raise("config", found.message) end
  table.insert(self.settings, path .. "=" .. keep.setting(keys, value_text, value, found))
  adopt(self, found, "--set")
  for node in pairs(found) do
    for _, mark in pairs(self.marks[node]) do mark.line = nil end
  end
  put(self, keys, value, { file = "--set", source = value_text:match("^%s*(.-)%s*$"), order = self.order })
end

--- Sets release.version, as --release does.
---@param version string
function Source:set_release(version)
  put(self, { "release", "version" }, version, { file = "--release", order = self.order + 1 })
end

--- The mark of a dotted path, or of what is nearest above it: "process.command", "hosts[2].port".
---@param path string
---@return deployrt.config.Mark?
function Source:find(path)
  local node, mark = self.root, nil
  for key in path:gmatch("[^.%[%]]+") do
    if type(node) ~= "table" then break end
    if node[key] == nil and node[tonumber(key)] ~= nil then key = tonumber(key) end
    mark = (self.marks[node] or {})[key] or mark
    node = node[key]
  end
  return mark
end

--- The text of a place: "app.yml:7:3".
---@param mark? deployrt.config.Mark
---@param file? string  when there is no mark
---@return string
function source.text(mark, file)
  if not mark then return file end
  return mark.line and ("%s:%d:%d"):format(mark.file, mark.line, mark.column) or mark.file
end

return source
