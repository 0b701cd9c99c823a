-- bench.lua -- What the measurements share: commands with what they took, medians of pairs, the table of results.
local fixture = require "spec.support.fixture"

local bench = { rows = {} }

local here = fixture.sh("pwd"):match("[^\n]+")
local build = os.getenv("BUILD") or "build"
if build:sub(1, 1) ~= "/" then build = here .. "/" .. build end

---@class bench.Taken
---@field wall number    seconds
---@field cpu number     seconds, with the children that were waited for
---@field peak number    MB
---@field exit integer
---@field stdout string
---@field stderr string

--- Builds a C program beside this file, or any other, once.
---@param source string
---@param libraries? string
---@return string path
function bench.compile(source, libraries)
  local target = build .. "/spec/" .. source:match("([^/]+)%.c$")
  if os.execute(("test %s -nt %s"):format(fixture.quote(target), fixture.quote(source))) then return target end
  assert(os.execute(("mkdir -p %s/spec && cc -std=gnu11 -D_GNU_SOURCE -O2 -o %s %s %s"):format(build, target, fixture.quote(source), libraries or "")))
  return target
end

--- Runs a command to its end.
---@param argv string[]
---@param opts? {env?: table<string,string>, cwd?: string, timeout?: number, fails?: boolean}  fails: any exit is welcome
---@return bench.Taken
function bench.run(argv, opts)
  opts = opts or {}
  local file = os.tmpname()
  local words = table.move(argv, 1, #argv, 3, { bench.compile("spec/bench/measure.c"), file })
  local result = fixture.run(words, { env = opts.env, cwd = opts.cwd, timeout = opts.timeout or 600 })
  local wall, cpu, peak = fixture.read(file):match("(%S+) (%S+) (%S+)")
  os.remove(file)
  if not wall or (result.exit ~= 0 and not opts.fails) then
    error(("`%s` ended with status %d: %s%s"):format(table.concat(argv, " "):sub(1, 200), result.exit, result.stdout:sub(-1000), result.stderr:sub(-1000)), 0)
  end
  result.wall, result.cpu, result.peak = tonumber(wall), tonumber(cpu), tonumber(peak) / 1024
  return result
end

--- Runs the command under test on an application of fixture.app().
---@return bench.Taken
function bench.deployrt(app, argv, opts)
  local words = table.move(argv, 1, #argv, 4, { fixture.deployrt(), "--state", app.dir .. "/state" })
  os.execute("mkdir -p " .. app.dir .. "/home")
  opts = opts or {}
  return bench.run(words, { env = { HOME = app.dir .. "/home", TERM = "dumb" }, cwd = app.dir, fails = opts.fails, timeout = opts.timeout })
end

--- Calls `fn(app)`, and stops the application whatever comes of it.
function bench.with_app(app, fn)
  local ok, err = xpcall(fn, debug.traceback, app)
  local stopped, problem = pcall(app.stop, app)
  if not ok then error(err, 0) end
  if not stopped then error(problem, 0) end
end

--- Whether a program is on this machine.
function bench.has(program)
  return os.execute("command -v " .. program .. " >/dev/null 2>&1") == true
end

---@param list number[]
---@return number
function bench.median(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  local middle = #sorted // 2
  return #sorted % 2 == 1 and sorted[middle + 1] or (sorted[middle] + sorted[middle + 1]) / 2
end

--- The values of a field of a list.
local function field(list, name)
  local values = {}
  for i, each in ipairs(list) do values[i] = each[name] end
  return values
end

--- Measures several things in turn, so that what the machine does meanwhile falls on all alike.
---@param count integer
---@param contenders table<string, fun(round: integer): bench.Taken>
---@param order string[]
---@return table<string, {wall: number, cpu: number, peak: number, rounds: bench.Taken[]}>  medians
function bench.interleave(count, contenders, order)
  local rounds, result = {}, {}
  for _, name in ipairs(order) do rounds[name] = {} end
  for i = 1, count do
    for _, name in ipairs(order) do rounds[name][i] = contenders[name](i) end
  end
  for _, name in ipairs(order) do
    result[name] = { rounds = rounds[name] }
    for _, key in ipairs { "wall", "cpu", "peak" } do result[name][key] = bench.median(field(rounds[name], key)) end
  end
  return result
end

--- The median of the ratios of pairs: two rounds that were measured one after the other.
---@param a {rounds: bench.Taken[]}
---@param b {rounds: bench.Taken[]}
---@param key string
---@return number
function bench.ratio(a, b, key)
  local ratios = {}
  for i, each in ipairs(a.rounds) do ratios[i] = each[key] / b.rounds[i][key] end
  return bench.median(ratios)
end

local signs = { ["<="] = "at most", [">="] = "at least" }

--- Adds a figure with its target to the table.
---@param what string
---@param value number
---@param format string    of the figure: "%.2f s"
---@param sign "<="|">="
---@param target number
---@param note? string
function bench.row(what, value, format, sign, target, note)
  local good = sign == "<=" and value <= target or sign == ">=" and value >= target
  bench.add { what, format:format(value), signs[sign] .. " " .. format:format(target), good and "yes" or "**no**", note or "" }
end

--- Adds a figure that has no target, or says why there is none.
function bench.note(what, figure, note)
  bench.add { what, figure, "", "", note or "" }
end

function bench.add(row)
  bench.rows[#bench.rows + 1] = row
  io.stderr:write(("  %s: %s %s %s %s\n"):format(row[1], row[2], row[3] ~= "" and "(" .. row[3] .. ")" or "", row[4], row[5]))
end

--- The results as a Markdown table.
---@return string
function bench.table()
  local lines = { "| what | figure | target | met | how |", "|---|---|---|---|---|" }
  for _, row in ipairs(bench.rows) do lines[#lines + 1] = "| " .. table.concat(row, " | ") .. " |" end
  return table.concat(lines, "\n") .. "\n"
end

return bench
