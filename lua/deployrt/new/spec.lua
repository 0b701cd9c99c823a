--- NAME_spec.lua -- NAME on simulated fleets, with faults. Run it in the directory that has strategies/: busted spec/NAME_spec.lua
--- (.busted says where deployrt's modules are; without it: busted --lua=lua5.4 --lpath=LPATH --cpath=CPATH spec/NAME_spec.lua)
local sim = require "deployrt.sim"

describe("NAME", function()
  -- Capacity, no traffic to what is not ready, all new or all old at the end, and the like: `deployrt test` does the same.
  it("keeps what every strategy promises, whatever happens", function()
    sim.check("NAME", { seeds = 30 })
  end)

  it("goes back when the new release does not start", function()
    local result = sim.play("NAME", 1, { fault = "failing-start" }) -- one seed; `deployrt help test` has more
    assert.equal("rolled_back", result.outcome)
  end)

  -- What yours promises besides: it is looked at after each change, and what it returns beside false is shown.
  it("starts one instance at a time where batch is 1, as long as all goes well", function()
    sim.check("NAME", { seeds = 20, fault = "none", options = { batch = 1 }, invariants = {
      ["one instance starts at a time"] = function(view)
        local waiting = 0
        for _, each in ipairs(view.instances) do
          if each.new and each.weight == 0 then waiting = waiting + 1 end
        end
        return waiting <= 1, waiting .. " new instances have no traffic yet"
      end,
    } })
  end)
end)
