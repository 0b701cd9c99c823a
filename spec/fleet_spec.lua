-- fleet_spec.lua -- In which order instances come.
local fleet = require "deployrt.fleet"

describe("a fleet", function()
  it("has hosts take turns, whatever ports they use", function()
    local hosts = { { name = "web1" }, { name = "web2" } }
    local found = fleet.new(hosts, { ports = { 8080, 8081, 8082, 8083 }, instances = 2 }, { slots = {} })
    found.target = { release = "2.0" }
    for _, place in ipairs { { 1, 8080 }, { 1, 8081 }, { 2, 8082 }, { 2, 8083 } } do
      local host, port = hosts[place[1]], place[2]
      found:add { host = host, port = port, label = host.name .. ":" .. port, state = "serving", launch = { release = "1.0" } }
    end
    local labels = {}
    for i, member in ipairs(found:old()) do labels[i] = member.label end
    assert.same({ "web1:8080", "web2:8082", "web1:8081", "web2:8083" }, labels)
  end)
end)
