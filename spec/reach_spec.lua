-- reach_spec.lua -- What the balancer reaches and what it does not, and hosts that app.yml names no more, over real hosts.
-- weight: 14
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

if not hosts.possible() then
  print("reach_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("behind a managed HAProxy", function()
  local bed, app

  setup(function() bed = hosts.up(2) end)
  teardown(function() bed:down() end)

  before_each(function()
    app = fixture.app { slots = 2, instances = 1, yaml = "strategy: {settle: 100ms}" }
    app.ports, app.opts.hosts = { 8080, 8081 }, bed:yaml()
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d"}'):format(app.listen)
  end)
  after_each(function()
    app.opts.hosts = bed:yaml()
    app:write(fixture.release "9.0", "9.0")
    app:stop()
    for i = 1, 2 do assert.equal("", (bed:exec(i, "pgrep -x server; rm -rf /home/deploy/.deployrt /home/deploy/.bashrc"))) end
    fixture.cleanup()
  end)

  local function answer()
    return fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.listen))
  end

  it("a service that only its own host reaches is not let pass, on the first run or later", function()
    app.opts.command = '  command: [./server, --address, 127.0.0.1, --port, "${port}"]'
    local run = app:deploy("rolling", "1.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "it cannot reach web", "which would get traffic: does the service listen on more than 127.0.0.1 there")
    app.opts.command = nil
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.command = [[
  command: [sh, -c, 'a=0.0.0.0; [ "$(hostname)" = web1 ] || a=127.0.0.1; exec ./server --address $a --port "$0"', "${port}"] ]]
    for _, name in ipairs { "blue_green", "rolling", "in_place" } do
      run = app:deploy(name, "2.0")
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, "it cannot reach web2-80")
      assert.same({ "1.0", "1.0" }, app:serving())
    end
    app.opts.command = nil
  end)

  it("a host that is taken out of app.yml is said to serve where no other one does", function()
    app.opts.hosts = bed:yaml { bed.hosts[1] }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.hosts = bed:yaml { bed.hosts[2] }
    app:write(fixture.release "1.0", "1.0")
    contains(app:command({ "status", "app.yml" }).stdout, "shop: nothing that app.yml names serves\n  web1-8080 gets 100.0% of the traffic")
  end)

  it("a host that is taken out of app.yml loses its traffic, and has it back when the run fails", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local whole = app.opts.hosts
    app.opts.hosts = bed:yaml { bed.hosts[1] }
    local run = app:deploy("rolling", "2.0", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "app.yml does not name web2-8080 any more: it gets no traffic from now on, and what runs there goes on until somebody stops it")
    contains(app:command({ "status", "app.yml" }).stdout, "web2-8080 gets 50.0% of the traffic, and app.yml does not name it any more")
    app.opts.hosts = whole
    app:write(fixture.release "1.0", "1.0")
    assert.same({ "1.0", "1.0" }, app:serving())
    app.opts.hosts = bed:yaml { bed.hosts[1] }
    local load = app:load()
    app:write(fixture.release "2.0", "2.0")
    for _, argv in ipairs { { "plan", "rolling", "app.yml" }, { "check", "rolling", "app.yml", "--connect" }, { "rolling", "app.yml" } } do
      run = app:command(argv)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      contains(run.stdout .. run.stderr, "app.yml does not name web2-8080 any more")
    end
    assert.same({}, load:stop().errors)
    contains(answer(), "hello from 2.0")
    assert.is_nil(app:command({ "status", "app.yml" }).stdout:find("web2", 1, true))
    app:write(fixture.release "3.0", "3.0")
    run = app:command { "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.is_nil((run.stdout .. run.stderr):find("web2", 1, true))
  end)

  it("a shell that prints something for every command is named", function()
    local passwd = bed:exec(1, "cat /etc/passwd")
    bed:exec(1, "echo 'echo WELCOME' > /home/deploy/.bashrc; sed -i '/^deploy:/s,/bin/sh,/bin/bash,' /etc/passwd")
    local run = app:deploy("rolling", "1.0")
    bed:exec(1, ("rm -f /home/deploy/.bashrc; printf %%s %s > /etc/passwd"):format(fixture.quote(passwd)))
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, 'its shell prints "WELCOME', "have ~/.bashrc and its like be silent for commands")
  end)

  it("a shell that exits before each command is no success, and is named", function()
    local passwd = bed:exec(1, "cat /etc/passwd")
    bed:exec(1, "sed -i '/^deploy:/s,/bin/sh,/bin/bash,' /etc/passwd")
    app:write(fixture.release "1.0", "1.0")
    local runs = {}
    for i, text in ipairs { "exit 0", "echo closed; exit 0" } do
      bed:exec(1, ("echo '%s' > /home/deploy/.bashrc"):format(text))
      runs[i] = { app:command { "exec", "app.yml", "--host", "web1", "--", "hostname" }, app:deploy("rolling", "1.0") }
    end
    bed:exec(1, ("rm -f /home/deploy/.bashrc; printf %%s %s > /etc/passwd"):format(fixture.quote(passwd)))
    for i, said in ipairs { "", "closed" } do
      local exec, deploy = table.unpack(runs[i])
      assert.equal(2, exec.exit, exec.stdout .. exec.stderr)
      assert.equal("", exec.stdout)
      contains(exec.stderr, "web1 ! its shell ends with status 0 before it runs the command: have ~/.bashrc and its like not exit for commands", said)
      assert.equal(2, deploy.exit, deploy.stdout .. deploy.stderr)
      contains(deploy.stderr, "web1: the host's shell ended with status 0 before it did anything" .. (said ~= "" and ": " .. said or "")
        .. "; have ~/.bashrc and its like not exit for commands")
    end
  end)

  it("two names of one machine are refused before anything is touched", function()
    local first, again = bed.hosts[1], {}
    for key, value in pairs(first) do again[key] = value end
    again.name, again.port = "again", nil
    app.opts.hosts = bed:yaml { first, bed.hosts[2], again }
    for _, run in ipairs { app:deploy("rolling", "1.0"), app:command { "check", "app.yml", "--connect" } } do
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, "hosts: 'web1' and 'again' lead to the same machine and directory (/home/deploy/.deployrt/shop); one is enough")
    end
    assert.equal("", (bed:exec(1, "ls -A /home/deploy/.deployrt 2>/dev/null || true")))
    local run = app:command { "check", "app.yml", "--connect", "--host", "web2", "--host", "again" }
    assert.equal(0, run.exit, run.stderr)
  end)
end)
