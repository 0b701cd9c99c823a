-- route_spec.lua -- Who sees the new release: by rule, by share, and the same one again; through a real HAProxy.
-- weight: 8
local fixture = require "spec.support.fixture"

describe("traffic that is told apart", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Releases that answered so many requests, with these arguments of curl.
  local function ask(count, ...)
    local argv = { "curl", "-s", "-m", "5", "-w", "\n", ... }
    argv[#argv + 1] = ("http://127.0.0.1:%d%s"):format(app.listen, "/[1-" .. count .. "]")
    local tally = {}
    for release in fixture.run(argv).stdout:gmatch("hello from (%S+)") do tally[release] = (tally[release] or 0) + 1 end
    return tally
  end

  local function begin(...) return app:begin_ab(...) end
  local function finish(...) return app:end_ab(...) end

  it("goes by header, cookie and path before any share, and ends with the old release when that is what is wanted", function()
    local load = app:load { rate = 300 }
    local run = begin '{share: 0%, sticky: false, route: [{header: "X-Canary: 1"}, {cookie: beta}, {path: /7}, {source: 127.9.0.0/16}]}'
    assert.same({ ["1.0"] = 6 }, ask(6))
    assert.same({ ["2.0"] = 20 }, ask(20, "-H", "X-Canary: 1"))
    assert.same({ ["1.0"] = 6 }, ask(6, "-H", "X-Canary: 2"))
    assert.same({ ["2.0"] = 20 }, ask(20, "-b", "beta=yes"))
    assert.same({ ["2.0"] = 1, ["1.0"] = 19 }, ask(20))
    assert.same({ ["2.0"] = 20 }, ask(20, "--interface", "127.9.0.1"))
    local status = app:status()
    local shares = {}
    for _, each in ipairs(status.instances) do shares[each.release] = (shares[each.release] or 0) + each.share end
    assert.same({ ["1.0"] = 1, ["2.0"] = 0 }, shares)
    local log = finish(run, "old")
    assert.truthy(log:find("the old release stays", 1, true), log)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, load:stop().errors)
    assert.same({ ["1.0"] = 20 }, ask(20, "-H", "X-Canary: 1"))
  end)

  it("splits what no rule fits by the share, keeps visitors where they were, and ends with the new release", function()
    local run = begin "{share: 30%}"
    local tally = ask(10000)
    assert.is_true(math.abs(tally["2.0"] - 3000) < 150, tostring(tally["2.0"])) -- three standard deviations
    for _ = 1, 10 do
      local jar = app.dir .. "/jar"
      os.remove(jar)
      local first = next(ask(1, "-c", jar))
      assert.truthy(fixture.read(jar):find("deployrt-shop\t" .. first .. "~", 1, true))
      assert.same({ [first] = 30 }, ask(30, "-b", jar))
    end
    finish(run, "new")
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.same({ ["2.0"] = 30 }, ask(30))
  end)

  it("grows with a canary, and nobody who is sticky holds up its end", function()
    app.opts.yaml = 'strategy: {hold: 300ms, latency: 1000, steps: [0%, 20%, 100%], sticky: true, route: [{header: "X-Canary: 1"}]}'
    local load = app:load { rate = 500 }
    local run = app:deploy("canary", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local numbers = load:stop()
    assert.same({}, numbers.errors)
    assert.is_true(numbers.versions["2.0"] > 0)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("survives a restart of HAProxy and the death of the controller", function()
    local run = begin '{share: 0%, sticky: false, route: [{header: "X-Canary: 1"}]}'
    local pid = fixture.read(app.dir .. "/home/.deployrt/shop/balancer/haproxy.pid"):match("%d+")
    for _, name in ipairs { "INT" } do fixture.signal(pid, name) end
    fixture.eventually(function() return not fixture.alive(pid) end, 5, "end of HAProxy")
    fixture.eventually(function() return ask(1, "-H", "X-Canary: 1")["2.0"] == 1 end, 20, "routing again")
    fixture.signal(run.pid, "KILL")
    fixture.eventually(function() return not fixture.alive(run.pid) end)
    local aborted = app:command { "abort", "app.yml" }
    assert.equal(0, aborted.exit, aborted.stdout .. aborted.stderr)
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({ ["1.0"] = 20 }, ask(20, "-H", "X-Canary: 1"))
  end)

  it("does not go to who hangs, and status says so", function()
    local run = begin '{share: 30%, sticky: false, route: [{header: "X-Canary: 1"}]}'
    local held = {}
    local function hold(release)
      for _, each in ipairs(app:status().instances) do
        if each.release == release and not held[each.pid] then
          held[each.pid] = true
          return fixture.signal(each.pid, "STOP")
        end
      end
    end
    --- Shares in percent by pid, the held ones apart.
    local function shares()
      local sums = {}
      for _, each in ipairs(app:status().instances) do
        assert.equal("serving", each.state)
        local key = each.release .. (held[each.pid] and " held" or "")
        sums[key] = (sums[key] or 0) + math.floor(100 * each.share + 0.5)
      end
      return sums
    end
    local function become(wanted)
      local seen
      local ok = pcall(fixture.eventually, function()
        seen = shares()
        for key, value in pairs(wanted) do
          if seen[key] ~= value then return false end
        end
        return true
      end, 5)
      if not ok then assert.same(wanted, seen) end
    end
    become { ["1.0"] = 70, ["2.0"] = 30 }
    hold "1.0"
    become { ["1.0"] = 70, ["1.0 held"] = 0, ["2.0"] = 30 }
    hold "2.0"
    become { ["1.0"] = 70, ["1.0 held"] = 0, ["2.0"] = 30, ["2.0 held"] = 0 }
    local tally = ask(200)
    assert.equal(200, tally["1.0"] + tally["2.0"])
    hold "2.0"
    become { ["1.0"] = 100, ["2.0 held"] = 0 }
    assert.same({ ["1.0"] = 200 }, ask(200))
    for pid in pairs(held) do fixture.signal(pid, "CONT") end
    become { ["1.0 held"] = 35, ["2.0 held"] = 30 }
    finish(run, "old")
  end)

  it("is refused beforehand where a rule is malformed", function()
    for rule, place in pairs { ['{header: "X Y: 1"}'] = "header", ["{path: beta}"] = "path", ["{source: here}"] = "source", ["{host: a}"] = "host" } do
      app.opts.yaml = ("strategy: {route: [%s]}"):format(rule)
      local run = app:deploy("canary", "3.0")
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find(place, 1, true), run.stderr)
    end
  end)

  it("is the same where one's own HAProxy has its map for nobody, and where nobody is told apart any more", function()
    local route = require "deployrt.balancer.route"
    local nobody, some = { percent = 0, slots = {} }, { percent = 5, slots = { "web1-8080" } }
    assert.same({ true, true, false, false }, { route.is_same(nobody, false), route.is_same(nil, false), route.is_same(nobody, some), route.is_same(some, false) })
  end)

  it("needs a balancer: without one nothing is begun", function()
    for _, strategy in ipairs { "ab", "canary", "canary_blue_green" } do
      local says = strategy .. " splits traffic: app.yml needs a balancer"
      for _, argv in ipairs { { "check", strategy, "app.yml", "--connect" }, { strategy, "app.yml" } } do
        for _, word in ipairs { "--release", "2.0", "--set", "balancer=null" } do argv[#argv + 1] = word end
        local run = app:command(argv)
        assert.equal(2, run.exit, run.stdout .. run.stderr)
        assert.truthy(run.stderr:find(says, 1, true), run.stderr)
      end
    end
  end)
end)
