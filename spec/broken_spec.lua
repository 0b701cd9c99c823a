-- broken_spec.lua -- An old release that is broken never stands in the way of its fix, whatever the strategy.
-- weight: 14
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

local options = {
  rolling = "{settle: 50ms}", in_place = "{settle: 50ms}", blue_green = "{settle: 50ms}", canary = "{hold: 200ms, latency: 1000, steps: [50%, 100%]}",
  canary_blue_green = "{hold: 200ms, latency: 1000, steps: [50%], settle: 50ms}",
}

describe("an old release", function()
  local app, sick

  local function status_of(field)
    local list = {}
    for _, each in ipairs(app:status().instances) do
      if each[field] ~= cjson.null then list[#list + 1] = each[field] end
    end
    return list
  end

  before_each(function()
    sick = fixture.dir() .. "/outage"
    app = fixture.app { instances = 2, yaml = "strategy: {settle: 50ms}", health = "{http: /healthz, interval: 20ms, timeout: 1s, deadline: 4s, successes: 1}" }
    assert.equal(0, app:deploy("rolling", "1.0", { conf = "outage=" .. sick }).exit)
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  for name, yaml in pairs(options) do
    for state, break_it in pairs {
      ["crashed"] = function()
        for _, pid in ipairs(status_of "pid") do fixture.signal(pid, "KILL") end
      end,
      ["is half dead"] = function() fixture.signal(status_of("pid")[1], "KILL") end,
      ["fails every request"] = function() fixture.write(sick, "") end,
      ["hangs"] = function()
        for _, pid in ipairs(status_of "pid") do fixture.signal(pid, "STOP") end
      end,
    } do
      it(("that %s does not block its fix by %s"):format(state, name), function()
        app.opts.yaml = "strategy: " .. yaml
        app.opts.process = "  stop: {timeout: 300ms}"
        break_it()
        local run = app:deploy(name, "2.0")
        assert.equal(0, run.exit, run.stdout .. run.stderr)
        assert.same({ "2.0", "2.0" }, app:serving())
        assert.equal(cjson.null, app:status().lock)
      end)
    end
  end
end)
