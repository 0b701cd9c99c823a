-- run.lua -- Runs the measurements, or those named on the command line, and prints a Markdown table of what they found.
local bench = require "spec.bench.bench"
local errors = require "deployrt.errors"
local fixture = require "spec.support.fixture"

local parts = { "start", "rolling", "load", "balancers", "evidence", "exec", "upload", "memory", "journal", "simulate" }
if #arg > 0 then parts = arg end

local failed = false
for _, part in ipairs(parts) do
  io.stderr:write("bench: ", part, "\n")
  local ok, err = xpcall(require("spec.bench." .. part), function(problem)
    return type(problem) == "table" and errors.text(problem) or debug.traceback(problem)
  end)
  fixture.cleanup()
  if not ok then
    failed = true
    bench.note(part, "failed", tostring(err):gsub("\n.*", ""):gsub("|", "/"))
    io.stderr:write(err, "\n")
  end
end
io.stdout:write(bench.table())
os.exit(failed and 1 or 0)
