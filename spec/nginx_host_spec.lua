-- nginx_host_spec.lua -- nginx on one of the hosts, reached over SSH as a user without rights.
-- weight: 5
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("nginx_host_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

local config = [[
pid /home/deploy/nginx/nginx.pid;
error_log /home/deploy/nginx/error.log notice;
worker_processes 2;
events { worker_connections 512; }
http {
  log_format deployrt '$upstream_addr|$upstream_status|$upstream_response_time|$request_time|$status|$msec';
  access_log /home/deploy/nginx/access.log deployrt;
  client_body_temp_path /home/deploy/nginx/body;
  proxy_temp_path /home/deploy/nginx/proxy;
  fastcgi_temp_path /home/deploy/nginx/fastcgi;
  uwsgi_temp_path /home/deploy/nginx/uwsgi;
  scgi_temp_path /home/deploy/nginx/scgi;
  include /home/deploy/nginx/shop.conf;
  include /home/deploy/nginx/routes.conf;
  server {
    listen 8000;
    location / {
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_pass http://$shop_target;
      add_header Set-Cookie $shop_cookie always;
    }
  }
}
]]

describe("nginx on a host", function()
  local bed, app

  setup(function()
    bed = hosts.up(2)
    app = fixture.app { slots = 2, instances = 1, health = "{http: /healthz, interval: 50ms, deadline: 20s, successes: 1}" }
    app.ports = { 8080, 8081 }
    app.opts.hosts = bed:yaml()
    app.opts.balancer = "{type: nginx, style: upstream, host: web2, file: /home/deploy/nginx/shop.conf, upstream: shop, "
      .. "config: /home/deploy/nginx/nginx.conf, routes: /home/deploy/nginx/routes.conf, access_log: /home/deploy/nginx/access.log, drain: {timeout: 5s}}"
    local files = { ["nginx.conf"] = config, ["shop.conf"] = ("upstream shop { server %s:8080; }\n"):format(bed.hosts[1].address),
      ["routes.conf"] = 'map "" $shop_target { default shop; }\nmap "" $shop_cookie { default ""; }\n' }
    for name, text in pairs(files) do
      local _, status = bed:ssh(2, ("mkdir -p nginx; printf %%s %s > nginx/%s"):format(fixture.quote(text), name))
      assert.equal(0, status)
    end
    local said, status = bed:ssh(2, "/usr/sbin/nginx -e nginx/error.log -c /home/deploy/nginx/nginx.conf")
    assert.equal(0, status, said)
  end)
  teardown(function()
    assert.same({}, app:stop())
    bed:ssh(2, "/usr/sbin/nginx -e nginx/error.log -c /home/deploy/nginx/nginx.conf -s stop")
    fixture.cleanup()
    bed:down()
  end)

  local function deploy(strategy, version, options)
    app.opts.yaml = "strategy: " .. options
    local run = app:deploy(strategy, version)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ version, version }, app:serving())
  end

  it("is switched, split and told whom to route where, without a failed request", function()
    deploy("rolling", "1.0", "{settle: 0}")
    local load = app:load { address = bed.hosts[2].address, port = 8000, keepalive = false, rate = 200 }
    fixture.eventually(function() return (load:numbers().versions["1.0"] or 0) > 20 end)
    deploy("blue_green", "2.0", "{settle: 100ms}")
    deploy("canary", "3.0", "{hold: 500ms, latency: 1000, steps: [20%, 100%]}")
    deploy("canary", "4.0", '{hold: 500ms, latency: 1000, steps: [0%, 20%, 100%], sticky: true, route: [{header: "X-Canary: 1"}]}')
    fixture.eventually(function() return (load:numbers().versions["4.0"] or 0) > 20 end)
    local numbers = load:stop()
    assert.same({}, numbers.errors)
    assert.is_true(numbers.versions["2.0"] > 0 and numbers.versions["3.0"] > 0)
  end)

  it("whose configuration somebody broke is left alone, and so is what serves", function()
    bed:ssh(2, "echo broken >> nginx/nginx.conf")
    app.opts.yaml = "strategy: {settle: 0}"
    local run = app:deploy("rolling", "5.0")
    bed:ssh(2, "sed -i '/^broken/d' nginx/nginx.conf")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stderr:find("broken", 1, true), run.stderr)
    assert.same({ "4.0", "4.0" }, app:serving())
  end)
end)
