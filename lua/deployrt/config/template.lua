-- config/template.lua -- What may stand as ${...} in the values of app.yml; deployrt.template fills it in later.
local suggest = require "deployrt.suggest"

local template = {}

local variables = { "port", "host", "release", "dir" }
local sources = { "env", "file", "command" }

local known = {}
for _, name in ipairs(variables) do known[name] = true end
for _, name in ipairs(sources) do known[name .. ":"] = true end

--- What an unknown variable was meant to be.
local function hint_for(name)
  local close, kind = suggest.closest(name, variables), name:match("^%l+:")
  if kind and known[kind] then return ("; ${%s...} belongs in process.secrets"):format(kind) end
  if close then return (" (did you mean ${%s}?)"):format(close) end
  return name:find("^[%u_][%u%d_]*$") and ("; for a variable of the shell write $%s"):format(name) or ""
end

--- Why a command or a value of the environment is wrong; nil when it is fine.
---@param text string
---@return string? problem
function template.problem(text)
  local rest = text:gsub("%${[^{}]*}", "")
  if rest:find("${", 1, true) then return "a '${' has no '}' of its own" end
  for name in text:gmatch("%${([^{}]*)}") do
    if not known[name] then
      return ("unknown ${%s}%s; there are ${port}, ${host}, ${release} and ${dir}"):format(name, hint_for(name))
    end
  end
end

--- What a value that is one wrong reference was meant to be. A secret itself is never repeated.
local function meant(text)
  local kind, rest = text:match("^%${(%l+):([^{}]*)}$")
  local close = kind and suggest.closest(kind, sources)
  if kind and known[kind .. ":"] and rest == "" then return ("; ${%s:} names nothing"):format(kind) end
  if close then return (" (did you mean ${%s:...}?)"):format(close) end
  local name = text:match("^%${([%u_][%u%d_]*)}$")
  return name and (" (did you mean ${env:%s}?)"):format(name) or ""
end

--- Why a secret is wrong: a literal is fine, and so is ${env:N}, ${file:P} or ${command:C} anywhere in it.
---@param text string
---@return string? problem
function template.secret_problem(text)
  local rest = text:gsub("%${([^{}]*)}", function(inside)
    local kind, what = inside:match("^(%l+):(.+)$")
    if not (kind and known[kind .. ":"]) then return nil end
    if kind ~= "env" or what:find("^[%a_][%w_]*$") then return "" end
  end)
  if not rest:find("${", 1, true) then return nil end
  if not rest:find("%${[^{}]*}") then return "a '${' has no '}' of its own" end
  return "only ${env:NAME}, ${file:PATH} and ${command:COMMAND} are known here" .. meant(text)
end

return template
