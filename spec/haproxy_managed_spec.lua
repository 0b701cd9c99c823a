-- weight: 14
local fixture = require "spec.support.fixture"
local process = require "deployrt.balancer.haproxy_process"
local stand = require "spec.support.plain_shop"

local inside, await, refused, serve = stand.inside, stand.await, stand.refused, stand.serve
local fetch, answers, is_open, open = stand.fetch, stand.answers, stand.is_open, stand.open

describe("HAProxy run by deployrt", function()
  local host, ports, listen

  before_each(inside(function()
    host, ports, listen = stand.start()
  end))

  after_each(inside(stand.finish))

  local function managed(count, options)
    options = options or {}
    return open({
      type = "haproxy", managed = true, listen = "127.0.0.1:" .. (options.listen or listen),
      drain = { timeout = 5 },
    }, count, options.health or { http = "/healthz" })
  end

  local function started(count)
    for i = 1, count do serve(i) end
    local driver = managed(count)
    driver:check()
    driver:prepare()
    return driver
  end

  local function ready(driver, names)
    local changes = {}
    for i, name in ipairs(names) do
      changes[i] = { slot = name .. "-8080", state = "ready", weight = 100 }
    end
    driver:apply(changes)
  end

  --- Requests one after the other, in the background.
  local function load(count, header)
    local pid, log = host:spawn { "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", "-H", header,
      ("http://127.0.0.1:%d/[1-%d]"):format(listen, count) }
    return { pid = pid, log = log }
  end

  local function states(driver)
    local map = {}
    for name, slot in pairs(driver:read().slots) do
      map[name:match("^web%d")] = slot.state .. " " .. slot.weight
    end
    return map
  end

  it("shows its statistics to people and to Prometheus", inside(function()
    serve(1)
    local driver = open({ type = "haproxy", managed = true, listen = "127.0.0.1:" .. listen, stats = "127.0.0.1:" .. ports[6],
      drain = { timeout = 5 } }, 1, { http = "/healthz" })
    driver:prepare()
    stand.ask_at(ports[6])
    assert.matches('haproxy_server_status{proxy="shop",server="web1%-8080"', fetch("/metrics"))
    assert.matches("Statistics Report", fetch("/"))
    assert.matches("200", fetch("/monitor"))
  end))

  it("starts with all slots out of service, serves, and leaves nothing behind", inside(function()
    local driver = started(2)
    assert.same({ web1 = "maint 100", web2 = "maint 100" }, states(driver))
    ready(driver, { "web1", "web2" })
    local tally, failed = answers(10)
    assert.same({ { web1 = 5, web2 = 5 }, 0 }, { tally, failed })
    driver:stop()
    assert.is_false(is_open(listen))
    assert.equal("", host:execute({ "find", host.root, "-type", "f", "-o", "-type", "s" }).stdout)
    driver:stop()
  end))

  it("is not touched again when nothing changed", inside(function()
    local driver = started(2)
    ready(driver, { "web1" })
    local before = driver:read().instance
    driver:prepare()
    managed(2):prepare()
    managed(2):check()
    assert.equal(before, driver:read().instance)
    assert.equal("ready 100", states(driver).web1)
  end))

  it("is reloaded for a new slot without a failed request, and keeps states and weights", inside(function()
    local driver = started(3)
    ready(driver, { "web1", "web2" })
    driver:apply { { slot = "web1-8080", weight = 7 }, { slot = "web3-8080", state = "drain" } }
    local before = driver:read().instance
    serve(4)
    local loads = { load(3000, "Connection: close"), load(3000, "Connection: keep-alive") }
    local larger = managed(4)
    larger:prepare()
    assert.not_equal(before, larger:read().instance)
    assert.same({ web1 = "ready 7", web2 = "ready 100", web3 = "drain 100", web4 = "maint 100" },
      states(larger))
    for _, each in ipairs(loads) do
      await("the load", function() return (host:read("/proc/" .. each.pid .. "/cmdline") or "") == "" end, 60)
      assert.equal(("200\n"):rep(3000), host:read(each.log))
    end
  end))

  it("moves to another address", inside(function()
    local driver = started(1)
    ready(driver, { "web1" })
    managed(1, { listen = ports[4] }):prepare()
    assert.is_false(is_open(listen))
    stand.ask_at(ports[4])
    assert.same({ web1 = 3 }, (answers(3)))
  end))

  it("comes up again with exactly what was persisted, however it ended", inside(function()
    local driver = started(3)
    ready(driver, { "web1", "web2" })
    local before = driver:read().instance
    driver:apply { { slot = "web2-8080", state = "drain" }, { slot = "web1-8080", weight = 42 } }
    driver:persist { ["web1-8080"] = { state = "ready", weight = 42 }, ["web2-8080"] = { state = "drain" } }
    local master = driver.host:read(driver.paths.pid):match("%d+")
    for _, pid in ipairs { master, before:match("%d+") } do host:execute { "kill", "-KILL", pid } end
    await("its end", function() return not is_open(listen) end)
    managed(3):prepare()
    assert.same({ web1 = "ready 42", web2 = "maint 100", web3 = "maint 100" }, states(driver))
    assert.not_equal(before, driver:read().instance)
    assert.same({ web1 = 3 }, (answers(3)))
  end))

  it("comes up with what two have persisted, each of its own slots", inside(function()
    local one, other = started(2), managed(2)
    ready(one, { "web1", "web2" })
    one:persist { ["web1-8080"] = { state = "ready", weight = 100 }, ["web2-8080"] = { state = "ready", weight = 100 } }
    other:persist { ["web2-8080"] = { state = "drain", weight = 42 } }
    one:persist { ["web1-8080"] = { state = "ready", weight = 7 } }
    local master = host:read(one.paths.pid):match("%d+")
    for _, pid in ipairs { master, one:read().instance:match("%d+") } do host:execute { "kill", "-KILL", pid } end
    await("its end", function() return not is_open(listen) end)
    managed(2):prepare()
    assert.same({ web1 = "ready 7", web2 = "maint 42" }, states(one))
  end))

  it("is started when another one is still ending, and resets who asks it", inside(function()
    local driver = managed(1)
    serve(1)
    host:execute { "mkdir", "-p", "-m", "700", driver.paths.socket_directory }
    host:spawn { "python3", "-c", [[
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1]); s.listen()
s.settimeout(0.1)
end = time.time() + 0.6
while time.time() < end:
    try: s.accept()[0].close() # what was asked is not read
    except TimeoutError: pass
os.unlink(sys.argv[1])]], driver.paths.socket }
    await("its socket", function() return host:execute({ "test", "-S", driver.paths.socket }).status == 0 end)
    driver:prepare()
    assert.equal("maint", driver:read().slots["web1-8080"].state)
  end))

  it("is brought back by the next change when it died", inside(function()
    local driver = started(1)
    ready(driver, { "web1" })
    driver:persist { ["web1-8080"] = { state = "ready", weight = 100 } }
    local worker = driver:read().instance:match("%d+")
    local master = host:read(driver.paths.pid):match("%d+")
    for _, pid in ipairs { master, worker } do host:execute { "kill", "-KILL", pid } end
    await("its end", function() return not is_open(listen) end)
    driver:apply { { slot = "web1-8080", state = "ready", weight = 50 } }
    assert.same({ web1 = "ready 50" }, states(driver))
  end))

  --- The same, but the address goes away between the moment when it is tried and the one when it is wanted.
  local function too_late(fn)
    return function(...)
      local before = process.try_to_bind
      process.try_to_bind = function() end
      local results = table.pack(pcall(fn, ...))
      process.try_to_bind = before
      if not results[1] then error(results[2], 0) end
      return table.unpack(results, 2, results.n)
    end
  end

  it("says who has its address", inside(function()
    local pid = serve(1)
    local driver = managed(1, { listen = ports[1] })
    for _, verb in ipairs { "check", "prepare" } do
      local err = refused("balancer", driver[verb], driver)
      local wanted = ("127.0.0.1:%d is in use by python3[%%d.]* %%(pid %s%%)"):format(ports[1], pid)
      assert.matches(wanted, err.message)
    end
  end))

  it("goes on serving when it should move to an address that is taken, or that no process can have there", inside(function()
    local driver = started(2)
    ready(driver, { "web1" })
    for key, addresses in pairs { listen = { ":" .. ports[2], "192.0.2.1:" .. listen }, stats = { ":" .. ports[2], "192.0.2.1:" .. listen } } do
      for i, reason in ipairs { "is in use by", "Cannot assign requested address" } do
        local moved = managed(2)
        moved.options[key] = addresses[i]
        for _, verb in ipairs { "check", "prepare" } do
          local err = refused("balancer", moved[verb], moved)
          assert.matches("balancer." .. key, err.message, 1, true)
          assert.matches(reason, err.message)
        end
      end
    end
    assert.same({ web1 = 3 }, (answers(3)))
    assert.equal(driver:read().instance, managed(2):read().instance)
  end))

  it("starts anew with what it had when a reload fails, which would leave it deaf for good", inside(function()
    local driver = started(1)
    ready(driver, { "web1" })
    driver:persist { ["web1-8080"] = { state = "ready", weight = 100 } }
    local wrong = managed(1)
    wrong.options.listen = "192.0.2.1:" .. listen
    local err = refused("balancer", too_late(wrong.prepare), wrong)
    assert.matches("restarted with the configuration that it had", err.message)
    assert.same({ web1 = 3 }, (answers(3)))
    assert.same({ web1 = "ready 100" }, states(driver))
  end))

  it("says why it does not start", inside(function()
    local wrong = managed(1)
    wrong.options.listen = "192.0.2.1:" .. listen
    local err = refused("balancer", too_late(wrong.prepare), wrong)
    assert.matches("does not start", err.message)
    assert.matches("[Cc]annot assign requested address", err.detail)
  end))

  it("passes on why HAProxy refuses a configuration, and keeps the one that it has", inside(function()
    local driver = started(1)
    ready(driver, { "web1" })
    local kept = host:read(driver.paths.config)
    local wrong = managed(1)
    wrong.options.listen = "127.0.0.1:" .. listen .. " nonsense"
    local err = refused("balancer", too_late(wrong.prepare), wrong)
    assert.matches("unknown keyword 'nonsense'", err.detail)
    assert.equal(kept, host:read(driver.paths.config))
    assert.same({ web1 = 3 }, (answers(3)))
  end))

  it("has a short path for its socket where the directory's is too long", inside(function()
    host.root = host.directory .. "/" .. ("deep/"):rep(20) .. "app"
    local driver = started(1)
    assert.is_true(#driver.socket < 90)
    local listed = host:execute({ "ls", "-ld", driver.paths.socket_directory }).stdout
    assert.equal("drwx------", listed:sub(1, 10))
    driver:stop()
    assert.equal(2, host:execute({ "ls", "-d", driver.paths.socket_directory }).status)
  end))

  it("is started where the directory's name looks like a variable", inside(function()
    host.root = host.directory .. "/$HOME/${x} y"
    local driver = started(1)
    ready(driver, { "web1" })
    assert.same({ web1 = 3 }, (answers(3)))
    driver:stop()
  end))

  it("repeats a request that got no answer only when it is safe to repeat", inside(function()
    local driver = started(1)
    ready(driver, { "web1" })
    fetch("/cut", { "-X", "POST", "-d", "x" })
    assert.equal("1\n200\n", fetch("/cuts"))
    fetch("/cut")
    assert.equal("5\n200\n", fetch("/cuts"))
  end))

  it("checks health the way that app.yml says", inside(function()
    serve(1)
    local driver = managed(1, { health = { http = "/broken" } })
    driver:prepare()
    driver:apply { { slot = "web1-8080", state = "ready" } }
    await("a failed check", function() return not driver:read().slots["web1-8080"].up end)
    local other = managed(1, { health = { http = "/broken", status = 500 } })
    other:prepare()
    await("a connection", function() return driver:read().slots["web1-8080"].up end)
    assert.is_true(other.lenient)
    other:examine(true)
    assert.truthy(host:read(driver.paths.config):find("http-check expect status 500", 1, true))
    await("a passed check", function() return driver:read().slots["web1-8080"].up end)
  end))
end)

