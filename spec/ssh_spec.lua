-- ssh_spec.lua -- Deploying over SSH to hosts with their own addresses, and what can go wrong with them.
-- weight: 35
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

if not hosts.possible() then
  print("ssh_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("over SSH", function()
  local bed, app, proxy

  setup(function() bed = hosts.up(4) end)
  teardown(function() bed:down() end)

  local function new_app(options)
    app = fixture.app(options)
    app.ports = { 8080, 8081 }
    local servers = {}
    for i, host in ipairs(bed.hosts) do
      for _, port in ipairs(app.ports) do
        servers[#servers + 1] = ("s%d-%d %s:%d check inter 200ms disabled"):format(i, port, host.address, port)
      end
    end
    proxy = fixture.haproxy { servers = servers }
    app.opts.hosts = options.hosts or bed:yaml()
    app.opts.balancer = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    app.listen = proxy.port
    app:write(fixture.release("1.0"), "1.0")
  end

  before_each(function() new_app { slots = 2, instances = 1, yaml = "strategy: {settle: 100ms}" } end)
  after_each(function()
    bed:mend_all()
    app:stop()
    for i = 1, 4 do assert.equal("", (bed:exec(i, "pgrep -x server; rm -rf /home/deploy/.deployrt"))) end
    fixture.cleanup()
  end)

  for _, name in ipairs { "rolling", "blue_green", "in_place", "canary" } do
    it(name .. " deploys to four hosts without a failed request", function()
      assert.equal(0, app:deploy("rolling", "1.0").exit)
      local load = app:load()
      app.opts.yaml = name == "canary" and "strategy: {hold: 500ms, latency: 1000, steps: [25%, 100%]}" or "strategy: {settle: 100ms}"
      local run = app:deploy(name, "2.0")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      fixture.eventually(function() return (load:numbers().versions["2.0"] or 0) > 50 end)
      assert.same({}, load:stop().errors)
      assert.same({ "2.0", "2.0", "2.0", "2.0" }, app:serving())
    end)
  end

  it("blue-green moves from one group of hosts to the other, and rollback is one switch back", function()
    for i, host in ipairs(bed.hosts) do host.group = i <= 2 and "blue" or "green" end
    local yaml = bed:yaml()
    for _, host in ipairs(bed.hosts) do host.group = nil end
    app.opts.hosts, app.ports, app.opts.yaml = yaml, { 8080 }, "strategy: {settle: 100ms}"
    local function serving_on()
      local list = {}
      for _, each in ipairs(app:status().instances) do
        if each.state == "serving" then list[#list + 1] = each.host .. " " .. each.release end
      end
      return list
    end
    assert.equal(0, app:deploy("blue_green", "1.0").exit)
    assert.same({ "web1 1.0", "web2 1.0" }, serving_on())
    local load = app:load()
    local run = app:deploy("blue_green", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "web3 2.0", "web4 2.0" }, serving_on())
    run = app:command { "rollback", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil(run.stdout:find("start     ", 1, true), run.stdout)
    assert.same({ "web1 1.0", "web2 1.0" }, serving_on())
    assert.equal(1, app:deploy("blue_green", "3.0", { fault = "dies" }).exit)
    assert.same({ "web1 1.0", "web2 1.0" }, serving_on())
    assert.same({}, load:stop().errors)
  end)

  it("a run that is limited to a host leaves the others in service", function()
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d"}'):format(fixture.free_port())
    app.listen = tonumber(app.opts.balancer:match(":(%d+)"))
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local load = app:load()
    bed:cut(4)
    local run = app:deploy("rolling", "2.0", nil, { "--host", "web2" })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    bed:mend(4)
    assert.same({ "1.0", "1.0", "1.0", "2.0" }, app:serving())
    fixture.eventually(function() -- HAProxy has to find the host up again
      for _, each in ipairs(app:status().instances) do
        if math.abs(each.share - 0.25) > 0.001 then return false end
      end
      return true
    end, 15, "equal shares")
    fixture.eventually(function() return load:numbers().versions["2.0"] end, 15, "answers of 2.0")
    load:stop()
  end)

  it("a run that is limited to a host tells what the others get of the traffic", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:write(fixture.release "2.0", "2.0")
    for _, argv in ipairs { { "plan", "rolling", "app.yml", "--host", "web1", "--json" }, { "rolling", "app.yml", "--host", "web1", "--json" } } do
      local last
      for line in app:command(argv).stdout:gmatch("[^\n]+") do
        local event = cjson.decode(line)
        last = event.event == "traffic" and event.share or last
      end
      assert.same({ ["2.0"] = 25, ["other hosts"] = 75 }, last)
    end
  end)

  it("a large release arrives whole, also where the ssh command does not work", function()
    fixture.write(app.dir .. "/bin/ssh", "#!/bin/sh\necho broken >&2\nexit 255\n")
    os.execute("chmod +x " .. app.dir .. "/bin/ssh")
    for version, path in pairs { ["1.0"] = os.getenv "PATH", ["2.0"] = app.dir .. "/bin:" .. os.getenv "PATH" } do
      local release = fixture.release(version)
      os.execute(("head -c 20000000 /dev/urandom > %s/payload"):format(release))
      app:write(release, version)
      local run = app:command({ "rolling", "app.yml" }, { env = { PATH = path } })
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      local sum = fixture.sh("sha256sum < " .. release .. "/payload")
      for i = 1, 4 do assert.equal(sum, (bed:exec(i, ("sha256sum < /home/deploy/.deployrt/shop/releases/%s/payload"):format(version)))) end
    end
  end)

  it("a release that dies at start is undone on all hosts", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:deploy("rolling", "2.0", { fault = "dies" })
    assert.equal(1, run.exit)
    contains(run.stderr, "web", "exited before it was healthy", "cannot open database")
    assert.same({ "1.0", "1.0", "1.0", "1.0" }, app:serving())
    for i = 1, 4 do assert.equal("1.0\n", bed:exec(i, "ls /home/deploy/.deployrt/shop/releases")) end
  end)

  it("directories on hosts are 0700", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    assert.equal("700\n700\n", bed:exec(1, "stat -c %a /home/deploy/.deployrt/shop /home/deploy/.deployrt/shop/instances"))
  end)

  it("exec labels the answers, and its exit code tells of failures", function()
    local run = app:command { "exec", "app.yml", "--", "hostname" }
    assert.equal(0, run.exit)
    contains(run.stdout, "web1 | web1", "web4 | web4")
    run = app:command { "exec", "app.yml", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 7" }
    assert.equal(1, run.exit)
    local answer = cjson.decode(run.stdout:match("[^\n]+"))
    assert.same({ 7, "out\n", "err\n" }, { answer.status, answer.stdout, answer.stderr })
    run = app:command { "exec", "app.yml", "--host", "web2", "--", "sh", "-c", "kill -KILL $$" }
    assert.equal(1, run.exit)
    contains(run.stderr, "signal KILL")
  end)

  it("exec that is interrupted ends the command on all hosts, and says so", function()
    local log = app.dir .. "/log"
    local function running(i) return bed:exec(i, "pgrep -x sleep | wc -l") end
    local function interrupt(signal, meanwhile)
      local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home",
        fixture.deployrt(), "exec", "app.yml", "--", "env", "-i", "sh", "-c", "sleep 600; echo done" }, { log = log })
      for i = 1, 4 do fixture.eventually(function() return running(i) == "1\n" end, 5, "the command") end
      if meanwhile then meanwhile() end
      fixture.signal(fixture.sh("pgrep -P " .. pid):match "%d+", signal)
      fixture.eventually(function() return not fixture.alive(pid) end, 10, "the end")
      return fixture.read(log)
    end
    for _, signal in ipairs { "INT", "TERM" } do
      contains(interrupt(signal), "exit 130", "interrupted by SIG" .. signal .. ": the command was ended on web1, web2, web3, web4")
      for i = 1, 4 do fixture.eventually(function() return running(i) == "0\n" end, 2, "the end of the command") end
    end
    contains(interrupt("INT", function() bed:cut(2) end), "exit 130", "the command was ended on web1, web3, web4; it may run still on web2")
    bed:mend(2)
    bed:exec(2, "pkill -x sleep")
  end)

  it("logs show each instance's output", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:command { "logs", "app.yml" }
    assert.equal(0, run.exit)
    contains(run.stdout, "web1:8080 | GET /healthz 200")
  end)

  it("logs that are followed show what starts later, and leave nothing on the hosts when we are killed", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local log = app.dir .. "/followed"
    local pid = app:command({ "logs", "app.yml", "--follow" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("web4:8080 | ", 1, true) end, 10, "the following")
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    fixture.eventually(function() return fixture.read(log):find("web1:8081 | GET /healthz 200", 1, true) end, 10, "the other slots")
    fixture.signal(pid, "KILL")
    for i = 1, 4 do fixture.eventually(function() return bed:exec(i, "pgrep -x tail; true") == "" end, 10, "the end of tail") end
  end)

  it("logs that are followed go on without a host that is away, with it again when it is back, and end when none is left", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local log = app.dir .. "/followed"
    local function says(text)
      return function() return (fixture.read(log) or ""):find(text, 1, true) end
    end
    local function ask(i, path) fixture.sh(("curl -s -m 5 http://%s:8080%s || true"):format(bed.hosts[i].address, path)) end
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
      "logs", "app.yml", "--follow", "--host", "web1", "--host", "web2" }, { log = log })
    for i = 1, 2 do fixture.eventually(says("web" .. i .. ":8080 | "), 10, "the following") end
    bed:cut(1)
    fixture.eventually(says "it is followed again when it is back", 60, "the loss")
    contains(fixture.read(log), "deployrt: web1: ")
    ask(2, "/without-the-other")
    fixture.eventually(says "web2:8080 | GET /without-the-other", 10, "the one that is left")
    bed:mend(1)
    fixture.eventually(function()
      ask(1, "/back-again")
      return says "web1:8080 | GET /back-again" ()
    end, 60, "the one that came back")
    for i = 1, 2 do bed:cut(i) end
    fixture.eventually(function() return not fixture.alive(pid) end, 90, "the end")
    contains(fixture.read(log), "deployrt: web2: ", "exit 2\n")
  end)

  it("logs that are followed say which instances one connection has no room for", function()
    app.ports = {}
    for port = 8080, 8088 do app.ports[#app.ports + 1] = port end
    app.opts.instances, app.opts.balancer = 8, false
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--host", "web1" }).exit)
    local log = app.dir .. "/followed"
    local pid = app:command({ "logs", "app.yml", "--follow", "--host", "web1" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("web1:8086 | ", 1, true) end, 10, "the following")
    contains(fixture.read(log), "web1:8087 is not followed: 7 instances of its host are")
    fixture.stop(pid)
  end)

  it("the openssh transport does the same", function()
    app.opts.hosts = bed:yaml():gsub("{name", "{transport: openssh, name")
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:deploy("rolling", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0", "2.0", "2.0" }, app:serving())
  end)

  it("goes through a jump host", function()
    local first, second = bed.hosts[1], bed.hosts[2]
    app.opts.hosts = ("[{name: web2, address: %s, user: deploy, identity: %s, known_hosts: %s, jump: deploy@%s}]"):format(second.address,
      second.identity, second.known_hosts, first.address)
    app:write(fixture.release("1.0"), "1.0")
    local config = app.dir .. "/home/.ssh/config"
    fixture.write(config, ("Host %s\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(first.address, first.identity, first.known_hosts))
    local run = app:command { "exec", "app.yml", "--", "sh", "-c", "hostname; echo $SSH_CONNECTION" }
    assert.equal(0, run.exit, run.stderr)
    contains(run.stdout, "web2", first.address)
    app.opts.hosts = bed:yaml()
    app:write(fixture.release("1.0"), "1.0")
  end)

  it("follows ~/.ssh/config", function()
    local host = bed.hosts[3]
    fixture.write(app.dir .. "/home/.ssh/config", "Include more\n")
    fixture.write(app.dir .. "/home/.ssh/more", ("Host shop-*\n  HostName %s\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(
      host.address, host.identity, host.known_hosts))
    app.opts.hosts = "[shop-three]"
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "exec", "app.yml", "--", "hostname" }
    assert.equal(0, run.exit, run.stderr)
    contains(run.stdout, "shop-three | web3")
    app.opts.hosts = bed:yaml()
    app:write(fixture.release("1.0"), "1.0")
  end)

  local function refused_with(yaml, ...)
    app.opts.hosts = yaml
    local run = app:deploy("rolling", "2.0")
    app.opts.hosts = bed:yaml()
    app:write(fixture.release("1.0"), "1.0")
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, ...)
  end

  it("an unknown or wrong host key is refused before anything is touched", function()
    local wrong = fixture.write(fixture.dir() .. "/known", fixture.read(bed.hosts[1].known_hosts):gsub("AAAAC3[^\n]+", function(key)
      return key:sub(1, -12) .. key:sub(-11):reverse()
    end) .. "")
    refused_with(bed:yaml():gsub("known_hosts: [^,}]+", "known_hosts: /nonexistent/known"), "host key of", "accept-new")
    assert.truthy(wrong)
    local text = fixture.read(bed.hosts[1].known_hosts)
    local keys = {}
    for address, key in text:gmatch("(%S+) ([^\n]+)") do keys[#keys + 1] = { address, key } end
    local swapped = fixture.write(fixture.dir() .. "/known", ("%s %s\n"):format(keys[1][1], keys[2][2]))
    refused_with(bed:yaml():gsub("known_hosts: [^,}]+", "known_hosts: " .. swapped), "is not the one in", ("ssh-keygen -f '%s' -R '%s'"):format(swapped, keys[1][1]))
  end)

  it("a refused key is told plainly", function()
    local key = fixture.dir() .. "/other"
    fixture.sh("ssh-keygen -q -t ed25519 -N '' -f " .. key)
    refused_with(bed:yaml():gsub("identity: [^,}]+", "identity: " .. key), "refuses every key offered")
  end)

  it("an unreachable host is an error before anything is touched", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    bed:off(4)
    local run = app:deploy("rolling", "2.0")
    bed:on(4)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, bed.hosts[4].address, "name the others with --host")
    for i = 1, 3 do assert.equal("1.0\n", bed:exec(i, "ls /home/deploy/.deployrt/shop/releases")) end
  end)

  it("a connection cut for 5 s in mid-operation neither loses nor repeats it", function()
    fixture.write(app.dir .. "/own.lua", [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy()
        self:log("begun")
        local result = self.fleet.hosts[1]:run { "sh", "-c", "echo once >> /home/deploy/marker; sleep 3; echo result" }
        self:log("got " .. result.stdout)
      end
      return own
    ]])
    app:write(fixture.release("1.0"), "1.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return bed:exec(1, "cat /home/deploy/marker") == "once\n" end, 10, "the command")
    bed:cut(1)
    os.execute("sleep 5")
    bed:mend(1)
    fixture.eventually(function() return not fixture.alive(pid) end, 30, "end of the run")
    contains(fixture.read(log), "got result", "deployed 1.0")
    assert.equal("once\n", bed:exec(1, "cat /home/deploy/marker; rm -f /home/deploy/marker"))
  end)

  it("a connection whose sshd is killed in mid-operation is dialled again, and the operation looked up", function()
    fixture.write(app.dir .. "/own.lua", [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy()
        local result = self.fleet.hosts[1]:run { "sh", "-c", "echo once >> /home/deploy/marker; sleep 2; echo result" }
        self:log("got " .. result.stdout)
      end
      return own
    ]])
    app:write(fixture.release("1.0"), "1.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return bed:exec(1, "cat /home/deploy/marker") == "once\n" end, 10, "the command")
    bed:exec(1, "pkill -KILL -u deploy sshd")
    fixture.eventually(function() return not fixture.alive(pid) end, 30, "end of the run")
    contains(fixture.read(log), "got result", "deployed 1.0")
    assert.equal("once\n", bed:exec(1, "cat /home/deploy/marker; rm -f /home/deploy/marker"))
  end)

  it("a host that vanishes in mid-run: the others go back, and the exit code tells the truth", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    fixture.write(app.dir .. "/own.lua", [[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy()
        self:each(self.fleet:old(), self.replace)
        self:log("replaced")
        self:sleep(4)
        self:fail("too late")
      end
      return own
    ]])
    app:write(fixture.release("2.0"), "2.0")
    local log = app.dir .. "/log"
    local pid = app:command({ "./own.lua", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("replaced") end, 20, "the replacement")
    bed:off(4)
    fixture.eventually(function() return not fixture.alive(pid) end, 90, "end of the run")
    local text = fixture.read(log)
    contains(text, "web4", "needs attention")
    bed:on(4)
    local run = app:deploy("rolling", "3.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "3.0", "3.0", "3.0", "3.0" }, app:serving())
  end)
end)
