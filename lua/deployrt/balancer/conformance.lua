-- conformance.lua -- What every driver must do, tried with a real balancer and real requests; for drivers of one's own too.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local route = require "deployrt.balancer.route"
local world_balancer = require "deployrt.world.balancer"

--- What a driver is tried with. Services run at the first three slots; nobody listens at the fourth.
---@class deployrt.ConformanceStand
---@field driver deployrt.Driver            opened by deployrt.balancer.driver
---@field slots deployrt.Slot[]             four of them
---@field url string                        where the balancer answers, such as "http://127.0.0.1:8000"
---@field slow string                       a path that takes a second, such as "/slow?ms=1000"
---@field who fun(body: string): string?    the name of the slot that gave this answer
---@field edit? fun(slot: string)           takes a slot out of service behind the driver's back
---@field restart? fun()                    restarts the balancer
---@field persists? boolean                 states survive a restart without a further word
---@field resets? boolean                   a change may reset a connection that was just made: such a request is repeated
---@field requests? integer                 for shares; default 10000

local conformance = {}

local function fail(message, ...)
  errors.raise("conformance", message:format(...))
end

--- Waits until the condition answers with something.
local function await(seconds, what, condition)
  local deadline = core.now() + seconds
  while true do
    local value = condition()
    if value then return value end
    if core.now() > deadline then fail("waited %gs in vain: %s", seconds, what) end
    core.sleep(0.02)
  end
end

--- One request over a connection of its own: who answered, or why nobody did.
local function ask(stand, path, headers)
  local answer, err = core.http.request { url = stand.url .. (path or "/"), timeout = 15, no_reuse = true, headers = headers }
  if not answer then return nil, err.message end
  if answer.status ~= 200 then return nil, "status " .. answer.status end
  return stand.who(answer.body), "an answer of nobody known: " .. answer.body:sub(1, 50)
end

--- So many requests, a few at a time: how many each slot answered.
local function tally(stand, count, reuse)
  local counts, tasks, left, problem = {}, {}, count, nil
  for i = 1, 8 do
    tasks[i] = core.spawn(function()
      while left > 0 and not problem do
        left = left - 1
        local answer, err = core.http.request { url = stand.url .. "/", timeout = 15, no_reuse = not reuse }
        local name = answer and answer.status == 200 and stand.who(answer.body)
        if name then counts[name] = (counts[name] or 0) + 1 else problem = err and err.message or "status " .. answer.status end
      end
    end)
  end
  for _, task in ipairs(tasks) do task:wait() end
  if problem then fail("a request failed: %s", problem) end
  return counts
end

local function names(stand)
  local list = {}
  for i, slot in ipairs(stand.slots) do list[i] = slot.name end
  return table.unpack(list)
end

--- Each check begins so: the first slot serves, the others are out of service, and nobody is told apart.
local function reset(stand)
  if stand.driver.can.route then stand.driver:route(nil) end
  local changes = {}
  for i, slot in ipairs(stand.slots) do changes[i] = { slot = slot.name, state = i == 1 and "ready" or "maint", weight = 100 } end
  stand.driver:apply(changes)
  await(10, "the first slot serves again", function() return ask(stand) == stand.slots[1].name end)
end

local function expect_state(stand, name, state, weight)
  local slot = stand.driver:read().slots[name]
  if not slot then fail("%s is not known", name) end
  if slot.state ~= state or weight and slot.weight ~= weight then
    fail("%s should be read as %s %s and is %s %s", name, state, weight or "", slot.state, slot.weight)
  end
end

local function expect_only(stand, name, count)
  for other, n in pairs(tally(stand, count or 20)) do
    if other ~= name then fail("%d of %d requests went to %s instead of %s", n, count or 20, other, name) end
  end
end

local function expect_refusal(what, ...)
  local ok, err = pcall(...)
  if ok then fail("%s is not refused", what) end
  if type(err) ~= "table" or not err.message then fail("%s is refused with no deployrt.Error: %s", what, tostring(err)) end
end

--- A request that is under way; wait() gives who answered.
local function slow_request(stand)
  local request = {}
  local task = core.spawn(function()
    request.name, request.problem = ask(stand, stand.slow)
    request.ended = core.now()
  end)
  function request.wait()
    task:wait()
    if not request.name then fail("the request in flight failed: %s", request.problem) end
    return request.name
  end
  core.sleep(0.3)
  return request
end

local function drain(stand, slot, timeout)
  local context = { drivers = { stand.driver }, behind = {}, check_stop = function() end }
  return world_balancer.await_drained(context, nil, { slots = { slot }, timeout = timeout })
end

--- The checks in their order: {name, run, needs = capability, wants = what the stand must have}.
---@type {name: string, run: fun(stand: deployrt.ConformanceStand), needs?: deployrt.Capability, wants?: string}[]
conformance.checks = {}

