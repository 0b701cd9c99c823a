-- ssh.lua -- From a host of app.yml to a link: whose keys, which known_hosts, which transport.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh_config = require "deployrt.ssh_config"

local ssh = {}

local default_keys = { "id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk" }
local passphrases, kinds = {}, {}

local function expand(path, home)
  return (path:gsub("^~", home))
end

local function base64_decode(text)
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
  local bits, value, out = 0, 0, {}
  for c in text:gmatch("[%w+/]") do
    value = ((value << 6) | (alphabet:find(c, 1, true) - 1)) & 0xffffff
    bits = bits + 6
    if bits >= 8 then
      bits = bits - 8
      out[#out + 1] = string.char((value >> bits) & 255)
    end
  end
  return table.concat(out)
end

--- Raises when the text ends early.
local function openssh_key_type(raw)
  local at = raw:match("^openssh%-key%-v1%z()")
  if not at then return nil end
  local cipher, _, _, count, rest = string.unpack(">s4s4s4I4", raw, at)
  if count < 1 then return nil end
  local public = string.unpack(">s4", raw, rest)
  local kind = string.unpack(">s4", public)
  local type = kind:find("^sk%-") and "sk" or kind:find("ed25519") and "ed25519" or kind:find("ecdsa") and "ecdsa" or "rsa"
  return type, cipher ~= "none", public
end

--- The public half that lies beside a private key.
local function public_beside(path)
  local file = io.open(path .. ".pub")
  if not file then return nil end
  local text = file:read(16384) or ""
  file:close()
  return base64_decode(text:match("^%S+ ([%w+/=]+)") or "")
end

--- What kind of private key a file holds (OpenSSH PROTOCOL.key, or PEM).
---@param path string
---@return string? type       "ed25519", "ecdsa", "rsa", "sk"; nil when the file is not there or no key
---@return boolean? encrypted
---@return string? public     its public half, as the protocol has it
function ssh.key_type(path)
  local file = io.open(path)
  if not file then return nil end
  local text = file:read(16384) or ""
  file:close()
  local body = text:match("BEGIN OPENSSH PRIVATE KEY%-%-%-%-%-(.-)%-%-%-%-%-END")
  if body then
    local ok, type, encrypted, public = pcall(openssh_key_type, base64_decode(body))
    if not ok then return nil end
    return type, encrypted, public
  end
  local pem = text:match("BEGIN (%u*) ?PRIVATE KEY")
  if not pem then return nil end
  return pem == "EC" and "ecdsa" or pem == "RSA" and "rsa" or "ecdsa", text:find("ENCRYPTED", 1, true) ~= nil, public_beside(path)
end

--- The same, remembered: a fleet shares few keys.
local function kind_of(path)
  local kind = kinds[path]
  if not kind then
    kind = table.pack(ssh.key_type(path))
    if kind[1] then kinds[path] = kind end
  end
  return kind[1], kind[2], kind[3]
end

local function passphrase_for(path)
  if passphrases[path] == nil then
    passphrases[path] = core.ask_secret(("Passphrase of %s: "):format(path)) or false
  end
  return passphrases[path]
end

local agent -- nil: not asked yet; an event: being asked; then whether it answers
local held = {} -- public halves of its keys, each as ssh-add prints it

--- Whether the SSH agent answers, asked once: libssh2 would wait for one that hangs, and everybody with it.
---@async
local function agent_answers()
  if os.getenv("SSH_AUTH_SOCK") == nil then return false end
  if agent == nil then
    local asking = core.event()
    agent = asking
    local here = core.connect { transport = "local", name = "local" }
    local answer = here:exec({ "ssh-add", "-L" }, { timeout = 3 })
    here:close()
    agent = answer ~= nil and answer.status ~= 2
    for text in (answer and answer.stdout or ""):gmatch("%f[^\n\0]%S+ ([%w+/=]+)") do held[base64_decode(text)] = text end
    asking:set()
  elseif type(agent) ~= "boolean" then
    agent:wait()
  end
  return agent
end

--- Where a host is: HostName of ~/.ssh/config, else as app.yml has it.
---@param host table  an entry of app.hosts
---@param found? table  what ssh_config.lookup() says of it
---@return string
function ssh.address(host, found)
  local hostname = (found or ssh_config.lookup(host.address)).hostname
  return hostname and (hostname:gsub("%%h", (host.address:gsub("%%", "%%%%")))) or host.address
end

--- Where `host` of app.yml is and how to log in there, with ~/.ssh/config filled in.
---@param host table  an entry of app.hosts
---@return table
function ssh.resolve(host)
  local me = core.whoami()
  local found = ssh_config.lookup(host.address)
  local identities = host.identity and { host.identity } or found.identityfile or {}
  if #identities == 0 then
    for _, name in ipairs(default_keys) do identities[#identities + 1] = me.home .. "/.ssh/" .. name end
  end
  for i, path in ipairs(identities) do identities[i] = expand(path, me.home) end
  local files = host.known_hosts
  if files == "strict" or files == "accept-new" then files = nil end
  files = expand(files or found.userknownhostsfile or "~/.ssh/known_hosts", me.home)
  local strict = host.known_hosts or found.stricthostkeychecking
  local known_hosts = { files }
  if not host.known_hosts then known_hosts[2] = "/etc/ssh/ssh_known_hosts" end
  return {
    name = host.name, address = ssh.address(host, found), known_as = found.hostkeyalias,
    port = math.tointeger(host.port or tonumber(found.port) or 22),
    user = host.user or found.user or me.user, identities = identities, known_hosts = known_hosts,
    accept_new = strict == "accept-new", jump = host.jump or found.proxyjump,
    agent = (found.identitiesonly or "no"):lower() ~= "yes" and not host.identity,
    explicit = host.identity ~= nil,
  }
end

--- Where the processes of one connection meet: ssh adds 57 characters, and a socket's path ends at 107.
local function control_path()
  local me = core.whoami()
  local directory = me.home .. "/.deployrt"
  if #directory > 46 or not core.fs.mkdir(directory) then return nil end
  return ("%s/%d-%%C"):format(directory, me.pid % 1000)
end

--- The words of the ssh command for the same destination.
---@param target table  from ssh.resolve
---@return string[]
function ssh.command(target)
  local control = control_path()
  local words = {
    "/usr/bin/env", "ssh", "-o", "LogLevel=ERROR", -- or a refused forward is told to the command that happens to hold the connection
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
    "-o", "ControlMaster=" .. (control and "auto" or "no"), "-o", "ControlPersist=no", "-o", "ControlPath=" .. (control or "none"),
    "-o", "StrictHostKeyChecking=" .. (target.accept_new and "accept-new" or "yes"),
    "-o", "UserKnownHostsFile=" .. table.concat(target.known_hosts, " "),
    "-p", tostring(target.port), "-l", target.user,
  }
  local function add(...)
    for _, word in ipairs { ... } do words[#words + 1] = word end
  end
  if target.known_as then add("-o", "HostKeyAlias=" .. target.known_as) end
  for _, path in ipairs(target.identities) do
    if target.explicit or kind_of(path) then add("-i", path) end
  end
  if target.jump and target.jump ~= "none" then add("-J", target.jump) end
  add(target.address)
  return words
end

--- Splits the keys into those that libssh2 can use and the kinds that it cannot. Nobody is asked for the passphrase of one
--- that the agent has.
---@async
---@return string[] usable       files
---@return string? foreign       a kind
---@return string[] passphrases  of the files; "": none
---@return string[] with_agent   public halves of encrypted keys that the agent has
local function usable_keys(target)
  local usable, foreign, phrases, with_agent = {}, nil, {}, {}
  for _, path in ipairs(target.identities) do
    local type, encrypted, public = kind_of(path)
    if type == "rsa" or type == "sk" then
      foreign = type
    elseif type and encrypted and agent_answers() and held[public or ""] then
      with_agent[#with_agent + 1] = held[public]
    elseif type then
      usable[#usable + 1], phrases[#usable + 1] = path, encrypted and passphrase_for(path) or ""
    elseif target.explicit then
      errors.raise("denied", ("%s: identity %s is missing or no private key"):format(target.name, path), { host = target.name })
    end
  end
  return usable, foreign, phrases, with_agent
end

local connect

--- Through the last of some jump hosts, itself reached through those before it: a link to it, and a socket that
--- ends at the target.
---@async
local function through(jumps, target)
  local before, jump = jumps:match("^(.*),([^,]+)$")
  jump = jump or jumps
  local user, rest = jump:match("^([^@]*)@(.*)$")
  local address, port = (rest or jump):match("^(.-):(%d+)$")
  address = address or rest or jump
  local hop = {
    name = address, address = address, user = user, port = tonumber(port), known_hosts = target.hop_known_hosts, jump = before,
  }
  local link, err = connect(hop, {})
  if not link then return nil, err end
  local fd, problem = link:forward(target.address, target.port)
  return fd, problem, link
end

--- By the ssh command, which knows more kinds of keys than libssh2. Whether it gets there shows once it runs something.
---@async
local function through_command(host, target, opts)
  local link, err = core.connect { transport = "openssh", name = host.name, root = opts.root, command = ssh.command(target) }
  if not link then return nil, err end
  local answer, problem = link:exec({ "true" }, { timeout = 20 })
  if answer and answer.status == 0 then return link end
  link:close()
  if problem then
    problem.host = host.name
    return nil, problem
  end
  local code = answer.stderr:find("Host key verification failed", 1, true) and "host_key" or "unreachable"
  return nil, errors.new(code, ("%s: the ssh command fails with status %s"):format(host.name, answer.status or answer.signal),
    { host = host.name, detail = answer.stderr })
end

local own = setmetatable({}, { __mode = "k" }) -- links that are not of the ssh command

--- Whether all that a link runs is begun by one process of sshd.
---@param link table
---@return boolean
function ssh.has_one_server(link)
  return own[link] == true
end

--- Opens a link to a host; may wait for the log-in.
---@async
---@param host table             an entry of app.hosts
---@param opts {root?: string}   where the application lives there
---@return table? link
---@return deployrt.Error? err
function connect(host, opts)
  if host.transport == "local" or not host.address then
    return core.connect { transport = "local", name = host.name, root = opts.root }
  end
  local target = ssh.resolve(host)
  local usable, foreign, phrases, with_agent = usable_keys(target)
  local ask_agent = (target.agent or #with_agent > 0) and agent_answers()
  local use_command = host.transport == "openssh" or (foreign and #usable == 0 and not ask_agent)
  local link, err, hop
  if not use_command then
    local options = {
      transport = "ssh", name = host.name, root = opts.root, address = target.address, port = target.port,
      known_as = target.known_as, user = target.user, identities = usable, passphrases = phrases, agent = ask_agent,
      agent_keys = not target.agent and with_agent or nil,
      known_hosts = target.known_hosts, accept_new = target.accept_new,
    }
    if target.jump and target.jump ~= "none" then
      target.hop_known_hosts = host.known_hosts
      options.fd, err, hop = through(target.jump, target)
      if not options.fd then return nil, err end
    end
    link, err = core.connect(options)
    if err and err.code == "denied" and agent == false then
      err.message = ("%s; the SSH agent at %s does not answer"):format(err.message, os.getenv "SSH_AUTH_SOCK")
    end
    local is_for_command = err and (err.code == "unsupported" or err.code == "denied" and foreign)
    if link then own[link] = true end
    if not is_for_command then return link, err, hop end
    if hop then hop:close() end
  end
  return through_command(host, target, opts)
end

ssh.connect = connect
return ssh
