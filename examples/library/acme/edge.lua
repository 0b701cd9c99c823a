-- edge.lua -- A team's own driver, as `type: ./edge.lua` in app.yml: a HAProxy with one server a slot, named like it.
local edge = {}

local Edge = {}
Edge.__index = Edge

function edge.capabilities()
  return { many = true, share = true, sessions = true }
end

function edge.open(entry, context)
  return setmetatable({ socket = entry.options.socket, host = context.host, context = context }, Edge)
end

local function fail(message)
  error({ code = "balancer", message = "the edge: " .. message }, 0)
end

function Edge:say(commands)
  return self.host:talk(self.socket, table.concat(commands, ";") .. "\n")
end

--- Raises what would stop a run; changes nothing.
function Edge:check()
  if not next(self:read().slots) then fail("it knows none of our slots") end
end

function Edge:prepare() end

local words = { MAINT = "maint", DRAIN = "drain" }

function Edge:read()
  local text = self:say { "show stat edge 4 -1", "show info" }
  local slots = {}
  for line in text:gmatch("[^\n]+") do
    local fields = {}
    for field in (line .. ","):gmatch("([^,]*),") do fields[#fields + 1] = field end
    if fields[1] == "edge" then
      slots[fields[2]] = {
        server = fields[2], state = words[fields[18]:match("^%u+")] or "ready", up = true, weight = math.tointeger(fields[19]),
        sessions = math.tointeger(fields[5]), queue = math.tointeger(fields[3]),
      }
    end
  end
  return { slots = slots, instance = text:match("\nPid: (%d+)") or "?" }
end

--- All changes in one request; read back, so that what did not happen is an error. `forward`: nothing is being put back, and each slot
--- that gets traffic must answer.
function Edge:apply(changes, forward)
  local now, commands = self:read().slots, {}
  local leaving, entering, reached, silent = false, false, false, false
  for _, change in ipairs(changes) do
    local slot = now[change.slot]
    if not slot then fail("it has no server " .. change.slot) end
    local enters = change.state == "ready" and slot.state ~= "ready"
    leaving = leaving or slot.state == "ready" and change.state ~= nil and change.state ~= "ready"
    entering = entering or enters
    for _, each in ipairs(self.context.slots) do
      if enters and each.name == change.slot then
        local answers = self.host:reaches(each.address, each.port, 2)
        reached, silent = reached or answers, silent or not answers
      end
    end
    if change.weight then commands[#commands + 1] = ("set server edge/%s weight %d"):format(change.slot, change.weight) end
    if change.state then commands[#commands + 1] = ("set server edge/%s state %s"):format(change.slot, change.state) end
  end
  if entering and leaving and not reached or forward and silent then fail("nobody would answer") end
  self:say(commands)
  local after = self:read().slots
  for _, change in ipairs(changes) do
    if change.state and after[change.slot].state ~= change.state then fail(change.slot .. " did not become " .. change.state) end
  end
end

function Edge:stats() return {} end

function Edge:persist() end

function Edge:stop() end

return edge
