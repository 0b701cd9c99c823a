-- examples_spec.lua -- The examples do what their README says, as a reader would run them.
-- weight: 4
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local contains = fixture.contains

local function processes_of_demos()
  return fixture.sh("pgrep -f '/deployrt-demo[.]' || true")
end

describe("the examples", function()
  after_each(function() fixture.cleanup() end)

  it("hello deploys, canaries under load without a failure, and rolls a broken release back", function()
    local run = fixture.run({ "sh", "examples/hello/demo.sh", fixture.deployrt() }, { timeout = 60 })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "deployed 1.0", "deployed 2.0", "failed: 0", "exit status: 1", "hello from 2.0")
    contains(run.stderr, "cannot open database", "failed and rolled back: 2.0 serves as before")
    local old, new = run.stdout:match("1%.0 answered (%d+) requests\n%s*2%.0 answered (%d+) requests")
    assert.is_true(tonumber(old) > 100 and tonumber(new) > 100)
    assert.equal("", processes_of_demos())
    assert.equal("", fixture.sh("ls -d /tmp/deployrt-demo.* 2>/dev/null || true"))
  end)

  it("nginx-port-flip takes over a service that was started by hand, and flips between two ports without a failure", function()
    local run = fixture.run({ "sh", "examples/nginx-port-flip/demo.sh", fixture.deployrt() }, { timeout = 300 })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "would be adopted: java ", "adopted -> 2.0", "deployed 2.0", "deployed 3.0", "exit status: 2", "exit status: 1",
      "rolled back: 2.0 serves again", "failed: 0")
    contains(run.stderr, "hooks.build failed with status 1: nothing was changed", "error: cannot find symbol", "failed and rolled back: 3.0 serves as before")
    for _, version in ipairs { "1%.0", "2%.0", "3%.0" } do assert.is_true(tonumber(run.stdout:match(version .. " answered (%d+) requests")) > 0) end
    assert.equal("", processes_of_demos())
    assert.equal("", fixture.sh("ls -d /tmp/deployrt-demo.* 2>/dev/null || true"))
  end)

  it("own-strategy warms instances up", function()
    local app = fixture.app { instances = 2, yaml = "strategy: {settle: 50ms}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    assert(os.execute("cp examples/own-strategy/warm.lua " .. app.dir))
    app.opts.yaml = "strategy: {settle: 50ms, requests: 7}"
    local run = app:deploy("warm.lua", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "is warm")
    assert.same({ "2.0", "2.0" }, app:serving())
    local log = app:command({ "logs", "app.yml", "--lines", "1000" }).stdout
    local _, warmed = log:gsub("GET /%?%d 200", "")
    assert.equal(14, warmed, log)
    app:stop()
  end)

  if not hosts.possible() then
    print("examples_spec: skipped: ssh-hosts, because test hosts need root, iproute2 and sshd")
    return
  end

  it("ssh-hosts deploys to four hosts and rolls back", function()
    local run = fixture.run({ "sh", "examples/ssh-hosts/demo.sh", fixture.deployrt() }, { timeout = 60 })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "4 hosts, all reached", "deployed 2.0", "web4 | up", "rolled back: 1.0 serves again", "hello from 1.0")
    assert.equal("", fixture.sh("ls -d /tmp/deployrt-demo.* 2>/dev/null || true"))
  end)
end)
