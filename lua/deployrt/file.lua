-- file.lua -- Files of this machine that are read whole.
local file = {}

--- The bytes of a file; nil when it cannot be read.
---@param path string
---@return string?
function file.read(path)
  local opened <close> = io.open(path, "rb")
  return opened and opened:read("a")
end

return file