describe("HAProxy run by deployrt where few files may be open", function()
  teardown(fixture.cleanup)

  it("starts with many slots, whose health checks need some of them", function()
    local app = fixture.app { instances = 1, slots = 1, yaml = "strategy: {settle: 0}" }
    local words = { "sh", "-c", 'ulimit -Sn 2000; ulimit -Hn 2000; exec "$@"', "sh", fixture.deployrt(), "--state", app.dir .. "/state", "rolling", "app.yml",
      "--set", ("process.ports=[%d, 41000-41399]"):format(app.ports[1]) }
    local run = fixture.run(words, { cwd = app.dir, env = { HOME = app.dir .. "/home", TERM = "dumb" } })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({}, app:stop())
  end)
end)

describe("HAProxy that a run has started", function()
  local app

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("is stopped again when that first run fails, and nothing of it is left", function()
    local run = app:deploy("rolling", "1.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.is_false(fixture.is_listened(app.listen))
    assert.same({}, app:leftovers())
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    assert.is_true(fixture.is_listened(app.listen))
  end)

  it("is stopped again by abort, and by a resume that fails, when the controller was killed", function()
    for command, exit in pairs { abort = 0, resume = 1 } do
      app:write(fixture.release("1.0", { fault = "sick" }), "1.0") -- until the deadline of its health
      app:kill_at({ "rolling", "app.yml" }, "start ")
      assert.is_true(fixture.is_listened(app.listen))
      local run = app:command { command, "app.yml" }
      assert.equal(exit, run.exit, run.stdout .. run.stderr)
      assert.is_false(fixture.is_listened(app.listen))
      assert.same({}, app:leftovers())
    end
  end)

  it("goes on when what it had served before gets its traffic again", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local master = fixture.read(app.dir .. "/home/.deployrt/shop/balancer/haproxy.pid"):match("%d+")
    fixture.sh(("kill -KILL %s $(pgrep -P %s)"):format(master, master))
    fixture.eventually(function() return not fixture.is_listened(app.listen) end, 5, "its end")
    assert.equal(1, app:deploy("rolling", "2.0", { fault = "dies" }).exit)
    assert.is_true(fixture.is_listened(app.listen))
    assert.same({ "1.0" }, app:serving())
  end)
end)

describe("HAProxy run by deployrt, whose controller dies between its configuration and its reload", function()
  local app, stats, config

  --- Runs rolling with `stats:`, and ends it when the new configuration is on the disk.
  local function dies(release, version)
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", stats: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(app.listen, stats)
    app:write(release, version)
    local bin, real = app.dir .. "/bin", fixture.sh("PATH=$PATH:/usr/sbin command -v haproxy"):match("%S+")
    fixture.write(bin .. "/haproxy", ([[#!/bin/sh
if [ "$1" = -c ]; then
  while [ ! -s '%s/pid' ]; do sleep 0.01; done
  kill -s STOP "$(cat '%s/pid')"
fi
exec %s "$@"
]]):format(bin, bin, real))
    fixture.sh("chmod +x " .. bin .. "/haproxy")
    local pid = app:command({ "rolling", "app.yml" }, { background = true, env = { PATH = bin .. ":" .. os.getenv("PATH") } })
    fixture.write(bin .. "/pid", pid .. "\n")
    fixture.eventually(function() return fixture.read(config):find("deployrt-stats", 1, true) end, 10, "the new configuration")
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    assert.is_false(fixture.is_listened(stats))
  end

  local function exits(code, ...)
    local run = app:command { ..., "app.yml" }
    assert.equal(code, run.exit, run.stdout .. run.stderr)
  end

  before_each(function()
    app, stats = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }, fixture.free_port()
    config = app.dir .. "/home/.deployrt/shop/balancer/haproxy.cfg"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  it("has its old configuration after abort, and the next run's new one", function()
    dies(fixture.release("2.0"), "2.0")
    exits(0, "abort")
    assert.falsy(fixture.read(config):find("deployrt-stats", 1, true))
    app:write(fixture.release("1.0"), "1.0")
    exits(0, "rolling")
    assert.is_true(fixture.is_listened(stats))
  end)

  it("has its old configuration after resume when the release fails", function()
    dies(fixture.release("2.0", { fault = "dies" }), "2.0")
    exits(1, "resume")
    assert.falsy(fixture.read(config):find("deployrt-stats", 1, true))
    fixture.eventually(function() return not fixture.is_listened(stats) end, 5, "the end of its statistics")
    assert.same({ "1.0" }, app:serving())
  end)

  it("gets the new one from the next run that succeeds when somebody has unlocked the hosts", function()
    dies(fixture.release("1.0"), "1.0")
    exits(0, "unlock")
    app:write(fixture.release("2.0", { fault = "dies" }), "2.0")
    exits(1, "rolling")
    assert.falsy(fixture.read(config):find("deployrt-stats", 1, true))
    app:write(fixture.release("1.0"), "1.0")
    exits(0, "rolling")
    assert.is_true(fixture.is_listened(stats))
  end)
end)
