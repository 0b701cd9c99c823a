-- lock_spec.lua -- The lock of hosts that are only pretended: what is asked of each when not all give theirs.
local core = require "deployrt.core"
local lock = require "deployrt.lock"

describe("the lock of hosts", function()
  local asked

  --- A host that gives its lock, or answers as `fails` says.
  local function host(name, fails)
    return { name = name, call = function(_, what)
      asked[#asked + 1] = name .. " " .. what
      if what == "lock_take" and fails then error({ code = fails, message = "of " .. name }, 0) end
      return ""
    end }
  end

  local function take(epoch, fails)
    asked = {}
    local ok, result = core.run(function()
      return pcall(lock.take, { host("a"), host("b", fails), host("c") }, { run = "r", epoch = epoch, file = "app.yml", is_over = function() return false end })
    end)
    assert.is_true(ok)
    assert.is_false(result)
    table.sort(asked)
    return table.concat(asked, ", ")
  end

  it("is let go on all when one does not give it, also where its answer was lost", function()
    assert.equal("a lock_release, a lock_take, b lock_release, b lock_take", take(1, "lost"))
    assert.equal("a lock_release, a lock_take, b lock_take", take(1, "locked"))
  end)

  it("is refused once, however many hosts have it: before others by a run that is under way", function()
    local now = os.time()
    local function locked(name, run, beat)
      return { name = name, call = function() return ("%s\t1\tme@here\t%d\tx y 1 2\t%d\t%d\t\n"):format(run, now, beat, now) end }
    end
    local hosts = { locked("a", "ended", now), locked("b", "dead", now - 100), locked("c", "alive", now), locked("d", "alive", now) }
    local ok, err = core.run(function() lock.refuse_held(hosts, "app.yml", function(run) return run == "ended" end) end)
    assert.same({ false, "locked" }, { ok, err.code })
    assert.matches("^run alive of me@here, [^\n]* %(it holds the lock on c, [^\n]*: wait for it, or see `deployrt status app.yml`$", err.message)
    ok, err = core.run(function() lock.refuse_held(hosts, "app.yml", function(run) return run ~= "dead" end) end)
    assert.same({ false, "locked" }, { ok, err.code })
    assert.matches("^run dead [^\n]* was interrupted and left the lock on b: [^\n]*$", err.message)
    assert.is_true(core.run(function() lock.refuse_held(hosts, "app.yml", function() return true end) end))
  end)

  it("stays with an interrupted run that could not be taken up", function()
    assert.equal("a lock_take, b lock_take", take(2, "lost"))
  end)
end)
