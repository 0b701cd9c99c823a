-- lock_spec.lua -- The lock of hosts that are only pretended: what is asked of each when not all give theirs.
local core = require "deployrt.core"
local lock = require "deployrt.lock"
local request = require "deployrt.request"

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
      return pcall(lock.take, { host("a"), host("b", fails), host("c") }, { run = "r", epoch = epoch, file = "app.yml", since = 0, is_over = function() return false end })
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

  it("is not said to be that of a dead run when it let go, and ended, between the look at the lock and at its process", function()
    local now = os.time()
    local gone = ("ended\t1\tme@here\t%d\t%s 0 1 2\t%d\t%d\t\n"):format(now, core.whoami().host, now, now)
    local function letting_go(looks)
      return { name = "a", call = function()
        looks = looks - 1
        if looks < 0 then error({ code = "host", message = "no lock" }, 0) end
        return gone
      end }
    end
    local ok, held = core.run(function() return lock.read(letting_go(1)) end)
    assert.is_true(ok)
    assert.is_nil(held)
    ok, held = core.run(function() return lock.read(letting_go(2)) end)
    assert.same({ true, true }, { ok, held.dead })
  end)

  it("is taken where a run let go of it, and ended, while it was asked for", function()
    local now, tried = os.time(), 0
    local gone = ("locked: ended\t1\tme@here\t%d\t%s 0 1 2\t%d\t%d\t\n"):format(now, core.whoami().host, now, now)
    local there = { name = "a", call = function(_, what)
      if what == "lock_read" then error({ code = "host", message = "no lock" }, 0) end
      tried = tried + (what == "lock_take" and 1 or 0)
      if tried == 1 then error({ code = "locked", message = gone }, 0) end
      return ""
    end }
    local ok, err = core.run(function() return lock.take({ there }, { run = "r", epoch = 1, file = "app.yml", since = 0, is_over = function() return false end }) end)
    assert.is_true(ok, err)
    assert.equal(2, tried)
  end)

  it("is not said to be let go of where the hosts that may have it are away", function()
    local now = os.time()
    local here = { alive = ("r\t1\tme@here\t%d\tx y 1 2\t%d\t%d\t\n"):format(now, now, now), dead = ("r\t1\tme@here\t%d\tx y 1 2\t%d\t%d\t\n"):format(now, now - 100, now) }
    local function end_of(...)
      local lines = {}
      for i, looks in ipairs { ... } do
        lines[i] = { name = "web" .. i, call = function()
          local look = #looks > 1 and table.remove(looks, 1) or looks[1]
          return here[look] or error({ code = look, message = "no lock" }, 0)
        end }
      end
      local ok, ending = core.run(function() return request.await_end { held = { run = "r" }, lines = lines } end)
      assert.is_true(ok, ending)
      return ending
    end
    assert.equal("over", end_of({ "alive", "host" }, { "unreachable" }))
    assert.equal("over", end_of({ "alive", "unreachable" }, { "alive", "host" }))
    assert.equal("over", end_of({ "dead" }, { "alive", "host" }))
    assert.equal("dead", end_of({ "unreachable" }, { "alive", "dead" }, { "dead" }))
    assert.equal("unknown", end_of({ "alive", "unreachable" }, { "timeout" }))
  end)

  it("is that of a run under way as long as one host hears it", function()
    local now = os.time()
    local function locked(name, beat)
      return { name = name, call = function() return ("r\t1\tme@here\t%d\tx y 1 2\t%d\t%d\t\n"):format(now, beat, now) end }
    end
    local ok, held = core.run(function() return lock.find { locked("a", now - 100), locked("b", now) } end)
    assert.is_true(ok)
    assert.same({ false, "b" }, { held.dead, held.host })
  end)

  it("tells the step that the run was at until a later life of it tells another, and when the run began", function()
    local given = {}
    local there = { name = "a", call = function(_, what, words)
      given[what] = words
      return ""
    end }
    local ok, err = core.run(function()
      local taken = lock.take({ there }, { run = "r", epoch = 2, file = "app.yml", since = 1700000000.5, is_over = function() return false end })
      local function fail() error("not to be called") end
      taken.beaten = 0
      taken:keep(fail, fail)
      taken.told:set()
      core.sleep(0.1)
      local first = given.lock_beat
      taken:tell("rolling back")
      core.sleep(0.1)
      taken:stop()
      return { first, given.lock_beat, given.lock_take[4] }
    end)
    assert.is_true(ok, err)
    assert.same({ { "r", "2" }, { "r", "2", "rolling back" }, "1700000000" }, err)
  end)

  it("stays with an interrupted run that could not be taken up", function()
    assert.equal("a lock_take, b lock_take", take(2, "lost"))
  end)
end)
