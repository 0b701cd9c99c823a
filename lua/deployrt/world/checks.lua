-- world/checks.lua -- Health checks of the balancers' own, which app.yml does not know: who is to get traffic passes them before.
local agreement = require "deployrt.world.agreement"
local core = require "deployrt.core"
local errors = require "deployrt.errors"

local checks = {}

local silent_for = 1 -- seconds of a wait before people are told of it

local function gets_traffic(state, weight)
  return state == "ready" and weight ~= 0
end

--- Slots that get traffic by these changes, and got none before.
local function entering(context, changes)
  local names = {}
  for _, change in ipairs(changes) do
    local now = context.wanted[change.slot] or {}
    local enters = gets_traffic(change.state or now.state, change.weight or now.weight)
    if enters and not gets_traffic(now.state, now.weight) then names[#names + 1] = change.slot end
  end
  return names
end

--- Asks each balancer that has checks of its own. One that is away may come back, for a while; else it is told of everything when it
--- does.
---@return string? problem
local function ask_each(context, away, ask)
  local problem
  for index, driver in ipairs(context.drivers) do
    local ok, said = true, nil
    if driver.checked then ok, said = pcall(ask, driver, index) end
    if not ok and not errors.is_away(said) then error(said, 0) end
    away[index] = not ok and (away[index] or core.now()) or nil
    if not ok then said = core.now() - away[index] < agreement.patience and said.message or nil end
    problem = problem or said
  end
  return problem
end

--- The slots that each balancer is to check, which are in drain everywhere meanwhile.
---@return table<integer, string[]> checked  by balancer
local function begin(context, names, away, set)
  local checked, changes, known = {}, {}, {}
  ask_each(context, away, function(driver, index)
    checked[index] = driver:checked(names)
    for _, name in ipairs(checked[index]) do
      changes[#changes + 1] = not known[name] and { slot = name, state = "drain" } or nil
      known[name] = true
    end
  end)
  if #changes > 0 then set(context, changes) end
  return checked
end

--- Why not all slots have passed by now.
local function failing(context, names, checked, away)
  local problem
  agreement.exclusively(context, function()
    problem = ask_each(context, away, function(driver, index)
      checked[index] = checked[index] or driver:checked(names) -- it was away before
      return #checked[index] > 0 and driver:pass_checks(checked[index]) or nil
    end)
  end)
  return problem
end

--- Waits until what is to get traffic passes the own check of each balancer that has one; all of them have as long as a start may take.
---@async
---@param context table
---@param changes deployrt.SlotChange[]
---@param set fun(context: table, changes: deployrt.SlotChange[])  sets states everywhere
--- Raises deployrt.Error: "unhealthy".
function checks.pass(context, changes, set)
  local names, away = entering(context, changes), {}
  if #names == 0 then return end
  context.check_lock()
  local checked, seconds = begin(context, names, away, set), context.app.health.deadline
  local began, told = core.now(), false
  while true do
    local problem = failing(context, names, checked, away)
    if not problem then return end
    local waited = core.now() - began
    if waited >= silent_for and not told then context.wait_for("before traffic: " .. problem) end
    told = waited >= silent_for
    if waited >= seconds then
      errors.raise("unhealthy", ("%s, after %gs: traffic stays where it is; if the balancer asks for more than app.yml's health does, see there, "
        .. "and if it checks seldom (inter, downinter, rise), give health.deadline more time"):format(problem, seconds))
    end
    context.check_stop()
    core.sleep(0.05)
  end
end

return checks
