-- haproxy_config.lua -- The configuration of an HAProxy that deployrt manages itself.
local haproxy_config = {}

local head = [[
# Written by deployrt for the application "%s"; changes are overwritten.
global
    master-worker
    hard-stop-after 60s
    stats socket %s mode 600 level admin expose-fd listeners

defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout queue 10s
    timeout http-keep-alive 60s
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response

frontend %s
    bind %s
    http-request disable-l7-retry unless METH_GET
    default_backend %s

backend %s
    balance roundrobin
]]

--- The text of the configuration.
---@param options {app: string, socket: string, listen: string, backend: string, health?: {http?: string}}
---@param slots {name: string, address: string, port: integer}[]
---@param wanted table<string, {state: string, weight: integer}>  what each slot comes up with after a restart
---@return string
function haproxy_config.text(options, slots, wanted)
  local lines = { head:format(options.app, options.socket, options.app .. "-in", options.listen, options.backend, options.backend) }
  if options.health and options.health.http then
    lines[#lines + 1] = ("    option httpchk GET %s\n"):format(options.health.http)
  end
  for _, slot in ipairs(slots) do
    local state = wanted[slot.name] or { state = "maint", weight = 100 }
    lines[#lines + 1] = ("    server %s %s:%d check inter 500ms fall 3 rise 1 weight %d%s\n"):format(
      slot.name, slot.address, slot.port, state.weight or 100, state.state == "ready" and "" or " disabled")
  end
  return table.concat(lines)
end

return haproxy_config
