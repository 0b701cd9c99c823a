-- nginx_spec.lua -- The nginx driver with a real nginx: what it writes, what it refuses, what it survives.
-- weight: 6
local connection = require "deployrt.connection"
local driver = require "deployrt.balancer.nginx"
local file = require "deployrt.balancer.nginx_file"
local fixture = require "spec.support.fixture"
local nginx = require "spec.support.nginx"
local process = require "deployrt.balancer.nginx_process"
local stand = require "spec.support.plain_shop"

local inside, refused = stand.inside, stand.refused

describe("the file that deployrt writes for nginx", function()
  local slots = {
    { name = "web1-80", address = "127.0.0.1", port = 80 }, { name = "web2-80", address = "::1", port = 81 },
  }

  it("keeps the user's lines, parameters and comments, and says states and weights back exactly", function()
    local entry = { style = "upstream", upstream = "shop" }
    local text = 'map $x $y { default "a;}b"; }\nupstream shop { # ours\n  least_conn; # why\n  server localhost:80 max_fails=3 weight=7;\n'
      .. "  server 10.0.0.1:1 backup;\n  server 127.0.0.1:99 down; # deployrt gone-80 maint 100\n  keepalive 32;\n}\n# end\n"
    local states = file.read(entry, text, slots)
    assert.same({ state = "ready", weight = 7 }, { state = states["web1-80"].state, weight = states["web1-80"].weight })
    assert.equal("maint", states["web2-80"].state)
    states["web1-80"].state, states["web2-80"].state, states["web2-80"].weight = "drain", "ready", 0
    local written = file.write(entry, text, slots, states)
    assert.equal('map $x $y { default "a;}b"; }\nupstream shop {\n    # ours\n    least_conn; # why\n'
      .. "    server 127.0.0.1:80 down max_fails=3; # deployrt web1-80 drain 7\n    server [::1]:81 down; # deployrt web2-80 ready 0\n"
      .. "    server 10.0.0.1:1 backup;\n    keepalive 32;\n}\n# end\n", written)
    local again = file.read(entry, written, slots)
    assert.same({ "drain", 7, "ready", 0 }, { again["web1-80"].state, again["web1-80"].weight, again["web2-80"].state, again["web2-80"].weight })
    assert.equal(written, (file.write(entry, written, slots, again)))
  end)

  it("says what a line does when somebody has edited it, whatever its comment says", function()
    local entry = { style = "upstream", upstream = "shop" }
    local text = "upstream shop {\nserver 127.0.0.1:80; # deployrt web1-80 drain 100\nserver [::1]:81 down; # deployrt web2-80 ready 50\n}"
    local states = file.read(entry, text, slots)
    assert.same({ "ready", 1, "maint", 50 }, { states["web1-80"].state, states["web1-80"].weight, states["web2-80"].state, states["web2-80"].weight })
  end)

  it("points a variable to one slot, and to the last one when none is ready", function()
    local entry = { style = "variable", variable = "url" }
    local states = file.read(entry, "  set $url http://localhost:80/shop;\n", slots)
    assert.equal("ready", states["web1-80"].state)
    states["web1-80"].state, states["web2-80"].state = "drain", "ready"
    local text = file.write(entry, "  set $url http://localhost:80/shop;\n", slots, states)
    assert.equal("  # deployrt web1-80 drain 100 127.0.0.1:80\n  # deployrt web2-80 ready 100 [::1]:81 (served)\n  set $url http://[::1]:81/shop;\n", text)
    states["web2-80"].state = "maint"
    text = file.write(entry, text, slots, states)
    assert.truthy(text:find("set $url http://[::1]:81/shop;", 1, true))
    assert.equal("maint", file.read(entry, text, slots)["web2-80"].state)
    text = text:gsub("%[::1%]:81", "127.0.0.1:80")
    assert.same({ "ready", "maint" }, { file.read(entry, text, slots)["web1-80"].state, file.read(entry, text, slots)["web2-80"].state })
  end)
end)

