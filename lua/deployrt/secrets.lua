-- secrets.lua -- Values that only processes may see: read when they are needed, masked in everything that is shown.
local controller = require "deployrt.controller"
local errors = require "deployrt.errors"
local names_of = require("deployrt.config.check").names_of

---@class deployrt.Secrets
---@field empty string[]  names of those that came out empty, though something was to be read
local Secrets = {}
Secrets.__index = Secrets

local secrets = { removed = "(not kept)" }

local function trim(text)
  return (text:gsub("\n$", ""))
end

--- What a reference stands for; nil and why not when it is not to be had.
local readers = {
  env = function(_, name)
    local value = os.getenv(name)
    return value, not value and ("the environment variable %s is not set"):format(name) or nil
  end,
  file = function(self, path)
    path = path:gsub("^~", os.getenv("HOME") or "~")
    local file, err = io.open(path:sub(1, 1) == "/" and path or self.directory .. "/" .. path)
    if not file then return nil, err end
    local text, problem = file:read("a") -- a directory can be opened, and not read
    file:close()
    if not text then return nil, ("%s: %s"):format(path, problem) end
    return trim(text)
  end,
  command = function(self, command)
    local result = self.controller:execute({ "/bin/sh", "-c", command }, { timeout = 60, cwd = self.directory })
    local how = controller.failure(result)
    if how then return nil, ("the command '%s' %s"):format(command, how) end
    return trim(result.stdout)
  end,
}

--- A text with its references replaced; nil and why not. Commands wait, which no callback of gsub may.
---@async
local function resolve(self, text)
  local parts, at = {}, 1
  for start, kind, what, after in text:gmatch("()%${(%l+):([^}]*)}()") do
    local value, problem = readers[kind](self, what)
    if not value then return nil, problem end
    table.move({ text:sub(at, start - 1), value }, 1, 2, #parts + 1, parts)
    at = after
  end
  return table.concat(parts) .. text:sub(at)
end

--- The value of one secret, as app.yml has it.
local function value_of(self, name, text, place)
  local value, problem = resolve(self, text)
  if value then return value end
  local key = "process.secrets." .. name
  errors.raise("secret", ("%s%s: %s"):format(place and place(key) .. ": " or "", key, problem))
end

--- Reads all secrets of app.yml once, so that a missing one is an error before anything is touched.
---@async
---@param values table<string,string>  as written: "${env:DB_URL}", or the secret itself
---@param directory string             of app.yml
---@param here deployrt.Connection     this machine
---@param place? fun(path: string): string   as app.place
---@param unread? boolean              nothing will be started: each is what app.yml says of it
---@return deployrt.Secrets
--- Raises deployrt.Error: "secret", with the place of the one that is not to be had.
function secrets.read(values, directory, here, place, unread)
  local self = setmetatable({ directory = directory, controller = here, values = {}, masked = {}, literals = {}, empty = {} }, Secrets)
  for _, name in ipairs(names_of(values or {})) do
    local text = tostring(values[name])
    local value = unread and text or value_of(self, name, text, place)
    self.values[name] = value
    if value == "" and text ~= "" then self.empty[#self.empty + 1] = name end
    if not text:find("${", 1, true) then self.literals[#self.literals + 1] = value end
    if #value >= 4 then self.masked[#self.masked + 1] = value end
  end
  table.sort(self.masked, function(a, b) return #a > #b end)
  return self
end

--- What may be written to records in place of the values: only where each comes from.
---@return table<string, string>
function Secrets.references(values)
  local references = {}
  for name, text in pairs(values or {}) do
    references[name] = tostring(text):find("^%${%l+:[^}]*}$") and text or "(app.yml)"
  end
  return references
end

--- A text of app.yml without the secrets that stand in it literally.
---@param text string
---@return string
function Secrets:without_literals(text)
  for _, value in ipairs(self.literals) do
    local at, to = text:find(value, 1, true)
    while at do
      text = text:sub(1, at - 1) .. secrets.removed .. text:sub(to + 1)
      at, to = text:find(value, at + #secrets.removed, true)
    end
  end
  return text
end

--- The value of a secret for a process.
---@param name string
---@return string
function Secrets:value(name)
  local value = self.values[name]
  if value == nil then errors.raise("secret", ("the release needs the secret %s, and app.yml has none of that name"):format(name)) end
  return value
end

--- The text with every secret replaced.
---@param text string
---@return string
function Secrets:mask(text)
  for _, value in ipairs(self.masked) do
    local at, to = text:find(value, 1, true)
    while at do
      text = text:sub(1, at - 1) .. "(secret)" .. text:sub(to + 1)
      at, to = text:find(value, at + 8, true)
    end
  end
  return text
end

secrets.references = Secrets.references
return secrets
