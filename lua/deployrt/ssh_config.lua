-- ssh_config.lua -- The part of ~/.ssh/config that decides where and as whom to connect (ssh_config(5)).
local core = require "deployrt.core"

local ssh_config = {}

local known = {
  hostname = true, user = true, port = true, identityfile = "list", proxyjump = true,
  userknownhostsfile = true, stricthostkeychecking = true, identitiesonly = true, hostkeyalias = true,
}

local function to_pattern(glob)
  return "^" .. glob:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
end

--- Whether a Host line applies: one pattern matches and no negated one does.
local function applies(patterns, name)
  local matched = false
  for _, pattern in ipairs(patterns) do
    local negated = pattern:sub(1, 1) == "!"
    if name:find(to_pattern(negated and pattern:sub(2) or pattern)) then
      if negated then return false end
      matched = true
    end
  end
  return matched
end

local function words(text)
  local list = {}
  for quoted in text:gmatch('"([^"]*)"') do list[#list + 1] = quoted end
  if #list > 0 then return list end
  for word in text:gmatch("%S+") do list[#list + 1] = word end
  return list
end

local function expand_home(path, home)
  return (path:gsub("^~", home))
end

local function files_of(pattern, directory, home)
  pattern = expand_home(pattern, home)
  if pattern:sub(1, 1) ~= "/" then pattern = directory .. "/" .. pattern end
  local folder, name = pattern:match("^(.*)/([^/]*)$")
  if not name:find("[*?]") then return { pattern } end
  local list = {}
  for _, entry in ipairs(core.fs.list(folder) or {}) do
    if entry:find(to_pattern(name)) then list[#list + 1] = folder .. "/" .. entry end
  end
  return list
end

local function read_file(path, name, home, found, depth)
  local file = io.open(path)
  if not file or depth > 16 then return end
  local active = true
  for line in file:lines() do
    local key, value = line:match("^%s*(%a+)%s*[%s=]%s*(.-)%s*$")
    key = key and key:lower()
    if key == "host" then
      active = applies(words(value), name)
    elseif key == "match" then
      active = value:lower() == "all"
    elseif key == "include" and active then
      for _, pattern in ipairs(words(value)) do
        for _, each in ipairs(files_of(pattern, home .. "/.ssh", home)) do
          read_file(each, name, home, found, depth + 1)
        end
      end
    elseif active and known[key] == "list" then
      found[key] = found[key] or {}
      table.insert(found[key], words(value)[1])
    elseif active and known[key] and found[key] == nil then
      found[key] = words(value)[1]
    end
  end
  file:close()
end

--- What the user's configuration says of a host: the first value of each key wins, IdentityFile adds up.
---@param name string   as the user would write it after `ssh`
---@param path? string  default ~/.ssh/config
---@return {hostname?: string, user?: string, port?: string, identityfile?: string[], proxyjump?: string, userknownhostsfile?: string, stricthostkeychecking?: string}
function ssh_config.lookup(name, path)
  local home = core.whoami().home
  local found = {}
  read_file(path or (home .. "/.ssh/config"), name, home, found, 0)
  if not path then read_file("/etc/ssh/ssh_config", name, home, found, 0) end
  return found
end

return ssh_config
