-- limit_spec.lua -- Tasks that are held to limits: past them none runs on, whatever it catches, and others do.
local core = require "deployrt.core"

--- Runs `body` as a task; what it raises fails the spec.
local function run(body)
  return function()
    local ok, err = core.run(body)
    if not ok then error(err, 0) end
    assert.equal(0, core.live_tasks())
  end
end

describe("tasks with limits", function()
  it("end at their limit, past any pcall, with their children; others go on", run(function()
    local task = core.spawn(function()
      core.confine { instructions = 1e6 }
      while true do pcall(function() while true do end end) end
    end)
    local ok, err = task:wait()
    assert.is_false(ok)
    assert.matches("ran 1 million instructions without waiting: is this an endless loop?", err.message, 1, true)
    assert.matches("limit_spec.lua:%d+: ran", err.message)
    local child = core.spawn(function()
      core.confine { instructions = 1e6 }
      return core.spawn(function() while true do end end):wait()
    end)
    ok, err = child:wait()
    assert.is_false(ok)
    assert.equal("limit", err.code)
    for _ = 1, 3 do
      for _ = 1, 300000 do end
      core.sleep(0)
    end
  end))

  it("leave what the runtime does beside them to its end", run(function()
    local done = false
    local task = core.spawn(function()
      core.confine { instructions = 1e6 }
      local beside = core.spawn(function()
        core.exempt(true)
        done = core.sleep(0.1)
        core.exempt(false)
      end)
      core.spawn(function() for _ = 1, math.huge do end end)
      beside:wait()
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit", true }, { ok, err and err.code, done })
  end))

  it("end with those that wait for what they were yet to do", run(function()
    local freed = core.event()
    local task = core.spawn(function()
      core.confine { instructions = 1e6 }
      core.spawn(function()
        core.spawn(function()
          for _ = 1, math.huge do end
          freed:set()
        end)
        freed:wait()
      end):wait()
      freed:set()
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.is_false(freed:is_set())
  end))

  it("that used up their memory end with all their children, whatever it costs to look for more", run(function()
    local ballast = {}
    for i = 1, 1000000 do ballast[i] = { i } end
    local task = core.spawn(function()
      core.confine { memory = 4 << 20 }
      for _ = 1, 20000 do core.spawn(function() core.sleep(60) end) end
    end)
    local began = core.now()
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.is_true(core.now() - began < 20, "it was stuck for a minute once")
    assert.matches("used more than 4 MB of memory", err.message, 1, true)
    assert.equal(1000000, #ballast)
  end))

  it("that fill their memory with what they keep are told so, and not that they run for ever", run(function()
    collectgarbage()
    local task = core.spawn(function()
      core.confine { memory = 16 << 20, instructions = 12e6 }
      local kept = {}
      while true do
        for i = 1, 10 do kept[0] = { i } end
        kept[#kept + 1] = core.spawn(function() core.sleep(60) end)
      end
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.matches("used more than 16 MB of memory", err.message, 1, true)
  end))

  it("do not run on once C was refused memory that nobody asks for again, whatever they catch", run(function()
    local ran_on, pcall, concat, pack = 0, pcall, table.concat, string.pack
    local task = core.spawn(function()
      core.confine { memory = 8 << 20 }
      local text, list = ("x"):rep(1 << 20), {}
      for i = 1, 100 do list[i] = text end
      pcall(concat, list)
      pcall(pack, "c200000000", "x")
      while ran_on < 1000000 do ran_on = ran_on + 1 end
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.matches("limit_spec.lua:%d+: used more than 8 MB of memory", err.message)
    assert.is_true(ran_on < 1000)
  end))

  it("run on where the collector has found what they asked for", run(function()
    local task = core.spawn(function()
      core.confine { memory = 8 << 20 }
      local text, last = ("x"):rep(2 << 20), nil
      collectgarbage("stop")
      for i = 100, 199 do last = text .. i end
      collectgarbage("restart")
      return #last
    end)
    assert.same({ true, (2 << 20) + 3 }, { task:wait(20) })
  end))

  it("call what must not wait under limits of its own, and go on as they were", run(function()
    local task = core.spawn(function()
      core.confine { instructions = 2e6 }
      local ok, err = core.confined({ instructions = 1e6 }, function() while true do pcall(function() while true do end end) end end)
      assert.same({ false, "limit" }, { ok, err.code })
      assert.matches("limit_spec.lua:%d+: ran 1 million instructions", err.message)
      assert.same({ true, "a", 2 }, { core.confined({ instructions = 1e6 }, function(...) return ... end, "a", 2) })
      assert.same({ false, "why" }, { core.confined({}, error, "why", 0) })
      assert.matches("this call waits, and cannot do so", select(2, core.confined({}, core.sleep, 0)))
      for _ = 1, 300000 do end
      core.sleep(0)
      while true do end
    end)
    local ok, err = task:wait()
    assert.is_false(ok)
    assert.matches("ran 2 million instructions", err.message, 1, true)
    assert.is_true(core.confined({ instructions = 1e6 }, function() return true end))
    for _ = 1, 2000000 do end
  end))

  it("are not ended by their limit when they wait in between", run(function()
    local task = core.spawn(function()
      core.confine { instructions = 2e6 }
      for _ = 1, 5 do
        for _ = 1, 500000 do end
        core.sleep(0)
      end
      return "done"
    end)
    assert.same({ true, "done" }, { task:wait() })
  end))

  it("cannot be charged with less than nothing", run(function()
    local task = core.spawn(function()
      core.confine { instructions = 1e6 }
      for _, steps in ipairs { -1, -math.huge, math.mininteger, 0 / 0 } do
        assert.matches("an amount of work is at least 0", select(2, pcall(core.charge, steps)), 1, true)
      end
      while true do end
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
  end))

  it("have not waited when no time has passed meanwhile", run(function()
    local task = core.spawn(function()
      core.confine { instructions = 1e6 }
      while true do core.spawn(function() end):wait() end
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.matches("ran 1 million instructions", err.message, 1, true)
  end))

  it("count what is kept for them while they are exempt, and are told of it soon, however many they are", run(function()
    local kept, began = {}, core.now()
    local function grow()
      core.exempt(true)
      kept[#kept + 1] = { ("x"):rep(10000) .. #kept }
      core.exempt(false)
      local one, other = core.spawn(grow), core.spawn(grow)
      one:wait()
      other:wait()
    end
    local task = core.spawn(function()
      core.confine { memory = 20 << 20 }
      grow()
    end)
    local ok, err = task:wait(20)
    assert.same({ false, "limit" }, { ok, err and err.code })
    assert.matches("used more than 20 MB of memory", err.message, 1, true)
    assert.is_true(core.now() - began < 20)
  end))
end)

describe("tasks that are always ready", function()
  it("let the loop have its turn", run(function()
    local over = false
    core.spawn(function()
      core.sleep(0.1)
      over = true
    end)
    local began = os.clock()
    while not over and os.clock() - began < 10 do core.spawn(function() end):wait() end
    assert.is_true(over)
  end))
end)
