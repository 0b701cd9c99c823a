-- nginx_route_spec.lua -- Who sees the new release, through a real nginx: by rule, by share, and the same one again.
-- weight: 12
local cjson = require "cjson"
local core = require "deployrt.core"
local connection = require "deployrt.connection"
local driver = require "deployrt.balancer.driver"
local fixture = require "spec.support.fixture"
local nginx = require "spec.support.nginx"
local route = require "deployrt.balancer.route"
local routes = require "deployrt.balancer.nginx_route"
local stand = require "spec.support.plain_shop"

local inside, refused = stand.inside, stand.refused

--- Who answered so many requests, with these arguments of curl.
local function tally_of(port, count, path, ...)
  local argv, tally = { "curl", "-s", "-m", "5", "-w", "\n", ... }, {}
  argv[#argv + 1] = ("http://127.0.0.1:%d%s"):format(port, path or "/[1-" .. count .. "]")
  for release in fixture.run(argv).stdout:gmatch("hello from (%S+)") do tally[release] = (tally[release] or 0) + 1 end
  return tally
end

describe("behind nginx, traffic that is told apart", function()
  local app, ng

  before_each(function()
    app = fixture.app { instances = 2, health = "{http: /healthz, interval: 50ms, deadline: 20s}", yaml = "strategy: {settle: 0}" }
    ng = nginx.start { style = "upstream", port = app.ports[1], routes = true }
    app.opts.balancer = ng:yaml(", access_log: " .. ng.log)
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
  end)

  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local function ask(count, ...)
    return tally_of(ng.port, count, nil, ...)
  end

  local function begin(...) return app:begin_ab(...) end
  local function finish(...) return app:end_ab(...) end

  local function is_told_apart()
    return fixture.read(ng.routes) ~= routes.beginning { upstream = "shop" }
  end

  it("goes by header, cookie, path and network before any share, and ends with the old release when that is what is wanted", function()
    local load = app:load { port = ng.port, rate = 300, keepalive = false }
    local run = begin '{share: 0%, sticky: false, route: [{header: "X-Canary: Yes"}, {cookie: be-ta}, {path: /7}, {source: 127.9.0.0/16}]}'
    assert.same({ ["1.0"] = 6 }, ask(6))
    assert.same({ ["2.0"] = 6 }, ask(6, "-H", "X-Canary: Yes"))
    assert.same({ ["1.0"] = 6 }, ask(6, "-H", "X-Canary: yes"))
    assert.same({ ["1.0"] = 6 }, ask(6, "-H", "X-Canary: Yes-no"))
    assert.same({ ["2.0"] = 6 }, ask(6, "-b", "a=1; be-ta=yes"))
    assert.same({ ["1.0"] = 6 }, ask(6, "-b", "a=1; xbe-ta=yes"))
    assert.same({ ["2.0"] = 1, ["1.0"] = 79 }, ask(80))
    assert.same({ ["2.0"] = 2 }, tally_of(ng.port, 2, "/7{/x,?y=1}"))
    assert.same({ ["2.0"] = 6 }, ask(6, "--interface", "127.9.0.1"))
    local shares = {}
    for _, each in ipairs(app:status().instances) do shares[each.release] = (shares[each.release] or 0) + each.share end
    assert.same({ ["1.0"] = 1, ["2.0"] = 0 }, shares)
    local log = finish(run, "old")
    assert.truthy(log:find("the old release stays", 1, true), log)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.is_false(is_told_apart())
    assert.same({ ["1.0"] = 6 }, ask(6, "-H", "X-Canary: Yes"))
    assert.same({}, load:stop().errors)
  end)

  it("splits what no rule fits by the share, keeps visitors where they were, and ends with the new release", function()
    local load = app:load { port = ng.port, rate = 200, keepalive = false }
    local run = begin '{share: 30%, route: [{header: X-Canary}]}'
    local tally = ask(10000)
    assert.equal(10000, tally["1.0"] + tally["2.0"])
    assert.is_true(math.abs(tally["2.0"] - 3000) < 140, tostring(tally["2.0"])) -- three standard deviations
    for _ = 1, 8 do
      local jar = app.dir .. "/jar"
      os.remove(jar)
      local first = next(ask(1, "-c", jar))
      assert.truthy(fixture.read(jar):find("deployrt-shop\t" .. first .. "~", 1, true))
      assert.same({ [first] = 20 }, ask(20, "-b", jar))
      assert.same({ ["2.0"] = 5 }, ask(5, "-b", jar, "-H", "X-Canary: 1"))
    end
    finish(run, "new")
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.same({ ["2.0"] = 20 }, ask(20))
    assert.equal("", fixture.sh(("curl -s -o /dev/null -D - http://127.0.0.1:%d/ | grep -i cookie"):format(ng.port)))
    assert.same({}, load:stop().errors)
  end)

  local canary = 'strategy: {hold: 600ms, latency: 1000, steps: [0%, 20%, 100%], sticky: true, route: [{header: "X-Canary: 1"}]}'

  it("grows with a canary, counts its requests, and goes back whole when the last step fails", function()
    app.opts.yaml = canary
    local load = app:load { port = ng.port, rate = 400, keepalive = false }
    local run = app:deploy("canary", "2.0", nil, { "--json" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local seen = 0
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      if event.event == "analysis" and event.new then seen = math.max(seen, event.new.requests) end
    end
    assert.is_true(seen > 20, "requests that the analysis saw: " .. seen)
    fixture.write(app.dir .. "/failing.lua", [[
      local strategy = require "deployrt.strategy"
      local failing = strategy.extend("canary", { name = "failing" })
      function failing:replace_rest() self:fail("the last step fails") end
      return failing]])
    run = app:deploy("./failing.lua", "3.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.is_false(is_told_apart())
    local numbers = load:stop()
    assert.same({}, numbers.errors)
    assert.is_true(numbers.versions["2.0"] > 0 and numbers.versions["3.0"] > 0)
  end)

  it("is mended when others edit, empty and reload, and taken back after the death of the controller", function()
    local run = begin '{share: 0%, sticky: false, route: [{header: "X-Canary: 1"}]}'
    local wanted = fixture.read(ng.routes)
    for _, text in ipairs { wanted:gsub('"~^new" shop%-routed', '"~^new" shop'), 'map "" $shop_target { default shop; }\nmap "" $shop_cookie { default ""; }\n' } do
      fixture.write(ng.routes, text)
      ng:reload()
      fixture.eventually(function() return fixture.read(ng.routes) == wanted end, 30, "the file as the run wants it")
      fixture.eventually(function() return ask(1, "-H", "X-Canary: 1")["2.0"] == 1 end, 30, "routing again")
    end
    ng:restart()
    assert.same({ ["2.0"] = 6 }, ask(6, "-H", "X-Canary: 1"))
    fixture.signal(run.pid, "KILL")
    fixture.eventually(function() return not fixture.alive(run.pid) end)
    assert.same({ ["2.0"] = 6 }, ask(6, "-H", "X-Canary: 1"))
    local aborted = app:command { "abort", "app.yml" }
    assert.equal(0, aborted.exit, aborted.stdout .. aborted.stderr)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.is_false(is_told_apart())
  end)

  it("is resumed when the controller dies before or after it changes", function()
    app.opts.yaml = canary:gsub("600ms", "100ms")
    app:write(fixture.release("2.0"), "2.0")
    local run, _, operations = app:mortal("count", nil, { "canary", "app.yml" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local load, changes = app:load { port = ng.port, rate = 200, keepalive = false }, {}
    for n, each in ipairs(operations) do
      if each.name == "balancer.route" then changes[#changes + 1] = n end
    end
    assert.equal(4, #changes)
    for i, case in ipairs { { "before", changes[2] }, { "after", changes[4] } } do
      local version = ("%d.0"):format(i + 2)
      app:write(fixture.release(version), version)
      run = app:mortal(case[1], case[2], { "canary", "app.yml" })
      assert.equal(137, run.exit, run.stdout .. run.stderr)
      local resumed = app:command { "resume", "app.yml" }
      assert.equal(0, resumed.exit, resumed.stdout .. resumed.stderr)
      assert.same({ version, version }, app:serving())
      assert.is_false(is_told_apart())
    end
    assert.same({}, load:stop().errors)
  end)

  it("is refused beforehand where nginx cannot do it", function()
    fixture.write(ng.routes, routes.beginning { upstream = "shop" })
    local text = fixture.read(ng.file) .. fixture.read(ng.routes)
    local function refusal(options, balancer, config)
      local found = fixture.read(ng.config)
      app.opts.yaml, app.opts.balancer = "strategy: " .. options, balancer or ng:yaml()
      app:write(fixture.release("2.0"), "2.0")
      fixture.write(ng.config, config or found)
      local run = app:command { "check", "ab", "app.yml", config and "--connect" or nil }
      fixture.write(ng.config, found)
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      return run.stderr
    end
    assert.matches("it cannot tell requests apart; set `routes:` to a file", refusal("{}", (ng:yaml():gsub(", routes: [^,}]+", ""))))
    assert.matches("no variable for the header 'X!'", refusal '{route: [{header: "X!: 1"}]}')
    assert.matches("routes is for `style: upstream`", refusal("{}", (ng:yaml():gsub("style: upstream", "style: variable"))))
    local config = fixture.read(ng.config)
    assert.matches("nothing .* uses %$shop_cookie", refusal("{}", nil, (config:gsub("add_header [^\n]+", ""))))
    assert.matches("does not include this file: write `include " .. ng.routes:gsub("%p", "%%%0"), refusal("{}", nil, (config:gsub("include " .. ng.routes:gsub("%p", "%%%0") .. ";",
      'map "" $shop_target { default shop; } map "" $shop_cookie { default ""; }'))))
    fixture.write(ng.routes, "")
    assert.matches("needs the file .* to begin with", refusal("{}", nil, config))
    fixture.write(ng.routes, routes.beginning { upstream = "shop" })
    assert.equal(text, fixture.read(ng.file) .. fixture.read(ng.routes))
  end)
end)

describe("the nginx driver with routes", function()
  local ng, host, ports, pids, shop

  before_each(function()
    ports, pids = { fixture.free_port(), fixture.free_port() }, {}
    for i, port in ipairs(ports) do
      pids[i] = fixture.start { fixture.service(), "--port", port, "--version", "web" .. i }
      fixture.eventually(function() return fixture.is_listened(port) end, 10, "service")
    end
    ng = nginx.start { style = "upstream", port = ports[1], routes = true, upstream = "    keepalive 8;\n" }
  end)

  after_each(function()
    if host then host:close() end
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  local function open(more)
    host = connection.new({ name = "local", dir = ng.dir .. "/home" }, "shop")
    host:connect()
    local entry = { type = "nginx", style = "upstream", file = ng.file, upstream = "shop", routes = ng.routes, config = ng.config }
    for key, value in pairs(more or {}) do entry[key] = value end
    shop = driver.open(entry, { app = "shop", host = host, slots = {
      { name = "local-1", address = "127.0.0.1", port = ports[1] }, { name = "local-2", address = "127.0.0.1", port = ports[2] },
    } })
    return shop
  end

  local function told(percent, generation)
    generation = generation or 1
    return { slots = { "local-2" }, percent = percent, rules = { { header = "X-Canary: 1" } }, generation = generation,
      sticky = { new = "2.0~" .. generation, old = "1.0~" .. generation } }
  end

  local function ask(count, ...)
    return tally_of(ng.port, count, nil, ...)
  end

  --- How many of so many visitors see the new release; each one keeps the cookie that he is told.
  local function visit(jars, visitors)
    local sides = 0
    for i = 1, visitors do
      local answer = assert(core.http.request { url = ("http://127.0.0.1:%d/"):format(ng.port), headers = { Cookie = jars[i] } })
      jars[i] = (answer.headers["set-cookie"] or ""):match("^[^;]+") or jars[i]
      sides = sides + (answer.body:find("web2", 1, true) and 1 or 0)
    end
    return sides
  end

  it("has visitors choose anew when the share shrinks, so that those who were there do not keep it up", inside(function()
    local jars = {}
    open():route(told(100))
    assert.equal(20, visit(jars, 20))
    assert.same({}, jars) -- nobody has chosen yet
    shop:route(told(50))
    local half = visit(jars, 400)
    assert.is_true(half > 160 and half < 240, tostring(half)) -- four standard deviations
    assert.equal(half, visit(jars, 400))
    shop:route(told(60))
    assert.equal(half, visit(jars, 400))
    shop:route(told(2, 2))
    local few = visit(jars, 400)
    assert.is_true(few < 20, tostring(few))
    assert.equal(few, visit(jars, 400))
    shop:route(told(0, 3))
    assert.equal(0, visit(jars, 400))
    assert.same({ web2 = 5 }, ask(5, "-b", jars[1], "-H", "X-Canary: 1"))
    shop:route(nil)
    assert.same({ web1 = 10 }, ask(10, "-H", "X-Canary: 1"))
  end))

  it("tells back what it was told, does it once, and follows the other upstream", inside(function()
    open():route(told(12.34))
    local found = shop:read().route
    assert.is_nil(found.edited)
    assert.same(told(12.34), found)
    shop:route(told(100 / 3)) -- as finely as nginx splits
    assert.is_true(route.is_same(shop:read().route, told(100 / 3)))
    shop:route(told(12.34))
    local workers = ng:workers()
    open():route(told(12.34))
    shop:apply { { slot = "local-1", state = "ready", weight = 1 } }
    assert.equal(workers, ng:workers())
    assert.matches("127.0.0.1:" .. ports[1] .. " weight=1 backup;\n.*keepalive 8;", fixture.read(ng.routes))
    shop:apply { { slot = "local-2", state = "ready", weight = 100 }, { slot = "local-1", state = "drain" } }
    assert.is_nil(fixture.read(ng.routes):find("backup", 1, true))
    assert.same({ web2 = 20 }, ask(20))
  end))

  it("tells nobody apart while nobody answers at the slots for them", inside(function()
    fixture.stop(pids[2])
    local text = fixture.read(ng.routes)
    assert.matches("cannot reach local%-2", refused("balancer", function() open():route(told(100)) end).message)
    assert.equal(text, fixture.read(ng.routes))
  end))

  it("lets the others answer when no routed instance does", inside(function()
    open():route(told(100))
    assert.same({ web2 = 10 }, ask(10))
    fixture.stop(pids[2])
    assert.same({ web1 = 10 }, ask(10))
  end))

  it("changes neither file when nginx refuses one of them, or keeps its old configuration", inside(function()
    local files = fixture.read(ng.file) .. fixture.read(ng.routes)
    local function unchanged()
      assert.equal(files, fixture.read(ng.file) .. fixture.read(ng.routes))
      assert.equal("", fixture.sh("ls -A " .. ng.dir .. " | grep deployrt-"))
    end
    local wrong = told(10)
    wrong.rules = { { source = "10.0.0.0/99" } }
    assert.matches("refuses what deployrt would write", refused("balancer", function() open():route(wrong) end).message)
    unchanged()
    local config = fixture.read(ng.config)
    fixture.write(ng.config, (config:gsub("http {", "%0 upstream shop-routed { server 127.0.0.1:1; }")))
    assert.matches("the old one is in place", refused("balancer", function() open():route(told(10)) end).message)
    unchanged()
    fixture.write(ng.config, config)
    open { reload = "sh -c " .. fixture.quote("echo broken >> " .. ng.config .. "; kill -HUP " .. ng.pid) }
    local workers = ng:workers()
    assert.matches("did not load its configuration", refused("balancer", function() shop:route(told(10)) end).message)
    unchanged()
    assert.equal(workers, ng:workers())
  end))

  it("heals a change that was cut short between its two files", inside(function()
    open():route(told(100))
    local text = fixture.read(ng.routes)
    shop:route(nil)
    for _, name in ipairs { "service", "routes" } do -- as after the exchange of one of them: both are kept, one is new
      assert(os.execute(("ln %s/%s.conf %s/.%s.conf.deployrt-before"):format(ng.dir, name, ng.dir, name)))
    end
    fixture.write(ng.dir .. "/next", text)
    os.rename(ng.dir .. "/next", ng.routes)
    assert.same({ web1 = 10 }, ask(10))
    open():apply { { slot = "local-1", state = "ready", weight = 100 } }
    assert.same({ web2 = 10 }, ask(10))
    assert.equal("", fixture.sh("ls -A " .. ng.dir .. " | grep deployrt-"))
    shop:route(nil)
    assert.same({ web1 = 10 }, ask(10))
  end))
end)
