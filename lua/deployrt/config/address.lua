-- config/address.lua -- Whether a text can be the address of a host: a name, or an IP address.
local address = {}

--- Only an IPv6 address has colons, two at least; behind one colon of a name is a port, which stands elsewhere.
---@param text string
---@return boolean
function address.is_one(text)
  if not text:find(":", 1, true) then return text:find("^[%w_][%w._%-]*$") ~= nil end
  return text:find("^[%x:]*:[%x:]*:[%x:.]*$") ~= nil or text:find("^[%x:]*:[%x:]*:[%x:.]*%%[%w._-]+$") ~= nil
end

return address
