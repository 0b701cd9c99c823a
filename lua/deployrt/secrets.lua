-- secrets.lua -- Values that only processes may see: read when they are needed, masked in everything that is shown.
local controller = require "deployrt.controller"
local errors = require "deployrt.errors"
local keep = require "deployrt.config.keep"
local names_of = require("deployrt.config.check").names_of

---@class deployrt.Secrets
---@field empty string[]  names of those that came out empty, though something was to be read
local Secrets = {}
Secrets.__index = Secrets

local secrets = {}

local function trim(text)
  return (text:gsub("\n$", ""))
end

local shortest, shortest_line = 4, 8 -- bytes: less is found where it is no secret

--- What is to be masked of a value: all of it and, of one that has several, each line, because what shows it may show only some.
local function add_masked(list, value)
  value = value:match("^%s*(.-)%s*$")
  if #value >= shortest then list[#list + 1] = value end
  if not value:find("\n", 1, true) then return end
  for line in value:gmatch("[^\r\n]+") do
    line = line:match("^%s*(.-)%s*$")
    if #line >= shortest_line then list[#list + 1] = line end
  end
end

--- What a reference stands for; nil and why not when it is not to be had, and what a command said of it.
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
    if not how then return trim(result.stdout) end
    add_masked(self.masked, result.stdout) -- it may have had the secret, and failed afterwards
    return nil, ("the command '%s' %s"):format(command, how), result.stderr
  end,
}

--- A text with its references replaced; nil and why not, as readers have it. Each is masked by itself, too: a process takes a text
--- apart, and may show one of them alone. Commands wait, which no callback of gsub may.
---@async
local function resolve(self, text)
  local parts, at = {}, 1
  for start, kind, what, after in text:gmatch("()%${(%l+):([^}]*)}()") do
    local value, problem, said = readers[kind](self, what)
    if not value then return nil, problem, said end
    add_masked(self.masked, value)
    table.move({ text:sub(at, start - 1), value }, 1, 2, #parts + 1, parts)
    at = after
  end
  return table.concat(parts) .. text:sub(at)
end

local longest_reason = 200 -- bytes

--- Why a command failed, by the last line that it wrote to standard error for people: its standard output is the secret, and what
--- `sh -x` traces has values in it.
local function reason_of(self, said)
  local reason
  for line in self:mask(said):gmatch("[^\r\n]+") do
    if line:find("%S") and line:sub(1, 1) ~= "+" then reason = line end
  end
  return reason and ": " .. errors.clip(reason, longest_reason) or ""
end

--- Raises all that is wrong, each with its place. What commands said is masked by all secrets that could be read.
local function refuse(self, problems, place)
  local lines = {}
  for i, each in ipairs(problems) do
    local key = "process.secrets." .. each.name
    lines[i] = ("%s%s: %s%s"):format(place and place(key) .. ": " or "", key, each.why, each.said and reason_of(self, each.said) or "")
  end
  errors.raise("secret", table.concat(lines, "\n"), { problems = lines })
end

local no_nul = "it holds a NUL byte, which no environment variable can: give the secret without it, or in another form, such as base64"

--- Reads all secrets of app.yml once, so that a missing one is an error before anything is touched.
---@async
---@param values table<string,string>  as written: "${env:DB_URL}", or the secret itself
---@param directory string             of app.yml
---@param here deployrt.Connection     this machine
---@param place? fun(path: string): string   as app.place
---@param unread? boolean              nothing will be started: each is what app.yml says of it
---@return deployrt.Secrets
--- Raises deployrt.Error: "secret", whose message has a line for each that is not to be had, with its place, and `problems` all of them.
function secrets.read(values, directory, here, place, unread)
  local self = setmetatable({ directory = directory, controller = here, values = {}, masked = {}, empty = {} }, Secrets)
  local problems = {}
  for _, name in ipairs(names_of(values or {})) do
    local text = tostring(values[name])
    local value, why, said = text, nil, nil
    if not unread then value, why, said = resolve(self, text) end
    if value and value:find("\0", 1, true) then value, why = nil, no_nul end
    if not value then problems[#problems + 1] = { name = name, why = why, said = said } end
    self.values[name] = value
    if value == "" and text ~= "" then self.empty[#self.empty + 1] = name end
    add_masked(self.masked, value or "")
  end
  table.sort(self.masked, function(a, b) return #a > #b end)
  if #problems > 0 then refuse(self, problems, place) end
  return self
end

--- What may be written to records in place of the values: only where each comes from.
---@return table<string, string>
function Secrets.references(values)
  local references = {}
  for name, text in pairs(values or {}) do
    references[name] = keep.is_reference(text) and text or "(app.yml)"
  end
  return references
end

--- The value of a secret for a process.
---@param name string
---@return string
function Secrets:value(name)
  local value = self.values[name]
  if value == nil then errors.raise("secret", ("the release needs the secret %s, and app.yml has none of that name"):format(name)) end
  return value
end

--- The text with every secret replaced. Mask before you cut: what is left of a secret is not found any more.
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
