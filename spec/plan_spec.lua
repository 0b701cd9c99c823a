-- plan_spec.lua -- A plan says what a run would do, and does nothing.
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("a plan", function()
  local app

  before_each(function()
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 200ms, batch: 1}\nhooks: {before: 'touch hook-ran'}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    os.remove(app.dir .. "/hook-ran")
    app:write(fixture.release("2.0"), "2.0")
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Everything that a run could change: files of the host, of the controller, and the balancer.
  local function fingerprint()
    local instances = {}
    for i, each in ipairs(app:status().instances) do instances[i] = { each.port, each.pid, each.release, each.state, each.weight } end
    return { instances, fixture.sh(("find %s -type f -o -type l | grep -v '/logs/' | sort | xargs sha256sum 2>/dev/null"):format(app.dir)) }
  end

  --- The effects of a command with --json: {operation, instance or host}.
  local function effects_of(argv)
    local list = {}
    argv[#argv + 1] = "--json"
    local run = app:command(argv)
    assert.equal(0, run.exit, run.stderr)
    for line in run.stdout:gmatch("[^\n]+") do
      local event = cjson.decode(line)
      if event.event == "op" and event.effect then list[#list + 1] = event.op .. " " .. (event.instance or event.host or "") end
    end
    return list
  end

  for _, strategy in ipairs { "rolling", "blue_green", "in_place", "canary" } do
    it("of " .. strategy .. " changes nothing anywhere, and names the very operations that the run then does", function()
      local argv = { strategy, "app.yml" }
      app.opts.yaml = strategy == "canary" and "strategy: {hold: 200ms, steps: [50%, 100%]}"
        or strategy == "blue_green" and "strategy: {settle: 200ms}" or "strategy: {settle: 200ms, batch: 1}"
      app:write(fixture.release("2.0"), "2.0")
      local before = fingerprint()
      local planned = effects_of { "plan", table.unpack(argv) }
      assert.same(before, fingerprint())
      assert.is_nil(fixture.read(app.dir .. "/hook-ran"))
      local done = effects_of(argv)
      table.sort(planned)
      table.sort(done)
      assert.same(done, planned)
    end)
  end

  it("shows steps, shares, the time it takes, and what a failure would undo", function()
    local run = app:command { "plan", "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stderr)
    for _, part in ipairs { "rolling of shop from 1.0 to 2.0", "batch 2 of 2", "= 1.0 50%, 2.0 50%", "a failure up to here undoes: ", "start again",
      "remove", "hook", "nothing was changed" } do
      assert.truthy(run.stdout:find(part, 1, true), part .. " in:\n" .. run.stdout)
    end
    assert.is_true(tonumber(run.stdout:match("at least ([%d.]+)s of waiting")) >= 0.4)
    assert.truthy(app:command({ "plan", "rolling", "app.yml", "--release", "1.0" }).exit == 2)
    assert.equal(2, app:command({ "plan", "in_place", "app.yml", "--set", "strategy.batchh=1" }).exit)
  end)
end)
