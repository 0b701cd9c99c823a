-- ssh_match.lua -- Whether a Host or Match line of ~/.ssh/config holds for a host (ssh_config(5)).
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh_tokens = require "deployrt.ssh_tokens"

local ssh_match = {}

local longest_command = 10 -- seconds that a command of `Match exec` may take

local function to_pattern(glob)
  return "^" .. glob:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
end

--- Whether a Host line holds: one pattern matches and no negated one does.
---@param patterns string[]
---@param name string
---@return boolean
function ssh_match.host(patterns, name)
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

local function in_list(list, text)
  local patterns = {}
  for pattern in list:gmatch "[^,]+" do patterns[#patterns + 1] = pattern end
  return text and ssh_match.host(patterns, text)
end

local function in_host_list(list, name)
  return in_list(list:lower(), name and name:lower())
end

--- Whether a command of `Match exec` succeeds; nil, and why, when that does not show.
---@async
local function ask(command)
  local link = errors.check(core.connect { transport = "local", name = "local" })
  local answer, err = link:exec({ os.getenv "SHELL" or "/bin/sh", "-c", command }, { timeout = longest_command })
  link:close()
  if answer then return answer.status == 0 end
  if err.code ~= "timeout" then error(err, 0) end
  return nil, ("exec, which gives no answer within %d s"):format(longest_command)
end

local answers = {} -- of commands, for as long as we run: what is done to a host in one run is done to one host

local function succeeds(command)
  if not answers[command] then
    local result, why = ask(command)
    answers[command] = { result = result, why = why }
  end
  return answers[command].result, answers[command].why
end

---@class deployrt.SshFacts  of the host that a line is judged for; nil: it cannot be told
---@field original string      as the user would write it after `ssh`
---@field final boolean        the files are read once more, because a line asked for that
---@field canonicalizes fun(): boolean  whether the files are read once more for that reason, too
---@field local_user string
---@field address fun(): string?   by the lines so far
---@field user fun(): string?
---@field tokens fun(): table<string, string>

--- Each says whether it holds: nil, where only ssh can tell.
---@type table<string, fun(facts: deployrt.SshFacts, argument: string): boolean?, string?>
local criteria = {
  all = function() return true end,
  final = function(facts) return facts.final end,
  canonical = function(facts)
    if facts.canonicalizes() then return nil end
    return facts.final
  end,
  host = function(facts, list) return in_host_list(list, facts.address()) end,
  originalhost = function(facts, list) return in_host_list(list, facts.original) end,
  user = function(facts, list) return in_list(list, facts.user()) end,
  localuser = function(facts, list) return in_list(list, facts.local_user) end,
  exec = function(facts, command) return succeeds(ssh_tokens.fill(command, facts.tokens())) end,
}
local stands_alone = { all = true, final = true, canonical = true }

--- Each criterion of a Match line, with its argument.
local function criteria_of(words)
  local list, at = {}, 1
  while words[at] do
    local sign, word = words[at]:match "^(!?)(.*)$"
    local name, argument = word:match "^(%a+)=(.+)$"
    name = (name or word):lower()
    if not (argument or stands_alone[name]) then
      at = at + 1
      argument = words[at]
    end
    list[#list + 1] = { name = name, negated = sign == "!", argument = argument }
    at = at + 1
  end
  return list
end

local function holds(each, facts)
  local criterion = criteria[each.name]
  if not (criterion and (each.argument or stands_alone[each.name])) then return nil end
  local result, why = criterion(facts, each.argument)
  if result == nil then return nil, why end
  return result ~= each.negated
end

--- Whether a Match line holds. `exec` is asked as ssh does, once for each command.
---@async
---@param words string[]
---@param facts deployrt.SshFacts
---@return boolean|string  a text: the criterion that only ssh can judge, where it matters
function ssh_match.judge(words, facts)
  local unknown
  for _, each in ipairs(criteria_of(words)) do
    local result, why = holds(each, facts)
    if result == false then return false end
    if result == nil then unknown = unknown or why or each.name end
  end
  return unknown or true
end

--- Whether a Match line asks for the files to be read once more, with the name that the host has by then.
---@param words string[]
---@return boolean
function ssh_match.wants_final(words)
  for _, each in ipairs(criteria_of(words)) do
    if each.name == "final" then return true end
  end
  return false
end

return ssh_match
