-- lines_spec.lua -- core.lines: text from standard input, while other tasks go on.
local fixture = require "spec.support.fixture"

local reader = [[
local core = require "deployrt.core"
local ok, err = core.run(function()
  local lines <close> = core.lines(0)
  local ticking = core.spawn(function()
    for _ = 1, 3 do core.sleep(0.001) end
    if arg[1] then io.open(arg[1], "w"):close() end
  end)
  for line in function() return (lines:next()) end do io.write("<", line, ">") end
  io.write(tostring((lines:next())))
  for line in io.lines("/proc/self/fdinfo/0") do
    local flags = line:match("^flags:%s*(%d+)")
    if flags and tonumber(flags, 8) & 2048 ~= 0 then io.write(" descriptor was left as one that does not block") end
  end
  ticking:wait()
end)
if not ok then io.write("failed: ", tostring(err)) end
io.write(" ", core.live_tasks())
]]

local waiter = [[
local core = require "deployrt.core"
core.run(function()
  local lines <close> = core.lines(0)
  local waiting = core.spawn(function() return lines:next() end)
  core.sleep(0.05)
  waiting:cancel()
  local _, line, err = waiting:wait()
  io.write(tostring(line), " ", err.code)
  local again = core.spawn(function() return (lines:next()) end)
  core.sleep(0.01)
  io.write(" ", tostring((pcall(lines.next, lines))))
  again:cancel()
end)
]]

describe("core.lines", function()
  after_each(function() fixture.cleanup() end)

  --- What a program prints, started by a line of shell in which LUA is the program.
  local function printed(program, line)
    local path = fixture.write(fixture.dir() .. "/program.lua", program)
    local env = { LUA_PATH = package.path, LUA_CPATH = package.cpath }
    local run = fixture.run({ "sh", "-c", (line:gsub("LUA", "lua5.4 " .. path)) }, { env = env, timeout = 20 })
    assert.equal("", run.stderr)
    return run.stdout
  end

  it("reads a pipe as lines come, in pieces too, while other tasks go on; the last one may lack its end", function()
    local mark = fixture.dir() .. "/mark" -- made by another task: before that, the rest does not come
    local feed = ("{ printf 'one\\n\\ntw'; until [ -e %s ]; do sleep 0.01; done; printf 'o\\nlast'; } | LUA %s"):format(mark, mark)
    assert.equal("<one><><two><last>nil 0", printed(reader, feed))
  end)

  it("reads lines longer than a piece", function()
    local long = ("x"):rep(10000)
    assert.equal("<" .. long .. "><end>nil 0", printed(reader, ("{ printf '%s\\nend\\n'; } | LUA"):format(long)))
  end)

  it("reads a file, and nothing where there is nothing", function()
    local path = fixture.write(fixture.dir() .. "/text", "a\nb\n")
    assert.equal("<a><b>nil 0", printed(reader, "LUA < " .. path))
    assert.equal("nil 0", printed(reader, "LUA < /dev/null"))
  end)

  it("can be given up, and serves one task at a time", function()
    assert.equal("nil canceled false", printed(waiter, "sleep 5 | LUA"))
  end)
end)
