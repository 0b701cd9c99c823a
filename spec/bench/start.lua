-- start.lua -- What the command costs before it does anything: `deployrt help`.
local bench = require "spec.bench.bench"
local fixture = require "spec.support.fixture"

local rounds = 41

return function()
  local measured = bench.interleave(rounds, { help = function() return bench.run { fixture.deployrt(), "help" } end }, { "help" }).help
  local how = ("median of %d"):format(rounds)
  bench.row("help, wall", measured.wall * 1000, "%.1f ms", "<=", 10, how)
  bench.row("help, peak", measured.peak, "%.1f MB", "<=", 12, how)
end
