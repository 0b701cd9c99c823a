-- haproxy_given.lua -- Which servers of a server-template have this application's traffic: their names do not tell, so a run notes them.
local haproxy_given = {}

--- Where the balancer is, so that whoever deploys finds it: a file for each backend.
local function path_of(driver)
  return ("%s/balancer/given-%s-%s"):format(driver.host.root, (driver.socket:gsub("%W+", "-")), driver.backend)
end

--- What the last run that ended has noted; nothing where there was none.
---@async
---@param driver deployrt.HAProxy
---@return table<string, string>  endpoints by server
function haproxy_given.read(driver)
  local given = {}
  for server, endpoint in (driver.host:read(path_of(driver)) or ""):gmatch("(%S+) (%S+)\n") do given[server] = endpoint end
  return given
end

--- Notes them for the runs to come.
---@async
---@param driver deployrt.HAProxy
---@param given table<string, string>  endpoints by server
function haproxy_given.write(driver, given)
  local lines, path = {}, path_of(driver)
  for server, endpoint in pairs(given) do lines[#lines + 1] = ("%s %s\n"):format(server, endpoint) end
  table.sort(lines)
  local text = table.concat(lines)
  if text ~= (driver.host:read(path) or "") then driver.host:write(path, text, "600") end
end

return haproxy_given