local function check(name, run, conditions)
  local each = { name = name, run = run }
  for key, value in pairs(conditions or {}) do each[key] = value end
  table.insert(conformance.checks, each)
end

check("knows every slot once it is prepared", function(stand)
  local slots = stand.driver:read().slots
  for _, slot in ipairs(stand.slots) do
    local known = slots[slot.name]
    if not known or not known.state or not math.tointeger(known.weight) or not known.sessions then fail("%s is not known", slot.name) end
  end
end)

check("sends requests to an attached slot, and reads that back", function(stand)
  local first, second = names(stand)
  stand.driver:apply { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "maint" } }
  expect_only(stand, second)
  expect_state(stand, second, "ready", 100)
  expect_state(stand, first, "maint")
end)

check("switches in one change, and no request is lost or comes late", function(stand)
  local first, second = names(stand)
  local stop, problem, asked = false, nil, 0
  local task = core.spawn(function()
    while not stop do
      local name, why = ask(stand)
      if not name and stand.resets then name, why = ask(stand) end
      asked, problem = asked + 1, problem or not name and why
    end
  end)
  for _, pair in ipairs { { second, first }, { first, second }, { second, first } } do
    stand.driver:apply { { slot = pair[1], state = "ready", weight = 100 }, { slot = pair[2], state = "drain" } }
    expect_only(stand, pair[1], 10)
  end
  stop = true
  task:wait()
  if problem or asked == 0 then fail("of %d requests during switches one failed: %s", asked, problem or "none was made") end
end)

check("lets a request in flight finish while its slot drains", function(stand)
  local first, second = names(stand)
  local request = slow_request(stand)
  stand.driver:apply { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "drain" } }
  expect_state(stand, first, "drain")
  expect_only(stand, second, 5)
  if not drain(stand, first, 10).drained then fail("%s never ends draining", first) end
  local early = stand.driver.can.sessions and not request.ended and core.now()
  if request.wait() ~= first then fail("the request in flight was answered by another slot") end
  if early and request.ended - early > 0.1 then fail("%s was called drained %.2fs before its last request ended", first, request.ended - early) end
end)

check("ends waiting for a drain at the deadline", function(stand)
  local first, second = names(stand)
  local request = slow_request(stand)
  stand.driver:apply { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "drain" } }
  local began = core.now()
  local result = drain(stand, first, 0.05)
  if result.drained and not request.ended then fail("%s was called drained with a request in flight", first) end
  if core.now() - began > 10 then fail("the wait took %gs instead of 0.05s", core.now() - began) end
  request.wait()
end, { needs = "sessions" })

check("reads states and weights back exactly", function(stand)
  local first, second, third = names(stand)
  local weight = stand.driver.can.share and 37 or 100
  stand.driver:apply { { slot = first, state = "ready", weight = 100 }, { slot = second, state = "drain", weight = weight }, { slot = third, state = "maint" } }
  expect_state(stand, first, "ready", 100)
  expect_state(stand, second, "drain", weight)
  expect_state(stand, third, "maint")
end)

check("does nothing when all is as wanted already", function(stand)
  local first, second = names(stand)
  local changes = { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "drain" } }
  stand.driver:apply(changes)
  local before = stand.driver:read().instance
  stand.driver:apply(changes)
  if stand.driver:read().instance ~= before then fail("the balancer is another one after the same change") end
  expect_only(stand, second, 10)
end)

check("refuses a slot that nobody knows", function(stand)
  local first = names(stand)
  expect_refusal("an unknown slot", stand.driver.apply, stand.driver, { { slot = "nobody-1", state = "ready" } })
  expect_state(stand, first, "ready", 100)
  expect_only(stand, first, 5)
end)

check("keeps traffic where it is when nobody answers at the slot that should take over", function(stand)
  local first, _, _, down = names(stand)
  expect_refusal("a slot that is down", stand.driver.apply, stand.driver,
    { { slot = down, state = "ready", weight = 100 }, { slot = first, state = "drain" } })
  expect_state(stand, first, "ready", 100)
  expect_only(stand, first, 5)
end)

check("splits traffic by weights to within a percentage point", function(stand)
  local first, second, third = names(stand)
  stand.driver:apply { { slot = first, state = "ready", weight = 190 }, { slot = second, state = "ready", weight = 9 }, { slot = third, state = "ready", weight = 1 } }
  local count = stand.requests or 10000
  local counts = tally(stand, count, true)
  for name, share in pairs { [first] = 95, [second] = 4.5, [third] = 0.5 } do
    local got = 100 * (counts[name] or 0) / count
    if math.abs(got - share) > 1 then fail("%s should get %g%% of %d requests and got %.2f%%", name, share, count, got) end
  end
end, { needs = "share" })

local told = { ["X-Canary"] = "1" }

