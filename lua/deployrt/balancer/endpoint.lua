-- endpoint.lua -- Where a balancer takes orders, as app.yml writes it: the path of a socket, or an address and a port.
local endpoint = {}

--- "/run/haproxy.sock", "127.0.0.1:9999", "localhost:9999" or "[::1]:9999" in parts.
---@param text string
---@return string address  a path begins with /
---@return integer? port    nil for a path, and for what is neither
function endpoint.parse(text)
  if text:sub(1, 1) == "/" then return text, nil end
  local address, port = text:match("^(.*):(%d+)$")
  return address and address:match("^%[(.*)%]$") or address or text, math.tointeger(tonumber(port))
end

--- What is wrong with such a key of app.yml; nil when nothing is.
---@param text string
---@param path string      "balancer.socket"
---@param examples {path: string, port: integer}
---@return string?
function endpoint.problem(text, path, examples)
  local address, port = endpoint.parse(text)
  local alone = math.tointeger(tonumber(text:match("^:?(%d+)$")))
  if address:sub(1, 1) == "/" then return nil end
  if alone then return ("%s: port %d of what address? Write such as 127.0.0.1:%d"):format(path, alone, alone) end
  if not port then return ("%s: '%s' is no absolute path, and has no port: write such as %s or 127.0.0.1:%d"):format(path, text, examples.path, examples.port) end
  if port < 1 or port > 65535 then return ("%s: '%s' has no port from 1 to 65535: write such as 127.0.0.1:%d"):format(path, text, examples.port) end
  if not address:find("^[%w:_][%w._:%%-]*$") then
    return ("%s: '%s' is no host name or address: write such as 127.0.0.1:%d"):format(path, address, port)
  end
end

return endpoint
