-- sim/fleet.lua -- The applications that a simulation deploys: one drawn from the seed, or app.yml with simulated hosts.
local config = require "deployrt.config"
local random = require "deployrt.sim.random"

local fleet = {}

fleet.old, fleet.new = "1.0", "2.0"

local text = [[
app: simulated
release: {version: "2.0"}
hosts: [%s]
process:
  command: [./serve, "${port}"]
  ports: [%s]
  instances: %d
health: {tcp: true, interval: 500ms, successes: 2, deadline: 60s}
balancer: {type: haproxy, socket: /sim, backend: sim, map: /sim.map, drain: {timeout: 30s}}
]]

--- Makes an application one that can be simulated: its hosts are names, its health is a simulated process's.
---@param app deployrt.App
---@return deployrt.App
function fleet.adapt(app)
  for _, list in ipairs { app.hosts, app.all_hosts or {} } do
    for _, entry in ipairs(list) do entry.transport, entry.address = "local", entry.address or entry.name end
  end
  app.health.tcp, app.health.http, app.health.command = true, nil, nil
  app.process.secrets, app.state, app.files, app.settings = nil, nil, {}, {}
  for _, each in ipairs(app.balancers) do each.host = nil end
  return app
end

local cache = {}

--- An application of so many hosts, instances on each, and slots beside them.
---@param hosts integer
---@param instances integer
---@param spare integer
---@return deployrt.App
function fleet.build(hosts, instances, spare)
  local key = ("%d %d %d"):format(hosts, instances, spare)
  if cache[key] then return cache[key] end
  local names, ports = {}, {}
  for i = 1, hosts do names[i] = ("{name: web%d, address: web%d}"):format(i, i) end
  for i = 1, instances + spare do ports[i] = 8080 + i - 1 end
  local yaml = text:format(table.concat(names, ", "), table.concat(ports, ", "), instances)
  cache[key] = fleet.adapt(config.load("simulated.yml", { kept = { ["simulated.yml"] = yaml } }))
  return cache[key]
end

--- The application of a seed: mostly with room for a second release beside the first.
---@param seed integer
---@return deployrt.App
function fleet.draw(seed)
  local stream = random.stream(seed, "fleet")
  local hosts, instances = stream:integer(1, 4), stream:integer(1, 3)
  if hosts * instances == 1 then hosts = 2 end
  local spare = stream:chance(0.7) and instances or stream:integer(0, instances)
  return fleet.build(hosts, instances, spare)
end

return fleet
