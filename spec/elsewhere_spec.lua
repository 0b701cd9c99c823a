-- elsewhere_spec.lua -- Traffic that goes where app.yml names nothing is told, whoever sends it there.
-- weight: 8
local fixture = require "spec.support.fixture"

local function contains(text, ...)
  for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), ("expected %q in:\n%s"):format(part, text)) end
end

describe("a server of the user's beside the slots", function()
  local app, port

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    port = fixture.free_port()
    local dir = fixture.dir()
    fixture.write(dir .. "/index.html", "somebody else\n")
    fixture.start { "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, tostring(port) }
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "the other service")
  end)

  after_each(function()
    fixture.cleanup()
    assert.same({}, fixture.leftovers())
  end)

  --- The run, the looks and the stop tell of it; it is left alone by all of them.
  local function is_told(words, share)
    local run = app:deploy("rolling", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "warning   " .. words, "other hosts " .. (share:gsub("%.0", "")))
    contains(app:command({ "plan", "rolling", "app.yml" }).stdout, words)
    contains(app:command({ "check", "app.yml", "--connect" }).stdout, "warning: " .. words)
    local status = app:command { "status", "app.yml" }
    contains(status.stdout, ("%s: %s"):format(words, share))
    assert.equal(0, status.exit, status.stderr)
    local said = app:status()
    assert.near(1, said.instances[1].share + said.elsewhere[1].share, 0.001)
    assert.is_false(said.elsewhere[1].left)
    run = app:command { "stop", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stdout, "warning   " .. words, "nothing of shop runs on its hosts any more")
    assert.same({}, app:leftovers())
    return said.elsewhere[1]
  end

  local function answers()
    local found = {}
    for _ = 1, 10 do found[fixture.sh(("curl -s http://127.0.0.1:%d/"):format(app.listen))] = true end
    return found
  end

  it("of HAProxy", function()
    local proxy = fixture.haproxy { servers = { ("s3 127.0.0.1:%d weight 100"):format(port), ("spare 127.0.0.1:%d backup"):format(port), "off 127.0.0.1:9 disabled" } }
    app.listen, app.opts.balancer = proxy.port, ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket)
    local told = is_told(("backend 'shop' also sends traffic to s3 (127.0.0.1:%d), which app.yml does not name"):format(port), "50.0%")
    assert.same({ "s3", "127.0.0.1:" .. port }, { told.server, told.address })
    assert.same({ ["somebody else\n"] = true }, answers())
  end)
end)
