local progress = require "deployrt.progress"
local screen = require "spec.support.screen"

local epoch = 1767355384.123

-- A live view on a screen; the clock stands still unless the spec moves `now`.
local function open(options)
  local self = { now = 0, screen = screen.new(options.columns or 80, options.rows or 24, options.row) }
  local settings = {
    mode = "live",
    write = function(data) self.screen:write(data) end,
    write_error = function() error("the live view does not write to standard error") end,
    now = function() return self.now end, clock = function() return epoch + self.now end,
    size = function() return self.screen.columns, self.screen.rows end,
  }
  for key, value in pairs(options) do settings[key] = value end
  self.view = progress.open(settings)
  function self.emit(_, event) self.view:emit(event) end
  -- Bytes that a tick writes.
  function self.tick()
    local before = self.screen.bytes
    self.view:tick()
    return self.screen.bytes - before
  end
  return self
end

local function start(live, fields)
  local event = {
    event = "run.started", run = "r1", app = "shop", strategy = "rolling", release = "2.0", previous = "1.0",
    hosts = 4, instances = 4,
  }
  for key, value in pairs(fields or {}) do event[key] = value end
  live:emit(event)
end

local function fleet(hosts, slots)
  local list = {}
  for host = 1, hosts do
    for slot = 1, slots do
      list[#list + 1] = { host = "web" .. host, port = 8079 + slot, release = "1.0", state = "serving", weight = 100, share = 1 / (hosts * slots) }
    end
  end
  return list
end

local function traffic(old, new)
  return {
    event = "traffic", share = { ["1.0"] = old, ["2.0"] = new },
    requests = { ["1.0"] = 10 * old, ["2.0"] = 10 * new }, errors = { ["1.0"] = 0, ["2.0"] = new / 10 },
  }
end

local function count(value, piece)
  local _, times = value:gsub(piece, "")
  return times
end

describe("the live view", function()
  it("shows four instances, the shares of traffic and what happened, on 80x24", function()
    local live, instances = open {}, fleet(4, 1)
    start(live)
    instances[1].release = "2.0"
    instances[2].state, instances[2].weight = "draining", 0
    instances[1].share, instances[4].share = 0.5, 0.5
    instances[3].state, instances[3].release = "down", nil
    live.now = 12.4
    live:emit { event = "step.started", step = "batch 2 of 4", path = "/2" }
    live:emit { event = "state", instances = instances }
    live:emit(traffic(75, 25))
    live:emit { event = "op", op = "instance.start", instance = "web1:8080", release = "2.0", ok = true, seconds = 0.52,
      effect = true }
    live:tick()
    assert.equal([[
shop  rolling  1.0 → 2.0                                                   0:12
batch 2 of 4                                                   1 of 4 serve 2.0

 ● web1:8080  2.0  serving   ██████████████████████████████  50%
 ◐ web2:8080  1.0  draining
 · web3:8080       down
 ○ web4:8080  1.0  serving   ██████████████████████████████  50%

 1.0  ███████████████████████░░░░░░░  75%    750 requests/s     0 errors/s
 2.0  ████████░░░░░░░░░░░░░░░░░░░░░░  25%    250 requests/s   2.5 errors/s

 12:03:16  == batch 2 of 4
 12:03:16  traffic   1.0 75%, 2.0 25%  1000 requests/s  2.5 errors/s
 12:03:16  start     web1:8080  2.0  0.52s]], live.screen:text())
    assert.is_false(live.screen.cursor)
  end)

  it("shows weights as bars, and what each gets of all the traffic", function()
    local live, instances = open {}, fleet(2, 1)
    start(live)
    instances[1].release, instances[1].weight, instances[2].weight = "2.0", 5, 95
    instances[1].share, instances[2].share = 0.03, 0.48
    live:emit { event = "state", instances = instances }
    live:tick()
    local lines = live.screen:lines()
    assert.truthy(lines[4]:find("serving   ██░", 1, true) and lines[4]:find(" 3%%$"))
    assert.truthy(lines[5]:find(("█"):rep(30) .. "  48%", 1, true))
  end)

  it("shows 200 instances on 100 hosts as a grid, on 80x24", function()
    local live, instances = open {}, fleet(100, 2)
    start(live, { hosts = 100, instances = 200 })
    for i = 1, 50 do instances[i].release = "2.0" end
    for i = 51, 75 do instances[i].state = "stopping" end
    live:emit { event = "state", instances = instances }
    live:emit(traffic(75, 25))
    live:tick()
    local lines = live.screen:lines()
    assert.truthy(lines[2]:find("50 of 200 serve 2.0", 1, true))
    assert.equal(" ● 50 serving 2.0   ○ 125 serving 1.0   ↓ 25 stopping", lines[4])
    assert.truthy(lines[5]:find("^ web1   ●● ●● "))
    local grid = table.concat(lines, "", 5, 9)
    assert.same({ 50, 125, 25 }, { count(grid, "●"), count(grid, "○"), count(grid, "↓") })
  end)

  it("names each host where there is room", function()
    local live = open { columns = 100, rows = 50 }
    start(live)
    live:emit { event = "state", instances = fleet(100, 2) }
    live:tick()
    local all = live.screen:text()
    for host = 1, 100 do assert.truthy(all:find(("web%d *○○"):format(host))) end
  end)

  it("says how many instances it cannot show", function()
    local live = open { columns = 60, rows = 12 }
    start(live)
    live:emit { event = "state", instances = fleet(1500, 1) }
    live:tick()
    local all = live.screen:text()
    local shown = count(all, "○") - 1
    assert.equal(1500 - shown, tonumber(all:match("and (%d+) more")))
  end)

  it("never scrolls, wraps or leaves the screen, whatever its size", function()
    for _, columns in ipairs { 1, 7, 20, 40, 80, 200 } do
      for _, rows in ipairs { 1, 2, 5, 10, 15, 24, 60 } do
        for _, hosts in ipairs { 0, 1, 4, 30, 200 } do
          local live = open { columns = columns, rows = rows }
          start(live, { app = "a shop with a long name", previous = ("9"):rep(30), instances = hosts * 2 })
          live:emit { event = "state", instances = fleet(hosts, 2) }
          live:emit(traffic(50, 50))
          live:emit { event = "waiting", reason = ("nobody knows "):rep(20) }
          for i = 1, 12 do live:emit { event = "log", message = ("日本語 message %d\nand more "):format(i):rep(10) } end
          live:emit { event = "rollback.started", reason = ("x"):rep(300) }
          live:tick()
          local at = ("%dx%d, %d hosts"):format(columns, rows, hosts)
          assert.equal(0, live.screen.scrolled, at)
          assert.equal(0, live.screen.wrapped, at)
          assert.is_true(#live.screen:lines() < rows, at)
        end
      end
    end
  end)

  it("keeps its first line on the screen when it begins at the bottom", function()
    local live = open { row = 24 }
    start(live)
    live:emit { event = "state", instances = fleet(200, 1) }
    for i = 1, 30 do
      live.now = i
      live:emit { event = "log", message = "line " .. i }
      live:tick()
    end
    local all = live.screen:text()
    assert.equal(1, count(all, "shop  rolling"))
    assert.truthy(all:find("line 30", 1, true))
    assert.is_true(live.screen.scrolled < 24)
  end)

  it("writes nothing when nothing has changed, and only the lines that have", function()
    local live, instances = open { color = true }, fleet(4, 1)
    start(live)
    live:emit { event = "state", instances = instances }
    local whole = live:tick()
    assert.equal(0, live:tick())
    live:emit { event = "state", instances = instances }
    assert.equal(0, live:tick())
    live.now = 1.01
    local clock = live:tick()
    assert.is_true(clock > 0 and clock < 170, clock)
    instances[3].state = "draining"
    live:emit { event = "state", instances = instances }
    -- The row itself, and the bars of the others' percentages.
    local changed = live:tick()
    assert.is_true(changed < whole, changed)
    instances[3].release = "1.1"
    live:emit { event = "state", instances = instances }
    assert.is_true(live:tick() < 120)
  end)

  it("writes one line of 200 instances when one of them changes", function()
    local live, instances = open { color = true }, fleet(100, 2)
    start(live)
    live:emit { event = "state", instances = instances }
    local whole = live:tick()
    instances[120].state = "starting"
    live:emit { event = "state", instances = instances }
    local changed = live:tick()
    assert.is_true(changed < 600 and changed < whole / 2, ("%d of %d bytes"):format(changed, whole))
    assert.equal(2, live.screen.writes)
  end)

  it("begins again on a clean screen when the window changes its size", function()
    local live = open {}
    start(live)
    live:emit { event = "state", instances = fleet(20, 1) }
    live:tick()
    for _, size in ipairs { { 40, 10 }, { 120, 50 }, { 80, 24 }, { 79, 24 }, { 80, 12 } } do
      live.screen:resize(size[1], size[2])
      live:tick()
      local fresh = open { columns = size[1], rows = size[2] }
      start(fresh)
      fresh:emit { event = "state", instances = fleet(20, 1) }
      fresh:tick()
      assert.equal(fresh.screen:text(), live.screen:text())
      assert.equal(0, live:tick())
    end
  end)

  it("writes changed rows only, and shows the same after many small changes as after one drawing", function()
    local seed = 7
    local function random(n)
      seed = (seed * 1103515245 + 12345) % 2147483648
      return seed // 65536 % n + 1
    end
    local states = { "serving", "draining", "idle", "starting", "stopping", "down" }
    local live, instances, events = open { columns = 70, rows = 20 }, fleet(12, 1), {}
    local function both(event)
      events[#events + 1] = event
      live:emit(event)
    end
    start(live)
    for round = 1, 200 do
      local shown = {}
      for i = 1, random(12) do shown[i] = instances[i] end
      local one = instances[random(12)]
      one.state, one.release = states[random(6)], random(2) .. ".0"
      if random(4) == 1 then both { event = "log", message = "round " .. round .. ("\nmore"):rep(random(3) - 1) } end
      if random(9) == 1 then both(traffic(random(99), random(99))) end
      if random(9) == 1 then both { event = "waiting", reason = "for " .. random(99) } end
      local snapshot = { event = "state", instances = shown }
      live:emit(snapshot)
      local before = live.screen:lines()
      live.screen.touched = {}
      live:tick()
      local after = live.screen:lines()
      for row in pairs(live.screen.touched) do
        assert.are_not.equal(before[row], after[row], "written again, unchanged")
      end
      local fresh = open { columns = 70, rows = 20 }
      start(fresh)
      for _, event in ipairs(events) do fresh:emit(event) end
      fresh:emit(snapshot)
      fresh:tick()
      assert.equal(fresh.screen:text(), live.screen:text(), "round " .. round)
    end
  end)

  it("shows a rollback as a banner, with the reason", function()
    local live = open {}
    start(live)
    live:emit { event = "state", instances = fleet(4, 1) }
    live:emit { event = "rollback.started", reason = "web2:8080 exited\n  | panic", step = "batch 2", host = "web2" }
    live:tick()
    local lines = live.screen:lines()
    assert.equal("rolling back", lines[2]:match("^rolling back"))
    assert.equal(" ROLLING BACK: web2:8080 exited", lines[3])
    live:emit { event = "rollback.finished", ok = false, left = { { host = "web2", message = "still down" } } }
    live:tick()
    assert.equal(" ROLLBACK INCOMPLETE: web2:8080 exited", live.screen:lines()[3])
  end)

  it("leaves the last frame, then warnings and the outcome, and gives the cursor back", function()
    local live = open { rows = 30 }
    start(live)
    live:emit { event = "state", instances = fleet(4, 1) }
    live:tick()
    live:emit { event = "warning", message = "slow" }
    live:emit { event = "rollback.started", reason = "web2:8080 exited\n  | panic" }
    live:emit { event = "rollback.finished", ok = true, left = {} }
    live:emit { event = "run.finished", outcome = "rolled_back", exit = 1, seconds = 3,
      message = "web2:8080 exited\n  | panic" }
    live.view:close()
    live.view:close()
    local all = live.screen:text()
    assert.truthy(all:find(" ROLLED BACK: web2:8080 exited", 1, true))
    assert.truthy(all:find("0:03\nfinished", 1, true))
    assert.equal([[
warning   slow
error: web2:8080 exited
  | panic
failed and rolled back: 1.0 serves as before]], all:match("\n(warning   slow\n.*)$"))
    assert.is_true(live.screen.cursor)
    assert.is_true(live.screen.wraps)
    assert.equal(0, live:tick())
  end)

  it("draws no frame for a run that did not begin", function()
    local live = open {}
    live:emit { event = "warning", message = "run r0 holds the lock" }
    live.view:close()
    assert.equal("warning   run r0 holds the lock", live.screen:text())
  end)

  it("needs no more than ASCII where it must, and colours only where it may", function()
    local out = {}
    for _, color in ipairs { false, true } do
      local live = open { ascii = true, color = color, write = function(data) out[#out + 1] = data end }
      start(live, { app = ("long "):rep(40) })
      live:emit { event = "step.started", step = "outer", path = "/1" }
      live:emit { event = "step.started", step = "inner", path = "/1/1" }
      live:emit { event = "state", instances = fleet(200, 1) }
      live:emit(traffic(50, 50))
      live:tick()
      assert.is_nil(out[#out]:find("[\128-\255]"))
      assert.equal(color, out[#out]:find("\27%[[%d;]*m") ~= nil)
      assert.truthy(out[#out]:find("outer > inner", 1, true))
    end
  end)

  it("draws a thousand instances in far less than a tick", function()
    local live, instances = open { columns = 200, rows = 60 }, fleet(1000, 1)
    start(live)
    local before = os.clock()
    for i = 1, 10 do
      instances[i].state = "down"
      live:emit { event = "state", instances = instances }
      live:tick()
    end
    assert.is_true((os.clock() - before) / 10 < 0.06)
  end)
end)
