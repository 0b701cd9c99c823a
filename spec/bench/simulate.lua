-- simulate.lua -- The simulator: deployments a second on one core, and what a large fleet costs.
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"

local hold = "strategy.hold=1s"

return function()
  local function test(argv) return bench.run({ fixture.deployrt(), "test", table.unpack(argv) }) end
  local seeds = 200
  local start = test { "canary", "--seeds=1", "--fault=none", "--fleet=4", "--set", hold }
  local many = test { "canary", "--seeds=" .. seeds + 1, "--fault=none", "--fleet=4", "--set", hold }
  bench.row("simulated canary of 4 instances", seeds / (many.cpu - start.cpu), "%.0f a second", ">=", 500, ("CPU time of %d seeds, hold 1s"):format(seeds))
  local quarter, whole = test { "rolling", "--seeds=1", "--fault=none", "--fleet=250" }, test { "rolling", "--seeds=1", "--fault=none", "--fleet=1000" }
  bench.row("simulated rolling of 1,000 instances", whole.cpu, "%.1f s", "<=", 15, ("CPU time, %.0f MB; of 250: %.1f s"):format(whole.peak, quarter.cpu))
  local directory = fixture.dir()
  local function plan(count)
    local hosts = {}
    for i = 1, count do hosts[i] = ("{name: h%d, address: 10.%d.%d.%d}"):format(i, i >> 16, i >> 8 & 255, i & 255) end
    fixture.write(directory .. "/app.yml", ("app: shop\nhosts: [%s]\nrelease: {version: '2'}\nprocess: {command: [./server], ports: 8080-8084, instances: 4}\n"
      .. "health: {tcp: true}\nbalancer: {type: haproxy, socket: /nowhere, backend: shop}\n"):format(table.concat(hosts, ", ")))
    return bench.run({ fixture.deployrt(), "plan", "rolling", directory .. "/app.yml", "--offline" })
  end
  local some, large = plan(500), plan(2500)
  bench.row("rolling plan of 10,000 instances", large.cpu, "%.1f s", "<=", 2, "CPU time; 2,500 hosts, offline")
  bench.row("its memory, against that of 2,000 instances", large.peak / some.peak, "%.2f times", "<=", 5.5, "linear: 5 times")
  bench.row("deployrt test, start", start.cpu * 1000, "%.0f ms", "<=", 50, "CPU time, with two simulated runs")
end
