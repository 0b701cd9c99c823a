-- ssh.lua -- From a host of app.yml to a link: which known_hosts, which jump hosts, which transport.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh_config = require "deployrt.ssh_config"
local ssh_keys = require "deployrt.ssh_keys"
local ssh_tokens = require "deployrt.ssh_tokens"

local ssh = {}

local default_keys = { "id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk" }

local function expand(path, home)
  return (path:gsub("^~%f[/\0]", (home:gsub("%%", "%%%%"))))
end

--- A path of ~/.ssh/config, which may have tokens and variables.
local function fill_path(path, home, tokens)
  local text = expand(path, (home:gsub("%%", "%%%%"))):gsub("%${([%w_]+)}", function(name)
    local value = os.getenv(name)
    return value and value:gsub("%%", "%%%%")
  end)
  return ssh_tokens.fill(text, tokens)
end

local function fill_paths(paths, home, tokens)
  local list = {}
  for i, path in ipairs(paths) do list[i] = fill_path(path, home, tokens) end
  return list
end

--- Where a host is: HostName of ~/.ssh/config, else as app.yml has it. Raises as ssh_config.lookup does.
---@async
---@param host table  an entry of app.hosts
---@param read? fun(path: string): table[]  an ssh_config.reader(), for who asks about many hosts
---@return string
function ssh.address(host, read)
  return ssh_tokens.address(host.address, ssh_config.lookup(host.address, nil, read, host).hostname)
end

--- Private keys: that of app.yml, those of ~/.ssh/config, or those that ssh looks for by itself.
local function identities_of(host, found, home, tokens)
  if host.identity then return { expand(host.identity, home) } end
  if found.identityfile then return fill_paths(found.identityfile, home, tokens) end
  local list = {}
  for i, name in ipairs(default_keys) do list[i] = home .. "/.ssh/" .. name end
  return list
end

local no_file = { strict = true, ["accept-new"] = true } -- what known_hosts of app.yml may say of all files

