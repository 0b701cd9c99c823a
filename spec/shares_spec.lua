local shares = require "deployrt.balancer.shares"

local function sum(list)
  local total = 0
  for _, weight in ipairs(list) do total = total + weight end
  return total
end

local function range(list)
  return math.min(table.unpack(list)), math.max(table.unpack(list))
end

--- Each combination that a canary may meet, by percents given in thousandths.
local function each_combination(visit)
  for _, thousandths in ipairs { 1, 5, 10, 50, 100, 250, 330, 500, 750, 990, 1000 } do
    for new_count = 1, 20 do
      for old_count = 1, 20 do visit(thousandths, new_count, old_count) end
    end
  end
end

--- Whether any totals within the limits give the share exactly, found by trying all of them.
local function exact_exists(thousandths, new_count, old_count, max)
  for old = 1, max * old_count do
    local new, rest = old * thousandths // (1000 - thousandths), old * thousandths % (1000 - thousandths)
    if rest == 0 and new >= 1 and new <= max * new_count then return true end
  end
  return false
end

describe("shares of traffic", function()
  it("are exact whenever integer weights allow it", function()
    each_combination(function(thousandths, new_count, old_count)
      if thousandths == 1000 or not exact_exists(thousandths, new_count, old_count, 256) then return end
      local new, old = shares.weights(thousandths / 10, new_count, old_count)
      assert.equal(thousandths * (sum(new) + sum(old)), 1000 * sum(new))
    end)
  end)

  it("are the nearest ones when none is exact", function()
    for new_count = 1, 4 do
      for old_count = 1, 4 do
        local _, _, reached = shares.weights(0.1, new_count, old_count)
        local least = math.huge
        for old = 1, 256 * old_count do
          for new = 1, 8 do least = math.min(least, math.abs(100 * new / (new + old) - 0.1)) end
        end
        assert.near(least, math.abs(reached - 0.1), 1e-9)
      end
    end
  end)

  it("stay between 0 and the limit, with a weight for each instance", function()
    each_combination(function(thousandths, new_count, old_count)
      for _, max in ipairs { 256, 100 } do
        local new, old = shares.weights(thousandths / 10, new_count, old_count, max)
        assert.same({ new_count, old_count }, { #new, #old })
        for _, list in ipairs { new, old } do
          local low, high = range(list)
          assert.is_true(low >= 0 and high <= max)
          assert.equal("integer", math.type(low + high))
        end
      end
    end)
  end)

  it("are spread evenly within each side", function()
    each_combination(function(thousandths, new_count, old_count)
      local new, old = shares.weights(thousandths / 10, new_count, old_count)
      for _, list in ipairs { new, old } do
        local low, high = range(list)
        assert.is_true(high - low <= 1)
      end
    end)
    local new, old = shares.weights(100 / 3, 2, 4, 86)
    assert.same({ { 86, 86 }, { 86, 86, 86, 86 } }, { new, old })
  end)

  it("are the same for all instances when the limit leaves room for that", function()
    local new, old, reached = shares.weights(25, 2, 3)
    assert.same({ { 128, 128 }, { 256, 256, 256 }, 25 }, { new, old, reached })
    new, old, reached = shares.weights(1, 1, 1)
    assert.same({ { 2 }, { 198 }, 1 }, { new, old, reached })
  end)

  it("give one side everything at 0 and at 100 percent", function()
    local new, old, reached = shares.weights(0, 2, 3)
    assert.same({ { 0, 0 }, { 256, 256, 256 }, 0 }, { new, old, reached })
    new, old, reached = shares.weights(100, 2, 3)
    assert.same({ { 256, 256 }, { 0, 0, 0 }, 100 }, { new, old, reached })
  end)

  it("never starve a release that was given a share, however small", function()
    local new, old = shares.weights(0.0001, 1, 1)
    assert.same({ { 1 }, { 256 } }, { new, old })
    new, old = shares.weights(99.9999, 1, 1)
    assert.same({ { 256 }, { 1 } }, { new, old })
  end)

  it("leave everything to the side that has instances", function()
    local new, old, reached = shares.weights(25, 0, 2)
    assert.same({ {}, { 256, 256 }, 0 }, { new, old, reached })
    new, old, reached = shares.weights(25, 2, 0)
    assert.same({ { 256, 256 }, {}, 100 }, { new, old, reached })
    assert.same({ {}, {}, 0 }, { shares.weights(25, 0, 0) })
  end)
end)
