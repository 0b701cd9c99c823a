-- nginx_entry.lua -- What app.yml says of an nginx: its keys, what cannot work, and what a user must have there.
local access_log = require "deployrt.balancer.access_log"

local nginx_entry = { keys = { "style", "file", "upstream", "variable", "routes", "config", "reload", "access_log" } }

nginx_entry.help = [[
nginx: deployrt writes one file of the configuration, tests the whole with `nginx -t`, reloads, and waits until no old worker
accepts connections any more. nginx 1.22 or newer, on this machine or on a host (`host:`). Two styles:

style: upstream -- several instances, weights, canary.
    balancer: {type: nginx, style: upstream, file: /etc/nginx/conf.d/shop.conf, upstream: shop}
  The file, which is included at the level of http, to begin with:
    upstream shop { server 127.0.0.1:8080; }
  In your server block:
    location / { proxy_pass http://shop; }
  deployrt writes a `server` line for each slot and leaves your other lines (keepalive, zone, least_conn, ...) as they are.

routes: -- with style: upstream, tells requests apart (`route` and `sticky` of canary, ab, and strategies of one's own).
    balancer: {type: nginx, style: upstream, file: /etc/nginx/conf.d/shop.conf, upstream: shop, routes: /etc/nginx/conf.d/shop-routes.conf}
  Another file at the level of http, all of it deployrt's; to begin with:
    map "" $shop_target { default shop; }
    map "" $shop_cookie { default ""; }
  In your server block, in place of `proxy_pass http://shop;`:
    location / {
      proxy_pass http://$shop_target;
      proxy_set_header Host $host;
      add_header Set-Cookie $shop_cookie always;
    }
  That holds always: while nobody is told apart, the target is the upstream and no cookie is set. (In the names of the variables
  all but letters, digits and _ is written _.) nginx takes an add_header of an outer level only where a location has none.
  The routed instances are an upstream of their own, `shop-routed`, with the keepalive lines of yours; when none of them
  answers, the others do. Paths are compared as the client wrote them. A change of who sees what is a reload.

style: variable -- one instance at a time; a switch changes one line.
    balancer: {type: nginx, style: variable, file: /etc/nginx/conf.d/service-url.inc, variable: service_url}
  The file, to begin with:
    set $service_url http://127.0.0.1:8080;
  In your server block:
    include /etc/nginx/conf.d/service-url.inc;
    location / { proxy_pass $service_url; }
  A change that leaves no instance in service keeps pointing to the last one.

Other keys:
  config      nginx's main configuration; default: the one compiled in
  reload      a command in place of a signal to the master process, such as: sudo systemctl reload nginx.
              It has 20 seconds
  access_log  counts requests and errors, which canary and the live view want. It needs this format, at the level of http:
    FORMAT
    access_log /var/log/nginx/deployrt.log deployrt;
  drain: {timeout: 30s, long: 5m}
              what is still open after `timeout` is cut; with `long` it is given that long in all, because nginx does not tell
              a WebSocket from a slow request.

The user that deployrt works as must be able to write these files and their directory, to run `nginx -t`, and to reload nginx.
A reload closes idle keep-alive connections; clients that do not retry see that as an error, whoever reloads.
]]
nginx_entry.help = nginx_entry.help:gsub("FORMAT", (access_log.format:gsub("%%", "%%%%")))

--- Combinations of keys that cannot work.
---@param entry table
---@param path string
---@param fail deployrt.config.Fail
function nginx_entry.rules(entry, path, fail)
  if not entry.style then
    return fail(path, ("%s.style is missing: upstream or variable; see `deployrt help nginx`"):format(path))
  end
  local other = entry.style == "upstream" and "variable" or "upstream"
  if not entry.file then fail(path, ("%s.file is missing: the file of nginx's configuration that deployrt writes"):format(path)) end
  if not entry[entry.style] then
    fail(path, ("%s.%s is missing: the name of the %s; see `deployrt help nginx`"):format(path, entry.style, entry.style))
  elseif entry[entry.style]:find("[^%w_.-]") then
    fail(path .. "." .. entry.style, ("%s.%s: a name of letters, digits and _ . - only"):format(path, entry.style))
  end
  if entry.routes and entry.style ~= "upstream" then
    fail(path .. ".routes", ("%s.routes is for `style: upstream`: a variable points to one instance"):format(path))
  elseif entry.routes and entry.routes == entry.file then
    fail(path .. ".routes", ("%s.routes: another file than %s.file; deployrt writes all of it"):format(path, path))
  end
  if entry[other] then fail(path .. "." .. other, ("%s.%s is for `style: %s`"):format(path, other, other)) end
end

return nginx_entry