describe("what is read of nginx's configuration", function()
  local facts = { pid_default = "logs/nginx.pid", prefix = "/usr/share/nginx/", config = "/etc/nginx/nginx.conf" }

  it("has the pid file wherever its directive stands, but in no comment, block or quoted text", function()
    for dump, path in pairs {
      ["daemon on; pid /tmp/x/nginx.pid; error_log /dev/null;\nevents {}\n"] = "/tmp/x/nginx.pid",
      ["events {} pid\n  'run/my.pid' ;"] = "/usr/share/nginx/run/my.pid",
      ["# configuration file /etc/nginx/nginx.conf:\npid /run/a.pid; # was: ; pid /run/b.pid;\n#pid /run/c.pid;\n"] = "/run/a.pid",
      ["daemon on;#; pid /run/b.pid;\nhttp { log_format x '$request#$pid'; }\n"] = "/usr/share/nginx/logs/nginx.pid",
      ["pid /run/a.pid;\nhttp { log_format main '$remote_addr \"$request\"; pid $pid; conn $connection;'; }\n"] = "/run/a.pid",
      ["pid /run/a.pid;\nhttp { log_format x \"it\\\"s; pid $pid;\"; map $a $b { default x#y'z; pid /run/b.pid; } }\n"] = "/run/a.pid",
      ["events {}\nhttp { map $uri $b { ~^/${x}/$ { a; pid /run/b.pid; } } }\npid run/a.pid;"] = "/usr/share/nginx/run/a.pid",
    } do assert.equal(path, process.pid_file(facts, dump), dump) end
  end)

  it("are the files that it includes, where it includes them", function()
    local dump = "# configuration file /etc/nginx/nginx.conf:\ninclude modules.d/*.conf;\nhttp { map $uri $x { include maps/pid; } }\n"
      .. "# configuration file /etc/nginx/modules.d/10-a.conf:\nload_module modules/a.so; load_module 'modules/b.so';\n"
      .. "# configuration file /etc/nginx/maps/pid:\npid /not/this;\n"
    local found = {}
    for i, node in ipairs(process.statements(facts, dump, "load_module")) do found[i] = node.words[2] end
    assert.same({ "modules/a.so", "modules/b.so" }, found)
    assert.equal("/usr/share/nginx/logs/nginx.pid", process.pid_file(facts, dump))
  end)
end)

describe("the modules of nginx", function()
  it("are loaded from where they are by an nginx that tests a part elsewhere", inside(function()
    local host = connection.new({ name = "local", dir = fixture.dir() .. "/home" }, "shop")
    host:connect()
    local facts = process.find(host)
    local modules = process.modules(facts, "load_module modules/absent.so; load_module '/absent/b.so';\n")
    assert.equal(('load_module "%smodules/absent.so";\nload_module "/absent/b.so";\n'):format(facts.prefix), modules)
    local problem = process.test_part(host, facts, "", { style = "upstream", modules = modules })
    assert.truthy(problem:find(('dlopen() "%smodules/absent.so" failed'):format(facts.prefix), 1, true), problem)
    host:close()
    fixture.cleanup()
  end))
end)

