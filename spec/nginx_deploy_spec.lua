-- nginx_deploy_spec.lua -- The strategies behind nginx, under load, and with others who reload, restart and edit it in mid-run.
-- weight: 12
local fixture = require "spec.support.fixture"
local nginx = require "spec.support.nginx"

local options = { rolling = "{settle: 100ms, batch: 50%}", blue_green = "{settle: 100ms}", canary = "{hold: 600ms, latency: 1000, steps: [10%, 100%]}" }

local failing = [[
local strategy = require "deployrt.strategy"
local failing = strategy.extend("%s", { name = "failing" })
function failing:deploy()
  self.super.deploy(self)
  self:fail("the last step fails")
end
return failing
]]

local waiting = [[
local strategy = require "deployrt.strategy"
local waiting = strategy.extend("blue_green", { name = "waiting" })
function waiting:deploy()
  self.super.deploy(self)
  self.fleet.hosts[1]:run { "sh", "-c", "touch DIR/reached; while [ ! -e DIR/go ]; do sleep 0.05; done" }
end
return waiting
]]

describe("behind nginx", function()
  local app, ng

  local function start(style)
    app = fixture.app { instances = style == "upstream" and 2 or 1, health = "{http: /healthz, interval: 50ms, deadline: 20s}" }
    ng = nginx.start { style = style, port = app.ports[1] }
    app.opts.balancer, app.opts.yaml = ng:yaml(style == "upstream" and ", access_log: " .. ng.log), "strategy: " .. options.rolling
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
  end

  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  for _, case in ipairs { { "upstream", "rolling" }, { "upstream", "blue_green" }, { "upstream", "canary" }, { "variable", "blue_green" } } do
    local style, name = case[1], case[2]
    it(("style %s, %s deploys and rolls back without a failed request"):format(style, name), function()
      start(style)
      app.opts.yaml = "strategy: " .. options[name]
      local load = app:load { port = ng.port, keepalive = false, rate = 300 }
      local run = app:deploy(name, "2.0")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      fixture.write(app.dir .. "/failing.lua", failing:format(name))
      run = app:deploy("./failing.lua", "3.0")
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 50 end)
      local numbers = load:stop()
      assert.same({}, numbers.errors)
      assert.is_true(numbers.versions["1.0"] > 0 and numbers.versions["3.0"] > 0)
      assert.same(style == "upstream" and { "2.0", "2.0" } or { "2.0" }, app:serving())
    end)
  end

  it("keeps what a run wants when others reload nginx, restart it, and edit the file", function()
    start "variable"
    fixture.write(app.dir .. "/waiting.lua", (waiting:gsub("DIR", app.dir)))
    app.opts.yaml = "strategy: " .. options.blue_green
    app:write(fixture.release("2.0"), "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./waiting.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(app.dir .. "/reached") end, 60, "the middle of the run")
    local wanted = fixture.read(ng.file)
    assert.truthy(wanted:find("set $service_url http://127.0.0.1:" .. app.ports[2], 1, true))
    ng:reload()
    ng:restart()
    assert.equal(wanted, fixture.read(ng.file))
    fixture.write(ng.file, ("set $service_url http://127.0.0.1:%d;\n"):format(app.ports[1]))
    ng:reload()
    fixture.eventually(function() return fixture.read(log):find("set right again", 1, true) end, 60, "the word that it is mended")
    assert.equal(wanted, fixture.read(ng.file))
    fixture.write(app.dir .. "/go", "")
    fixture.eventually(function() return not fixture.alive(pid) end, 60, "end of the run")
    assert.matches("deployed 2.0", fixture.read(log))
    assert.equal("hello from 2.0\n", fixture.sh("curl -s http://127.0.0.1:" .. ng.port .. "/"))
  end)
end)
