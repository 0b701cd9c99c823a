-- balancers.lua -- What clients notice of a deployment behind each balancer, and how long a switch takes.
local bench = require "spec.bench.bench"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local driver = require "deployrt.balancer.driver"
local fixture = require "spec.support.fixture"
local nginx = require "spec.support.nginx"

local options = {
  rolling = "{settle: 100ms, batch: 50%}", blue_green = "{settle: 100ms}", canary = "{hold: 500ms, steps: [10%, 100%]}",
}

local function deploy(app, strategy, version)
  app.opts.yaml = "strategy: " .. options[strategy]
  local run = app:deploy(strategy, version)
  if run.exit ~= 0 then error(run.stdout .. run.stderr, 0) end
end

--- Failed requests and closed idle connections while something goes on.
local function under_load(port, keepalive, action)
  local load = fixture.load { port = port, keepalive = keepalive, connections = 16, rate = 500 }
  local ok, err = pcall(action)
  local numbers = load:stop()
  if not ok then error(err, 0) end
  return numbers
end

local function told(numbers)
  return ("%d of %d failed, %d repeated"):format(numbers.failed, numbers.requests, numbers.retried)
end

local function reloads_of(ng)
  return select(2, fixture.read(ng.dir .. "/error.log"):gsub("signal 1 %(SIGHUP%) received", ""))
end

--- As many reloads as a deployment made, by hand, for what nginx's own reload costs.
local function plain_reloads(ng, count)
  return under_load(ng.port, true, function()
    for _ = 1, count do
      local before = ng:workers()
      ng:reload()
      fixture.eventually(function() return ng:workers() ~= before and not ng:workers():find(before:match("%d+"), 1, true) end, 10, "reload")
    end
  end)
end

local function behind_nginx(style, strategies)
  local app = fixture.app { instances = style == "upstream" and 2 or 1, health = "{http: /healthz, interval: 50ms, deadline: 20s}" }
  bench.with_app(app, function()
    local ng = nginx.start { style = style, port = app.ports[1] }
    app.opts.balancer = ng:yaml(style == "upstream" and ", access_log: " .. ng.log)
    deploy(app, "rolling", "1.0")
    for i, name in ipairs(strategies) do
      local numbers = under_load(ng.port, false, function() deploy(app, name, ("2.%d"):format(i)) end)
      bench.row(("nginx (%s), %s, without keep-alive"):format(style, name), numbers.failed, "%d failed", "<=", 0, told(numbers))
      local before = reloads_of(ng)
      numbers = under_load(ng.port, true, function() deploy(app, name, ("3.%d"):format(i)) end)
      local count = reloads_of(ng) - before
      bench.note(("nginx (%s), %s, with keep-alive"):format(style, name), ("%d failed"):format(numbers.failed), ("%s; %d reloads; as many by hand: %s"):format(
        told(numbers), count, told(plain_reloads(ng, count))))
    end
  end)
end

local function behind_haproxy()
  local app = fixture.app { instances = 2 }
  bench.with_app(app, function()
    deploy(app, "rolling", "1.0")
    for i, name in ipairs { "rolling", "blue_green", "canary" } do
      for keepalive, word in pairs { [false] = "without", [true] = "with" } do
        local numbers = under_load(app.listen, keepalive, function() deploy(app, name, ("%d.%s"):format(i + 1, word)) end)
        bench.row(("HAProxy, %s, %s keep-alive"):format(name, word), numbers.failed, "%d failed", "<=", 0, told(numbers))
      end
    end
  end)
end

--- Two sets of slots at addresses of their own, all answered by one service.
local function sets_of(count, port)
  local slots, old, new = {}, {}, {}
  for i = 1, 2 * count do
    slots[i] = { name = ("web%d"):format(i), address = ("127.1.%d.%d"):format(i // 200, i % 200 + 1), port = port }
    local list = i <= count and old or new
    list[#list + 1] = slots[i].name
  end
  return slots, old, new
end

local function switch(shop, out, into)
  local changes = {}
  for _, name in ipairs(into) do changes[#changes + 1] = { slot = name, state = "ready", weight = 100 } end
  for _, name in ipairs(out) do changes[#changes + 1] = { slot = name, state = "drain" } end
  local began = core.now()
  shop:apply(changes)
  return (core.now() - began) * 1000
end

local function switch_time(count)
  local port, taken = fixture.free_port(), {}
  fixture.start { "python3", "-m", "http.server", "--bind", "0.0.0.0", "--directory", fixture.dir(), tostring(port) }
  fixture.eventually(function() return fixture.is_listened(port) end, 30, "service")
  local ok, problem = core.run(function()
    local slots, old, new = sets_of(count, port)
    local host = connection.new({ name = "local", dir = fixture.dir() }, "shop")
    host:connect()
    local shop = driver.open({ type = "haproxy", managed = true, listen = "127.0.0.1:" .. fixture.free_port(), drain = { timeout = 1 } },
      { app = "shop", host = host, slots = slots, health = { tcp = true } })
    shop:prepare()
    switch(shop, new, old)
    for _ = 1, 5 do
      taken[#taken + 1] = switch(shop, old, new)
      taken[#taken + 1] = switch(shop, new, old)
    end
    shop:stop()
    host:close()
  end)
  if not ok then error(problem, 0) end
  bench.row(("blue-green switch of %d, HAProxy managed"):format(count), bench.median(taken), "%.1f ms", "<=", 20, "median of 10: looked at, changed in one request, read back")
end

return function()
  for _, count in ipairs { 1, 8, 64 } do switch_time(count) end
  behind_haproxy()
  behind_nginx("upstream", { "rolling", "blue_green", "canary" })
  behind_nginx("variable", { "blue_green" })
end
