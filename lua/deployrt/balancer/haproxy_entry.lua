-- haproxy_entry.lua -- What app.yml says of a HAProxy: its keys, what cannot work, and what a user must have there.
local endpoint = require "deployrt.balancer.endpoint"

local haproxy_entry = { keys = { "socket", "backend", "managed", "listen", "map", "stats", "state_file", "maintenance", "template" } }

haproxy_entry.help = [[
haproxy: deployrt works through HAProxy's runtime API; nothing is reloaded. HAProxy 2.4 or newer adds servers at runtime.

Managed -- deployrt writes the configuration, starts HAProxy and leaves it running:
    balancer: {type: haproxy, managed: true, listen: "127.0.0.1:8000", stats: "127.0.0.1:8404"}
  maintenance: page.html, what clients see (with status 503) while nothing serves; your own has `errorfile 503 FILE` for that.
  stats: where the statistics page (/), Prometheus metrics (/metrics) and a sign of life (/monitor) are to be had.

Your own, on this machine or on a host (`host:`):
    balancer: {type: haproxy, socket: /run/haproxy/admin.sock, backend: shop}
  In its configuration:
    global
      stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
    backend shop
      balance roundrobin
  Servers of the backend are found by their address, whatever they are called; a slot without one is added at runtime, or
  gets a free one of a server-template (`template: app`):
    backend shop
      server-template app 1-16 127.0.0.1:1 check disabled
  Give each application a template of its own: those in maintenance that are no slot's are free, also those that another
  application keeps for its next release. At its end a run notes which servers it leaves with traffic (in ~/.deployrt/APP/balancer, on the balancer's host);
  when app.yml does not name their slots any more, those lose it, and no others: what a first deployment finds is left alone.
  A server that is named like a slot and has its host's address, but another port, is the slot's, with a warning: a sidecar may be there.
  A reload forgets added servers and addresses, and a run sets them again: servers
  that are to outlive a reload between runs belong into the configuration. A reload or restart forgets states and weights too, unless deployrt keeps them for it:
    balancer: {type: haproxy, socket: /run/haproxy/admin.sock, backend: shop, state_file: /var/lib/haproxy/server-state}
    global
      server-state-file /var/lib/haproxy/server-state
    defaults
      load-server-state-from-file global
  Where servers have a `check`, an instance passes it in state drain before it gets traffic, which takes up to the check's
  `inter` (2s unless said; with fall 1 `rise` times that), and at most health.deadline: a release that fails there does not replace what serves.
  With a master process (-W) the socket is the new worker's after a reload; a drain waits for the old workers too, where the socket is a path.

Other keys:
  drain: {timeout: 30s, long: 5m}
              requests get `timeout` to end; upgraded connections (WebSocket, CONNECT) get `long`.
]]

--- Combinations of keys that cannot work.
---@param entry table
---@param path string  "balancer", "balancer[2]"
---@param fail deployrt.config.Fail
function haproxy_entry.rules(entry, path, fail)
  local own = entry.socket or entry.backend
  if entry.managed and own then
    fail(path, ("%s: either `managed: true` with `listen`, or `socket` and `backend` of your own HAProxy, not both"):format(path))
  elseif entry.managed and not entry.listen then
    fail(path, ("%s.listen is missing: where shall the managed HAProxy listen? Such as \"127.0.0.1:8000\""):format(path))
  elseif entry.managed and entry.state_file then
    fail(path .. ".state_file", ("%s.state_file is for your own HAProxy; a managed one keeps its states in its configuration"):format(path))
  elseif entry.managed and entry.template then
    fail(path .. ".template", ("%s.template is for your own HAProxy; a managed one has a server for each slot"):format(path))
  elseif not entry.managed and entry.maintenance then
    fail(path .. ".maintenance", ("%s.maintenance is for `managed: true`; your own HAProxy has `errorfile 503`"):format(path))
  elseif not entry.managed and entry.stats then
    fail(path .. ".stats", ("%s.stats is for `managed: true`; your own HAProxy shows what its configuration says"):format(path))
  elseif not entry.managed and entry.listen then
    fail(path .. ".listen", ("%s.listen is for `managed: true`; your own HAProxy listens where its configuration says"):format(path))
  elseif not entry.managed and not (entry.socket and entry.backend) then
    fail(path, ("%s: %s of your HAProxy %s needed, or `managed: true` with `listen`"):format(path,
      entry.socket and "`backend`" or entry.backend and "`socket`" or "`socket` and `backend`", own and "is" or "are"))
  end
  local problem = entry.socket and endpoint.problem(entry.socket, path .. ".socket", { path = "/run/haproxy/admin.sock", port = 9999 })
  if problem then fail(path .. ".socket", problem) end
end

return haproxy_entry
