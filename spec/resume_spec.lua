-- resume_spec.lua -- A run whose controller is killed: resumed it ends all-new, aborted all-old, wherever it died.
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

describe("a controller that is killed", function()
  local app, version

  setup(function()
    app = fixture.app { instances = 1, slots = 2, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 10ms, deadline: 4s, successes: 1}" }
    version = 1
    assert.equal(0, app:deploy("rolling", "1").exit)
  end)
  teardown(function()
    app:stop()
    fixture.cleanup()
  end)

  --- app.yml for the next version; returns it and the one that serves now.
  local function next_version()
    local before = tostring(version)
    version = version + 1
    app:write(fixture.release(tostring(version)), tostring(version))
    return tostring(version), before
  end

  --- Nothing of a run is left: one process an instance, no lock, no half release.
  local function assert_clean(serving, where)
    local status = app:status()
    assert.equal(cjson.null, status.lock, where)
    local running = {}
    for _, each in ipairs(status.instances) do
      if each.state == "serving" then running[#running + 1] = each.release end
      assert.is_true(each.state == "serving" or each.state == "idle", where .. ": " .. each.state)
    end
    assert.same({ serving }, running, where)
    local listing = fixture.sh(("ls -A %s/home/.deployrt/shop/releases | grep -c part || true"):format(app.dir))
    assert.equal("0\n", listing, where)
    return status
  end

  local function operations_of(strategy, options)
    local argv = { strategy, "app.yml" }
    for _, each in ipairs(options or {}) do argv[#argv + 1] = each end
    next_version()
    local run, count = app:mortal("count", nil, argv)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return count, argv
  end

  local strategies = {
    rolling = {}, blue_green = {}, canary = { "--set", "strategy={hold: 0, steps: [25%, 100%]}" },
    in_place = { "--set", "strategy.allow_gap=true" },
  }

  for name, options in pairs(strategies) do
    for _, ending in ipairs { "resume", "abort" } do
      it(("in %s, before and after every operation: %s"):format(name, ending), function()
        local count, argv = operations_of(name, options)
        assert.is_true(count > 10)
        local spared = 0
        local load = name ~= "in_place" and app:load { rate = 200 }
        for n = 1, count do
          for _, when in ipairs { "before", "after" } do
            local new, old = next_version()
            local where = ("%s operation %d of %d, %s"):format(when, n, count, ending)
            local killed = app:mortal(when, n, argv)
            if killed.exit == 0 then -- this run had fewer operations than the one that was counted
              spared = spared + 1
              assert_clean(new, where)
              break
            end
            assert.equal(137, killed.exit, where .. killed.stdout .. killed.stderr)
            local run = app:command { ending, "app.yml" }
            if run.exit == 2 and run.stderr:find("nothing to resume or abort", 1, true) then
              assert_clean(old, where) -- it died before it changed anything
              version = version - 1
            else
              assert.equal(0, run.exit, where .. "\n" .. killed.stdout .. run.stdout .. run.stderr)
              assert_clean(ending == "resume" and new or old, where)
              if ending == "abort" then version = version - 1 end
            end
          end
        end
        assert.is_true(spared <= 8, "most operations were tried")
        if load then assert.same({}, load:stop().errors) end
      end)
    end
  end
end)
