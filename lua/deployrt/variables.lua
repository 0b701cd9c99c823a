-- variables.lua -- Variables of what is started, also those whose names shells keep for themselves.
local variables = {}

local kept = {} -- set or exported by one shell or another, they are refused, or reach nobody as they were given
for name in ([[_ BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_CMDS BASH_COMMAND BASH_LINENO BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO
  DIRSTACK EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD LINENO OPTIND PPID RANDOM SECONDS SHELLOPTS SHLVL SRANDOM UID]]):gmatch("%S+") do
  kept[name] = true
end

--- Whether shells keep a name for themselves.
---@param name string
---@return boolean
function variables.is_kept(name)
  return kept[name] == true
end

--- Variables and a command such that a shell can pass them on: those that it would not are set by env(1), which is no shell.
---@param env? table<string, string>
---@param argv string[]
---@return table<string, string> env
---@return string[] argv
function variables.passable(env, argv)
  local passed, words = {}, { "/usr/bin/env" }
  for name, value in pairs(env or {}) do
    if kept[name] then words[#words + 1] = name .. "=" .. value else passed[name] = value end
  end
  if #words == 1 then return passed, argv end
  return passed, table.move(argv, 1, #argv, #words + 1, words)
end

return variables
