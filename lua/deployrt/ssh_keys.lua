-- ssh_keys.lua -- Which keys are offered to a host: files, those of the agent, and what only the ssh command can use.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh_agent = require "deployrt.ssh_agent"

local ssh_keys = {}

local passphrases, known = {}, {}

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

--- What libssh2 has to know of a public half: "ed25519" and "ecdsa" it can use, others only the ssh command can.
--- Raises when the text ends early.
local function type_of(public)
  local name = string.unpack(">s4", public)
  return name:find("^sk%-") and "sk" or name:find("%-cert%-") and "certificate" or name:find("^ssh%-ed25519") and "ed25519"
    or name:find("^ecdsa%-") and "ecdsa" or "rsa"
end

local native = { ed25519 = true, ecdsa = true }

--- Raises when the text ends early.
local function openssh_key_type(raw)
  local at = raw:match("^openssh%-key%-v1%z()")
  if not at then return nil end
  local cipher, _, _, count, rest = string.unpack(">s4s4s4I4", raw, at)
  if count < 1 then return nil end
  local public = string.unpack(">s4", raw, rest)
  return type_of(public), cipher ~= "none", public
end

local rsa_identifier = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01" -- as ASN.1 has it
local longest_ecdsa = 512 -- bytes; RSA is longer from 1024 bits on

--- The type of a key in PKCS #8, which names its algorithm only where it is not encrypted: the length tells then.
local function pkcs8_type(der, encrypted)
  local is_rsa = der:sub(1, 32):find(rsa_identifier, 1, true) or encrypted and #der > longest_ecdsa
  return is_rsa and "rsa" or "ecdsa"
end

--- What a public half says that lies in a file.
local function public_key(text, file)
  local name, base64 = text:match("^(%S+) ([%w+/=]+)")
  local public = name and base64_decode(base64)
  local ok, type = pcall(type_of, public)
  if not ok or string.unpack(">s4", public) ~= name then return nil end
  return { type = type, public = public, is_public = true, file = file }
end

local function read(path)
  local file <close> = io.open(path)
  return file and (file:read(16384) or "")
end

---@class deployrt.Key
---@field type string        "ed25519", "ecdsa", "rsa", "sk", "certificate"
---@field encrypted boolean?
---@field public? string     its public half, as the protocol has it
---@field is_public? boolean  that is all there is: an agent may have the private half
---@field file string        where it is

--- What kind of key a file holds (OpenSSH PROTOCOL.key, or PEM); where it is not there, the public half beside it.
---@param path string
---@return deployrt.Key? key  nil when there is none
function ssh_keys.read(path)
  local text = read(path)
  if not text then
    text = read(path .. ".pub")
    return text and public_key(text, path .. ".pub")
  end
  local body = text:match("BEGIN OPENSSH PRIVATE KEY%-%-%-%-%-(.-)%-%-%-%-%-END")
  if body then
    local ok, type, encrypted, public = pcall(openssh_key_type, base64_decode(body))
    return ok and type and { type = type, encrypted = encrypted, public = public, file = path } or nil
  end
  local pem, content = text:match("BEGIN (%u*) ?PRIVATE KEY%-*(.*)")
  if not pem then return public_key(text, path) end
  local encrypted = text:find("ENCRYPTED", 1, true) ~= nil
  local type = pem == "EC" and "ecdsa" or pem == "RSA" and "rsa" or pkcs8_type(base64_decode(content:match "^[^-]*"), encrypted)
  local beside = public_key(read(path .. ".pub") or "")
  return { type = type, encrypted = encrypted, public = beside and beside.public, file = path }
end

--- The same, remembered: a fleet shares few keys.
local function key_of(path)
  known[path] = known[path] or ssh_keys.read(path)
  return known[path]
end

local function passphrase_for(path)
  if passphrases[path] == nil then
    passphrases[path] = core.ask_secret(("Passphrase of %s: "):format(path)) or false
  end
  return passphrases[path]
end

--- The file by which the ssh command knows a key.
---@param path string
---@return string? file  nil when there is none
function ssh_keys.file(path)
  local key = key_of(path)
  return key and key.file
end

---@class deployrt.OfferedKeys
---@field files string[]        that libssh2 can use
---@field passphrases string[]  of the files; "": none
---@field agent boolean         whether libssh2 asks the agent
---@field agent_keys? string[]  only these of its keys
---@field foreign? string       a kind that libssh2 cannot use, and the ssh command can
---@field sealed string[]       encrypted files that the ssh command could use, and nobody was asked about yet
---@field own_agent? string     the socket of our agent, which has those
---@field locked? string        says which file cannot be opened, and what to do
---@field silent? string        the agent's socket, when it does not answer

