-- balancers_spec.lua -- Several balancers are kept alike, also when one of them goes away and comes back.
-- weight: 15
local fixture = require "spec.support.fixture"

-- Deploys, but waits in the middle for a file: the time in which a spec does something to a balancer.
local waiting = [[
local strategy = require "deployrt.strategy"
local waiting = strategy.extend("rolling", { name = "waiting" })
function waiting:deploy()
  self.fleet.hosts[1]:run { "sh", "-c", "touch DIR/reached; while [ ! -e DIR/go ]; do sleep 0.05; done" }
  self.super.deploy(self)
end
return waiting
]]

describe("a list of balancers", function()
  local app, one, two

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 100ms}", health = "{http: /healthz, interval: 50ms, deadline: 20s}" }
    local servers = {}
    for i, port in ipairs(app.ports) do servers[i] = ("web%d 127.0.0.1:%d disabled"):format(i, port) end
    one, two = fixture.haproxy { servers = servers }, fixture.haproxy { servers = servers }
    app.opts.balancer = ("[{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}, {type: haproxy, socket: %s, backend: shop}]"):format(one.socket, two.socket)
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stderr)
    fixture.write(app.dir .. "/waiting.lua", (waiting:gsub("DIR", app.dir)))
  end)

  after_each(function()
    if not fixture.alive(two.pid) then two:start() end
    app:stop()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  --- Who serves, by its address, as the balancer has it.
  local function serving(haproxy)
    local list = {}
    for line in haproxy:command("show stat shop 4 -1"):gmatch("\nshop,([^\n]*)") do
      local fields = {}
      for field in line:gmatch("([^,]*),") do fields[#fields + 1] = field end
      if fields[17] == "no check" then list[#list + 1] = fields[1] .. "=" .. fields[18] end
    end
    return table.concat(list, " ")
  end

  --- Starts a run that waits in the middle; the function it returns lets it go on, and gives its end.
  local function start_waiting()
    app:write(fixture.release("2.0"), "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./waiting.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(app.dir .. "/reached") end, 30, "the middle of the run")
    return function(during)
      fixture.write(app.dir .. "/go", "")
      if during then during() end
      fixture.eventually(function() return not fixture.alive(pid) end, 60, "end of the run")
      return fixture.read(log)
    end, pid
  end

  it("is changed alike, and refused before the run when one of them is down", function()
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    assert.equal("web2=100", serving(one))
    assert.equal("web2=100", serving(two))
    two:kill()
    local run = app:deploy("rolling", "3.0")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    assert.matches("is HAProxy running", run.stderr)
    assert.equal("web2=100", serving(one))
    two:start()
  end)

  it("goes on with the others when one goes down in mid-run, which is brought up to date when it returns", function()
    local go_on = start_waiting()
    two:kill()
    local log = go_on(function()
      fixture.eventually(function() return fixture.read(app.dir .. "/log"):find("is away", 1, true) end, 30, "the word that it is away")
      fixture.eventually(function() return serving(one) == "web2=100" end, 30, "the switch of the other one")
      two:start()
    end)
    assert.matches("balancer 2 %(haproxy%) is away, and will be brought up to date", log)
    assert.matches("balancer 2 %(haproxy%) is back", log)
    assert.matches("deployed 2.0", log)
    assert.equal("web2=100", serving(one))
    assert.equal("web2=100", serving(two))
  end)

  it("is taken up although one is away: what can be taken back is, and once that one is there the rest", function()
    local _, pid = start_waiting()
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    two:kill()
    local run = app:command { "abort", "app.yml" }
    assert.equal(3, run.exit, run.stdout .. run.stderr)
    assert.matches("balancer 2 %(haproxy%) is away, and will be brought up to date when it returns", run.stdout .. run.stderr)
    assert.equal("web1=100", serving(one))
    two:start()
    run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "web1=100", "web1=100" }, { serving(one), serving(two) })
    assert.same({ "1.0" }, app:serving())
  end)

  it("rolls back when one is still away at the end", function()
    local go_on = start_waiting()
    two:kill()
    local log = go_on()
    assert.matches("balancer 2 %(haproxy%) does not have the states that the run wants: ", log)
    assert.matches("rolled back", log)
    assert.equal("web1=100", serving(one))
    two:start()
    assert.same({ "1.0" }, app:serving())
  end)
end)
