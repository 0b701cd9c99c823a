-- nginx.lua -- A user's own nginx for specs, in a directory of its own.
local fixture = require "spec.support.fixture"

local Nginx = {}
Nginx.__index = Nginx

local nginx = {}

local config = [[
daemon off;
pid %s/nginx.pid;
error_log %s/error.log notice;
worker_processes 2;
events { worker_connections 1024; }
http {
  log_format deployrt '$upstream_addr|$upstream_status|$upstream_response_time|$request_time|$status|$msec';
  access_log %s/access.log deployrt;
  keepalive_requests 100000;
  %s
  server {
    listen 127.0.0.1:%d;
    %s
    location / {
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_pass %s;
      %s
    }
  }
}
]]

--- Starts one that sends everything to a port, by an upstream "shop" or by the variable $service_url.
---@param opts {style: "upstream"|"variable", port: integer, upstream?: string, routes?: boolean}  upstream: other lines of the block;
---  routes: with a second file, by which requests are told apart
function nginx.start(opts)
  local self = setmetatable({ dir = fixture.dir(), port = fixture.free_port(), style = opts.style }, Nginx)
  local d, include, target, cookie = self.dir, ("include %s/service.conf;"):format(self.dir), "http://shop", ""
  self.config, self.file, self.log = d .. "/nginx.conf", d .. "/service.conf", d .. "/access.log"
  if opts.style == "upstream" then
    fixture.write(self.file, ("upstream shop {\n%s    server 127.0.0.1:%d;\n}\n"):format(opts.upstream or "", opts.port))
  else
    fixture.write(self.file, ("set $service_url http://127.0.0.1:%d;\n"):format(opts.port))
    target = "$service_url"
  end
  if opts.routes then
    self.routes = fixture.write(d .. "/routes.conf", 'map "" $shop_target { default shop; }\nmap "" $shop_cookie { default ""; }\n')
    include, target, cookie = include .. (" include %s;"):format(self.routes), "http://$shop_target", "add_header Set-Cookie $shop_cookie always;"
  end
  local up = opts.style == "upstream"
  fixture.write(self.config, config:format(d, d, d, up and include or "", self.port, up and "" or include, target, cookie))
  self:run()
  return self
end

function Nginx:run()
  self.pid = fixture.start({ "/usr/sbin/nginx", "-e", self.dir .. "/error.log", "-c", self.config }, { log = self.dir .. "/out" })
  fixture.eventually(function() return fixture.is_listened(self.port) end, 5, "nginx of the spec")
end

--- The entry of app.yml.
---@param more? string  ", access_log: ..."
function Nginx:yaml(more)
  return ("{type: nginx, style: %s, file: %s, %s: %s, config: %s, drain: {timeout: 5s}%s%s}"):format(self.style, self.file, self.style,
    self.style == "upstream" and "shop" or "service_url", self.config, self.routes and ", routes: " .. self.routes or "", more or "")
end

--- Reads the configuration anew, as somebody else would have it do.
function Nginx:reload()
  fixture.signal(self.pid, "HUP")
end

--- Ends it at once, and starts it again.
function Nginx:restart()
  self:stop()
  self:run()
end

function Nginx:stop()
  fixture.stop(self.pid)
end

--- The pids of its workers.
function Nginx:workers()
  return fixture.sh(("cat /proc/%s/task/%s/children 2>/dev/null"):format(self.pid, self.pid))
end

return nginx