local held -- what held_by_agent says

--- The keys of the agent: all public halves, as ssh-add prints them; those of them that libssh2 can use; the kind of one that
--- it cannot use, and of any.
---@async
local function held_by_agent()
  local keys = ssh_agent.keys()
  if held then return held end
  held = { all = {}, native = {}, answers = keys and true, listed = keys and keys.listed }
  for _, text in ipairs(keys or {}) do
    local public = base64_decode(text)
    local ok, type = pcall(type_of, public)
    if ok then
      held.all[public], held.any = text, type
      if native[type] then table.insert(held.native, text) else held.foreign = type end
    end
  end
  return held
end

local function locked_text(path, problem)
  return ("the key %s is encrypted, and %s: give it to an agent with 'ssh-add %s'"):format(path, problem, path)
end

local function nobody_to_ask(path)
  return locked_text(path, "there is nobody to ask for its passphrase") .. ", or run this on a terminal"
end

--- Adds what is offered of the agent: all of its keys, or those that stand for encrypted files.
---@async
local function offer_agent(keys, all, with_agent, by_command)
  if not all and #with_agent == 0 then return end
  local agent = held_by_agent()
  keys.silent = agent.answers == false and os.getenv "SSH_AUTH_SOCK" or nil
  if not agent.answers then return end
  if all then keys.foreign = keys.foreign or by_command and agent.any or agent.foreign end
  keys.agent_keys = not all and with_agent or agent.listed and agent.native or nil
  keys.agent = keys.agent_keys == nil or #keys.agent_keys > 0
end

--- Adds a key to those of who can use it.
---@async
local function sort(keys, path, key, with_agent, by_command)
  local in_agent = (key.encrypted or key.is_public) and held_by_agent().all[key.public or ""]
  if key.is_public and not in_agent then
    return ("identity %s is a public key, and no agent has its private half: give it to one with 'ssh-add'"):format(path)
  elseif by_command or not native[key.type] then
    if key.encrypted and not in_agent then table.insert(keys.sealed, path) else keys.foreign = key.type end
  elseif in_agent then
    with_agent[#with_agent + 1] = in_agent
  elseif key.encrypted and not passphrase_for(path) then
    keys.locked = nobody_to_ask(path)
  else
    keys.files[#keys.files + 1], keys.passphrases[#keys.files + 1] = path, key.encrypted and passphrase_for(path) or ""
  end
end

--- Sorts the keys by who can use them. Nobody is asked for the passphrase of one that the agent has.
---@async
---@param target table        from ssh.resolve
---@param by_command boolean  the ssh command gets all of them
---@return deployrt.OfferedKeys
function ssh_keys.of(target, by_command)
  local keys, with_agent = { files = {}, passphrases = {}, sealed = {}, agent = false }, {}
  for _, path in ipairs(target.identities) do
    local key, problem = key_of(path), ("identity %s is missing or no private key"):format(path)
    if key then problem = sort(keys, path, key, with_agent, by_command) end
    if problem and target.explicit then errors.raise("denied", problem, { host = target.name }) end
  end
  offer_agent(keys, target.agent, with_agent, by_command)
  return keys
end

--- Asks for the passphrase of a key, and has it in our agent; notes why where it cannot.
---@async
local function unseal(keys, path)
  local passphrase = passphrase_for(path)
  if not passphrase then
    keys.locked = nobody_to_ask(path)
    return
  end
  local socket, why_not = ssh_agent.unlock(path, passphrase)
  keys.own_agent = socket or keys.own_agent
  if why_not then keys.locked = ("the key %s cannot be read: %s"):format(path, why_not) end
end

--- Whether the ssh command has keys to offer that libssh2 has not. Where only encrypted ones are left, somebody is asked for their
--- passphrases: our agent takes the place of the user's, which may have others.
---@async
---@param keys deployrt.OfferedKeys
---@return boolean
function ssh_keys.for_command(keys)
  for _, path in ipairs(keys.sealed) do
    if keys.foreign then keys.locked = locked_text(path, "is not tried while there are others") else unseal(keys, path) end
  end
  return keys.foreign ~= nil or keys.own_agent ~= nil
end

return ssh_keys
