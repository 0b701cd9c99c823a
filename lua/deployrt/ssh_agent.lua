-- ssh_agent.lua -- The user's SSH agent, and one of our own for keys that only the ssh command can use.
local core = require "deployrt.core"

local ssh_agent = {}

local results = {} -- of what is done once: an event while it is being done

--- What an action returns, which is done once, however many ask at the same time.
---@async
local function once(name, action, ...)
  if results[name] == nil then
    local doing = core.event()
    results[name] = doing
    results[name] = action(...) or false
    doing:set()
  elseif type(results[name]) == "userdata" then
    results[name]:wait()
  end
  return results[name]
end

--- Runs a program on this machine.
---@async
local function run_here(argv, opts)
  local here <close> = core.connect { transport = "local", name = "local" }
  return here:exec(argv, opts)
end

local function list()
  local answer = run_here({ "ssh-add", "-L" }, { timeout = 3 })
  if answer == nil or answer.status == 2 then return nil end
  local keys = { listed = answer.status <= 1 } -- not where there is no ssh-add
  for text in answer.stdout:gmatch("%f[^\n\0]%S+ ([%w+/=]+)") do keys[#keys + 1] = text end
  return keys
end

--- The public halves of the keys that the user's agent has, in base64. It is asked once: libssh2 would wait for an agent that
--- hangs, and everybody with it.
---@async
---@return {listed: boolean, [integer]: string}|false keys  false: it does not answer, or there is none; not listed: it has some, but nobody can tell which
function ssh_agent.keys()
  return os.getenv "SSH_AUTH_SOCK" ~= nil and once("list", list)
end

--- Lives as long as its standard input is open, and so does the agent; one that is killed leaves the agent 10 s.
local holder = [[trap 'kill "$SSH_AGENT_PID"; exit' EXIT HUP INT TERM; echo "$SSH_AUTH_SOCK"; cat > /dev/null]]

local own = {} -- what our own agent lives by

local function begin_own()
  own.link = core.connect { transport = "local", name = "local" }
  own.stream = own.link:stream({ "ssh-agent", "/bin/sh", "-c", holder }, { open_stdin = true })
  local said = own.stream and own.stream:read(5)
  return type(said) == "string" and said:match "^(/[^\n]*)\n" or nil
end

--- ssh-add asks for the passphrase what prints the line that we write.
local adder = [[
ask=$(umask 077 && mktemp) || exit 3
trap 'rm -f "$ask"' EXIT
printf '#!/bin/sh\nIFS= read -r phrase && printf "%%s\\n" "$phrase"\n' > "$ask" && chmod 700 "$ask" || exit 3
DISPLAY=${DISPLAY:-:0} SSH_ASKPASS=$ask SSH_ASKPASS_REQUIRE=force ssh-add -q "$1"]]

--- Nothing, or why it cannot be had.
local function add_to_own(path, passphrase)
  local socket = once("own", begin_own)
  if not socket then return "'ssh-agent' does not begin, by which the ssh command would get it" end
  local answer, err = run_here({ "/bin/sh", "-c", adder, "sh", path }, { stdin = passphrase .. "\n", env = { SSH_AUTH_SOCK = socket }, timeout = 10 })
  if not answer then return err.message end
  if answer.status == 0 then return nil end
  return answer.status == 1 and not answer.stderr:find("askpass", 1, true) and "the passphrase is wrong" or answer.stderr:match "[^\n]*"
end

--- Has the key of an encrypted file in an agent of our own, which ends with this process.
---@async
---@param path string
---@param passphrase string
---@return string? socket  of the agent
---@return string? why_not
function ssh_agent.unlock(path, passphrase)
  local why_not = once("key " .. path, add_to_own, path, passphrase)
  if why_not then return nil, why_not end
  return results.own
end

return ssh_agent
