-- core_arguments_spec.lua -- What the C core makes of arguments at the edge, and what it refuses before it does anything.
local core = require "deployrt.core"
local machine = require "spec.support.machine"

local nan = 0 / 0
local link, directory

--- Runs `body` as a task with a link to this machine; what it raises fails the spec.
local function with_link(body)
  return function()
    local ok, err = core.run(function()
      local opened <close> = assert(core.connect { root = directory .. "/root" })
      link = opened
      body()
    end)
    if not ok then error(err, 0) end
    assert.equal(0, core.live_tasks())
  end
end

before_each(function() directory = machine.dir() end)
after_each(function() machine.cleanup() end)

describe("seconds", function()
  --- Waits of all kinds, by a function that is given how long.
  local waits = {
    sleep = function(seconds) return core.sleep(seconds) end,
    ["event:wait"] = function(seconds) return core.event():wait(seconds) end,
    ["task:wait"] = function(seconds)
      local other = core.spawn(core.sleep, 60)
      local closing <close> = setmetatable({}, { __close = function() other:cancel() end })
      return other:wait(seconds)
    end,
    ["signals:next"] = function(seconds)
      local signals <close> = core.signals "WINCH"
      return signals:next(seconds)
    end,
    ["link:exec"] = function(seconds) return link:exec({ "sleep", "60" }, { timeout = seconds }) end,
    ["link:call"] = function(seconds) return link:call("sleep", { "60" }, seconds) end,
    ["stream:read"] = function(seconds)
      local stream <close> = link:stream { "sleep", "60" }
      return stream:read(seconds)
    end,
    ["core.pipe"] = function(seconds)
      return core.pipe { from = { link = link, command = { "sleep", "60" } }, to = { file = "/dev/null" }, timeout = seconds }
    end,
  }

  for name, wait in pairs(waits) do
    it("of " .. name .. " may be more than can be counted: it goes on until it is canceled", with_link(function()
      for _, seconds in ipairs { math.huge, 1e300, 1e18, 2^63 } do
        local task = core.spawn(wait, seconds)
        local ended = task:wait(0.03)
        task:cancel()
        local _, result, err = task:wait()
        assert.is_nil(ended, seconds)
        assert.same({ nil, "canceled" }, { result, err and err.code })
      end
    end))

    it("of " .. name .. " are not negative", with_link(function()
      for _, seconds in ipairs { nan, -1, -math.huge, -0.001 } do
        assert.error_matches(function() wait(seconds) end, "seconds must not be negative")
      end
    end))
  end

  it("without end do not keep what is awaited from coming", with_link(function()
    assert.equal(0, link:exec({ "true" }, { timeout = math.huge }).status)
    assert.same({ true, 1 }, { core.spawn(function() return 1 end):wait(math.huge) })
    assert.equal("refused", select(2, link:dial("127.0.0.1", machine.free_port(), math.huge)).code)
  end))

  it("of a connection that is opened are shown as they were given", with_link(function()
    local port = machine.free_port()
    local silent <close> = link:stream { "socat", "TCP-LISTEN:" .. port .. ",bind=127.0.0.1,reuseaddr,fork", "EXEC:sleep 60" }
    machine.eventually(function() return machine.is_listened(port) end, 10, "the listener")
    local function connect(options)
      options.transport, options.address, options.port, options.user, options.agent = "ssh", "127.0.0.1", port, "x", false
      return select(2, core.connect(options))
    end
    assert.matches("no answer within 0.25s while logging in", connect({ timeout = 0.25 }).message, 1, true)
    local task = core.spawn(connect, { timeout = 1e300 })
    assert.is_nil((task:wait(0.1)))
    task:cancel()
    assert.error_matches(function() connect { timeout = -1 } end, "option 'timeout': seconds must not be negative")
    assert.error_matches(function() connect { timeout = nan } end, "option 'timeout': seconds must not be negative")
    assert.error_matches(function() connect { keepalive = 0 } end, "option 'keepalive'")
    assert.is_truthy(silent)
  end))
end)

describe("a descriptor that is handed on", function()
  local function connect(fd, options)
    options = options or {}
    options.transport, options.address, options.user, options.fd, options.agent = "ssh", "127.0.0.1", "x", fd, false
    return core.connect(options)
  end

  it("must be a connected socket", with_link(function()
    for _, fd in ipairs { 9999, 0, 1, 2, -2, 0.5, 1e300, nan } do
      assert.error_matches(function() connect(fd) end, "option 'fd'")
      assert.error_matches(function() core.http.request { url = "http://service/", fd = fd } end, "option 'fd'")
    end
  end))

  it("that is in use already is left to whoever uses it", with_link(function()
    local port = machine.free_port()
    local silent <close> = link:stream { "socat", "TCP-LISTEN:" .. port .. ",bind=127.0.0.1,reuseaddr,fork", "EXEC:sleep 60" }
    machine.eventually(function() return machine.is_listened(port) end, 10, "the listener")
    local fd = assert(link:forward("127.0.0.1", port))
    local first = core.spawn(connect, fd, { timeout = 0.2 })
    core.sleep(0.05) -- until it is watched
    local _, err = connect(fd)
    assert.equal("unreachable", err.code)
    assert.matches("127.0.0.1:22: its socket cannot be watched: file already exists", err.message, 1, true)
    assert.matches("no answer within 0.2s while logging in", select(3, first:wait()).message, 1, true)
    assert.is_truthy(silent)
  end))

  it("needs a port that there can be, as every address", with_link(function()
    for _, port in ipairs { 0, 65536, -1, 22.5, 1e300, nan } do
      assert.error_matches(function() core.connect { transport = "ssh", address = "127.0.0.1", user = "x", port = port } end,
        "option 'port': a whole number from 1 to 65535 expected")
    end
  end))
end)

