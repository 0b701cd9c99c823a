-- left.lua -- What deployrt gave traffic to and app.yml does not name any more goes on as slots, until a run has taken that away.
local slot_name = require "deployrt.slot_name"

local left = {}

local function as_given(name) return name end

--- Has a driver know such slots beside those of app.yml. They are looked for once: those that lose their traffic stay known. A
--- host that has another address now has left its old one, and the new one has the name.
---@param driver deployrt.Driver  its `left` and its context's `slots` are set
---@param found {name: string, endpoint: string}[]  names as the balancer has them
---@param spell? fun(name: string): string  how the balancer writes the name of a slot; default: as it is
function left.keep(driver, found, spell)
  local slots, named = {}, {}
  for i, slot in ipairs(driver.context.slots) do slots[i], named[(spell or as_given)(slot.name)] = slot, true end
  driver.left = {}
  for _, each in ipairs(found) do
    local address, port = each.endpoint:match("^%[?(.-)%]?:(%d+)$")
    if address then
      local name = named[each.name] and slot_name.former(each.name, address) or each.name
      driver.left[name], slots[#slots + 1] = true, { name = name, address = address, port = math.tointeger(port) }
    end
  end
  driver.context = setmetatable({ slots = slots }, { __index = driver.context })
end

--- Those of them that are out of service when a run begins are of no use to it.
---@param driver deployrt.Driver
---@param states table<string, {state: deployrt.SlotState}>  by slot
---@param wanted table<string, table>  slots that the run has in hand
function left.forget(driver, states, wanted)
  local kept = {}
  for _, slot in ipairs(driver.context.slots) do
    local now = states[slot.name]
    local is_over = driver.left[slot.name] and not wanted[slot.name] and not (now and now.state == "ready")
    if is_over then driver.left[slot.name] = nil else kept[#kept + 1] = slot end
  end
  driver.context = setmetatable({ slots = kept }, { __index = driver.context })
end

return left
