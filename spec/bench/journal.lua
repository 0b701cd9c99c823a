-- journal.lua -- What the journal costs an operation, and how soon a long one is replayed.
local core = require "deployrt.core"
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"
local journal = require "deployrt.journal"

--- The median time of an intent on the disk, its outcome, and the share that one of some tasks has of that.
local function cost_of_records(tasks, count)
  local path, times = fixture.dir() .. "/journal", {}
  core.run(function()
    local log, running = journal.open(path), {}
    for i = 1, tasks do
      running[i] = core.spawn(function()
        for n = 1, count do
          local started = core.now()
          log:write { type = "INTENT", id = ("/%d#%d"):format(i, n), op = "instance.start", kind = "look", args = { port = 8080 }, hash = "0123456789abcdef" }
          log:sync()
          log:write { type = "DONE", id = ("/%d#%d"):format(i, n), op = "instance.start", ok = true, result = { pid = 4711 } }
          times[#times + 1] = (core.now() - started) / tasks
        end
      end)
    end
    for _, task in ipairs(running) do task:wait() end
    log:close()
  end)
  table.sort(times)
  return times[#times // 2 + 1] * 1000
end

--- The whole time of `abort` for a run that was killed when its journal had so many records.
local function replay(records)
  local app = fixture.app { balancer = false, slots = 2, yaml = "strategy: {settle: 0}" }
  local live
  bench.with_app(app, function()
    assert(app:deploy("rolling", "1.0").exit == 0)
    fixture.write(app.dir .. "/own.lua", ([[
      local strategy = require "deployrt.strategy"
      local own = strategy.extend("rolling", { name = "own" })
      function own:deploy() for _ = 1, %d do self:sleep(0) end self.super.deploy(self) end
      return own]]):format(records // 2))
    app:write(fixture.release("2.0"), "2.0")
    local killed = app:mortal("before", 4, { "./own.lua", "app.yml" })
    if killed.exit ~= 137 then error("it was not killed: " .. killed.exit .. killed.stderr, 0) end
    live = bench.deployrt(app, { "abort", "app.yml" })
  end)
  return live
end

return function()
  bench.note("journal: one operation alone, median", ("%.2f ms"):format(cost_of_records(1, 300)), "an fdatasync each")
  bench.row("journal: one operation of 16 tasks, median", cost_of_records(16, 60), "%.2f ms", "<=", 1, "they share the fdatasync")
  local taken = replay(10000)
  bench.row("abort with a journal of 10,000 records", taken.wall, "%.2f s", "<=", 0.5, ("the whole command; %.0f MB"):format(taken.peak))
end
