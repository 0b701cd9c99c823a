-- maintenance_spec.lua -- While nothing serves, a managed HAProxy shows the page that app.yml names.
local fixture = require "spec.support.fixture"

describe("a maintenance page", function()
  local app, page

  before_each(function()
    app = fixture.app { instances = 1, slots = 1, yaml = "strategy: {settle: 0, allow_gap: true}" }
    app.opts.balancer = ('{type: haproxy, managed: true, listen: "127.0.0.1:%d", maintenance: page.html, drain: {timeout: 5s}}'):format(app.listen)
    page = app.dir .. "/page.html"
    fixture.write(page, "<h1>It's back soon</h1>\n")
    app:write(fixture.release("1.0"), "1.0")
  end)
  after_each(function()
    app:stop()
    assert.same({}, app:leftovers())
    fixture.cleanup()
  end)

  local function answer()
    return fixture.sh(("curl -si http://127.0.0.1:%d/"):format(app.listen))
  end

  local function shows(text)
    fixture.eventually(function()
      local found = answer()
      return found:find("^HTTP/1.1 503") and found:find(text, 1, true) and found:find("retry%-after: 10") and found:find("text/html", 1, true)
    end, 10, "the page")
  end

  it("is shown while nothing serves, and no longer; another one takes its place with the next run", function()
    assert.equal(0, app:deploy("in_place", "1.0").exit)
    assert.truthy(answer():find("hello from 1.0", 1, true))
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    shows "<h1>It's back soon</h1>"
    fixture.write(page, "<h1>A new page</h1>\n")
    local run = app:deploy("in_place", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.truthy(answer():find("hello from 2.0", 1, true))
    fixture.signal(math.tointeger(app:status().instances[1].pid), "KILL")
    shows "<h1>A new page</h1>"
  end)

  it("that is no file is an error before anything is done, with its place; one's own HAProxy has another key for it", function()
    os.remove(page)
    local run = app:command { "in_place", "app.yml" }
    assert.equal(2, run.exit)
    assert.matches("^deployrt: app.yml:%d+:%d+: balancer.maintenance: ", run.stderr)
    fixture.contains(run.stderr, app.dir .. "/page.html: it cannot be read as a file")
    for _, words in ipairs { { "in_place", "app.yml" }, { "check", "app.yml", "--connect" }, { "plan", "in_place", "app.yml" } } do
      run = app:command { "--set", "balancer.maintenance=/etc", table.unpack(words) }
      assert.equal(2, run.exit)
      fixture.contains(run.stderr, "--set: balancer.maintenance: /etc: it cannot be read as a file")
    end
    fixture.write(page, "x")
    run = app:command { "check", "app.yml", "--set", "balancer={type: haproxy, socket: /x, backend: shop, maintenance: page.html}" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("maintenance is for `managed: true`", 1, true), run.stderr)
  end)
end)
