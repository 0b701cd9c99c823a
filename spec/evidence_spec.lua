-- evidence_spec.lua -- The statistics alone: known values, and how often they err when chance is all there is.
-- weight: 15
local evidence = require "deployrt.evidence"

local function near(wanted, value)
  assert.is_true(math.abs(wanted - value) < 5e-7, ("%.7f is not %.6f"):format(value, wanted))
end

describe("the test of ratios", function()
  it("gives the known evidence for one interval", function()
    local test = evidence.ratio()
    test:add(1000, 20, 9000, 60)
    near(5.991347, test:log_e())
  end)

  it("gives the known evidence when the split changes on the way", function()
    local test = evidence.ratio()
    test:add(600, 4, 5400, 27)
    test:add(600, 6, 5400, 25)
    test:add(1500, 12, 4500, 24)
    near(0.726816, test:log_e())
  end)

  it("gives the known evidence that the canary is not half as bad again", function()
    local test = evidence.ratio { than = 1.5, ratios = { 1 } }
    test:add(6000, 30, 54000, 270)
    near(2.473096, test:log_e())
  end)

  it("learns nothing from an interval in which one side had no requests", function()
    local test = evidence.ratio()
    test:add(0, 0, 500, 20)
    test:add(500, 40, 0, 0)
    test:add(0, 0, 0, 0)
    near(0, test:log_e())
  end)

  it("does not care how one interval is cut into several", function()
    local whole, cut = evidence.ratio(), evidence.ratio()
    whole:add(1000, 20, 9000, 60)
    for _ = 1, 10 do cut:add(100, 2, 900, 6) end
    near(whole:log_e(), cut:log_e())
  end)

  it("stays finite when the evidence is beyond what exp can hold", function()
    local test = evidence.ratio()
    test:add(1e6, 1e6, 1e6, 0)
    assert.is_true(test:log_e() > 700 and test:log_e() < math.huge)
  end)

  it("is weakened by clusters: the evidence is that of so many fewer failures", function()
    local test, third = evidence.ratio(), evidence.ratio()
    test:add(1000, 30, 9000, 90)
    third:add(1000, 10, 9000, 30)
    near(third:log_e(), test:log_e(3))
  end)
end)

describe("the test of means", function()
  it("gives the known evidence after each interval", function()
    local test = evidence.means()
    for i, value in ipairs { 0.10, 0.20, 0.15, 0.05, 0.12 } do
      test:add(value)
      near(({ 0, 0.366985, 1.104216, 1.392506, 2.256619 })[i], test:log_e())
    end
    assert.is_true(test.sum > 0)
  end)

  it("knows nothing before the first interval, and nothing from values of zero", function()
    local test = evidence.means()
    near(0, test:log_e())
    test:add(0)
    near(0, test:log_e())
  end)
end)

describe("the test of a rate", function()
  it("is the likelihood of the counts beside that at the limit", function()
    local test = evidence.rate { limit = 0.01, rates = { 0.005 } }
    test:add(600, 2)
    test:add(400, 1)
    near(3 * math.log(0.5) + 997 * math.log(0.995 / 0.99), test:log_e())
  end)

  it("bets on no failure at all until there is one", function()
    local test = evidence.rate { limit = 0.01, rates = { 0, 0.005 } }
    test:add(1000, 0)
    assert.is_true(test:log_e() > 9)
    local before = test:log_e()
    test:add(10, 1)
    assert.is_true(test:log_e() < before - 4)
    local only = evidence.rate { limit = 0.01, rates = { 0 } }
    only:add(10, 10)
    assert.equal(-math.huge, only:log_e())
  end)

  it("looks above the limit as well", function()
    local test = evidence.rate { limit = 0.02, rates = { 0.04, 0.2 } }
    test:add(1000, 60)
    assert.is_true(test:log_e() > 5)
  end)
end)

describe("dispersion", function()
  local function of(failures)
    local found = evidence.dispersion()
    for _, count in ipairs(failures) do found:add(1000, count) end
    return found:value()
  end

  it("is Pearson's statistic per degree of freedom", function()
    local p, sum = 0.015, 0
    for _, count in ipairs { 5, 25, 15 } do sum = sum + (count - 1000 * p) ^ 2 / (1000 * p * (1 - p)) end
    near(sum / 2, of { 5, 25, 15 })
  end)

  it("is never below 1, and 1 where there is nothing to tell it from", function()
    assert.equal(1, of { 10, 10, 10, 10 })
    assert.equal(1, of { 50 })
    assert.equal(1, of { 0, 0, 0 })
    assert.equal(1, of {})
    assert.equal(1, of { 1000, 1000 })
  end)
end)

describe("a histogram", function()
  it("is looked at at the edge near the 90th to 95th percentile", function()
    assert.equal(0.05, evidence.edge({ { 0.01, 500 }, { 0.05, 930 }, { 0.1, 990 } }, 1000))
    assert.equal(0.1, evidence.edge({ { 0.01, 10 }, { 0.1, 1000 } }, 1000))
    assert.is_nil(evidence.edge({ { 0.1, 0 } }, 0))
    assert.is_nil(evidence.edge({}, 5))
  end)
end)

-- What the tests promise, by simulation: 10% of the traffic, a look after every failed request.
describe("the operating figures", function()
  local function simulate(runs, ratio, most, seed)
    math.randomseed(seed)
    local chance, needed, reached = 0.1 * ratio / (0.1 * ratio + 0.9), { math.log(20), math.log(100) }, { {}, {} }
    for _ = 1, runs do
      local test, level = evidence.ratio(), 1
      for failures = 1, most do
        local canary = math.random() < chance and 1 or 0
        test:add(1, canary, 9, 1 - canary)
        while needed[level] and canary == 1 and test:log_e() >= needed[level] do
          table.insert(reached[level], failures)
          level = level + 1
        end
        if level > 2 then break end
      end
    end
    return reached[1], reached[2]
  end

  local function mean(list)
    local sum = 0
    for _, value in ipairs(list) do sum = sum + value end
    return sum / #list
  end

  it("are those published: false alarms by 1,000 failures, at alpha 0.05 and 0.01", function()
    local first, second = simulate(2000, 1, 1000, 42)
    assert.is_true(math.abs(#first / 2000 - 0.0336) < 0.012, "at 0.05: " .. #first / 2000)
    assert.is_true(math.abs(#second / 2000 - 0.0058) < 0.0052, "at 0.01: " .. #second / 2000)
  end)

  it("are those published: failures until twice the rate is noticed", function()
    local first, second = simulate(1500, 2, 5000, 42)
    assert.equal(1500, #second)
    assert.is_true(math.abs(mean(first) - 124) < 10, "at 0.05: " .. mean(first))
    assert.is_true(math.abs(mean(second) - 184) < 12, "at 0.01: " .. mean(second))
  end)
end)
