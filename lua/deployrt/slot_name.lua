-- slot_name.lua -- What balancers call a slot: a port of a host where an instance can be.
local slot_name = {}

---@param host string
---@param port integer
---@return string  "web1-8080"
function slot_name.of(host, port)
  return ("%s-%d"):format(host, port)
end

--- What a slot of before is called where its name is that of another now: its host has got another address.
---@param name string
---@param address string  that it had
---@return string  "web1-8080:10.0.0.1"
function slot_name.former(name, address)
  return ("%s:%s"):format(name, address)
end

--- Which slot has the name of one of before.
---@param name string
---@return string? slot  nil: it is not called as former() does
function slot_name.successor(name)
  return name:match("^(.-%-%d+):")
end

---@param label string  of an instance: "web1:8080"
---@return string
function slot_name.of_label(label)
  return (label:gsub(":(%d+)$", "-%1"))
end

---@param name string
---@return string? host  nil: it is no name of a slot
function slot_name.host(name)
  return name:match("^(.-)%-%d+:") or name:match("^(.*)%-%d+$")
end

return slot_name
