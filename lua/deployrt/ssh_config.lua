-- ssh_config.lua -- The part of ~/.ssh/config that decides where and as whom to connect (ssh_config(5)).
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh_match = require "deployrt.ssh_match"
local ssh_tokens = require "deployrt.ssh_tokens"

local ssh_config = {}

--- The word of a value that begins at a place, and where it ends. Quotes may begin and end in its midst; a backslash takes their
--- meaning from what can have one.
local function word_at(text, at)
  local word, quote = {}, nil
  while at <= #text do
    local c = text:sub(at, at)
    local plain = text:match(quote and "^\\([\\\"'])" or "^\\([\\\"' ])", at)
    if plain then
      word[#word + 1], at = plain, at + 1
    elseif c == quote then
      quote = nil
    elseif not quote and c:find "[\"']" then
      quote = c
    elseif not quote and c:find "%s" then
      break
    else
      word[#word + 1] = c
    end
    at = at + 1
  end
  return table.concat(word), at
end

--- The words of a value, up to a comment. Plain ones are told apart at once: many hosts ask, and each has lines of its own.
local function words(text)
  local list, at = {}, text:match "^%s*()"
  if not text:find "[\"'\\#]" then
    for word in text:gmatch "%S+" do list[#list + 1] = word end
    return list
  end
  while at <= #text and text:sub(at, at) ~= "#" do
    list[#list + 1], at = word_at(text, at)
    at = text:match("^%s*()", at)
  end
  return list
end

local function first(value)
  return words(value)[1]
end

local function lowered(value)
  return (first(value) or ""):lower()
end

local function flag(value)
  return (lowered(value) == "yes" or lowered(value) == "true") and "yes" or "no"
end

--- None is a word of its own for what leads to a host, in any case.
local function unless_none(value)
  return value and value:lower() == "none" and "none" or value
end

--- What each setting is made of its line.
local known = {
  hostname = first, user = first, port = first, identityfile = first, hostkeyalias = first, userknownhostsfile = words,
  proxyjump = function(value) return unless_none(first(value)) end, proxycommand = unless_none,
  stricthostkeychecking = lowered, identitiesonly = flag, canonicalizehostname = lowered,
}
local adds_up = { identityfile = true }
local rivals = { proxyjump = "proxycommand", proxycommand = "proxyjump" } -- of which the first one counts

--- The files that an Include names, sorted as ssh has them.
local function files_of(pattern, state)
  pattern = pattern:gsub("^~%f[/\0]", function() return state.me.home end)
  if pattern:sub(1, 1) ~= "/" then pattern = state.directory .. "/" .. pattern end
  return core.fs.glob(pattern)
end

--- Refuses a port that ssh refuses, wherever in a file it stands.
local function check_port(path, setting)
  local list = words(setting.value)
  local port = #list == 1 and list[1]:match "^%d+$" and tonumber(list[1])
  if not (port and port >= 1 and port <= 65535) then
    errors.raise("config", ("%s:%d: '%s' is not a port: expected a number from 1 to 65535"):format(path, setting.line, setting.value))
  end
end

--- The settings of a file, in their order; none where there is no file.
local function parse(path)
  local file <close> = io.open(path)
  local settings, number = {}, 0
  for line in (file and file:read "a" or ""):gmatch "([^\n]*)\n?" do
    number = number + 1
    local word, value = line:match("^%s*(%a+)%s*[%s=]%s*(.-)%s*$")
    if word then
      local setting = { key = word:lower(), value = value, word = word, line = number }
      if setting.key == "port" then check_port(path, setting) end
      settings[#settings + 1] = setting
    end
  end
  return settings
end

---@class deployrt.SshSetting
---@field key string    in lower case
---@field value string  as it stands there
---@field word string   the key as it stands there
---@field line integer

--- Reads each file once: for who asks about many hosts.
---@return fun(path: string): deployrt.SshSetting[]
function ssh_config.reader()
  local files = {}
  return function(path)
    files[path] = files[path] or parse(path)
    return files[path]
  end
end

--- Whether an earlier line has settled what this key would say.
local function is_settled(state, key)
  local rival = rivals[key]
  if state.doubts[key] then return true end
  if rival and state.found[rival] and not (rival == "proxyjump" and state.found[rival] == "none") then return true end
  return state.found[key] ~= nil and not adds_up[key]
end

--- Adds a value to those of a key, each once.
local function add(list, value)
  for _, each in ipairs(list) do
    if each == value then return list end
  end
  list[#list + 1] = value
  return list
end

--- Has a setting say what it says; or, below a line that only ssh can judge, be in doubt.
local function take(state, setting, active)
  local key, found = setting.key, state.found
  if is_settled(state, key) then return end
  if active ~= true then
    state.doubts[key] = { match = active, word = setting.word }
    if rivals[key] then state.doubts[rivals[key]] = state.doubts[key] end
    if adds_up[key] then found[key] = nil end
  elseif adds_up[key] then
    found[key] = add(found[key] or {}, known[key](setting.value))
  else
    found[key] = known[key](setting.value)
  end
end

--- What a Match line says of the lines below it: whether they hold, or where it is and what only ssh can judge there.
---@async
local function judge(state, path, setting)
  local list = words(setting.value)
  if ssh_match.wants_final(list) then state.wants_final = true end
  local answer = ssh_match.judge(list, state.facts)
  return type(answer) == "string" and { path = path, line = setting.line, criterion = answer } or answer
end

--- Goes through the lines of a file, all of which are in doubt where the line is that includes it.
---@async
local function look_up(state, path, outer, depth)
  if depth > 16 then return end
  local active = outer
  for _, setting in ipairs(state.read(path)) do
    local key, value = setting.key, setting.value
    if key == "host" then
      active = ssh_match.host(words(value), state.name) and outer
    elseif key == "match" then
      local answer = judge(state, path, setting)
      active = answer == true and outer or answer
    elseif key == "include" and active then
      for _, pattern in ipairs(words(value)) do
        for _, each in ipairs(files_of(pattern, state)) do look_up(state, each, active, depth + 1) end
      end
    elseif active and known[key] then
      take(state, setting, active)
    end
  end
end

--- What lines are judged by, of what is found so far.
---@return deployrt.SshFacts
local function facts_of(state, given)
  local me, found, doubts = state.me, state.found, state.doubts
  local facts = { original = state.name, final = false, local_user = me.user }
  function facts.canonicalizes() return (found.canonicalizehostname or "no"):find "^[ya]" ~= nil end
  function facts.address() return not doubts.hostname and ssh_tokens.address(facts.original, found.hostname) or nil end
  function facts.user() return given.user or not doubts.user and (found.user or me.user) or nil end
  function facts.tokens()
    return ssh_tokens.of { name = facts.original, address = facts.address() or facts.original, known_as = found.hostkeyalias,
      port = given.port or found.port or 22, user = facts.user() or me.user }
  end
  return facts
end

local function read_all(state, path, outer)
  state.directory = state.me.home .. "/.ssh"
  look_up(state, path or state.directory .. "/config", outer, 0)
  if path then return end
  state.directory = "/etc/ssh"
  look_up(state, "/etc/ssh/ssh_config", outer, 0)
end

--- Reads the files once more, with the name that the host has by now, and keeps.
local function read_finally(state, path)
  local address, doubt = state.facts.address(), state.doubts.hostname
  state.facts.final = true
  if address then state.name, state.found.hostname = address, (address:gsub("%%", "%%%%")) end
  read_all(state, path, doubt and doubt.match or true)
end

--- Raises for what only ssh can tell, once that is asked for.
local function refuse(doubt, name)
  local match = doubt.match
  errors.raise("config", ("%s:%d: only ssh can judge 'Match %s', on which %s of %s depends: have that line begin with 'Match !originalhost %s', and a 'Host %s' above it say what it is to be"):format(
    match.path, match.line, match.criterion, doubt.word, name, name, name))
end

--- What the user's configuration says of a host: the first value of each key wins, IdentityFile adds up.
--- Commands of `Match exec` are run, as ssh does. Raises deployrt.Error "config" for a port that is none; and where a field is
--- read that depends on a line which only ssh can judge.
---@async
---@param name string   as the user would write it after `ssh`
---@param path? string  default ~/.ssh/config, and that of the machine
---@param read? fun(path: string): deployrt.SshSetting[]  a reader() that others use, too
---@param given? {user?: string, port?: integer}  what is said elsewhere, and wins
---@return {hostname?: string, user?: string, port?: string, identityfile?: string[], identitiesonly?: "yes"|"no", proxyjump?: string, proxycommand?: string, hostkeyalias?: string, userknownhostsfile?: string[], stricthostkeychecking?: string}
function ssh_config.lookup(name, path, read, given)
  local state = { name = name, me = core.whoami(), read = read or ssh_config.reader(), found = {}, doubts = {} }
  state.facts = facts_of(state, given or {})
  read_all(state, path, true)
  if state.wants_final then read_finally(state, path) end
  return setmetatable(state.found, { __index = function(_, key)
    if state.doubts[key] then refuse(state.doubts[key], name) end
  end })
end

return ssh_config
