-- rounds.lua -- In which order instances are taken: the first of each host, then the second of each, and so on, whatever
-- ports they have. A batch spreads over hosts that way.
local rounds = {}

--- Instances by port, and then by the name of their host. Whole numbers are sorted, for fleets of thousands.
---@param members deployrt.Instance[]  a million at most
---@return deployrt.Instance[]
function rounds.sort(members)
  local names, ranks, keys = {}, {}, {}
  for _, member in ipairs(members) do
    local name = member.host.name
    if not ranks[name] then names[#names + 1], ranks[name] = name, 0 end
  end
  table.sort(names)
  for rank, name in ipairs(names) do ranks[name] = rank end
  for i, member in ipairs(members) do keys[i] = member.port << 40 | ranks[member.host.name] << 20 | i end
  table.sort(keys)
  for i, key in ipairs(keys) do keys[i] = members[key & 0xFFFFF] end
  return keys
end

--- Those of sorted instances that are accepted, round by round.
---@param sorted deployrt.Instance[]
---@param accept fun(member: deployrt.Instance): boolean
---@return deployrt.Instance[]
function rounds.select(sorted, accept)
  local counts, list, all = {}, {}, {}
  for _, member in ipairs(sorted) do
    if accept(member) then
      local count = (counts[member.host] or 0) + 1
      counts[member.host], list[count] = count, list[count] or {}
      table.insert(list[count], member)
    end
  end
  for _, round in ipairs(list) do table.move(round, 1, #round, #all + 1, all) end
  return all
end

return rounds
