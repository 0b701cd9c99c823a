-- conformance_spec.lua -- Every driver with a real balancer and real requests, held to the same checks.
-- weight: 8
local conformance = require "deployrt.balancer.conformance"
local connection = require "deployrt.connection"
local driver = require "deployrt.balancer.driver"
local fixture = require "spec.support.fixture"
local nginx = require "spec.support.nginx"
local stand_of = require "spec.support.plain_shop"

local inside = stand_of.inside

describe("conformance of", function()
  local slots, host, opened

  before_each(function()
    slots = {}
    for i = 1, 4 do
      local port = fixture.free_port()
      slots[i] = { name = "web" .. i, address = "127.0.0.1", port = port }
      if i < 4 then fixture.start { fixture.service(), "--port", port, "--version", "web" .. i } end
    end
    for i = 1, 3 do
      fixture.eventually(function() return fixture.is_listened(slots[i].port) end, 10, "service")
    end
  end)

  after_each(function()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local function open(entry)
    host = connection.new({ name = "local", dir = fixture.dir() }, "shop")
    host:connect()
    opened = driver.open(entry, { app = "shop", dir = fixture.dir(), host = host, slots = slots })
    return opened
  end

  --- Tries the driver, and returns which checks were skipped.
  local function conforms(entry, port, stand)
    local problems, skipped = {}, {}
    stand.driver, stand.slots, stand.url, stand.slow = open(entry), slots, "http://127.0.0.1:" .. port, "/slow?ms=1000"
    stand.who = function(body) return body:match("hello from (web%d)") or body:match("(web%d)") end
    for _, result in ipairs(conformance.run(stand)) do
      if result.problem then problems[#problems + 1] = result.name .. ": " .. result.problem end
      if result.skipped then skipped[#skipped + 1] = result.name end
    end
    opened:stop()
    host:close()
    assert.same({}, problems)
    return table.concat(skipped, "; ")
  end

  local apart = "tells requests apart, by rule and by an exact share"

  local function servers(names)
    local list = {}
    for i, name in ipairs(names) do list[i] = ("%s 127.0.0.1:%d disabled"):format(name, slots[i].port) end
    return list
  end

  it("HAProxy that deployrt runs", inside(function()
    local port = fixture.free_port()
    assert.equal("sees what others change, and sets it right", conforms({ type = "haproxy", managed = true, listen = "127.0.0.1:" .. port, drain = {} }, port, {
      persists = true,
      restart = function()
        local pid = host:read(host.root .. "/balancer/haproxy.pid"):match("%d+")
        for each in (pid .. " " .. fixture.sh(("cat /proc/%s/task/%s/children"):format(pid, pid))):gmatch("%d+") do
          fixture.signal(each, "KILL")
          fixture.eventually(function() return not fixture.alive(each) end, 5)
        end
        opened:prepare()
      end,
    }))
  end))

  it("HAProxy of the user's, with named servers", inside(function()
    local haproxy = fixture.haproxy { servers = servers { "alpha", "beta", "gamma", "delta" } }
    assert.equal(apart, conforms({ type = "haproxy", socket = haproxy.socket, backend = "shop" }, haproxy.port, {
      requests = 2000, restart = function() haproxy:restart() end,
      edit = function() haproxy:command("set server shop/alpha state maint") end,
    }))
  end))

  --- Makes it begin with the states that the last one had; returns the file that they are kept in.
  local function with_state_file(haproxy, more)
    local file = haproxy.dir .. "/server-state"
    fixture.write(haproxy.config, fixture.read(haproxy.config):gsub("global\n", "%0  server-state-file " .. file .. "\n"):gsub("defaults\n",
      "%0  load-server-state-from-file global\n") .. (more or ""))
    haproxy:restart()
    return file
  end

  it("HAProxy of the user's, whose states outlive a restart by a state file", inside(function()
    local haproxy = fixture.haproxy { servers = servers { "alpha", "beta", "gamma", "delta" } }
    local file = with_state_file(haproxy)
    assert.equal(apart .. "; sees what others change, and sets it right",
      conforms({ type = "haproxy", socket = haproxy.socket, backend = "shop", state_file = file }, haproxy.port, {
        persists = true, restart = function() haproxy:restart() end, requests = 400,
      }))
  end))

  it("HAProxy of the user's, with the lines that let it tell requests apart", inside(function()
    local routed = require "deployrt.balancer.haproxy_route"
    local haproxy = fixture.haproxy { servers = servers { "alpha", "beta", "gamma", "delta" } }
    local map = fixture.write(haproxy.dir .. "/split.map", "percent 0\n")
    local lines = routed.lines_for_own("shop", map):match("in the frontend:\n(.-)and a backend")
    local second = "backend shop-routed\n  server " .. table.concat(servers { "alpha", "beta", "gamma", "delta" }, "\n  server ") .. "\n"
    local config = fixture.read(haproxy.config):gsub("  default_backend", function(line) return lines .. line end) .. second
    fixture.write(haproxy.config, config)
    haproxy:restart()
    assert.equal("", conforms({ type = "haproxy", socket = haproxy.socket, backend = "shop", map = map }, haproxy.port, {
      restart = function() haproxy:restart() end, edit = function() haproxy:command("set server shop/alpha state maint") end,
    }))
  end))

  it("HAProxy of the user's, whose free servers of a server-template get addresses, which a state file keeps", inside(function()
    local haproxy = fixture.haproxy { servers = {} }
    local file = with_state_file(haproxy, "  server-template t 1-4 127.0.0.1:1 disabled\n")
    assert.equal(apart .. "; sees what others change, and sets it right",
      conforms({ type = "haproxy", socket = haproxy.socket, backend = "shop", template = "t", state_file = file }, haproxy.port, {
        persists = true, restart = function() haproxy:restart() end, requests = 400,
      }))
  end))

  it("HAProxy of the user's, with a server-template and servers that are added at runtime, lost by each reload", inside(function()
    local haproxy = fixture.haproxy { master = true, servers = {} }
    local config = fixture.read(haproxy.config) .. ("  server-template t 1 127.0.0.1:%d disabled\n"):format(slots[1].port)
    fixture.write(haproxy.config, config)
    haproxy:reload()
    assert.equal(apart, conforms({ type = "haproxy", socket = haproxy.socket, backend = "shop" }, haproxy.port, {
      requests = 2000, restart = function() haproxy:reload() end,
      edit = function() haproxy:command("set server shop/t1 state maint") end,
    }))
  end))

  it("nginx, style upstream", inside(function()
    local ng = nginx.start { style = "upstream", port = slots[1].port, routes = true }
    assert.equal("", conforms({ type = "nginx", style = "upstream", file = ng.file, upstream = "shop", routes = ng.routes, config = ng.config, access_log = ng.log }, ng.port, {
      persists = true, restart = function() ng:restart() end,
      edit = function() os.execute(("sed -i 's/:%d weight=100/:%d down/' %s"):format(slots[1].port, slots[1].port, ng.file)) end,
    }))
  end))

  it("nginx, style variable", inside(function()
    local ng = nginx.start { style = "variable", port = slots[1].port }
    assert.equal("splits traffic by weights to within a percentage point; " .. apart,
      conforms({ type = "nginx", style = "variable", file = ng.file, variable = "service_url", config = ng.config }, ng.port, {
        persists = true, restart = function() ng:restart() end,
        edit = function() os.execute(("sed -i '/^set/s/:%d/:%d/' %s"):format(slots[1].port, slots[2].port, ng.file)) end,
      }))
  end))

  local caddy_config = [[{"admin": {"listen": "127.0.0.1:%d"}, "apps": {"http": {"servers": {"shop": {
    "listen": ["127.0.0.1:%d"], "automatic_https": {"disable": true},
    "routes": [{"handle": [{"@id": "shop", "handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:%d"}]}]}]}}}}}]]

  it("Caddy", inside(function()
    local dir, admin, port = fixture.dir(), fixture.free_port(), fixture.free_port()
    fixture.write(dir .. "/caddy.json", caddy_config:format(admin, port, slots[1].port))
    local function start()
      local pid = fixture.start({ "caddy", "run", "--config", dir .. "/caddy.json" },
        { log = dir .. "/log", env = { HOME = dir, XDG_DATA_HOME = dir, XDG_CONFIG_HOME = dir } })
      fixture.eventually(function() return fixture.is_listened(port) and fixture.is_listened(admin) end, 20, "caddy")
      return pid
    end
    local pid = start()
    local skipped = conforms({ type = "caddy", admin = "127.0.0.1:" .. admin, server = "shop" }, port, {
      resets = true, restart = function()
        fixture.stop(pid)
        start()
      end,
      edit = function()
        fixture.sh(("curl -s -X PATCH -H 'Content-Type: application/json' -d '[]' 127.0.0.1:%d/id/shop/upstreams"):format(admin))
      end,
    })
    assert.equal("ends waiting for a drain at the deadline; splits traffic by weights to within a percentage point; " .. apart, skipped)
  end))

  -- What a team may have: a script that turns the wanted states into words of its balancer, here HAProxy's.
  local script = [[#!/usr/bin/env python3
import json, socket, sys
wanted = json.load(sys.stdin)
line = ""
for slot in sorted(wanted["slots"], key=lambda slot: slot["state"] != "ready"):
    line += "set server shop/%%s weight %%d; set server shop/%%s state %%s;" %% (slot["name"], slot["weight"], slot["name"], slot["state"])
s = socket.socket(socket.AF_UNIX)
s.connect("%s")
s.sendall(line.encode() + b"show servers state shop\n")
answer = b"".join(iter(lambda: s.recv(65536), b"")).decode()
sys.exit(0 if "be_id" in answer else 1)
]]

  it("a command", inside(function()
    local haproxy = fixture.haproxy { servers = servers { "web1", "web2", "web3", "web4" } }
    local path = fixture.write(fixture.dir() .. "/set-traffic", script:format(haproxy.socket))
    os.execute("chmod 755 " .. path)
    assert.equal("ends waiting for a drain at the deadline; " .. apart .. "; sees what others change, and sets it right; has the wanted states over a restart of the balancer",
      conforms({ type = "command", command = { path }, can = { "many", "share" } }, haproxy.port, { requests = 2000 }))
  end))

  it("a driver of a team's own", inside(function()
    local haproxy = fixture.haproxy { backend = "edge", servers = servers { "web1", "web2", "web3", "web4" } }
    local here = fixture.sh("pwd"):match("[^\n]+")
    assert.equal(apart, conforms({ type = here .. "/examples/library/acme/edge.lua", options = { socket = haproxy.socket } }, haproxy.port, {
      requests = 2000, restart = function() haproxy:restart() end,
      edit = function() haproxy:command("set server edge/web1 state maint") end,
    }))
  end))
end)
