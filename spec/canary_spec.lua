-- canary_spec.lua -- What a canary concludes from real traffic through a real HAProxy.
-- weight: 8
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("a canary", function()
  local app, load

  before_each(function() load = nil end)
  after_each(function()
    if load then load:stop() end
    app:stop()
    fixture.cleanup()
  end)

  --- The old release serves; the options are the canary's.
  local function prepare(opts, conf)
    app = fixture.app { yaml = "strategy: " .. opts.strategy }
    local first = app:deploy("canary", "1.0", { conf = conf })
    assert.equal(0, first.exit, first.stderr)
  end

  local function read_events(text)
    local list = {}
    for line in text:gmatch("(%b{})\n") do list[#list + 1] = cjson.decode(line) end
    return list
  end

  --- The verdicts of the steps, and the last analysis that was told.
  local function verdicts(text)
    local list, last = {}, nil
    for _, event in ipairs(read_events(text)) do
      if event.event == "analysis" then
        last = event
        if event.verdict ~= "waiting" then list[#list + 1] = event.verdict end
      end
    end
    return list, last
  end

  local function deploy(conf, flags)
    return app:deploy("canary", "2.0", { conf = conf }, { "--json", table.unpack(flags or {}) })
  end

  --- A deployment in the background; `until_told(fn)` waits for an event that fn accepts.
  local function start(conf, flags)
    app:write(fixture.release("2.0", { conf = conf }), "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "canary", "app.yml", "--json", table.unpack(flags or {}) }, { background = true, log = log })
    return {
      text = function() return fixture.read(log) or "" end,
      kill = function() fixture.signal(pid, "KILL") end,
      await = function(accept, what)
        return fixture.eventually(function()
          for _, event in ipairs(read_events(fixture.read(log) or "")) do
            if accept(event) then return event end
          end
          assert(fixture.alive(pid), "it ended: " .. (fixture.read(log) or ""))
        end, 30, what)
      end,
      finish = function()
        fixture.eventually(function() return not fixture.alive(pid) end, 60, "end of the run")
        local events = read_events(fixture.read(log))
        return events[#events]
      end,
    }
  end

  local function is_analysis(event) return event.event == "analysis" end

  it("with a percent more failures than half a percent is caught, and one that fails as often as the old one passes", function()
    prepare({ strategy = "{steps: [50%], hold: 40s, latency: 50, inconclusive: fail}" }, "errors=0.5%")
    load = app:load { rate = 2000 }
    local run = deploy "errors=1.5%"
    local list, last = verdicts(run.stdout)
    assert.equal(1, run.exit, run.stdout)
    assert.equal("fail", list[#list])
    assert.truthy(last.reason:find("the new release fails 1.", 1, true), last.reason)
    assert.same({ "1.0" }, app:serving())

    run = deploy "errors=0.5%"
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "pass" }, (verdicts(run.stdout)))
    assert.same({ "2.0" }, app:serving())
  end)

  it("without any failure passes each step, the one with all the traffic too", function()
    prepare { strategy = "{steps: [50%, 100%], hold: 3s, latency: 50, inconclusive: fail}" }
    load = app:load { rate = 2000 }
    local run = deploy()
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "pass", "pass" }, (verdicts(run.stdout)))
  end)

  it("that shares an outage with the old one passes", function()
    local outage = fixture.dir() .. "/outage"
    prepare({ strategy = "{steps: [50%], hold: 15s, latency: 50, inconclusive: fail}" }, "outage=" .. outage)
    load = app:load { rate = 2000 }
    fixture.write(outage, "")
    local run = start("outage=" .. outage)
    run.await(function(event) return is_analysis(event) and event.new.errors > 30 and event.old.errors > 30 end, "failures on both sides")
    os.remove(outage)
    local last = run.finish()
    assert.equal(0, last.exit, run.text())
    local list, analysis = verdicts(run.text())
    assert.same({ "pass" }, list)
    assert.is_true(analysis.new.errors > 30)
  end)

  it("that dies, or becomes sick, while it is looked at is taken back, whatever its counters say", function()
    prepare { strategy = "{steps: [50%], hold: 3s}" }
    for _, signal in ipairs { "KILL", "STOP" } do
      load = app:load { rate = 100 }
      local run = start(nil, { "--set", "process.stop.timeout=300ms" })
      run.await(is_analysis, "a look")
      for _, each in ipairs(app:status().instances) do
        if each.release == "2.0" then fixture.signal(math.tointeger(each.pid), signal) end
      end
      local last = run.finish()
      assert.equal(1, last.exit, run.text())
      assert.truthy(last.message:find("did not stay healthy", 1, true), last.message)
      assert.same({ "1.0" }, app:serving())
      load:stop()
      load = nil
    end
  end)

  it("whose answers take twice as long is caught", function()
    prepare({ strategy = "{steps: [50%], hold: 40s}" }, "delay=10ms")
    load = app:load { rate = 1500, connections = 64 }
    local run = deploy "delay=20ms"
    assert.equal(1, run.exit, run.stdout)
    local _, last = verdicts(run.stdout)
    assert.truthy(last.reason:find("times as long as the old one", 1, true), last.reason)
  end)

  it("without traffic is inconclusive, and what follows from that is what it is told", function()
    prepare { strategy = "{steps: [25%, 100%], hold: 200ms}" }
    local strict = deploy(nil, { "--set", "strategy.inconclusive=fail" })
    assert.equal(1, strict.exit, strict.stdout)
    assert.same({ "inconclusive" }, (verdicts(strict.stdout)))
    assert.same({ "1.0" }, app:serving())

    local lenient = deploy()
    assert.equal(0, lenient.exit, lenient.stdout .. lenient.stderr)
    assert.same({ "inconclusive", "inconclusive" }, (verdicts(lenient.stdout)))
    assert.truthy(lenient.stdout:find('"event":"warning"[^\n]*no request reached the new release; going on all the same'), lenient.stdout)

    local asking = start("seed=1", { "--set", "strategy={steps: [25%], hold: 100ms, inconclusive: ask}", "--release", "3.0" })
    local question = asking.await(function(event) return event.event == "waiting" end, "the question")
    assert.truthy(question.reason:find("no request reached the new release", 1, true), question.reason)
    assert.equal(0, app:command({ "approve", "app.yml" }).exit)
    assert.equal(0, asking.finish().exit, asking.text())

    local patient = { "--set", "strategy={steps: [25%], hold: 100ms, latency: 50, inconclusive: hold}", "--release", "4.0" }
    assert.equal(0, app:command({ "plan", "canary", "app.yml", table.unpack(patient) }).exit)
    local holding = start("seed=2", patient)
    holding.await(function(event) return event.event == "log" and event.message:find("looking on", 1, true) end, "the announcement")
    load = app:load { rate = 2000 }
    assert.equal(0, holding.finish().exit, holding.text())
    assert.same({ "pass" }, (verdicts(holding.text())))
  end)

  it("takes fixed thresholds, where it is told to", function()
    prepare { strategy = "{steps: [50%], hold: 1s, gate: thresholds, errors: 40}" }
    load = app:load { rate = 500 }
    local run = app:deploy("canary", "2.0", { fault = "errors" }, { "--json" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    run = app:deploy("canary", "3.0", { fault = "errors" }, { "--json", "--set", "strategy.errors=10", "--set", "strategy.steps=[100%]" })
    assert.equal(0, run.exit, "the old one fails as often: " .. run.stdout)
  end)

  it("neither passes nor fails because the balancer was restarted", function()
    local ports = { fixture.free_port(), fixture.free_port() }
    local proxy = fixture.haproxy { servers = { ("a 127.0.0.1:%d check inter 200ms disabled"):format(ports[1]), ("b 127.0.0.1:%d check inter 200ms disabled"):format(ports[2]) } }
    app = fixture.app { yaml = "strategy: {steps: [50%], hold: 40s, latency: 50, inconclusive: fail}",
      balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket) }
    app.ports = ports
    assert.equal(0, app:deploy("canary", "1.0").exit)
    load = app:load { port = proxy.port, rate = 2000 }
    local run = start()
    run.await(function(event) return is_analysis(event) and event.new.requests > 20 end, "requests on the new side")
    proxy:restart()
    assert.equal(0, run.finish().exit, run.text())
    assert.same({ "pass" }, (verdicts(run.text())))
  end)

  it("whose controller is killed in the middle of a step is taken up with what was counted before", function()
    prepare { strategy = "{steps: [50%], hold: 40s, latency: 50, inconclusive: fail}" }
    load = app:load { rate = 2000 }
    local run = start()
    run.await(function(event) return is_analysis(event) and event.new.requests > 100 end, "requests on the new side")
    run.kill()
    local resumed = app:command { "resume", "app.yml", "--json" }
    assert.equal(0, resumed.exit, resumed.stdout .. resumed.stderr)
    assert.same({ "pass" }, (verdicts(resumed.stdout)))
    assert.same({ "2.0" }, app:serving())
  end)
end)