describe("the test of a part", function()
  it("needs no right to write where nginx's own log is", inside(function()
    local host = connection.new({ name = "local", dir = fixture.dir() .. "/home" }, "shop")
    host:connect()
    local nobody = setmetatable({ execute = function(_, argv, options)
      local words = host.user == "root" and { "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups" } or {}
      return host:execute(table.move(argv, 1, #argv, #words + 1, words), options)
    end }, { __index = host })
    local facts = process.find(host)
    for style, part in pairs { variable = "set $url http://127.0.0.1:80;", upstream = "upstream shop { server 127.0.0.1:80; }" } do
      assert.is_nil(process.test_part(nobody, facts, part, { style = style, modules = "" }))
      assert.matches("unknown directive", process.test_part(nobody, facts, "rubbish;", { style = style, modules = "" }))
    end
    host:close()
    fixture.cleanup()
  end))
end)

describe("the nginx driver", function()
  local ng, host, ports

  local function serve(port)
    fixture.start { "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", fixture.dir(), tostring(port) }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "service")
  end

  local function open(more)
    host = connection.new({ name = "local", dir = ng.dir .. "/home" }, "shop")
    host:connect()
    local entry = { type = "nginx", style = ng.style, file = ng.file, [ng.style] = ng.style == "upstream" and "shop" or "service_url", config = ng.config }
    for key, value in pairs(more or {}) do entry[key] = value end
    return driver.open(entry, { app = "shop", host = host, slots = {
      { name = "local-1", address = "127.0.0.1", port = ports[1] }, { name = "local-2", address = "127.0.0.1", port = ports[2] },
    } })
  end

  before_each(function()
    ports = { fixture.free_port(), fixture.free_port() }
    ng = nginx.start { style = "upstream", port = ports[1] }
  end)

  after_each(function()
    if host then host:close() end
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local switch = { { slot = "local-2", state = "ready", weight = 100 }, { slot = "local-1", state = "drain" } }

  it("refuses what cannot work, says what to do, and changes nothing", inside(function()
    local found, text = fixture.read(ng.config), fixture.read(ng.file)
    local function fails_with(code, pattern, config)
      fixture.write(ng.config, config)
      local err = refused(code, function() open():check() end)
      host:close()
      assert.matches(pattern, err.message .. (err.detail or ""))
      fixture.write(ng.config, found)
    end
    open():check()
    fails_with("balancer", "is broken.*unknown directive \"worker_protesters\"", "worker_protesters 2;\n" .. found)
    fails_with("balancer", "does not include this file: write `include " .. ng.file:gsub("%p", "%%%0"), found:gsub("include [^\n]+", "upstream shop { server 127.0.0.1:1; }"))
    fails_with("balancer", "nothing in nginx's configuration uses it: write `proxy_pass http://shop;`", (found:gsub("proxy_pass http://shop", "proxy_pass http://127.0.0.1:9")))
    refused("balancer", function() open({ access_log = "/nowhere/log" }):check() end)
    refused("balancer", function() open({ upstream = "shoe" }):check() end)
    refused("balancer", function() open({ file = ng.dir .. "/absent.conf" }):check() end)
    ng:stop()
    assert.matches("does not run.*start it", refused("refused", function() open():check() end).message)
    assert.equal(text, fixture.read(ng.file))
  end))

  it("finds an nginx that runs whatever its log format says", inside(function()
    local found = fixture.read(ng.config)
    fixture.write(ng.config, (found:gsub("http {", "%0\n  log_format main '$remote_addr \"$request\" status $status; pid $pid; conn $connection;';")))
    open():check()
    assert.equal("ready", open():read().slots["local-1"].state)
  end))

  it("puts the file back when nginx silently keeps its old configuration", inside(function()
    serve(ports[2])
    local text, broken = fixture.read(ng.file), fixture.quote("echo broken >> " .. ng.config .. "; kill -HUP " .. ng.pid)
    local shop = open { reload = "sh -c " .. broken }
    local workers = ng:workers()
    local err = refused("balancer", shop.apply, shop, switch)
    assert.matches("did not load its configuration; the file is as it was", err.message)
    assert.matches("unexpected end of file", err.detail)
    assert.equal(text, fixture.read(ng.file))
    assert.equal(workers, ng:workers())
    assert.equal("", fixture.sh("ls -A " .. ng.dir .. " | grep deployrt-"))
  end))

  it("puts the file back when the command that reloads nginx fails or hangs, and does not call nginx away", inside(function()
    serve(ports[2])
    local text = fixture.read(ng.file)
    for command, how in pairs { ["sleep 300; true"] = "did not end within 20s", ["echo denied >&2; exit 3"] = "failed with status 3" } do
      local shop = open { reload = command }
      local err = refused("balancer", shop.apply, shop, switch)
      assert.truthy(err.message:find(("balancer.reload: `%s` %s, and nginx did not reload: try it by hand; the file is as it was"):format(command, how), 1, true), err.message)
      assert.equal(text, fixture.read(ng.file))
      assert.equal("", fixture.sh("ls -A " .. ng.dir .. " | grep deployrt-"))
      host:close()
    end
  end))

  it("goes by what nginx does, whatever the command that reloads it comes to", inside(function()
    serve(ports[2])
    local shop = open { reload = ("kill -HUP %s; exit 1"):format(ng.pid) }
    local workers = ng:workers()
    shop:apply(switch)
    for pid in workers:gmatch("%d+") do assert.is_nil((" " .. ng:workers()):find(" " .. pid .. " ", 1, true)) end
    assert.equal("ready", shop:read().slots["local-2"].state)
  end))

  it("loads a file that an interrupted change had left behind, and says so only when it has", inside(function()
    serve(ports[2])
    local shop = open()
    shop:apply(switch)
    local workers = ng:workers()
    shop:apply(switch)
    assert.equal(workers, ng:workers()) -- as wanted already: nothing is loaded
    assert(os.execute(("ln %s %s/.service.conf.deployrt-before"):format(ng.file, ng.dir)))
    shop:apply(switch)
    for pid in workers:gmatch("%d+") do assert.is_nil((" " .. ng:workers()):find(" " .. pid .. " ", 1, true)) end
    assert.equal("", fixture.sh("ls -A " .. ng.dir .. " | grep deployrt-"))
  end))

  it("keeps traffic where it is when nobody answers at the slot that should take over", inside(function()
    local shop = open()
    local text = fixture.read(ng.file)
    assert.matches("cannot reach local%-2", refused("balancer", shop.apply, shop, switch).message)
    assert.equal(text, fixture.read(ng.file))
  end))

  it("counts requests and errors from the access log over its rotation", inside(function()
    serve(ports[1])
    local shop = open { access_log = ng.log }
    shop:check()
    local function ask(count, path)
      for _ = 1, count do os.execute(("curl -s -o /dev/null http://127.0.0.1:%d%s"):format(ng.port, path)) end
    end
    shop:stats()
    ask(3, "/")
    assert.equal(3, shop:stats()["local-1"].requests)
    ask(2, "/")
    os.rename(ng.log, ng.log .. ".1")
    fixture.signal(ng.pid, "USR1")
    fixture.eventually(function() return fixture.read(ng.log) end, 5, "new log")
    ask(4, "/")
    assert.equal(9, shop:stats()["local-1"].requests)
    os.execute(("printf '127.0.0.1:%d, 127.0.0.1:%d|502, 200|0.001, 0.002|0.003|200|1.0\n127.0.0.1:%d|2' >> %s"):format(ports[1], ports[2], ports[1], ng.log))
    local stats = shop:stats()
    assert.same({ 10, 1, 1, 0 }, { stats["local-1"].requests, stats["local-1"].errors, stats["local-2"].requests, stats["local-2"].errors })
    os.execute(("printf '00|0.001|0.001|200|1.0\n' >> %s"):format(ng.log))
    assert.equal(11, shop:stats()["local-1"].requests)
  end))
end)