--- Requests that are told apart, and the others.
local function expect_routed(stand, name, other)
  await(10, name .. " gets the requests that are told apart", function() return ask(stand, nil, told) == name end)
  for _ = 1, 10 do
    local got, problem = ask(stand, nil, told)
    if got ~= name then fail("a request that is told apart went to %s instead of %s", got or problem, name) end
  end
  expect_only(stand, other)
end

check("tells requests apart, by rule and by an exact share", function(stand)
  local first, second = names(stand)
  local wanted = { slots = { second }, percent = 0, rules = { { header = "X-Canary: 1" } }, generation = 1 }
  stand.driver:route(wanted)
  expect_routed(stand, second, first)
  wanted.percent = 12.5
  stand.driver:route(wanted)
  local before = stand.driver:read()
  if not route.is_same(before.route, wanted) then fail("the route is not read back as it was set") end
  stand.driver:route(wanted)
  if stand.driver:read().instance ~= before.instance then fail("the balancer is another one after the same route") end
  local count = 2 * (stand.requests or 10000) -- a balancer may leave it to chance
  local got = 100 * (tally(stand, count, true)[second] or 0) / count
  if math.abs(got - wanted.percent) > 1 then fail("%s should get %g%% of %d requests and got %.2f%%", second, wanted.percent, count, got) end
  expect_state(stand, first, "ready", 100)
  stand.driver:route(nil)
  expect_routed(stand, first, first)
end, { needs = "route" })

check("serves by one slot where it cannot by many", function(stand)
  local first, second = names(stand)
  stand.driver:apply { { slot = second, state = "ready", weight = 100 } }
  await(10, second .. " answers", function() return ask(stand) == second end) -- whose health a balancer may have to see first
  local counts, slots = tally(stand, 400, true), 0
  if stand.driver.can.many then -- HAProxy's round robin gives one that has just joined its share in one go, of hundreds of requests
    await(20, "both answer", function()
      counts = tally(stand, 400, true)
      return counts[first] and counts[second]
    end)
  end
  for _ in pairs(counts) do slots = slots + 1 end
  if (stand.driver.can.many or false) ~= (slots > 1) then fail("%d slots answer", slots) end
end)

check("counts requests, where it says so", function(stand)
  local first = names(stand)
  local before = stand.driver:stats()[first]
  if not stand.driver.can.stats then return end
  tally(stand, 30)
  await(5, "30 requests are counted", function()
    local now = stand.driver:stats()[first]
    return now and now.requests - before.requests == 30 and now.errors == before.errors
  end)
end)

check("sees what others change, and sets it right", function(stand)
  local first, second = names(stand)
  local wanted = { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "ready", weight = 100 } }
  if not stand.driver.can.many then wanted = { { slot = first, state = "ready", weight = 100 } } end
  stand.driver:apply(wanted)
  stand.edit(first)
  local slot = stand.driver:read().slots[first]
  if slot and slot.state == "ready" and slot.weight == 100 then fail("what others changed is not seen") end
  stand.driver:prepare()
  stand.driver:apply(wanted)
  expect_state(stand, first, "ready", 100)
end, { wants = "edit" })

check("has the wanted states over a restart of the balancer", function(stand)
  local first, second, third = names(stand)
  local wanted = {
    [second] = { state = "ready", weight = 100 }, [first] = { state = "maint", weight = 100 }, [third] = { state = "maint", weight = 100 },
  }
  local changes = { { slot = second, state = "ready", weight = 100 }, { slot = first, state = "maint" }, { slot = third, state = "maint" } }
  stand.driver:apply(changes)
  stand.driver:persist(wanted)
  stand.restart()
  await(10, "the balancer answers again", function() return (pcall(stand.driver.read, stand.driver)) end)
  if not stand.persists then
    stand.driver:prepare()
    stand.driver:apply(changes)
  end
  expect_state(stand, second, "ready", 100)
  await(10, "the slot answers after the restart", function() return ask(stand) == second end)
  expect_only(stand, second, 10)
end, { wants = "restart" })

--- Tries a driver: one result a check, in their order. `problem` is nil where it conforms; `skipped` says why it was not tried.
---@async
---@param stand deployrt.ConformanceStand
---@return {name: string, problem?: string, skipped?: string}[]
function conformance.run(stand)
  local results = {}
  stand.driver:check()
  stand.driver:prepare()
  for i, each in ipairs(conformance.checks) do
    local result = { name = each.name }
    if each.needs and not stand.driver.can[each.needs] then
      result.skipped = "the driver does not say that it can: " .. each.needs
    elseif each.wants and not stand[each.wants] then
      result.skipped = "the stand has no " .. each.wants
    else
      local ok, err = pcall(function()
        reset(stand)
        each.run(stand)
      end)
      result.problem = not ok and errors.text(errors.wrap(err)) or nil
    end
    results[i] = result
  end
  return results
end

return conformance
