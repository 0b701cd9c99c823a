-- elsewhere.lua -- Traffic of the balancers that goes where app.yml names nothing: what deployrt sent there once, and what others do.
local monitor = require "deployrt.monitor"

local elsewhere = {}

local most = 5 -- servers that are named

--- Slots that app.yml does not name any more, and that get traffic still.
---@param balancer deployrt.Balancer
---@return string[]
function elsewhere.left(balancer)
  local names = {}
  for name, slot in pairs(balancer.slots) do
    if slot.left and slot.state == "ready" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local function label(other)
  return other.name == other.address and other.name or ("%s (%s)"):format(other.name, other.address)
end

--- Servers by what sends them traffic.
local function by_way(balancer)
  local ways, labels = {}, {}
  for _, other in ipairs(balancer.others) do
    if not labels[other.via] then ways[#ways + 1], labels[other.via] = other.via, {} end
    table.insert(labels[other.via], label(other))
  end
  return ways, labels
end

--- Adds what people should know of it before a run, in words, to notes that do not have it yet.
---@param balancer deployrt.Balancer  as it was read
---@param notes string[]
function elsewhere.note(balancer, notes)
  local known = {}
  for _, note in ipairs(notes) do known[note] = true end
  local function add(text, ...)
    local line = text:format(...)
    if not known[line] then notes[#notes + 1] = line end
  end
  local left, ways, labels = elsewhere.left(balancer), by_way(balancer)
  if #left > 0 then
    add("app.yml does not name %s any more: it gets no traffic from now on, and what runs there goes on until somebody stops it", table.concat(left, ", "))
  end
  for _, way in ipairs(ways) do
    local list = labels[way]
    add("%s also sends traffic to %s%s, which app.yml does not name", way, table.concat(list, ", ", 1, math.min(most, #list)),
      #list > most and (" and %d more"):format(#list - most) or "")
  end
end

--- Who gets how much of it.
---@param balancer deployrt.Balancer
---@return {server: string, address?: string, share: number, left: boolean, text: string}[]
function elsewhere.rows(balancer)
  local shares, other_shares = monitor.slot_shares(balancer)
  local rows = {}
  for _, name in ipairs(elsewhere.left(balancer)) do
    local share = shares[name] or 0
    rows[#rows + 1] = { server = name, share = share, left = true, text = ("%s gets %.1f%% of the traffic, and app.yml does not name it any more"):format(name, 100 * share) }
  end
  for i, other in ipairs(balancer.others) do
    local share = other_shares[i]
    rows[#rows + 1] = { server = other.name, address = other.address, share = share, left = false,
      text = ("%s also sends traffic to %s, which app.yml does not name: %.1f%%"):format(other.via, label(other), 100 * share) }
  end
  return rows
end

return elsewhere