describe("what is refused before anything is done", function()
  it("a port that there cannot be", with_link(function()
    for _, port in ipairs { 0, -1, 65536, 65536 + 80, 2^40 // 1 | 0 } do
      for _, call in ipairs { "dial", "forward" } do
        assert.error_matches(function() link[call](link, "127.0.0.1", port) end, "a port from 1 to 65535 expected")
      end
      assert.error_matches(function() link:talk("127.0.0.1", port, "x") end, "a port from 1 to 65535 expected")
    end
    assert.error_matches(function() link:forward "127.0.0.1" end, "a port from 1 to 65535 expected")
  end))

  it("an address that no host has", with_link(function()
    for _, call in ipairs { "dial", "forward" } do
      assert.error_matches(function() link[call](link, "/a\0b", 0) end, "an address without NUL expected")
      assert.error_matches(function() link[call](link, ("a"):rep(40000), 80) end, "an address of less than 256 bytes expected")
    end
  end))

  it("a NUL in a path, which would be another one without it", function()
    local path = directory .. "/file"
    assert(core.fs.write(path, "kept"))
    local calls = {
      mkdir = {}, stat = {}, list = {}, remove = {}, realpath = {}, append = {}, write = { "text" },
    }
    for name, more in pairs(calls) do
      assert.error_matches(function() core.fs[name](path .. "\0.bak", table.unpack(more)) end, "a path without NUL expected")
    end
    assert.equal("kept", machine.read(path))
    assert.same({ "file" }, core.fs.list(directory))
  end)

  it("a NUL in the environment, in options and in their lists", with_link(function()
    assert.error_matches(function() link:exec({ "true" }, { env = { A = "a\0b" } }) end, "values without NUL expected")
    assert.error_matches(function() link:exec({ "true" }, { env = { ["A\0B"] = "a" } }) end, "not a name of a variable")
    assert.error_matches(function() link:exec({ "true" }, { cwd = "/\0tmp" }) end, "option 'cwd': a string without NUL expected")
    local to = { link = link, command = { "cat" } }
    assert.error_matches(function() core.pipe { from = { file = "/etc/passwd\0" }, to = to } end, "option 'file': a string without NUL expected")
    assert.error_matches(function() core.http.request { url = "http://x/\0y" } end, "option 'url': a string without NUL expected")
    assert.error_matches(function() core.connect { transport = "openssh", command = { "ssh", "a\0b" } } end, "strings without NUL expected")
    assert.equal("a\0b", link:exec({ "cat" }, { stdin = "a\0b" }).stdout)
  end))

  it("a mark that a shell could take for something else", with_link(function()
    for _, mark in ipairs { "'; true '", "$HOME", "a b", "\n" } do
      assert.error_matches(function() link:exec({ "true" }, { mark = mark }) end, "mark: hexadecimal digits expected")
    end
    assert.equal("0af\nx\n", link:exec({ "echo", "x" }, { mark = "0af", cwd = "/" }).stdout)
  end))

  it("a limit of output that is none", with_link(function()
    for _, limit in ipairs { -1, nan, math.huge } do
      assert.error_matches(function() link:exec({ "true" }, { max_output = limit }) end, "option 'max_output'")
    end
  end))
end)

describe("core.fs", function()
  it("makes no directory of what is a file, and finds one that is there to be fine", function()
    local path = directory .. "/file"
    assert(core.fs.write(path, ""))
    local made, err = core.fs.mkdir(path)
    assert.is_nil(made)
    assert.equal("exists", err.code)
    assert.matches(path, err.message, 1, true)
    assert.is_true(core.fs.mkdir(directory))
    assert(os.execute(("ln -s %s %s/link && ln -s nowhere %s/broken"):format(directory, directory, directory)))
    assert.is_true(core.fs.mkdir(directory .. "/link"))
    assert.equal("exists", select(2, core.fs.mkdir(directory .. "/broken")).code)
    assert.equal("missing", select(2, core.fs.mkdir(directory .. "/no/thing")).code)
  end)

  it("writes files, and leaves devices, pipes and directories as they are", function()
    local full, pipe = directory .. "/full", directory .. "/pipe"
    assert(os.execute(("mkfifo %s && mkdir %s/folder"):format(pipe, directory)))
    local device = os.execute(("mknod %s c 1 7 2>/dev/null"):format(full)) and full or pipe
    for _, path in ipairs { device, pipe, directory .. "/folder" } do
      local written, err = core.fs.write(path, "x")
      assert.is_nil(written)
      assert.equal("exists", err.code)
      assert.matches(path .. ": it is there, and no file", err.message, 1, true)
      assert.is_not.equal("file", core.fs.stat(path).type)
    end
    local file, link_to_it = directory .. "/file", directory .. "/link"
    assert(core.fs.write(file, "one"))
    assert(os.execute(("ln -s file %s"):format(link_to_it)))
    assert.is_true(core.fs.write(file, "two"))
    assert.is_true(core.fs.write(link_to_it, "three"))
    assert.equal("three", machine.read(link_to_it))
  end)
end)

describe("options", function()
  it("that are not known are refused", with_link(function()
    assert.error_matches(function() link:exec({ "true" }, { time = 1 }) end, "link:exec: unknown option 'time'")
    assert.error_matches(function() link:exec({ "true" }, { 5 }) end, "link:exec: unknown option '%?'")
    assert.error_matches(function() link:stream({ "true" }, { working_directory = "/" }) end, "link:stream: unknown option 'working_directory'")
    assert.error_matches(function() core.connect { adress = "x" } end, "core.connect: unknown option 'adress'")
  end))
end)
