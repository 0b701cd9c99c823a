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

  it("come as near as they can with a given sum", function()
    each_combination(function(thousandths, new_count, old_count)
      local given = 100 * math.min(new_count, old_count)
      local new, old = shares.weights(thousandths / 10, new_count, old_count, 256, given)
      assert.equal(given, sum(new) + sum(old))
      local ideal = given * thousandths / 1000
      assert.is_true(math.abs(sum(new) - math.max(1, ideal)) <= 0.5 or thousandths == 1000, ("%d: %d of %d"):format(thousandths, sum(new), given))
    end)
    for _, case in ipairs { { 50, 1, 20, 2000 }, { 50, 1, 4, 1024 }, { 90, 1, 4, 400 }, { 75, 1, 4, 400 }, { 10, 9, 1, 900 } } do -- more than one side can weigh
      local _, _, reached = shares.weights(case[1], case[2], case[3], 256, case[4])
      assert.near(case[1], reached, 0.2)
    end
    assert.same({ { 50, 50 }, { 0 }, 100 }, { shares.weights(100, 2, 1, 256, 100) })
    assert.same({ { 0 }, { 100 }, 0 }, { shares.weights(0, 1, 1, 256, 100) })
  end)

  it("leave everything to the side that has instances", function()
    local new, old, reached = shares.weights(25, 0, 2)
    assert.same({ {}, { 256, 256 }, 0 }, { new, old, reached })
    new, old, reached = shares.weights(25, 2, 0)
    assert.same({ { 256, 256 }, {}, 100 }, { new, old, reached })
    assert.same({ {}, {}, 0 }, { shares.weights(25, 0, 0) })
  end)
end)

describe("what an instance weighs", function()
  local weights = require "deployrt.balancer.weights"

  --- By slots as "own1=100 own2=1- other1=5": what begins with "own" is the run's, and a minus behind it is down. As many as are
  --- its own are wanted, unless `wanted` says otherwise.
  local function all_of(text, opts)
    local _, own = text:gsub("own", "")
    local balancer = { slots = {}, others = {} }
    for key, value in pairs(opts or {}) do balancer[key] = value end
    for name, weight, mark in text:gmatch("(%w+)=(%d+)(%-?)") do
      balancer.slots[name] = { state = "ready", weight = math.tointeger(weight), up = mark == "" }
    end
    return weights.of(balancer, function(name) return not name:find "^own" end, balancer.wanted or own, 256)
  end

  local function of(text, opts)
    local found = all_of(text, opts)
    return { found.full, found.most }
  end

  it("is what those weigh that serve", function()
    assert.same({ 1 }, of "own1=1 own2=1 own3=7")
    assert.same({ 7 }, of "own1=1 own2=7")
    assert.same({ 100 }, of "own1=0")
    assert.same({ 100 }, of("own1=1 own2=1", { differ = "the second is not as the first" }))
    assert.same({ 100 }, of "own1=1-")
  end)

  it("is what the others weigh where it is the first", function()
    assert.same({ 5 }, of "else1=5")
    assert.same({ 5 }, of("", { others = { { weight = 5 } } }))
    assert.same({ 5 }, of("", { others = { { weight = 5 } }, several = true }))
    assert.same({ 100 }, of("", { others = { { weight = 5, differs = true } }, several = true }))
    assert.same({ 100 }, of("", { others = { { weight = 5 }, { weight = 6 } }, several = true }))
  end)

  it("leaves the others their part, where all together weigh enough for that", function()
    assert.same({ 100, 200 }, of "own1=100 own2=100 else1=100")
    assert.same({ 100, 100 }, of "own1=100 own2=100- else1=100")
    assert.same({ 1 }, of "own1=1 own2=1 else1=1")
  end)

  it("is raised for a share, and that of the hosts that are left out with it, where all together weigh too little", function()
    assert.same({ times = 50, full = 50, most = 100 }, all_of("own1=1 own2=1 else1=1 else2=3").raised)
    assert.same({ times = 34, full = 68, most = 102 }, all_of("own1=1 own2=2 else1=1").raised)
    for _, text in ipairs { "own1=1", "own1=100 else1=1", "own1=1 else1=3", "own1=1- else1=1" } do assert.is_nil(all_of(text).raised, text) end
    local other = { name = "other", weight = 1 }
    local found = all_of("own1=1 own2=1 else1=1", { others = { other } })
    assert.same({ nil, other }, { found.raised, found.dwarfed })
    assert.is_nil(all_of("own1=100", { others = { other } }).dwarfed)
  end)

  it("is what it was before a run that was killed between two releases", function()
    assert.same({ 100, 400 }, of("own1=25 own2=25 own3=25 own4=25 own5=100 own6=100 own7=100", { wanted = 4, others = { { weight = 100 } } }))
    assert.same({ 100, 100 }, of("own1=50 own2=50 else1=100 else2=100", { wanted = 1 }))
    assert.same({ 100, 500 }, of("own1=100 own2=100 own3=100 own4=100 own5=100 else1=100", { wanted = 4 }))
  end)
end)
