-- moved_spec.lua -- What serves and what app.yml says have come apart: other ports, other hosts, a balancer that is gone.
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

describe("an application that moved", function()
  local app, bed

  before_each(function()
    app = fixture.app { instances = 1, slots = 4, yaml = "strategy: {settle: 0}" }
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(app.listen)
  end)
  after_each(function()
    assert.same({}, app:stop())
    if bed then bed:down() end
    bed = nil
    fixture.cleanup()
  end)

  local function answer()
    return fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.listen))
  end

  local function set_ports(first, last)
    return ("process.ports=[%s]"):format(table.concat(app.ports, ",", first, last))
  end

  it("to other ports is told to keep the old ones until nothing runs there, and loses no request", function()
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", set_ports(1, 2) }).exit)
    local load = app:load { rate = 200 }
    for _, argv in ipairs { { "rolling", "app.yml" }, { "plan", "rolling", "app.yml" }, { "check", "app.yml", "--connect" } } do
      argv[#argv + 1] = "--set"
      argv[#argv + 1] = set_ports(3, 4)
      local run = app:command(argv)
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, ("local:%d runs release 1.0, and process.ports does not have that port any more: keep it behind the new ones"):format(app.ports[1]))
    end
    app:write(fixture.release "2.0", "2.0")
    local both = ("process.ports=[%d,%d,%d]"):format(app.ports[3], app.ports[4], app.ports[1])
    local run = app:command { "rolling", "app.yml", "--set", both }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    app:write(fixture.release "3.0", "3.0")
    run = app:command { "rolling", "app.yml", "--set", set_ports(3, 4) }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({}, load:stop().errors)
    contains(answer(), "hello from 3.0")
    app.opts.process = nil
  end)

  it("to ports of which it has some already is told the same", function()
    app.opts.instances = 2
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", set_ports(1, 2) }).exit)
    for _, argv in ipairs { { "rolling", "app.yml" }, { "plan", "rolling", "app.yml" }, { "check", "app.yml", "--connect" } } do
      argv[#argv + 1] = "--set"
      argv[#argv + 1] = set_ports(2, 4)
      local run = app:command(argv)
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, ("local:%d runs release 1.0, and process.ports does not have that port any more: keep it behind the new ones"):format(app.ports[1]))
    end
    contains(answer(), "hello from 1.0")
  end)

  it("to other hosts keeps what serves until something else does, and loses no request", function()
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "hosts=[{name: a, dir: on-a}]" }).exit)
    local load = app:load { rate = 200 }
    local others = { "--set", "hosts=[{name: b, dir: on-b}]", "--set", set_ports(3, 4) }
    assert.equal(1, app:deploy("rolling", "2.0", { fault = "dies" }, others).exit)
    contains(answer(), "hello from 1.0")
    local run = app:deploy("rolling", "2.0", nil, others)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, ("app.yml does not name a-%d any more: it gets no traffic from now on"):format(app.ports[1]), "== leave")
    contains(answer(), "hello from 2.0")
    assert.same({}, load:stop().errors)
    app:command(table.move(others, 1, 4, 3, { "stop", "app.yml" }))
    app:command { "stop", "app.yml", "--yes", "--set", "hosts=[{name: a, dir: on-a}]" }
  end)

  it("to a host of another name is the same: with a new release, with a reload, and with nothing else", function()
    app.opts.instances = 2
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "hosts=[local]" }).exit)
    local load = app:load { rate = 200 }
    local renamed = { "--set", "hosts=[{name: other, transport: local}]" }
    local run = app:deploy("rolling", "1.0", nil, renamed)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "nothing to change")
    run = app:deploy("rolling", "2.0", nil, renamed)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("warning", 1, true), run.stdout .. run.stderr)
    local status = app:command(table.move(renamed, 1, 2, 3, { "status", "app.yml" }))
    assert.equal(0, status.exit, status.stdout .. status.stderr)
    local _, serving = status.stdout:gsub("other:%d+ +2%.0 +serving", "")
    assert.equal(2, serving, status.stdout)
    assert.equal(0, app:deploy("rolling", "3.0", nil, { "--set", "hosts=[local]" }).exit)
    assert.same({}, load:stop().errors)
    assert.same({ "3.0", "3.0" }, app:serving())
  end)

  it("to a host of another name is the same also to a balancer that does not run", function()
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "hosts=[local]" }).exit)
    for pid in fixture.sh(("cat %s/home/.deployrt/shop/balancer/haproxy.pid"):format(app.dir)):gmatch("%d+") do fixture.signal(math.tointeger(pid), "KILL") end
    fixture.eventually(function() return answer() == "" end, 10, "its end")
    local run = app:deploy("rolling", "1.0", nil, { "--set", "hosts=[{name: other, transport: local}]" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 1.0")
    assert.is_nil(run.stdout:find("start ", 1, true), run.stdout) -- it served already, by what HAProxy comes up with
  end)

  it("away from its balancer is replaced without a gap once that is started again, and can be rolled back to", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local pids = fixture.sh(("cat %s/home/.deployrt/shop/balancer/haproxy.pid"):format(app.dir)):match("%d+")
    local function kill_balancer()
      fixture.sh(("pkill -KILL -P %s; kill -KILL %s; true"):format(pids, pids))
      fixture.eventually(function() return not fixture.is_listened(app.listen) end)
    end
    kill_balancer()
    local status = app:command { "status", "app.yml" }
    contains(status.stdout, "nothing serves", "the balancer does not answer: if it does not run, no request gets through")
    assert.equal(2, status.exit)
    contains(app:command({ "status", "app.yml", "--json" }).stdout, '"balancer":{"message":"the balancer does not answer: if it does not run, no request gets through')
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 1.0")
    pids = fixture.sh(("cat %s/home/.deployrt/shop/balancer/haproxy.pid"):format(app.dir)):match("%d+")
    kill_balancer()
    local watching = fixture.start({ "sh", "-c", ("while sleep 0.02; do curl -s -o /dev/null -w '%%{http_code}\n' http://127.0.0.1:%d/; done"):format(app.listen) },
      { log = app.dir .. "/codes" })
    run = app:deploy("rolling", "2.0", { start_delay = "800ms" })
    fixture.stop(watching)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local codes = fixture.read(app.dir .. "/codes")
    assert.truthy(codes:find("^[0\n]*2[20\n]+$") and not codes:find("000\n200\n000"), codes)
    run = app:deploy("rolling", "3.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "2.0 serves as before")
    run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 1.0")
  end)

  it("to other ports can be stopped all the same", function()
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", set_ports(1, 2) }).exit)
    local run = app:command { "stop", "app.yml", "--yes", "--set", set_ports(3, 4) }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({}, app:status().instances)
    assert.is_false(fixture.is_listened(app.ports[1]))
  end)

  it("to another address of its balancer does so without a new release; a run that fails leaves that as it was", function()
    local function set(port)
      app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(port)
    end
    local release, first, second = fixture.release "1.0", app.listen, fixture.free_port()
    assert.equal(0, app:deploy("rolling", "1.0", { path = release }).exit)
    set(second)
    local run = app:deploy("rolling", "2.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 1.0")
    assert.is_false(fixture.is_listened(second))
    run = app:deploy("rolling", "1.0", { path = release })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    app.listen = second
    contains(answer(), "hello from 1.0")
    assert.is_false(fixture.is_listened(first))
    contains(app:command({ "rolling", "app.yml" }).stdout, "nothing to change")
  end)

  it("to another address of its balancer comes back, wherever the controller dies", function()
    local release, second = fixture.release "1.0", fixture.free_port()
    assert.equal(0, app:deploy("rolling", "1.0", { path = release }).exit)
    app:extend_rolling "self:fail('now')"
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(second)
    app:write(fixture.release "2.0", "2.0")
    local counting, count = app:mortal("count", nil, { "./own.lua", "app.yml" })
    assert.equal(1, counting.exit, counting.stdout .. counting.stderr)
    for n = 1, count do
      local killed = app:mortal(n % 2 == 0 and "before" or "after", n, { "./own.lua", "app.yml" })
      if killed.exit == 137 and app:status().lock ~= require("cjson").null then
        local run = app:command { "abort", "app.yml", "--yes" }
        assert.equal(0, run.exit, ("operation %d: "):format(n) .. run.stdout .. run.stderr)
      end
      contains(answer(), "hello from 1.0")
      assert.is_false(fixture.is_listened(second), ("operation %d"):format(n))
    end
  end)

  it("is put back into service when its own HAProxy forgot it, before anything replaces it", function()
    local proxy = fixture.haproxy { servers = {}, master = true }
    app.listen = proxy.port
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    for _, version in ipairs { "1.0", "2.0" } do
      local run = app:deploy("rolling", version)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end
    local function reload()
      proxy:reload()
      fixture.eventually(function() return app:command({ "status", "app.yml" }).exit == 2 end, 10, "the reload")
    end
    reload()
    local words = "1 instance runs, and the balancer sends traffic to none, as after a restart that it forgot its slots in: `deployrt rolling app.yml` sets it right"
    contains(app:command({ "status", "app.yml" }).stdout, words)
    contains(app:command({ "status", "app.yml", "--json" }).stdout, '"balancer":{"message":"' .. words, '"state":"idle"')
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "warning: " .. words)
    local run = app:deploy("rolling", "3.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "release 2.0, which the balancer had forgotten", "2.0 serves as before")
    contains(answer(), "hello from 2.0")
    reload()
    run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 2.0")
    reload()
    run = app:deploy("rolling", "4.0", { start_delay = "500ms" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(app:command({ "history", "app.yml" }).stdout, "2.0 -> 4.0")
    run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(answer(), "hello from 2.0")
  end)

  if not hosts.possible() then
    print("moved_spec: skipped: over SSH, because test hosts need root, iproute2 and sshd")
    return
  end

  it("off a host takes its traffic away from there, also with nothing else to change", function()
    bed = hosts.up(2)
    app.opts.slots, app.ports, app.opts.hosts = 2, { 8080, 8081 }, bed:yaml()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local load = app:load { rate = 100 }
    app.opts.hosts = bed:yaml { bed.hosts[1] }
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "app.yml does not name web2-8080 any more", "== leave")
    assert.same({}, load:stop().errors)
    local rows = fixture.sh(("echo 'show stat shop 4 -1' | socat - %s/home/.deployrt/shop/balancer/haproxy.sock"):format(app.dir))
    assert.truthy(rows:find("shop,web2%-8080,[^\n]*,MAINT,") or not rows:find("web2-8080", 1, true), rows)
    app.opts.hosts = bed:yaml()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)

  it("from one host to another takes the first one's traffic away once the other one serves", function()
    bed = hosts.up(3)
    app.opts.slots, app.ports, app.opts.hosts = 2, { 8080, 8081 }, bed:yaml { bed.hosts[1], bed.hosts[2] }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local load = app:load { rate = 100 }
    app.opts.hosts = bed:yaml { bed.hosts[2], bed.hosts[3] }
    local run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local started = run.stdout:find("start     web3", 1, true)
    assert.is_true(started < run.stdout:find("== leave", 1, true), run.stdout)
    assert.same({}, load:stop().errors)
    assert.same({ "2.0", "2.0" }, app:serving())
    app.opts.hosts = bed:yaml()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)

  for command, release in pairs { resume = "2.0", abort = "1.0" } do
    it("off a host is ended by " .. command .. " when the controller died after it took the traffic away there", function()
      bed = hosts.up(3)
      app.opts.slots, app.ports, app.opts.hosts, app.opts.instances = 2, { 8080, 8081 }, bed:yaml(), 1
      assert.equal(0, app:deploy("rolling", "1.0").exit)
      app.opts.hosts = bed:yaml { bed.hosts[1], bed.hosts[2] }
      app.opts.yaml = "strategy: {settle: 1s, batch: 1}"
      app:write(fixture.release "2.0", "2.0")
      app:kill_at({ "rolling", "app.yml" }, "== batch 2 of 2")
      local config = app.dir .. "/home/.deployrt/shop/balancer/haproxy.cfg"
      contains(fixture.read(config):match("server web3%-8080[^\n]*"), "disabled")
      local load = app:load { rate = 100 }
      local run = app:command { command, "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.is_nil((run.stdout .. run.stderr):find("set right again", 1, true), run.stdout .. run.stderr)
      assert.same({}, load:stop().errors)
      assert.same({ release, release }, app:serving())
      local rows = fixture.sh(("echo 'show stat shop 4 -1' | socat - %s/home/.deployrt/shop/balancer/haproxy.sock"):format(app.dir))
      contains(rows:match("shop,web3%-8080,[^\n]*"), command == "abort" and ",UP" or ",MAINT,")
      app.opts.hosts, app.opts.yaml = bed:yaml(), "strategy: {settle: 0}"
      app:write(fixture.release "3.0", "3.0")
      run = app:command { "rolling", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end)
  end
end)
