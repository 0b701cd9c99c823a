-- survive_ssh_spec.lua -- Controllers and hosts that die in mid-run, over SSH, behind a user's own HAProxy.
-- weight: 31
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("survive_ssh_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("over SSH, a run", function()
  local bed, app, proxy, version

  local function deployed(expected)
    fixture.eventually(function()
      local ok, list = pcall(app.serving, app)
      return ok and #list == 4 and list[1] == expected and list[4] == expected
    end, 20, "all serving " .. expected)
  end

  setup(function()
    bed = hosts.up(4)
    app = fixture.app { slots = 2, instances = 1, yaml = "strategy: {settle: 0, batch: 2}", health = "{http: /healthz, interval: 20ms, deadline: 5s, successes: 1}" }
    app.ports = { 8080, 8081 }
    local servers = {}
    for i, host in ipairs(bed.hosts) do
      for _, port in ipairs(app.ports) do servers[#servers + 1] = ("s%d-%d %s:%d check inter 200ms disabled"):format(i, port, host.address, port) end
    end
    proxy = fixture.haproxy { servers = servers }
    app.opts.hosts = bed:yaml()
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 3s}}"):format(proxy.socket)
    app.listen = proxy.port
    version = 1
    assert.equal(0, app:deploy("rolling", "1").exit)
  end)
  teardown(function()
    app:stop()
    for i = 1, 4 do assert.equal("", bed:exec(i, "pgrep -x server || true")) end
    fixture.cleanup()
    bed:down()
  end)

  local function next_version()
    version = version + 1
    app:write(fixture.release(tostring(version)), tostring(version))
    return tostring(version), tostring(version - 1)
  end

  it("whose controller is killed is resumed to all-new or aborted to all-old, also from elsewhere", function()
    next_version()
    local run, count = app:mortal("count", nil, { "rolling", "app.yml" })
    assert.equal(0, run.exit, run.stderr)
    local load = app:load { rate = 300 }
    for n = 12, count, 7 do
      for _, ending in ipairs { "resume", "abort" } do
        local new, old = next_version()
        assert.equal(137, app:mortal(n % 2 == 0 and "before" or "after", n, { "rolling", "app.yml" }).exit)
        if n % 3 == 0 then os.execute(("rm -rf %s/state"):format(app.dir)) end -- as if from another machine
        run = app:command { ending, "app.yml" }
        assert.equal(0, run.exit, ("%s at %d: %s%s"):format(ending, n, run.stdout, run.stderr))
        deployed(ending == "resume" and new or old)
        if ending == "abort" then version = version - 1 end
        assert.equal(cjson.null, app:status().lock)
      end
    end
    assert.same({}, load:stop().errors)
  end)

  it("whose controller is killed while it takes the lock blocks nobody for good", function()
    for i, ending in ipairs { "resume", "abort", "unlock" } do
      local new, old = next_version()
      assert.equal(137, app:mortal("lock", i, { "rolling", "app.yml" }).exit)
      local second = app:command { "rolling", "app.yml" }
      assert.equal(4, second.exit, second.stdout .. second.stderr)
      assert.truthy(second.stderr:find("was interrupted", 1, true) and second.stderr:find("deployrt abort", 1, true), second.stderr)
      local run = app:command { ending, "app.yml" }
      assert.equal(0, run.exit, ending .. run.stdout .. run.stderr)
      deployed(ending == "resume" and new or old)
      assert.equal(cjson.null, app:status().lock)
      if ending ~= "resume" then version = version - 1 end
      for host = 1, 4 do assert.equal("", bed:exec(host, "ls /home/deploy/.deployrt/shop/lock 2>/dev/null || true")) end
    end
  end)

  it("that lost its lock on one host is aborted, unless another run took that host meanwhile", function()
    local _, old = next_version()
    local function interrupt()
      assert.equal(137, app:mortal("after", 14, { "rolling", "app.yml" }).exit)
      bed:exec(1, "rm /home/deploy/.deployrt/shop/lock")
    end
    local function on_other(...) return app:command { "rolling", "app.yml", "--state", app.dir .. "/other", ... } end
    interrupt()
    assert.equal(4, on_other().exit)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    deployed(old)
    interrupt()
    run = on_other("--host", bed.hosts[1].name, "--force")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    for _, verb in ipairs { "resume", "abort" } do
      run = app:command { verb, "app.yml" }
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find("still has the lock on " .. bed.hosts[2].name, 1, true), run.stderr)
      assert.truthy(run.stderr:find("`deployrt abort --force app.yml`", 1, true), run.stderr)
    end
    assert.equal("", bed:exec(1, "ls /home/deploy/.deployrt/shop/lock 2>/dev/null || true"))
    assert.equal(0, app:command({ "unlock", "app.yml" }).exit)
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    deployed(tostring(version))
  end)

  --- Runs own.lua, a rolling deployment with options and a deploy() of its own, and has a host lose its network once it says something.
  ---@return string exit, string text
  local function lose_web3(text, moment, path)
    fixture.write(app.dir .. "/own.lua", 'local strategy = require "deployrt.strategy"\n' .. text .. "\nreturn own\n")
    local log = app.dir .. "/log"
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home",
      "PATH=" .. (path or "") .. os.getenv "PATH", fixture.deployrt(), "--state", app.dir .. "/state", "./own.lua", "app.yml" }, { log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find(moment, 1, true) end, 20, moment)
    bed:cut(3)
    fixture.eventually(function() return not fixture.alive(pid) end, 120, "end of the run")
    local said = fixture.read(log)
    return said:match "exit (%d+)", said
  end

  --- The run went on without it, and says so; --failed brings it along.
  local function catches_up(exit, text, new)
    assert.equal("0", exit, text)
    assert.truthy(text:find("tolerated, unreachable: web3", 1, true), text)
    assert.truthy(text:find("without 0 that failed and 1 that cannot be reached", 1, true), text)
    assert.truthy(text:find("; web3 left as [^\n]*: %-%-failed brings them along"), text)
    bed:mend(3)
    fixture.eventually(function() return pcall(app.status, app) end, 20, "web3")
    assert.is_true(app:status().mixed)
    local run = app:command { "rolling", "app.yml", "--failed" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    deployed(new)
    assert.is_false(app:status().mixed)
    assert.equal(2, app:command({ "rolling", "app.yml", "--failed" }).exit)
  end

  it("goes on without a host that it may do without, and --failed brings that one along", function()
    local new = next_version()
    local exit, text = lose_web3([[
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy()
        self:log("now") self:sleep(3)
        self:each(self.fleet:old(), self.replace, { tolerate = 1 })
      end]], "now")
    catches_up(exit, text, new)
  end)

  it("goes on without a host that is lost during the upload, where the strategy's options tolerate that", function()
    local new = next_version()
    fixture.sh(("chmod 755 %s"):format(fixture.write(app.dir .. "/bin/tar", "#!/bin/sh\n/bin/tar \"$@\" && sleep 2\n")))
    local exit, text = lose_web3([[
      local own = strategy.extend("rolling", { name = "own", options = { tolerate = { type = "amount", default = 1 } } })
      function own:deploy() self:each(self.fleet:old(), self.replace, { tolerate = self.options.tolerate }) end]],
      "== upload", app.dir .. "/bin:")
    catches_up(exit, text, new)
  end)

  it("that loses a host says what is left; when the host is back, abort brings it to all-old", function()
    local _, old = next_version()
    fixture.write(app.dir .. "/own.lua", [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy() self.super.deploy(self) self:log("now") self:sleep(2) self.fleet.hosts[2]:run { "true" } end
      return own]])
    local log = app.dir .. "/log"
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
      "--state", app.dir .. "/state", "./own.lua", "app.yml" }, { log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now", 1, true) end, 20, "the sleep")
    bed:off(2)
    fixture.eventually(function() return not fixture.alive(pid) end, 120, "end of the run")
    local text = fixture.read(log)
    assert.equal("3", text:match("exit (%d+)"), text)
    assert.truthy(text:find("web2", 1, true) and text:find("needs attention", 1, true), text)
    bed:on(2)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    deployed(old)
    version = version - 1
    assert.equal(4, #app:status().instances)
  end)
end)
