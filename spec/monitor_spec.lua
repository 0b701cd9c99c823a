-- monitor_spec.lua -- What a run says of its traffic was measured.
local cjson = require "cjson"
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local monitor = require "deployrt.monitor"

describe("the rates of a run", function()
  --- The traffic events of a run whose balancer counts so at each look.
  local function watch(counts)
    local run, told = { over = false, turns = { await_live = function() end } }, {}
    run.fleet = { members = { { slot = "web1-8080", release = "1.0", host = { name = "web1" }, port = 8080 } }, elsewhere = function() return function() end end }
    run.balancer = { slots = { ["web1-8080"] = { state = "ready", weight = 100 } }, others = {}, exists = function() return true end }
    function run.emit(event)
      if event.event == "traffic" then told[#told + 1] = event end
    end
    local driver = { stats = function()
      local count = table.remove(counts, 1)
      run.over = #counts == 0
      return count and { ["web1-8080"] = { requests = count, errors = 0 } } or error({ code = "lost", message = "gone" }, 0)
    end }
    assert(core.run(function() monitor.watch(run, { drivers = { driver } }) end))
    return told
  end

  it("are told from the first report on, and not where counters began anew, or nobody told them", function()
    local told = watch { 1000, 1500, 20, 520, false, 1520, 2020 }
    assert.equal(5, #told)
    local known = {}
    for i, event in ipairs(told) do
      assert.same({ ["1.0"] = 100 }, event.share)
      assert.equal(event.requests == nil, event.errors == nil)
      known[i] = event.requests and event.requests["1.0"] > 200 and event.requests["1.0"] < 501
    end
    assert.same({ true, nil, true, nil, true }, known)
  end)

  it("are no 0 while hundreds come in", function()
    local app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:extend_rolling "self:sleep(1.5) self:log('now')"
    local load = app:load { rate = 400 }
    fixture.eventually(function() return load:numbers().requests > 20 end)
    local run, lines = app:command { "./own.lua", "app.yml", "--force", "--json" }, app:command { "./own.lua", "app.yml", "--force" }
    load:stop()
    app:stop()
    fixture.cleanup()
    assert.matches("traffic%s+1.0 100%%  %d%d+ requests/s", lines.stdout)
    local rates = {}
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      if event.event == "traffic" and event.requests then rates[#rates + 1] = event.requests["1.0"] or 0 end
    end
    assert.is_true(#rates > 0)
    assert.is_true(math.min(table.unpack(rates)) > 100, table.concat(rates, " "))
  end)
end)
