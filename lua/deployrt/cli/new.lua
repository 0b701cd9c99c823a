-- cli/new.lua -- deployrt new strategy NAME: a script that works, a spec of it, and what editors and busted need to know.
local cjson = require "cjson"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local reserved = {
  ["and"] = true, ["break"] = true, ["do"] = true, ["else"] = true, ["elseif"] = true, ["end"] = true, ["false"] = true, ["for"] = true,
  ["function"] = true, ["goto"] = true, ["if"] = true, ["in"] = true, ["local"] = true, ["nil"] = true, ["not"] = true, ["or"] = true,
  ["repeat"] = true, ["return"] = true, ["then"] = true, ["true"] = true, ["until"] = true, ["while"] = true,
  self = true, strategy = true, sim = true, -- what the templates call other things
}

local function read(path)
  local file = path and io.open(path, "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

--- A module's file on this disk, as stock Lua would find it, or beside the command; nil when only the command carries it.
local function module_file(name)
  local found = package.searchpath(name, package.path)
  return found and core.fs.realpath(found) or nil
end

--- A template: the copy on the disk, else the one that the command carries.
local function template(command, name)
  local place = command.place or {}
  local text = read(module_file("deployrt.new." .. name)) or (place.embedded and place.embedded(("lua/deployrt/new/%s.lua"):format(name)))
  return text or errors.raise("missing", ("the template of a %s is not where deployrt's own files are: install it again"):format(name))
end

--- Where stock Lua finds the runtime: package.path and cpath of what is installed, or built; nil where there is none.
local function lua_paths()
  local types = module_file "deployrt.types"
  local root = types and types:match("^(.*)/deployrt/types%.lua$")
  if not root then return nil end
  local built, installed = root .. "/../build/lib", root .. "/../../../lib/lua/5.4"
  for _, folder in ipairs { built, installed } do
    local found = core.fs.realpath(folder .. "/deployrt/core.so")
    if found then return { root = root, lua = root .. "/?.lua", c = found:gsub("/deployrt/core%.so$", "") .. "/?.so" } end
  end
  return { root = root, lua = root .. "/?.lua" }
end

local function is_command(name)
  for _, each in ipairs(require("deployrt.cli").commands) do
    if each[1] == name then return true end
  end
end

local function check_name(name)
  local allowed = "a name is a lower-case letter and then lower-case letters, digits and _, at most 40 of them"
  if not name then errors.raise("usage", "which name? For example: deployrt new strategy careful; " .. allowed) end
  if not name:find("^%l[%l%d_]*$") or #name > 40 then errors.raise("usage", ("'%s' cannot be the name of a strategy: %s"):format(name, allowed)) end
  if is_command(name) then errors.raise("usage", ("'%s' is a command: `deployrt %s` would not find the strategy; choose another name"):format(name, name)) end
  if reserved[name] then errors.raise("usage", ("'%s' has a meaning in Lua, or in the script: choose another name"):format(name)) end
  for _, each in ipairs(require("deployrt.strategy").names()) do
    if each == name then
      errors.raise("usage", ("there is a strategy '%s' already: choose another name, and inherit from it with strategy.extend(\"%s\", ...)"):format(name, name))
    end
  end
end

local function fill(text, name, paths)
  local quoted = paths and paths.c and { LPATH = core.quote { paths.lua }, CPATH = core.quote { paths.c } } or { LPATH = "...", CPATH = "..." }
  quoted.NAME = name
  return (text:gsub("%f[%w_]%u+%f[^%w_]", quoted):gsub("_?NAME_", name .. "_"))
end

--- For lua-language-server: what strategies can name, with its types.
local function luarc(paths)
  return ('{\n  "runtime.version": "Lua 5.4",\n  "runtime.path": ["?.lua"],\n  "workspace.library": [%s],\n  "workspace.checkThirdParty": false\n}\n'):format(
    (cjson.encode(paths.root):gsub("\\/", "/")))
end

local function busted_rules(paths)
  return ("-- What busted needs to run the specs of strategies.\nreturn { default = { lua = \"lua5.4\", lpath = %q, cpath = %q } }\n"):format(paths.lua, paths.c)
end

--- What is to be written: {path, text, what it is}; the first two must not be there, the others may.
local function files(command, name, paths)
  local list = {
    { ("strategies/%s.lua"):format(name), fill(template(command, "strategy"), name, paths), "the strategy, as a starting point" },
    { ("spec/%s_spec.lua"):format(name), fill(template(command, "spec"), name, paths), "its spec" },
  }
  for _, each in ipairs(list) do
    if core.fs.stat(each[1]) then errors.raise("exists", ("%s is there already, and nothing was written: choose another name, or move it away"):format(each[1])) end
  end
  if paths and not core.fs.stat(".luarc.json") then list[#list + 1] = { ".luarc.json", luarc(paths), "for lua-language-server: where deployrt's types are" } end
  if paths and paths.c and not core.fs.stat(".busted") then list[#list + 1] = { ".busted", busted_rules(paths), "for busted: where deployrt's modules are" } end
  return list
end

--- As any editor would make them: 0777 less the umask, and 0644.
local function write(list)
  for _, folder in ipairs { "strategies", "spec" } do
    if not core.fs.stat(folder) then errors.check(core.fs.mkdir(folder, 511)) end
  end
  for _, each in ipairs(list) do errors.check(core.fs.write(each[1], each[2], 420)) end
end

return function(command)
  local what, name = command.operands[1], command.operands[2]
  if what ~= "strategy" then errors.raise("usage", "what is to be made? There is: deployrt new strategy NAME") end
  check_name(name)
  local paths = lua_paths()
  local list = files(command, name, paths)
  write(list)
  if command.flags.quiet then return 0 end
  for _, each in ipairs(command.flags.json and list or {}) do command.say("written", each[3], { file = each[1] }) end
  if command.flags.json then return 0 end
  local width = #list[2][1]
  for _, each in ipairs(list) do command.write(("%-" .. width .. "s  %s\n"):format(each[1], each[3])) end
  command.write(("\nnext: deployrt help %s\n      deployrt test %s\n      busted spec/%s_spec.lua\n"):format(name, name, name))
  if not (paths and paths.c) then
    command.write("busted needs deployrt's modules, which are not beside this command: `make install` puts them there\n")
  end
  return 0
end
