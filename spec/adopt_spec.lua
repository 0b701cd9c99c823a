-- adopt_spec.lua -- A service that was started by hand becomes the old release, without a gap and with a way back.
-- weight: 8
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

local failing = [[
local strategy = require "deployrt.strategy"
local failing = strategy.extend("rolling", { name = "failing" })
function failing:deploy()
  self.super.deploy(self)
  self:fail("the last step fails")
end
return failing
]]

describe("a service that was started by hand", function()
  local app, proxy, by_hand, home

  --- Starts the service as a person would, with an environment that nobody would guess.
  ---@param name? string  as which it runs: what is then not what its program is called
  local function start_by_hand(name)
    home = fixture.release("hand")
    local words = name and { "bash", "-c", 'exec -a "$1" ./server --port "$2"', "bash", name, app.ports[1] } or { "./server", "--port", app.ports[1] }
    by_hand = fixture.start({ "sh", "-c", 'umask 027 && exec "$@"', "sh", "env", "odd.name=x y", table.unpack(words) }, { cwd = home, env = { MARK = "it's\nhere" }, log = home .. "/out" })
    fixture.eventually(function() return fixture.is_listened(app.ports[1]) end, 20, "the service: " .. (fixture.read(home .. "/out") or ""))
  end

  before_each(function()
    app = fixture.app { instances = 1, process = "  adopt: true\n  stop: {timeout: 3s}", yaml = "strategy: {settle: 0}",
      health = "{http: /healthz, interval: 10ms, timeout: 1s, deadline: 4s}" }
    proxy = fixture.haproxy { servers = { "s1 127.0.0.1:" .. app.ports[1], ("s2 127.0.0.1:%d disabled"):format(app.ports[2]) } }
    app.listen = proxy.port
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    app:write(fixture.release("1.0"), "1.0")
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  local function says(path)
    return fixture.sh(("curl -s 'http://127.0.0.1:%d%s'"):format(proxy.port, path or "/"))
  end

  local function record()
    return fixture.read(("%s/home/.deployrt/shop/instances/%d"):format(app.dir, app.ports[1]))
  end

  --- Nothing of a run is left, and the service is a stranger again.
  local function assert_as_before()
    contains(says(), "hello from hand")
    assert.is_nil(record())
    assert.is_nil(fixture.read(("%s/home/.deployrt/shop/instances/%d.origin"):format(app.dir, app.ports[1])))
    assert.equal(cjson.null, app:status().lock)
  end

  it("is shown by check and by status; without adopt it is an error that names it", function()
    start_by_hand()
    local run = app:command { "check", "app.yml", "--connect" }
    assert.equal(0, run.exit, run.stderr)
    contains(run.stdout, ("local:%d: pid %s of "):format(app.ports[1], by_hand), "would be adopted: ./server --port " .. app.ports[1])
    contains(app:command({ "status", "app.yml" }).stdout, "is taken by pid " .. by_hand, "which deployrt did not start")
    for _, argv in ipairs { { "check", "app.yml", "--connect" }, { "rolling", "app.yml" } } do
      argv[#argv + 1], argv[#argv + 2] = "--set", "process.adopt=false"
      run = app:command(argv)
      assert.equal(2, run.exit)
      contains(run.stderr, ("port %d is taken by pid %s"):format(app.ports[1], by_hand), "process.adopt: true")
    end
    assert_as_before()
    contains(app:command({ "plan", "rolling", "app.yml" }).stdout, "from adopted to 1.0", "adopt       local:" .. app.ports[1], "let go local:")
    assert_as_before()
  end)

  for _, name in ipairs { "rolling", "blue_green", "canary" } do
    it("is replaced by " .. name .. " without a failed request, and comes back with a rollback, as it was", function()
      app.opts.yaml = "strategy: " .. (name == "canary" and "{hold: 300ms, latency: 1000, steps: [50%, 100%]}" or "{settle: 0}")
      start_by_hand()
      local load = app:load { rate = 300 }
      local run = app:deploy(name, "1.0")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      contains(says(), "hello from 1.0")
      assert.equal(name == "blue_green", fixture.alive(by_hand))
      contains(app:command({ "history", "app.yml" }).stdout, "adopted -> 1.0")
      run = app:command { "rollback", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      contains(says(), "hello from hand")
      assert.equal("it's\nhere\n", says("/env?MARK"))
      assert.equal("x y\n", says("/env?odd.name"))
      contains(fixture.read("/proc/" .. record():match("\t(%d+)") .. "/status"), "Umask:\t0027\n")
      assert.same({ "adopted" }, app:serving())
      app.opts.yaml = "strategy: {settle: 0}"
      assert.equal(0, app:deploy("rolling", "2.0").exit)
      assert.same({}, load:stop().errors)
      assert.same({ "2.0" }, app:serving())
      run = app:command { "rollback", "app.yml", "--to", "1.0" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.equal("", fixture.sh(("ls %s/home/.deployrt/shop/instances | grep origin || true"):format(app.dir)))
    end)
  end

  it("runs on untouched when the new release is not healthy", function()
    start_by_hand()
    local load = app:load { rate = 300 }
    local run = app:deploy("rolling", "1.0", { fault = "sick" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.same({}, load:stop().errors)
    assert.is_true(fixture.alive(by_hand))
    assert_as_before()
  end)

  it("is started again, the same, when it had been stopped by a run that fails", function()
    start_by_hand()
    fixture.write(app.dir .. "/failing.lua", failing)
    local load = app:load { rate = 300 }
    local run = app:deploy("./failing.lua", "1.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    local numbers = load:stop()
    assert.same({}, numbers.errors)
    assert.is_true(numbers.versions["1.0"] > 0)
    assert.is_false(fixture.alive(by_hand))
    assert_as_before()
    assert.equal("it's\nhere\n", says("/env?MARK"))
    local pid = app:command({ "status", "app.yml" }).stdout:match("is taken by pid (%d+)")
    assert.equal(home .. "\n", fixture.sh("readlink /proc/" .. pid .. "/cwd"))
    fixture.stop(pid)
  end)

  it("comes back in halves when some of its ports are taken: it can be started again only there", function()
    app.opts.instances, app.ports[3], app.ports[4] = 2, fixture.free_port(), fixture.free_port()
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(fixture.free_port())
    app.opts.yaml = "strategy: {settle: 0, batch: 1}"
    for i = 1, 2 do
      start_by_hand()
      if i == 1 then app.ports[1], app.ports[2] = app.ports[2], app.ports[1] end
    end
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "batch 1 of 2", "batch 2 of 2")
    assert.same({ "adopted", "adopted" }, app:serving())
  end)

  it("is not stopped before all is done when it could not be started again", function()
    start_by_hand("painted")
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "could not be started again", "does not lead to the program")
    fixture.write(app.dir .. "/failing.lua", failing)
    local load = app:load { rate = 300 }
    local run = app:deploy("./failing.lua", "1.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "runs on until the run has succeeded")
    assert.is_true(fixture.alive(by_hand))
    assert_as_before()
    run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "stop what was adopted")
    assert.is_false(fixture.alive(by_hand))
    assert.same({}, load:stop().errors)
    run = app:command { "rollback", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "was started by hand", "cannot start it again")
  end)

  it("that could not be started again keeps its slot: without a spare one the run fails, and it serves as before", function()
    start_by_hand("painted")
    local all = app.ports
    app.ports = { all[1] }
    local run = app:deploy("rolling", "1.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "give process.ports a spare slot")
    app.ports = all
    assert.is_true(fixture.alive(by_hand))
    assert_as_before()
  end)

  it("is adopted, or let go, wherever the controller dies", function()
    app.opts.health = "{http: /healthz, interval: 10ms, timeout: 1s, deadline: 4s, successes: 1}"
    app:write(fixture.release("1.0"), "1.0")
    start_by_hand()
    local load = app:load { rate = 300 }
    fixture.write(app.dir .. "/failing.lua", failing) -- it ends as it began, so that the next one begins the same
    local counting, count = app:mortal("count", nil, { "./failing.lua", "app.yml" })
    assert.equal(1, counting.exit, counting.stdout .. counting.stderr)
    for n = 1, count, 2 do
      local killed = app:mortal(n % 3 == 0 and "before" or "after", n, { "./failing.lua", "app.yml" })
      local where = ("operation %d of %d: "):format(n, count) .. killed.stdout .. killed.stderr
      assert.truthy(killed.exit == 137 or n >= count - 1, where)
      local run = app:command { n % 4 < 2 and "resume" or "abort", "app.yml" }
      local wanted = run.stderr:find("nothing to resume", 1, true) and 2 or n % 4 < 2 and 1 or 0
      assert.equal(wanted, run.exit, where .. run.stdout .. run.stderr)
      assert_as_before()
      assert.equal(0, load:numbers().failed, where .. run.stdout)
    end
    assert.same({}, load:stop().errors)
    fixture.stop(app:command({ "status", "app.yml" }).stdout:match("is taken by pid (%d+)"))
  end)

  it("that died with the controller, and could not be started again, is named by abort", function()
    start_by_hand("painted")
    assert.equal(137, app:mortal("before", 14, { "rolling", "app.yml" }).exit)
    assert.truthy(record())
    fixture.stop(by_hand)
    local run = app:command { "abort", "app.yml" }
    assert.equal(3, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "could not be started again", "start it by hand")
    start_by_hand("painted")
    app:command { "abort", "app.yml" }
    app:command { "unlock", "app.yml", "--force" }
  end)

  it("keeps its own log, and is stopped with the application", function()
    start_by_hand()
    assert.equal(0, app:deploy("blue_green", "1.0").exit)
    local states = {}
    for _, each in ipairs(app:status().instances) do states[each.release] = each.state end
    assert.same({ adopted = "idle", ["1.0"] = "serving" }, states)
    contains(app:command({ "logs", "app.yml" }).stdout, ("local:%d | GET /healthz"):format(app.ports[1]))
    assert.same({}, app:stop())
    assert.is_false(fixture.alive(by_hand))
    assert.equal("", fixture.sh(("ls %s/home/.deployrt/shop/instances"):format(app.dir)))
  end)

  it("is not mistaken for a later process with its pid", function()
    start_by_hand()
    assert.equal(0, app:deploy("blue_green", "1.0").exit)
    local path = ("%s/home/.deployrt/shop/instances/%d"):format(app.dir, app.ports[1])
    local key, pid, start, rest = record():match("^([^\t]*)\t(%d+)\t(%d+)\t(.*)$")
    fixture.write(path, ("%s\t%s\t%d\t%s"):format(key, pid, start - 1, rest))
    for _, each in ipairs(app:status().instances) do assert.equal(each.release == "adopted" and "down" or "serving", each.state) end
    app:command { "stop", "app.yml", "--set", "process.adopt=false" }
    assert.is_true(fixture.alive(by_hand))
    os.remove(path)
  end)

  it("gets its traffic through a balancer that was not there before", function()
    start_by_hand()
    local listen = fixture.free_port()
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", drain: {timeout: 5s}}'):format(listen)
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "traffic to what was adopted")
    assert.same({ "1.0" }, app:serving())
    assert.is_false(fixture.alive(by_hand))
  end)
end)

if not hosts.possible() then
  print("adopt_spec: skipped: over SSH, because test hosts need root, iproute2 and sshd")
  return
end

describe("over SSH, a service that was started by hand", function()
  local bed, app, proxy

  setup(function()
    bed = hosts.up(2)
    app = fixture.app { slots = 2, process = "  adopt: true\n  stop: {timeout: 3s}", yaml = "strategy: {settle: 0}",
      health = "{http: /healthz, interval: 20ms, deadline: 5s}" }
    app.ports = { 8080, 8082 }
    local servers = {}
    for i, host in ipairs(bed.hosts) do
      servers[#servers + 1] = ("s%d-0 %s:8080"):format(i, host.address)
      servers[#servers + 1] = ("s%d-2 %s:8082 disabled"):format(i, host.address)
    end
    proxy = fixture.haproxy { servers = servers }
    app.listen, app.opts.hosts = proxy.port, bed:yaml()
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 3s}}"):format(proxy.socket)
  end)
  teardown(function()
    app:stop()
    for i = 1, 2 do bed:exec(i, "pkill -x server") end
    fixture.cleanup()
    bed:down()
  end)

  local function start_by_hand(user)
    for i, host in ipairs(bed.hosts) do
      local dir = ("/tmp/%d"):format(i)
      local program = fixture.sh("gzip -9c < " .. fixture.service() .. " | base64 -w 0") -- the host's files are its own
      bed:exec(i, ("mkdir -p %s; cd %s; echo hand > VERSION; echo %s | base64 -d | gunzip > server; chmod 755 . server; chmod 644 VERSION"):format(dir, dir, program))
      local line = ("cd %s; MARK=here setsid ./server --port 8080 </dev/null >/tmp/out.%s 2>&1 & sleep 0.2"):format(dir, user)
      if user == "root" then bed:exec(i, line) else bed:ssh(i, line) end
      fixture.eventually(function() return fixture.sh(("curl -s http://%s:8080/"):format(host.address)):find("hand") end, 10, "the service")
    end
  end

  it("of another user is named, and refused where it cannot be adopted", function()
    start_by_hand("root")
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "rolling", "app.yml" }
    local user = bed.hosts[1].user
    if user ~= "root" then
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, "port 8080 is taken by a process of uid 0", user .. " cannot see which")
    end
    for i = 1, 2 do bed:exec(i, "pkill -x server") end
  end)

  it("is replaced without a failed request, comes back when the run fails, and after a rollback", function()
    start_by_hand(bed.hosts[1].user)
    local load = app:load { rate = 300 }
    app:write(fixture.release("1.0"), "1.0")
    fixture.write(app.dir .. "/failing.lua", failing)
    local run = app:command { "./failing.lua", "app.yml" }
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.same({}, app:status().instances)
    local killed = app:mortal("after", 20, { "rolling", "app.yml" })
    assert.equal(137, killed.exit, killed.stdout)
    run = app:command { "resume", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0", "1.0" }, app:serving())
    run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "adopted", "adopted" }, app:serving())
    assert.equal("here\n", fixture.sh(("curl -s 'http://127.0.0.1:%d/env?MARK'"):format(app.listen)))
    assert.same({}, load:stop().errors)
  end)
end)
