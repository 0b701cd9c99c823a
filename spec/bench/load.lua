-- load.lua -- Each strategy under load through HAProxy, to its end and failing at its last step: what clients notice.
local core = require "deployrt.core"
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"

local instances = 4
local strategies = {
  { name = "rolling", options = "{batch: 25%, settle: 200ms}", capacity = 100, declares = "a new instance beside each old one" },
  { name = "in_place", options = "{batch: 25%, settle: 200ms}", capacity = 75, declares = "all but a batch of 25%" },
  { name = "blue_green", options = "{settle: 200ms}", capacity = 100, declares = "a full second set" },
  { name = "canary", options = "{hold: 500ms, steps: [10%, 50%, 100%]}", capacity = 100, declares = "the new side grows first" },
}

-- A strategy with one more line, which fails, so that all before it is rolled back.
local failing = [[
local strategy = require "deployrt.strategy"
local failing = strategy.extend("%s", { name = "failing" })
function failing:deploy()
  self.super.deploy(self)
  self:fail("the last step fails")
end
return failing
]]

--- Servers that are up and get requests, from `show stat` of HAProxy.
local function count_serving(text)
  local count = 0
  for line in text:gmatch("[^\n]+") do
    local fields = {}
    for field in line:gmatch("([^,]*),") do fields[#fields + 1] = field end
    local is_up = fields[18] and (fields[18]:find("^UP") or fields[18] == "no check")
    if is_up and (math.tointeger(fields[19]) or 0) > 0 then count = count + 1 end
  end
  return count
end

--- Looks every 5 ms while the process lives.
---@return integer least  servers that served at once
---@return integer looks
local function watch(socket, pid)
  local least, looks = math.huge, 0
  local ok, problem = core.run(function()
    local link = assert(core.connect { transport = "local", name = "local" })
    while fixture.alive(pid) do
      local text = link:talk(socket, nil, "show stat shop 4 -1\n", { timeout = 5 })
      if text then
        looks = looks + 1
        least = math.min(least, count_serving(text))
      end
      core.sleep(0.005)
    end
    link:close()
  end)
  if not ok then error(problem, 0) end
  return least, looks
end

local function start_load(app)
  if not bench.has("wrk") then
    local load = app:load { rate = 5000 }
    return function()
      local numbers = load:stop()
      return numbers.failed, numbers.requests
    end
  end
  local log = app.dir .. "/wrk"
  local pid = fixture.start({ "wrk", "-t1", "-c16", "-d600s", "--timeout", "5s", ("http://127.0.0.1:%d/"):format(app.listen) }, { log = log })
  return function()
    fixture.signal(pid, "INT")
    fixture.eventually(function() return not fixture.alive(pid) end, 15, "end of wrk")
    local text, failed = fixture.read(log), 0
    for count in (text:match("Socket errors:[^\n]*") or ""):gmatch("%d+") do failed = failed + math.tointeger(count) end
    failed = failed + (math.tointeger(text:match("Non%-2xx or 3xx responses: (%d+)")) or 0)
    return failed, math.tointeger(text:match("(%d+) requests in")) or error("wrk: " .. text, 0)
  end
end

--- One deployment under load.
---@return integer failed
---@return integer requests
---@return integer least  servers that served at once
---@return integer looks
local function deploy(app, strategy, version, wanted)
  app:write(fixture.release(version), version)
  local finish, log = start_load(app), app.dir .. "/log"
  local pid = app:command({ strategy, "app.yml", "--json" }, { background = true, log = log })
  local least, looks = watch(app.dir .. "/home/.deployrt/shop/balancer/haproxy.sock", pid)
  local failed, requests = finish()
  local text = fixture.read(log)
  if not text:find(('"outcome":"%s"'):format(wanted), 1, true) then error(text:sub(-1500), 0) end
  return failed, requests, least, looks
end

local function add_rows(what, each, failed, requests, least, looks)
  bench.row(what .. ": failed requests", failed, "%d", "<=", 0, ("of %d, %s"):format(requests, bench.has("wrk") and "wrk, 16 kept connections"
    or "spec/support/load.c: wrk is not installed"))
  bench.row(what .. ": smallest capacity", 100 * least / instances, "%.0f %%", ">=", each.capacity,
    ("%s; %d looks at HAProxy"):format(each.declares, looks))
end

return function()
  if not bench.has("haproxy") and not bench.has("/usr/sbin/haproxy") then
    bench.note("strategies under load", "not measured", "haproxy is not installed")
    return
  end
  for _, each in ipairs(strategies) do
    bench.with_app(fixture.app { instances = instances, yaml = "strategy: " .. each.options }, function(app)
      fixture.write(app.dir .. "/failing.lua", failing:format(each.name))
      local first = app:deploy(each.name, "1.0")
      if first.exit ~= 0 then error(first.stderr, 0) end
      add_rows(each.name, each, deploy(app, each.name, "2.0", "succeeded"))
      add_rows(each.name .. ", failing at its end", each, deploy(app, "./failing.lua", "3.0", "rolled_back"))
    end)
    fixture.cleanup()
  end
end