local function known_hosts_of(host, found, home, tokens)
  local file = host.known_hosts
  if file and not no_file[file] then return { expand(file, home) } end
  local files = fill_paths(found.userknownhostsfile or { "~/.ssh/known_hosts" }, home, tokens)
  if not file then files[#files + 1] = "/etc/ssh/ssh_known_hosts" end
  return files
end

--- What the ssh command is to go through, with the name that ~/.ssh/config knows the host by: the rest it fills in itself.
local function proxy_command_of(host, found)
  local command = not host.jump and found.proxycommand
  if not command or command == "none" then return nil end
  return ssh_tokens.fill(command, { ["%"] = "%%", n = (host.address:gsub("%%", "%%%%")) })
end

--- Where `host` of app.yml is and how to log in there, with ~/.ssh/config filled in. Raises as ssh_config.lookup does.
---@async
---@param host table  an entry of app.hosts
---@return table
function ssh.resolve(host)
  local me = core.whoami()
  local found = ssh_config.lookup(host.address, nil, nil, host)
  local way = {
    name = host.address, address = ssh_tokens.address(host.address, found.hostname), known_as = found.hostkeyalias,
    port = math.tointeger(host.port or tonumber(found.port) or 22), user = host.user or found.user or me.user,
  }
  local tokens = ssh_tokens.of(way)
  return {
    name = host.name, address = way.address, known_as = way.known_as, port = way.port, user = way.user,
    identities = identities_of(host, found, me.home, tokens), known_hosts = known_hosts_of(host, found, me.home, tokens),
    accept_new = (host.known_hosts or found.stricthostkeychecking) == "accept-new",
    jump = host.jump or found.proxyjump and ssh_tokens.fill(found.proxyjump, tokens), proxy_command = proxy_command_of(host, found),
    agent = not host.identity and found.identitiesonly ~= "yes",
    explicit = host.identity ~= nil,
  }
end

--- Where the processes of one connection meet: of one way to a host, of which ssh's own %C leaves out what it goes through.
--- ssh adds 17 characters, and a socket's path ends at 107.
local function control_path(target)
  local me = core.whoami()
  local directory = me.home .. "/.deployrt"
  if #directory > 53 or not core.fs.mkdir(directory) then return nil end
  local way = table.concat({ target.address, target.port, target.user, target.jump or "", target.proxy_command or "" }, "\n")
  return ("%s/%d-%s"):format(directory, me.pid % 1000, core.sha256(way):sub(1, 32))
end

--- A text as one word of an option of ssh, which splits at spaces and fills in what stands behind a % sign.
local function option_word(text)
  return '"' .. text:gsub('[\\"]', "\\%0"):gsub("%%", "%%%%") .. '"'
end

--- Why a new host key could not be kept in a file, whose directory is made for it as ssh does by default. The ssh command
--- only warns then, takes the key, and takes any other the next time.
---@return deployrt.Error?
local function recording_problem(path)
  local directory = path:match("^(.+)/[^/]*$")
  if directory then core.fs.mkdir(directory) end
  local file, err = core.fs.append(path)
  if file then file:close() end
  return err
end

local function unescaped(text)
  return text and text:gsub("%%(%x%x)", function(code) return string.char(tonumber(code, 16)) end)
end

--- The last of some jump hosts, as a host that is itself reached through those before it: [user@]host[:port], with brackets
--- around an address of IPv6 where a port follows; or the same as a URI.
local function last_hop(jumps)
  local before, jump = jumps:match("^(.*),([^,]+)$")
  jump = jump or jumps
  local uri = jump:match("^ssh://(.-)/?$")
  local user, rest = (uri or jump):match("^(.*)@(.*)$")
  rest = rest or uri or jump
  local address, port = rest:match("^%[(.*)%]:?(%d*)$")
  if not address then address, port = rest:match("^([^:]*):(%d+)$") end
  address = address or rest
  return { name = address, address = address, user = uri and unescaped(user) or user, port = tonumber(port), jump = before }
end

--- The same jump hosts as the ssh command takes them.
local function jump_option(jumps)
  local hop = last_hop(jumps)
  local text = (hop.user and hop.user .. "@" or "") .. (hop.address:find(":", 1, true) and "[" .. hop.address .. "]" or hop.address)
    .. (hop.port and ":" .. hop.port or "")
  return hop.jump and jump_option(hop.jump) .. "," .. text or text
end

--- The words of the ssh command for the same destination.
---@param target table       from ssh.resolve
---@param own_agent? string  the socket of an agent that takes the place of the user's
---@return string[]
function ssh.command(target, own_agent)
  local control, files = control_path(target), {}
  for i, path in ipairs(target.known_hosts) do files[i] = option_word(path) end
  local words = {
    "/usr/bin/env", "ssh", "-o", "LogLevel=ERROR", -- or a refused forward is told to the command that happens to hold the connection
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
    "-o", "ControlMaster=" .. (control and "auto" or "no"), "-o", "ControlPersist=no", "-o", "ControlPath=" .. (control or "none"),
    "-o", "StrictHostKeyChecking=" .. (target.accept_new and "accept-new" or "yes"),
    "-o", "UserKnownHostsFile=" .. table.concat(files, " "),
    "-p", tostring(target.port), "-l", target.user,
  }
  local function add(...)
    for _, word in ipairs { ... } do words[#words + 1] = word end
  end
  if own_agent then
    add("-o", "IdentityAgent=" .. option_word(own_agent), "-o", "IdentitiesOnly=no")
  elseif not target.agent then
    add("-o", "IdentitiesOnly=yes")
  end
  if target.known_as then add("-o", "HostKeyAlias=" .. target.known_as) end
  for _, path in ipairs(target.identities) do
    local file = ssh_keys.file(path) or target.explicit and path
    if file then add("-i", (file:gsub("%%", "%%%%"))) end -- which ssh fills in once more
  end
  if target.jump and target.jump ~= "none" then
    add("-J", jump_option(target.jump))
  else
    add("-o", "ProxyCommand=" .. (target.proxy_command or "none"))
  end
  add(target.address)
  return words
end

--- What is wrong with the jump hosts when one is reached through itself, in the end.
---@return deployrt.Error?
local function circle(host, jumps)
  local each, names, seen = host, {}, {}
  while jumps and jumps ~= "none" do
    local key = ("%s %s %s %s"):format(each.address, each.user, each.port, each.jump)
    names[#names + 1] = each.address
    if seen[key] then
      return errors.new("config", ("the jump hosts lead in a circle: %s. Which one is reached directly? Have ~/.ssh/config say so before all else, as: Host %s, and below it: ProxyJump none"):format(
        table.concat(names, " is reached through ", seen[key]), names[#names - 1]), { host = host.name })
    end
    seen[key] = #names
    each = last_hop(jumps)
    jumps = each.jump or ssh_config.lookup(each.address, nil, nil, each).proxyjump
  end
end

local connect

--- Through the last of some jump hosts: a link to it, and a socket that ends at the target.
---@async
local function through(jumps, target)
  local hop = last_hop(jumps)
  hop.known_hosts = target.hop_known_hosts
  local link, err = connect(hop, {})
  if not link then
    err.message = ("the jump host %s: %s"):format(hop.address, err.message)
    return nil, err
  end
  local fd, problem = link:forward(target.address, target.port)
  return fd, problem, link
end

--- Has an error say which jump host it happened behind, and what that one says of the target: its socket only ends.
---@async
local function blame(err, hop, target)
  local name, where = last_hop(target.jump).address, ("%s:%d"):format(target.address, target.port)
  local ok, why = hop:dial(target.address, target.port, 3)
  if not ok and why.code ~= "timeout" and why.code ~= "canceled" then
    err.message = ("%s: not reached from the jump host %s: %s"):format(where, name, (why.message:gsub("^connecting: ", "")))
  else
    err.message = ("%s, through the jump host %s"):format(err.message, name)
  end
end

--- What libssh2's way says of a host key that has changed, of what the ssh command says.
local function changed_key(said)
  local file, line = said:match("Offending %S+ key in ([^\n]+):(%d+)")
  local who = said:match("Host key for (%S+) has changed")
  return file and who and ("the host key of %s is not the one in %s (line %s): somebody may be listening in, or the machine was set up anew; if you know why, remove the old key with: ssh-keygen -f '%s' -R '%s'"):format(
    who, file, line, file, who)
end

local unverified = "Host key verification failed"

--- The end of what the ssh command says, which is why it fails; the line before where the last one tells nothing.
local function last_reason(said)
  local reason
  for line in said:gmatch("[^\r\n]+") do
    if not (reason and line:find(unverified, 1, true)) then reason = line end
  end
  return reason and ": " .. reason or ""
end

--- The error of a ssh command that did not get in.
---@param host table
---@param status integer|string
---@param said string
---@return deployrt.Error
local function command_error(host, status, said)
  local code = said:find(unverified, 1, true) and "host_key" or said:find("Permission denied (", 1, true) and "denied" or "unreachable"
  local message = changed_key(said) or ("the ssh command fails with status %s%s"):format(status, last_reason(said))
  return errors.new(code, message, { host = host.name, detail = said:find("\n.") and said or nil })
end

--- By the ssh command, which knows more kinds of keys than libssh2. Whether it gets there shows once it runs something.
---@async
local function through_command(host, target, keys, opts)
  local unkept = target.accept_new and recording_problem(target.known_hosts[1])
  if unkept then target.accept_new = false end -- a key that is known is fine still
  local link, err = core.connect { transport = "openssh", name = host.name, root = opts.root, command = ssh.command(target, keys.own_agent) }
  if not link then return nil, err end
  local answer, problem = link:exec({ "true" }, { timeout = 20 })
  if answer and answer.status == 0 then return link end
  link:close()
  local said = problem and problem.message:gsub("^running a command: ", "") or answer and answer.stderr
  if unkept and said:find("host key is known for", 1, true) then
    return nil, errors.new("host_key", ("its host key is new and cannot be written (%s), so it is not accepted: have that file be writable, or name another one with 'known_hosts:'"):format(
      unkept.message), { host = host.name })
  end
  if problem and problem.code ~= "unreachable" then
    problem.host = host.name
    return nil, problem
  end
  return nil, command_error(host, answer and (answer.status or answer.signal) or 255, said)
end

local own = setmetatable({}, { __mode = "k" }) -- links that are not of the ssh command: to what they go through, which lives as long, or true

--- Whether all that a link runs is begun by one process of sshd.
---@param link table
---@return boolean
function ssh.has_one_server(link)
  return own[link] ~= nil
end

--- Whether the ssh command may get in where libssh2 does not.
---@async
local function is_for_command(err, keys)
  return err ~= nil and (err.code == "unsupported" or err.code == "denied" and ssh_keys.for_command(keys))
end

--- An error with what else is known of the keys, which may be why they are refused.
local function explained(err, keys)
  if err and err.code == "denied" then
    local offered = #keys.files > 0 or keys.agent or keys.foreign
    if keys.locked then err.message = offered and ("%s; %s"):format(err.message, keys.locked) or keys.locked end
    if keys.silent then err.message = ("%s; the SSH agent at %s does not answer"):format(err.message, keys.silent) end
  end
  return err
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
  local wrong = circle(host, target.jump)
  if wrong then return nil, wrong end
  local by_command = host.transport == "openssh" or target.proxy_command ~= nil
  local keys = ssh_keys.of(target, by_command)
  local link, err, hop
  if not by_command and (#keys.files > 0 or keys.agent or not ssh_keys.for_command(keys)) then
    local options = {
      transport = "ssh", name = host.name, root = opts.root, address = target.address, port = target.port,
      known_as = target.known_as, user = target.user, identities = keys.files, passphrases = keys.passphrases,
      agent = keys.agent, agent_keys = keys.agent_keys, known_hosts = target.known_hosts, accept_new = target.accept_new,
    }
    if target.jump and target.jump ~= "none" then
      target.hop_known_hosts = host.known_hosts
      options.fd, err, hop = through(target.jump, target)
      if not options.fd then return nil, err end
    end
    link, err = core.connect(options)
    if err and err.code == "unreachable" and hop then blame(err, hop, target) end
    if link then own[link] = hop or true end
    if not is_for_command(err, keys) then return link, explained(err, keys), hop end
    if hop then hop:close() end
    if err.code == "unsupported" then keys = ssh_keys.of(target, true) end
  end
  ssh_keys.for_command(keys)
  link, err = through_command(host, target, keys, opts)
  return link, explained(err, keys)
end

ssh.connect = connect
return ssh
