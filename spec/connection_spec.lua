-- connection_spec.lua -- What a host lets one controller at a time do, and where it reaches a balancer.
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"

describe("what is done alone on a host", function()
  local one, other, said

  local function say(text) said[#said + 1] = text end

  local function inside(body)
    return function()
      local directory = fixture.dir()
      one, other, said = connection.new({ name = "one" }, "shop"), connection.new({ name = "other" }, "shop"), {}
      assert(core.run(body, directory .. "/lock"))
      fixture.cleanup()
    end
  end

  --- The first of both has begun when this returns.
  local function both(directory, first)
    local begun = core.event()
    local task = core.spawn(one.alone, one, directory, function()
      begun:set()
      first()
    end)
    begun:wait()
    return task, core.spawn(other.alone, other, directory, say, "other")
  end

  local function close()
    one:close()
    other:close()
  end

  it("waits for who does so now", inside(function(directory)
    local first, second = both(directory, function()
      core.sleep(0.3)
      say "one"
    end)
    first:wait()
    second:wait()
    assert.same({ "one", "other" }, said)
    assert.same({ "a", "b" }, { one:alone(directory, function(...) return ... end, "a", "b") })
    close()
  end))

  it("does not wait for who failed, was canceled, or was killed", inside(function(directory)
    local first, second = both(directory, function() error("no luck", 0) end)
    assert.is_true((second:wait(10)))
    first:wait()
    first, second = both(directory, function() core.sleep(60) end)
    first:cancel()
    assert.is_true((second:wait(10)))
    first:wait()
    local pid = fixture.start({ "lua5.4", "-e", ([[
      local core, line = require "deployrt.core", require "deployrt.connection".new({ name = "one" }, "shop")
      core.run(line.alone, line, "%s", function()
        io.open("%s.begun", "w"):close()
        core.sleep(60)
      end)]]):format(directory, directory) }, { env = fixture.modules() })
    fixture.eventually(function() return fixture.read(directory .. ".begun") end, 10, "the lock of another process")
    second = core.spawn(other.alone, other, directory, say, "third")
    assert.is_nil((second:wait(0.3)))
    fixture.signal(pid, "KILL")
    assert.is_true((second:wait(10)))
    assert.same({ "other", "other", "third" }, said)
    close()
  end))
end)

describe("an answer of a balancer", function()
  it("comes from a path, a name or an address", function()
    local directory, port, here = fixture.dir(), fixture.free_port(), connection.new({ name = "here" }, "shop")
    local path = directory .. "/balancer.sock"
    for _, listen in ipairs { "UNIX-LISTEN:" .. path, ("TCP-LISTEN:%d,bind=127.0.0.1,reuseaddr"):format(port) } do
      fixture.start { "socat", listen .. ",fork", "SYSTEM:head -n1" }
    end
    fixture.eventually(function() return fixture.is_listened(port) and core.fs.stat(path) end, 10, "the balancer")
    assert(core.run(function()
      for _, address in ipairs { path, "127.0.0.1:" .. port, "localhost:" .. port } do assert.equal("it\n", here:talk(address, "it\n"), address) end
      local ok, err = pcall(here.talk, here, "[::1]:" .. port, "it\n")
      assert.same({ false, "refused" }, { ok, err.code }, "nobody listens there")
      ok, err = pcall(here.talk, here, "no-such-host.invalid:" .. port, "it\n")
      assert.same({ false, "unresolved" }, { ok, err.code })
      here:close()
    end))
    fixture.cleanup()
  end)
end)
