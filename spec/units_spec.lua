local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"
local units = require "deployrt.units"

local function refusal(convert, value)
  local result, message = convert(value)
  assert.is_nil(result)
  return message
end

describe("a duration", function()
  it("is given in seconds", function()
    local cases = { ["500ms"] = 0.5, ["30s"] = 30, ["5m"] = 300, ["1h"] = 3600, ["1.5s"] = 1.5, ["0s"] = 0, [0] = 0 }
    for text, seconds in pairs(cases) do assert.equal(seconds, units.duration(text)) end
  end)

  it("needs a unit, and the refusal says how to write it", function()
    assert.equal('expected a duration with its unit, such as "30s", got 30', refusal(units.duration, 30))
    assert.equal('expected a duration with its unit, such as "30s", got 30', refusal(units.duration, "30"))
  end)

  it("is nothing else", function()
    for _, value in ipairs { "", "s", "-5s", "5 s", "5d", "5sec", "1e3s", -1, true, {}, ("9"):rep(400) .. "h" } do
      assert.matches("^expected a duration such as", refusal(units.duration, value))
    end
  end)
end)

describe("an amount", function()
  it("is a count or a share", function()
    assert.same({ count = 2 }, units.amount(2))
    assert.same({ count = 2 }, units.amount("2"))
    assert.same({ percent = 25 }, units.amount("25%"))
    assert.same({ percent = 12.5 }, units.amount("12.5%"))
  end)

  it("is neither nothing, nor negative, nor more than all", function()
    for _, value in ipairs { 0, -1, 1.5, "0%", "101%", "25", "x", "%", true, {} } do
      if value ~= "25" then assert.matches("^expected an amount such as 2 or 25%%", refusal(units.amount, value)) end
    end
  end)

  it("may be none where that is allowed", function()
    for _, value in ipairs { 0, "0", "0%" } do assert.same({ count = 0 }, units.amount(value, true)) end
    assert.same({ count = 2 }, units.amount(2, true))
    assert.is_nil((units.amount(-1, true)))
    assert.equal(0, units.resolve_amount({ count = 0 }, 5))
  end)

  it("of a total is rounded down, at least 1 and at most all", function()
    assert.equal(2, units.resolve_amount({ percent = 25 }, 11))
    assert.equal(1, units.resolve_amount({ percent = 25 }, 3))
    assert.equal(4, units.resolve_amount({ percent = 100 }, 4))
    assert.equal(2, units.resolve_amount({ count = 2 }, 9))
    assert.equal(3, units.resolve_amount({ count = 5 }, 3))
    assert.equal(1, units.resolve_amount({ count = 5 }, 0))
  end)
end)

describe("a percentage", function()
  it("is a number from 0 to 100", function()
    assert.equal(5, units.percent("5%"))
    assert.equal(0, units.percent(0))
    assert.equal(100, units.percent("100%"))
    for _, value in ipairs { "5", 101, -1, "101%", true, {}, 0 / 0 } do
      assert.matches("^expected a percentage such as 5%%", refusal(units.percent, value))
    end
  end)
end)

describe("for people", function()
  it("seconds stay short", function()
    local cases = { [0] = "0.00s", [0.52] = "0.52s", [0.999] = "1.0s", [12.34] = "12.3s", [59.99] = "1m00s", [185] = "3m05s",
      [3599.7] = "1h00m", [7620] = "2h07m" }
    for seconds, text in pairs(cases) do assert.equal(text, units.format_duration(seconds)) end
  end)

  it("bytes get a unit", function()
    local cases = { [0] = "0 B", [1023] = "1023 B", [1536] = "1.5 KiB", [20 << 20] = "20.0 MiB", [(1 << 20) - 1] = "1.0 MiB",
      [3 << 30] = "3.0 GiB", [5000 << 40] = "5000.0 TiB" }
    for bytes, text in pairs(cases) do assert.equal(text, units.format_bytes(bytes)) end
  end)
end)

describe("one error for several", function()
  it("names the hosts of each message, unless it does so itself", function()
    local list = {}
    for i, case in ipairs { { "denied", "web1" }, { "denied", "web2" }, { "web3:80 is stuck", "web3" }, { "denied", "web1" }, { "why" } } do
      list[i] = errors.new("exit", case[1], { host = case[2] })
    end
    assert.equal("web1, web2: denied\nweb3:80 is stuck\nwhy", errors.text(errors.several(list)))
  end)
end)

describe("did you mean", function()
  local words = { "health", "hosts", "hooks", "process", "app" }

  it("finds what is a slip away: a letter missing, wrong, too many, or two swapped", function()
    assert.equal("health", suggest.closest("heath", words))
    assert.equal("health", suggest.closest("healht", words))
    assert.equal("process", suggest.closest("proccess", words))
    assert.equal("hosts", suggest.closest("host", words))
    assert.equal("app", suggest.closest("apo", words))
    assert.equal("health", suggest.closest("HEALTH", words))
  end)

  it("is silent about words that are further away", function()
    assert.is_nil(suggest.closest("timeout", words))
    assert.is_nil(suggest.closest("x", { "y" }))
    assert.is_nil(suggest.closest("", words))
    assert.is_nil(suggest.closest("anything", {}))
    assert.is_nil(suggest.closest(("health"):rep(1000), words))
    assert.equal("", suggest.hint("timeout", words))
    assert.equal(" (did you mean 'health'?)", suggest.hint("heath", words))
  end)
end)
