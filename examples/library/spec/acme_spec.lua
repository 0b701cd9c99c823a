-- acme_spec.lua -- What the library promises, in simulated worlds: `busted` in this folder, with deployrt's Lua on LUA_PATH.
local core = require "deployrt.core"
local sim = require "deployrt.sim"

local function inside(fn)
  local ok, result = core.run(fn)
  if not ok then error(result, 0) end
  return result
end

for _, name in ipairs { "acme/waves.lua", "acme/two_keys.lua" } do
  describe(name, function()
    it("keeps every promise of the runtime, whatever fails", function()
      local summary = inside(function() return sim.test(name, { seeds = 20 }) end)
      assert.is_nil(summary.violation, summary.violation and sim.report.violation(summary.violation, ""))
    end)
  end)
end

describe("waves", function()
  it("replaces one instance, looks, and goes on with twice as many", function()
    local result = inside(function() return sim.play("acme/waves.lua", 1, { fault = "none", fleet = 7, options = { batch = "60%" } }) end)
    local waves = {}
    for _, event in ipairs(result.events) do
      waves[#waves + 1] = event.kind == "step" and event.text:match("^wave.*") or nil
    end
    assert.same({ "wave 1: 1", "wave 2: 2", "wave 3: 4" }, waves)
  end)
end)
