-- ssh_tokens.lua -- What the % signs in values of ~/.ssh/config stand for (TOKENS in ssh_config(5)).
local core = require "deployrt.core"

local ssh_tokens = {}

--- A value with its tokens filled in; those that are not known stay.
---@param text string
---@param tokens table<string, string>
---@return string
function ssh_tokens.fill(text, tokens)
  return (text:gsub("%%(.)", tokens))
end

--- Where a host is: HostName, else the name by which it is known.
---@param name string
---@param hostname? string  as the file has it
---@return string
function ssh_tokens.address(name, hostname)
  return hostname and ssh_tokens.fill(hostname, { ["%"] = "%", h = name }) or name
end

--- What tokens stand for where a host is reached like this.
---@param way {name: string, address: string, known_as?: string, port: integer|string, user: string}
---@return table<string, string>
function ssh_tokens.of(way)
  local me = core.whoami()
  return {
    ["%"] = "%", d = me.home, h = way.address, k = way.known_as or way.name, L = me.host:match "^[^.]*", l = me.host, n = way.name,
    p = tostring(way.port), r = way.user, u = me.user,
  }
end

return ssh_tokens
