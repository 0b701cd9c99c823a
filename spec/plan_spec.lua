-- plan_spec.lua -- A plan says what a run would do, and does nothing.
-- weight: 7
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("a plan", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 200ms, batch: 1}\nhooks: {before: 'touch hook-ran'}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    os.remove(app.dir .. "/hook-ran")
    app:write(fixture.release("2.0"), "2.0")
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Everything that a run could change: files of the host, of the controller, and the balancer.
  local function fingerprint()
    local instances = {}
    for i, each in ipairs(app:status().instances) do instances[i] = { each.port, each.pid, each.release, each.state, each.weight } end
    return { instances, fixture.sh(("find %s -type f -o -type l | grep -v '/logs/' | sort | xargs sha256sum 2>/dev/null"):format(app.dir)) }
  end

  --- The effects of a command with --json: {operation, instance or host}.
  local function effects_of(argv)
    local list = {}
    argv[#argv + 1] = "--json"
    local run = app:command(argv)
    assert.equal(0, run.exit, run.stderr)
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      if event.event == "op" and event.effect then list[#list + 1] = event.op .. " " .. (event.instance or event.host or "") end
    end
    return list
  end

  for _, strategy in ipairs { "rolling", "blue_green", "in_place", "canary" } do
    it("of " .. strategy .. " changes nothing anywhere, and names the very operations that the run then does", function()
      local argv = { strategy, "app.yml" }
      app.opts.yaml = strategy == "canary" and "strategy: {hold: 200ms, latency: 1000, steps: [50%, 100%]}"
        or strategy == "blue_green" and "strategy: {settle: 200ms}" or "strategy: {settle: 200ms, batch: 1}"
      app:write(fixture.release("2.0"), "2.0")
      local before = fingerprint()
      local planned = effects_of { "plan", table.unpack(argv) }
      assert.same(before, fingerprint())
      assert.is_nil(fixture.read(app.dir .. "/hook-ran"))
      local done = effects_of(argv)
      table.sort(planned)
      table.sort(done)
      assert.same(done, planned)
    end)
  end

  it("says who gains and who loses traffic, in words and as objects, and what is put back of whom", function()
    local run = app:command { "plan", "rolling", "app.yml", "--json" }
    local notes = {}
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      if event.op == "balancer.apply" then notes[#notes + 1] = event.note end
    end
    local lost, gained = notes[1]:match("^from (local:%d+) to (local:%d+)$")
    assert.truthy(gained and lost ~= gained, notes[1])
    assert.equal(lost .. " out of service", notes[2])
    local plain = app:command({ "plan", "rolling", "app.yml" }).stdout
    for _, note in ipairs(notes) do assert.truthy(plain:find("traffic     " .. note .. "\n", 1, true), plain) end
    plain = app:command({ "plan", "in_place", "app.yml" }).stdout
    assert.truthy(plain:find("traffic     away from (local:%d+)\n.*traffic     %1 out of service\n.*traffic     to %1\n"), plain)
    local failed = app:deploy("in_place", "2.0", { fault = "dies" }).stdout
    lost = failed:match("\n[%d:.]+  balance   away from (local:%d+) ")
    assert.truthy(lost and failed:find("\n[%d:.]+  restore   " .. lost .. " "), failed)
  end)

  it("says that the balancer would be set up anew, as check and status do", function()
    local before = app.listen
    app.listen = fixture.free_port()
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "plan", "rolling", "app.yml" }
    assert.truthy(run.stdout:find("prepare     the balancer, anew: app.yml says otherwise than what runs", 1, true), run.stdout)
    assert.falsy(run.stdout:find("nothing to change", 1, true), run.stdout)
    local words = "the next deployment sets the balancer up anew: app.yml says otherwise than what runs"
    for _, argv in ipairs { { "check", "app.yml", "--connect" }, { "status", "app.yml" } } do
      run = app:command(argv)
      assert.same({ 0, true }, { run.exit, run.stdout:find(words, 1, true) ~= nil }, run.stdout)
    end
    assert.equal("outdated", app:status().balancer.state)
    assert.is_true(fixture.is_listened(before))
    assert.same(effects_of { "plan", "rolling", "app.yml" }, effects_of { "rolling", "app.yml" })
    assert.is_true(fixture.is_listened(app.listen))
    assert.is_nil(app:status().balancer)
    assert.truthy(app:command({ "plan", "rolling", "app.yml" }).stdout:find("nothing to change", 1, true))
  end)

  it("of hosts and a balancer that are not there is made offline, from app.yml alone", function()
    local dir = fixture.dir()
    fixture.write(dir .. "/app.yml", [[
app: shop
hosts: [deploy@192.0.2.1, {name: web2, address: 192.0.2.2}]
release: {version: "2.0"}
process: {command: [./server], ports: [8080, 8081, 8082], instances: 2}
health: {http: /healthz, successes: 3, interval: 1s}
balancer: {type: haproxy, socket: /nowhere/admin.sock, backend: shop}
strategy: {settle: 10s, batch: 50%}
]])
    local run = fixture.run({ fixture.deployrt(), "plan", "rolling", "app.yml", "--offline" }, { cwd = dir, timeout = 20 })
    assert.equal(0, run.exit, run.stderr)
    for _, part in ipairs { "from what serves now to 2.0", "batch 2 of 2", "= 2.0 50%, what serves now 50%", "start       web2:8082  2.0", "at least 24.0s of waiting" } do
      assert.truthy(run.stdout:find(part, 1, true), part .. " in:\n" .. run.stdout)
    end
    fixture.write(dir .. "/own.lua", [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy() self:each(self.fleet:old(), self.replace) end
      return own]])
    local function plan_own(...)
      return fixture.run({ fixture.deployrt(), "plan", "./own.lua", "app.yml", "--offline", "--set", "process.ports=8080-8083", ... }, { cwd = dir, timeout = 20 }).stdout
    end
    assert.truthy(plan_own():find("= 2.0 100%%\n[^\n]* a failure up to here undoes: start again web2:8081, traffic back, [^\n]*stop 192.0.2.1:8082\n17 changes"), plan_own())
    local finished = cjson.decode(plan_own("--json"):match("[^\n]*\n$"))
    assert.same({ "plan.finished", "start again web2:8081", 9 }, { finished.event, finished.undo[1], finished.undo_count })
    os.remove(dir .. "/own.lua")
    run = fixture.run({ fixture.deployrt(), "plan", "blue_green", "app.yml", "--offline", "--set", "strategy={settle: 1s}" }, { cwd = dir, timeout = 20 })
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("needs a full second set", 1, true), run.stderr)
    assert.equal("app.yml\n", fixture.sh("ls -A " .. dir))
  end)

  it("shows steps, shares, the time it takes, and what a failure would undo", function()
    local run = app:command { "plan", "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stderr)
    for _, part in ipairs { "rolling of shop from 1.0 to 2.0", "batch 2 of 2", "= 1.0 50%, 2.0 50%", "a failure up to here undoes: ", "start again",
      "remove", "hook", "nothing was changed" } do
      assert.truthy(run.stdout:find(part, 1, true), part .. " in:\n" .. run.stdout)
    end
    assert.is_true(tonumber(run.stdout:match("at least ([%d.]+)s of waiting")) >= 0.4)
    local stopped, shared = run.stdout:match("([%d.]+m?s)  +stop [^\n]*\n *([%d.]+m?s)  +=")
    assert.equal(stopped, shared, run.stdout)
    local undo, first, last
    for line in app:command({ "plan", "rolling", "app.yml", "--json" }).stdout:gmatch("[^\n]+") do
      last = cjson.decode(line)
      first = first or last
      undo = last.undo or undo
    end
    assert.truthy(table.concat(undo, ", "):find("start again", 1, true))
    assert.same({ "run.started", "shop", "rolling", "2.0", "1.0", 1 }, { first.event, first.app, first.strategy, first.release, first.previous, first.hosts })
    assert.equal("plan.finished", last.event)
    assert.same({ false, "2.0", "1.0" }, { last.unchanged, last.release, last.previous })
    assert.is_true(last.seconds >= 0.4 and last.changes > 5)
    fixture.write(app.dir .. "/own.lua", 'local own = require("deployrt.strategy").extend("rolling", { name = "own" })\n'
      .. 'function own:replace(old) self:undo(function() end) self.super.replace(self, old) end\nreturn own\n')
    run = app:command { "plan", "./own.lua", "app.yml" }
    assert.truthy(run.stdout:find("undoes: [^\n]*the strategy's own undo"), run.stdout)
    assert.truthy(app:command({ "plan", "rolling", "app.yml", "--release", "1.0" }).exit == 2)
    assert.equal(2, app:command({ "plan", "in_place", "app.yml", "--set", "strategy.batchh=1" }).exit)
  end)

  --- The shares of release 2.0 that a command tells, each once, and its output.
  local function shares_of(argv)
    argv[#argv + 1] = "--json"
    local list, found = {}, app:command(argv).stdout
    for line in found:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      local share = event.event == "traffic" and not event.requests and event.share["2.0"] or nil
      list[#list + 1] = share ~= list[#list] and share or nil
    end
    return list, found
  end

  it("tells each change of the shares that the run then makes; none changes while both sets overlap", function()
    for _, how in ipairs { "{}", "{ sticky = true }" } do
      app:deploy("rolling", "1.0")
      app:write(fixture.release "2.0", "2.0")
      fixture.write(app.dir .. "/own.lua", ([[
        local own = require("deployrt.strategy").define { name = "own", api = 1 }
        function own:deploy()
          local old, new = self.fleet:old(), {}
          for i, each in ipairs(old) do
            new[i] = self.fleet:candidate(each.host)
            new[i]:start(); new[i]:await_healthy()
          end
          self.balancer:share(30, new, old, HOW)
          self.balancer:share(70, new, old, HOW)
          self.balancer:switch(old, new, 0.1)
        end
        return own]]):gsub("HOW", how))
      local planned, found = shares_of { "plan", "./own.lua", "app.yml" }
      assert.same({ 30, 70, 100 }, planned, found)
      assert.same(planned, (shares_of { "./own.lua", "app.yml" }))
    end
  end)

  it("of a script that fails shows what comes before that", function()
    fixture.write(app.dir .. "/own.lua", [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy()
        self:step("one", self.replace, self, self.fleet:old()[1])
        self:step("two", function() self.nothing.there() end)
      end
      return own]])
    local run = app:command { "plan", "./own.lua", "app.yml" }
    assert.equal(2, run.exit)
    fixture.contains(run.stdout, "plan: own of shop from 1.0 to 2.0", "== one", "start  ", "== two")
    fixture.contains(run.stderr, "own.lua:4: attempt to index a nil value")
    assert.falsy(run.stdout:find("nothing was changed", 1, true), run.stdout)
  end)
end)
