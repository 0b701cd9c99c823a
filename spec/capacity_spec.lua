-- capacity_spec.lua -- The last that serves goes on serving, whatever a strategy forgets.
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local nginx = require "spec.support.nginx"
local contains = fixture.contains

describe("what serves", function()
  local app, bed

  local function deploy(strategy, version, release, flags)
    local run = app:deploy(strategy, version, release, flags)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return run
  end

  local function new_app(opts)
    opts.yaml = "strategy: {settle: 0}"
    app = fixture.app(opts)
    deploy("rolling", "1.0")
  end

  --- Runs a strategy whose deploy() is the text, under load, and returns the run and the errors that clients saw.
  local function run_own(text)
    app:extend_rolling(text)
    app.opts.yaml = "strategy: {settle: 0}"
    local load = app:load { rate = 200 }
    local run = app:deploy("./own.lua", "2.0")
    return run, load:stop().errors
  end

  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    if bed then bed:down() end
    bed = nil
    fixture.cleanup()
  end)

  it("is what a strategy started, although it forgot to give it traffic", function()
    new_app { instances = 2, slots = 4 }
    local run, errors = run_own [[
      for _, old in ipairs(self.fleet:old()) do
        local new = self.fleet:candidate(old.host)
        new:start()
        new:await_healthy()
      end]]
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("is not stopped for what found no slot", function()
    new_app { instances = 2, slots = 2 }
    local run, errors = run_own "self:log 'nothing is done'"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr .. run.stdout, "local lacks 2 of its 2 instances of release 2.0, and no slot is free there")
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("keeps the last instance although a strategy would take all away, even side by side", function()
    new_app { instances = 2, slots = 2 }
    local run, errors = run_own "self:each(self.fleet:old(), function(_, old) self.balancer:drain(old); old:stop() end)"
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr .. run.stdout, "is the last that serves", "strategy.allow_gap: true", "1.0 serves as before")
    assert.same({ "1.0", "1.0" }, app:serving())
    assert.same({}, errors)
  end)

  it("is all that status shows once it has replaced what had crashed", function()
    new_app { instances = 2, slots = 4 }
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    fixture.eventually(function() return #app:serving() == 1 end, 5, "the crash")
    deploy("rolling", "2.0")
    assert.equal(2, #app:status().instances)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("is as it was when a run fails, also what ended by itself meanwhile", function()
    new_app { instances = 2, slots = 4 }
    app:extend_rolling "self:log 'now' self:sleep(1) self:fail 'later'"
    app:write(fixture.release "2.0", "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now", 1, true) end, 20, "the sleep")
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    app:await_end(pid)
    contains(fixture.read(log), "1.0 serves as before")
    assert.same({ "1.0", "1.0" }, app:serving())
  end)

  it("is not all replaced together without leave; with it, it is", function()
    new_app { instances = 1, slots = 1 }
    local run = app:deploy("rolling", "2.0")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "nothing would serve meanwhile: local has no free slot", "strategy.allow_gap: true")
    assert.same({ "1.0" }, app:serving())
    deploy("rolling", "2.0", nil, { "--set", "strategy.allow_gap=true" })
    assert.same({ "2.0" }, app:serving())
  end)

  it("goes on while what hangs beside it is replaced first", function()
    new_app { instances = 2, slots = 2, process = "  stop: {timeout: 300ms}" }
    fixture.signal(math.tointeger(app:status().instances[2].pid), "STOP")
    fixture.eventually(function() return fixture.sh(("curl -s 'http://127.0.0.1:%d/'"):format(app.listen)) and #app:serving() == 1 end, 10, "the hang")
    fixture.eventually(function()
      for _ = 1, 4 do
        if not fixture.sh(("curl -s -m 1 http://127.0.0.1:%d/ || true"):format(app.listen)):find("hello", 1, true) then return false end
      end
      return true
    end, 10, "the balancer to notice")
    local load = app:load { rate = 100 }
    deploy("rolling", "2.0")
    assert.same({}, load:stop().errors)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  for _, strategy in ipairs { "rolling", "in_place" } do
    it(("grows again by %s where one had crashed and no slot is spare, or another is added"):format(strategy), function()
      new_app { instances = 2, slots = 2 }
      fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
      fixture.eventually(function() return #app:serving() == 1 end, 5, "the crash")
      local load = app:load { rate = 100 }
      deploy(strategy, "2.0")
      assert.same({ "2.0", "2.0" }, app:serving())
      app.opts.instances, app.ports[3] = 3, fixture.free_port()
      deploy(strategy, "3.0")
      assert.same({ "3.0", "3.0", "3.0" }, app:serving())
      assert.same({}, load:stop().errors)
    end)
  end

  it("does not keep its place when it is broken", function()
    new_app { instances = 1, slots = 1 }
    app.opts.process = "  stop: {timeout: 300ms}"
    fixture.signal(math.tointeger(app:status().instances[1].pid), "STOP")
    deploy("rolling", "2.0")
    assert.same({ "2.0" }, app:serving())
  end)

  --- The shares of traffic that a run tells of, one event after the other.
  local function shares(run)
    local list = {}
    for line in run.stdout:gmatch("(%b{})\n") do
      local event = cjson.decode(line)
      if event.event == "traffic" then list[#list + 1] = event.share end
    end
    return list
  end

  local function serves_evenly()
    local seen = {}
    for _, share in ipairs(shares(deploy("rolling", "2.0", nil, { "--json" }))) do seen[share["2.0"] or 0] = true end
    seen[0] = nil -- as it may begin
    assert.same({ [25] = true, [50] = true, [75] = true, [100] = true }, seen)
    for _, each in ipairs(app:status().instances) do assert.equal(0.25, each.share) end
  end

  it("carries as much as each other one where HAProxy came up with the weights of its configuration", function()
    app = fixture.app { instances = 4, slots = 8, yaml = "strategy: {settle: 0, batch: 1}" }
    local servers = {}
    for i, port in ipairs(app.ports) do servers[i] = ("s%d 127.0.0.1:%d check inter 100ms fall 1 rise 1"):format(i, port) end
    local proxy = fixture.haproxy { servers = servers }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    deploy("rolling", "1.0")
    proxy:restart()
    fixture.eventually(function() return #app:serving() == 4 end, 5, "its checks")
    serves_evenly()
  end)

  it("carries as much as each other one where nginx has no weights", function()
    app = fixture.app { instances = 4, slots = 8, yaml = "strategy: {settle: 0, batch: 1}" }
    local ng = nginx.start { style = "upstream", port = app.ports[1] }
    app.opts.balancer = ng:yaml()
    deploy("rolling", "1.0")
    local lines = {}
    for i = 1, 4 do lines[i] = ("  server 127.0.0.1:%d;\n"):format(app.ports[i]) end
    fixture.write(ng.file, ("upstream shop {\n%s}\n"):format(table.concat(lines)))
    ng:reload()
    serves_evenly()
  end)

  it("carries as much as each other one beside what a canary that was killed has left", function()
    new_app { instances = 2, slots = 4 }
    app.opts.yaml = "strategy: {steps: [1%, 100%], hold: 30s}"
    app:write(fixture.release "2.0", "2.0")
    app:kill_at({ "canary", "app.yml" }, "1% to the new")
    assert.equal(0, app:command({ "unlock", "app.yml", "--force" }).exit)
    app.opts.yaml = "strategy: {settle: 0}"
    app:write(fixture.release "2.0", "2.0")
    deploy("rolling", "2.0", { path = fixture.release "2.0" })
    for _, each in ipairs(app:status().instances) do assert.equal(0.5, each.share) end
  end)

  it("gets its part of each of several balancers, whatever the others there weigh", function()
    app = fixture.app { instances = 2, slots = 4, yaml = "strategy: {settle: 0}" }
    local list, port = {}, fixture.free_port()
    for i, weight in ipairs { 1, 100 } do
      local servers = { ("other 127.0.0.1:%d weight %d"):format(port, weight) }
      for k, each in ipairs(app.ports) do servers[k + 1] = ("s%d 127.0.0.1:%d weight %d disabled"):format(k, each, weight) end
      list[i] = fixture.haproxy { servers = servers }
    end
    app.opts.balancer = ("[{type: haproxy, socket: %s, backend: shop}, {type: haproxy, socket: %s, backend: shop}]"):format(list[1].socket, list[2].socket)
    deploy("rolling", "1.0")
    for _, proxy in ipairs(list) do
      local _, count = proxy:command("show stat shop 4 -1"):gsub("\nshop,s%d[^\n]-,UP,100,", "")
      local _, open = proxy:command("show stat shop 4 -1"):gsub("\nshop,s%d[^\n]-,no check,100,", "")
      assert.equal(2, count + open, proxy:command "show stat shop 4 -1")
    end
  end)

  if not hosts.possible() then
    print("capacity_spec: skipped: over SSH, because test hosts need root, iproute2 and sshd")
    return
  end

  it("on other hosts counts where a run is about one of them, which are full", function()
    bed = hosts.up(2)
    app = fixture.app { slots = 1, yaml = "strategy: {settle: 0}" }
    app.ports, app.opts.hosts = { 8080 }, bed:yaml()
    deploy("rolling", "1.0")
    local load = app:load { rate = 100 }
    deploy("rolling", "2.0", nil, { "--host", bed.hosts[1].name })
    deploy("in_place", "2.0", { path = fixture.release "2.0" }, { "--host", bed.hosts[2].name, "--force" })
    assert.same({}, load:stop().errors)
    assert.same({ "2.0", "2.0" }, app:serving())
  end)

  it("on hosts that a canary is not about carries as much as before", function()
    bed = hosts.up(2)
    app = fixture.app { slots = 2, yaml = "strategy: {steps: [10%, 100%], hold: 100ms}" }
    app.ports, app.opts.hosts = { 8080, 8081 }, bed:yaml()
    deploy("canary", "1.0")
    local seen = shares(deploy("canary", "2.0", nil, { "--json", "--host", bed.hosts[1].name }))
    local both = {}
    for _, share in ipairs(seen) do
      assert.near(50, share["other hosts"], 0.1)
      if share["1.0"] and share["2.0"] then both[#both + 1] = share end
    end
    assert.same({ ["1.0"] = 45, ["2.0"] = 5, ["other hosts"] = 50 }, both[1])
  end)

  it("on hosts that a canary is not about carries as much as before where all have the weight 1 of one's own configuration", function()
    bed = hosts.up(2)
    app = fixture.app { slots = 2, yaml = "strategy: {steps: [10%, 100%], hold: 100ms}" }
    app.ports, app.opts.hosts = { 8080, 8081 }, bed:yaml()
    local servers = {}
    for _, host in ipairs(bed.hosts) do
      for _, port in ipairs(app.ports) do servers[#servers + 1] = ("%s-%d %s:%d check inter 100ms fall 1 rise 1"):format(host.name, port, host.address, port) end
    end
    local proxy = fixture.haproxy { servers = servers }
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    deploy("canary", "1.0")
    proxy:restart()
    fixture.eventually(function() return #app:serving() == 2 end, 5, "its checks")
    local seen, least = shares(deploy("canary", "2.0", nil, { "--json", "--host", bed.hosts[1].name })), 100
    for _, share in ipairs(seen) do
      assert.near(50, share["other hosts"], 0.1)
      least = math.min(least, share["2.0"] or 100)
    end
    assert.equal(5, least)
    for _, each in ipairs(app:status().instances) do assert.equal(0.5, each.share) end
  end)
end)
