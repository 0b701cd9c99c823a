-- etcd_spec.lua -- The client and the state in etcd, against a cluster of three real members.
-- weight: 4
local core = require "deployrt.core"
local client_module = require "deployrt.etcd"
local state_module = require "deployrt.state.etcd"
local support = require "spec.support.etcd"

local cluster, scratch, client
local apps = 0

--- Runs a function as a task; returns what it returns, or raises what it raises.
local function run(body)
  local result = table.pack(core.run(body))
  if not result[1] then error(result[2], 0) end
  return table.unpack(result, 2, result.n)
end

local function failure(body, ...)
  local ok, err = pcall(body, ...)
  assert.is_false(ok)
  assert.equal("table", type(err), tostring(err))
  return err
end

local function await(seconds, condition)
  local deadline = core.now() + seconds
  while not condition() do
    assert(core.now() < deadline, "waited in vain")
    core.sleep(0.05)
  end
end

--- A machine of the team: its own directory, the same cluster.
local function machine(app, name, options)
  options = options or {}
  options.endpoints = options.endpoints or cluster.endpoints
  return state_module.open(app, scratch .. "/" .. name, options)
end

local function new_app()
  apps = apps + 1
  return "shop" .. apps
end

local function take(state, run_id, epoch, more)
  local options = { run = run_id, epoch = epoch, owner = "ann@desk", life = "desk boot 1 2" }
  for key, value in pairs(more or {}) do options[key] = value end
  return state:take_lock(options)
end

setup(function()
  cluster = support.start(3)
  local pipe <close> = assert(io.popen("mktemp -d /tmp/deployrt-etcd-state.XXXXXX"))
  scratch = pipe:read("l")
end)

teardown(function()
  cluster:stop()
  os.execute("rm -rf " .. scratch)
end)

before_each(function() client = client_module.open { endpoints = cluster.endpoints } end)
after_each(function() assert.equal(0, core.live_tasks()) end)

describe("the client of etcd", function()
  it("reads what it wrote, whatever the bytes", function()
    local bytes = {}
    for i = 0, 255 do bytes[#bytes + 1] = string.char(i) end
    local all = table.concat(bytes)
    run(function()
      for _, value in ipairs { "", "a", "ab", "abc", all, all .. all:reverse() .. "x" } do
        client:put("/t/bytes", value)
        assert.equal(value, (client:get("/t/bytes")))
      end
      client:delete("/t/bytes")
      local value, revision = client:get("/t/bytes")
      assert.is_nil(value)
      assert.equal("0", revision)
    end)
  end)

  it("lists the keys of a prefix in order, and only those, over many pages", function()
    run(function()
      for i = 1, 150 do client:swap(("/t/list/%03d"):format(i), "v" .. i, { revision = "0" }) end
      client:put("/t/list0", "neighbour")
      local found = client:list("/t/list/")
      assert.equal(150, #found)
      for i, entry in ipairs(found) do assert.same({ ("/t/list/%03d"):format(i), "v" .. i }, { entry.key, entry.value }) end
      client:delete("/t/list/", { prefix = true })
      assert.equal(0, #client:list("/t/list/"))
      assert.equal("neighbour", (client:get("/t/list0")))
    end)
  end)

  it("writes only if nobody else wrote meanwhile, and knows its own write again", function()
    run(function()
      assert.is_true(client:swap("/t/cas", "mine", { revision = "0" }))
      assert.is_true(client:swap("/t/cas", "mine", { revision = "0" })) -- the answer to the first was lost
      local written, present, revision = client:swap("/t/cas", "other", { revision = "0" })
      assert.same({ false, "mine" }, { written, present })
      assert.is_true(client:swap("/t/cas", "other", { revision = revision }))
      assert.is_false((client:swap("/t/cas", "third", { equals = "mine" })))
      assert.is_true(client:swap("/t/cas", "third", { equals = "other" }))
    end)
  end)

  it("loses what was written under a lease when that is revoked or runs out", function()
    run(function()
      local lease = client:lease(60)
      client:put("/t/leased", "x", { lease = lease })
      assert.is_true(client:keep_alive(lease))
      client:revoke(lease)
      client:revoke(lease)
      assert.is_false(client:keep_alive(lease))
      assert.is_nil((client:get("/t/leased")))
      assert.is_false(client:put("/t/leased", "x", { lease = lease }))
      client:put("/t/short", "x", { lease = client:lease(1) })
      await(10, function() return not client:get("/t/short") end)
    end)
  end)

  it("says what etcd refuses, at once", function()
    local began = core.now()
    local err = failure(run, function() client:put("/t/large", ("x"):rep(1700000)) end)
    assert.equal("etcd", err.code)
    assert.truthy(err.message:find("request is too large", 1, true), err.message)
    assert.is_true(core.now() - began < 5)
  end)

  it("says so when an endpoint is no etcd", function()
    local wrong = client_module.open { endpoints = { "127.0.0.1:" .. cluster.members[1].peer }, timeout = 0.5 }
    local err = failure(run, function() wrong:get("/t/x") end)
    assert.equal("etcd", err.code)
    assert.truthy(err.message:find("is this a client port of etcd", 1, true), err.message)
  end)
end)

describe("the state in etcd", function()
  it("shows every machine the same history", function()
    local app = new_app()
    run(function()
      local ann, bob = machine(app, "ann"), machine(app, "bob")
      assert.same({}, bob:runs())
      assert.is_nil(bob:last_success())
      local first, path = ann:create()
      assert.truthy(core.fs.stat(path))
      ann:save(first, { id = first, strategy = "rolling", outcome = "running" })
      assert.is_false(bob:is_over(first))
      ann:save(first, { id = first, strategy = "rolling", outcome = "succeeded", finished = core.time() })
      local second = bob:create()
      bob:save(second, { id = second, strategy = "rolling", outcome = "rolled_back", finished = core.time() })
      local ids = {}
      for i, record in ipairs(ann:runs()) do ids[i] = record.id end
      assert.same({ first, second }, ids)
      assert.is_true(bob:is_over(first))
      assert.equal(first, bob:last_success().id)
      assert.truthy(core.fs.stat(path .. "/run.json"))
      bob:forget(second)
      assert.equal(1, #ann:runs())
      assert.is_false(ann:is_over(second))
    end)
  end)

  it("learns how a run ended that could not tell it then", function()
    local app = new_app()
    run(function()
      local ann, bob = machine(app, "ann"), machine(app, "bob")
      ann:save("r1", { id = "r1", strategy = "rolling", outcome = "running" })
      ann.files:save("r1", { id = "r1", strategy = "rolling", outcome = "succeeded", finished = core.time() })
      assert.is_nil(bob:runs()[1].finished)
      assert.equal("succeeded", ann:runs()[1].outcome)
      assert.equal("r1", bob:last_success().id)
    end)
  end)

  it("returns a journal of 1,000 records that came in chunks, on another machine", function()
    local app = new_app()
    run(function()
      local ann, whole = machine(app, "ann"), {}
      for n = 1, 100 do
        local lines = {}
        for i = 1, 10 do lines[i] = ("%08x 40 {\"record\":%d,\"text\":\"caf\xC3\xA9\"}\n"):format(n, n * 10 + i) end
        whole[n] = table.concat(lines)
        ann:append_journal("r1", n, whole[n])
      end
      ann:append_journal("r1", 100, whole[100])
      ann:append_journal("r10", 1, "another run's")
      local text, chunks = machine(app, "bob"):read_journal("r1")
      assert.equal(table.concat(whole), text)
      assert.equal(100, chunks)
    end)
  end)

  it("refuses a chunk that another controller wrote otherwise, and a journal with a hole", function()
    local app = new_app()
    run(function()
      local ann = machine(app, "ann")
      ann:append_journal("r", 1, "one")
      assert.truthy(failure(ann.append_journal, ann, "r", 1, "two").message:find("other content", 1, true))
      ann:append_journal("r", 3, "three")
      assert.truthy(failure(ann.read_journal, ann, "r").message:find("chunk 2", 1, true))
    end)
  end)
end)

describe("the lock in etcd", function()
  it("goes to exactly one of many who ask at once", function()
    local app = new_app()
    run(function()
      local held, refused = {}, 0
      for i = 1, 8 do
        core.spawn(function()
          local ok, result = pcall(take, machine(app, "m" .. i), "run" .. i, 1)
          if ok then held[#held + 1] = result elseif result.code == "locked" then refused = refused + 1 else error(result, 0) end
        end)
      end
      await(10, function() return #held + refused == 8 end)
      assert.same({ 1, 7 }, { #held, refused })
      local holder = machine(app, "other"):read_lock()
      assert.equal(held[1].options.run, holder.run)
      held[1]:release()
      assert.is_nil(machine(app, "other"):read_lock())
      take(machine(app, "next"), "next", 1):release()
    end)
  end)

  it("names its holder to who comes second", function()
    local app = new_app()
    run(function()
      local lock = take(machine(app, "ann"), "r1", 1)
      local err = failure(take, machine(app, "bob"), "r2", 9)
      lock:release()
      assert.equal("locked", err.code)
      assert.equal("r1", err.lock.run)
      assert.truthy(err.message:find("run r1 of ann@desk", 1, true), err.message)
    end)
  end)

  it("tells how long a dead holder's stays, and is removed only as it was seen", function()
    local app = new_app()
    run(function()
      local ann, bob = machine(app, "ann"), machine(app, "bob")
      local first = take(ann, "r1", 1)
      local err = failure(take, bob, "r2", 1)
      assert.truthy(err.message:match("the lock goes by itself within %d+s"), err.message)
      local seen = bob:read_lock()
      assert.is_true(seen.left > 20 and seen.left <= 30 and not seen.dead and not seen.over)
      first:release()
      local second = take(ann, "r3", 1)
      bob:break_lock(seen)
      assert.equal("r3", bob:read_lock().run)
      bob:break_lock(bob:read_lock())
      assert.is_nil(bob:read_lock())
      second:release()
    end)
  end)

  it("is free when its run has ended and its process is gone, and only then", function()
    local app = new_app()
    run(function()
      local ann, bob = machine(app, "ann"), machine(app, "bob")
      local left = take(ann, "r1", 1, { life = core.whoami().host .. " boot 1 2" })
      local err = failure(take, bob, "r2", 1)
      assert.truthy(err.message:find("its controller is dead: finish it with `deployrt resume`", 1, true), err.message)
      assert.is_true(bob:read_lock().dead)
      ann:save("r1", { id = "r1", outcome = "succeeded", finished = core.time() })
      assert.is_true(bob:read_lock().over)
      take(bob, "r2", 1):release()
      left:release()
    end)
  end)

  it("stays beyond its lease's time while the holder lives", function()
    local app = new_app()
    run(function()
      local lost
      local lock = take(machine(app, "ann"), "r1", 1, { ttl = 2, beat = 0.3, lost = function(err) lost = err end })
      local until_then = core.now() + 3
      await(6, function()
        assert.truthy(machine(app, "bob"):read_lock())
        return core.now() > until_then
      end)
      assert.is_nil(lost)
      lock:release()
    end)
  end)

  it("does not outlive a run that raises: keeping ends with the task, and the lock goes with its lease", function()
    local app = new_app()
    local err = failure(run, function()
      take(machine(app, "ann"), "r1", 1, { ttl = 2, beat = 0.3 })
      error({ code = "x", message = "broken" }, 0)
    end)
    assert.equal("broken", err.message)
    run(function()
      local bob = machine(app, "bob")
      await(10, function() return bob:read_lock() == nil end)
      take(bob, "r2", 1):release()
    end)
  end)

  it("is free when its holder was killed and its time has passed", function()
    local app = new_app()
    local code = ([[package.path, package.cpath = %q, %q
      require("deployrt.core").run(function()
        require("deployrt.state.etcd").open(%q, %q, { endpoints = { %q } })
          :take_lock { run = "dead", epoch = 1, owner = "x", life = "x", ttl = 2, beat = 0.3 }
      end)]]):format(package.path, package.cpath, app, scratch .. "/dead", cluster.endpoints[1])
    local path = scratch .. "/holder.lua"
    local file <close> = assert(io.open(path, "w"))
    file:write(code)
    file:flush()
    local pipe <close> = assert(io.popen(("exec 3>&1; { lua5.4 %s > %s.out 2>&1 3>&- & echo $! >&3; }"):format(path, path)))
    local pid = pipe:read("l")
    run(function()
      local bob = machine(app, "bob")
      await(10, function() return bob:read_lock() ~= nil end)
      os.execute("kill -KILL " .. pid)
      assert.equal("locked", failure(take, bob, "r2", 1).code)
      await(10, function() return bob:read_lock() == nil end)
      take(bob, "r2", 1):release()
    end)
  end)

  it("is taken over by a later epoch; the earlier one is told, and writes no more", function()
    local app = new_app()
    run(function()
      local ann, bob, told = machine(app, "ann"), machine(app, "bob"), {}
      local first = take(ann, "r1", 1, { ttl = 5, beat = 0.2, lost = function(err) told[#told + 1] = err end })
      ann:append_journal("r1", 1, "by ann")
      assert.equal("locked", failure(take, bob, "r1", 1).code) -- the same epoch is not a later one
      local second = take(bob, "r1", 2, { ttl = 5, beat = 0.2 })
      assert.equal("etcd", failure(ann.append_journal, ann, "r1", 2, "late").code)
      assert.equal("etcd", failure(ann.save, ann, "r1", { id = "r1" }).code)
      await(5, function() return #told > 0 end)
      assert.equal(1, #told)
      assert.truthy(told[1].message:find("epoch 2", 1, true), told[1].message)
      assert.is_false(first:is_held())
      first:release()
      assert.equal(2, bob:read_lock().epoch)
      assert.is_true(second:is_held())
      bob:append_journal("r1", 2, "by bob")
      assert.equal("by annby bob", (bob:read_journal("r1")))
      second:release()
    end)
  end)
end)

describe("answers of etcd that get lost", function()
  local proxy

  before_each(function() proxy = cluster:one_way(1) end)
  after_each(function() proxy:stop() end)

  it("leave requests behind that arrive late and bring no older record back", function()
    local app = new_app()
    run(function()
      local ann, late = machine(app, "ann"), {}
      local call = ann.client.call
      function ann.client:call(path, fields)
        late[#late + 1] = { path, fields }
        return call(self, path, fields)
      end
      ann:save("r1", { id = "r1", step = 1 })
      ann:append_journal("r1", 1, "one")
      local count = #late
      ann:save("r1", { id = "r1", step = 2 })
      for i = 1, count do call(ann.client, table.unpack(late[i])) end
      assert.equal(2, ann:runs()[1].step)
      assert.equal("one", (ann:read_journal("r1")))
    end)
  end)

  it("are asked for again, and nothing is done twice", function()
    local app = new_app()
    run(function()
      local ann = machine(app, "ann", { patience = 0.15 })
      local call = ann.client.call
      function ann.client:call(...)
        self.endpoints = { proxy.endpoint, cluster.endpoints[2] } -- each operation is done first where no answer comes from
        return call(self, ...)
      end
      local lock = take(ann, "r1", 1, { beat = 100 })
      for n = 1, 3 do ann:append_journal("r1", n, n .. "\n") end
      ann:save("r1", { id = "r1", step = 1 })
      ann:save("r1", { id = "r1", step = 2 })
      local bob = machine(app, "bob")
      assert.equal("1\n2\n3\n", (bob:read_journal("r1")))
      assert.equal(2, bob:runs()[1].step)
      assert.equal("r1", bob:read_lock().run)
      lock:release()
      assert.is_nil(bob:read_lock())
    end)
  end)
end)

describe("members of etcd that fail", function()
  after_each(function() cluster:heal() end)

  it("leave everything working while one of three is dead", function()
    local app = new_app()
    run(function()
      local ann, lost = machine(app, "ann"), nil
      local lock = take(ann, "r1", 1, { ttl = 8, beat = 0.3, lost = function(err) lost = err end })
      for n = 1, 60 do
        if n == 20 then cluster:kill(1) end
        ann:append_journal("r1", n, n .. "\n")
        ann:save("r1", { id = "r1", step = n })
      end
      local text, chunks = ann:read_journal("r1")
      assert.equal(60, chunks)
      assert.truthy(text:find("\n60\n$"))
      assert.equal(60, ann:runs()[1].step)
      assert.is_nil(lost)
      lock:release()
    end)
  end)

  it("leave everything working while one of three accepts and never answers", function()
    local app = new_app()
    run(function()
      local ann = machine(app, "ann", { patience = 1 })
      local lock = take(ann, "r1", 1)
      cluster:freeze(1)
      for n = 1, 10 do ann:append_journal("r1", n, n .. "\n") end
      assert.equal(10, select(2, ann:read_journal("r1")))
      lock:release()
    end)
  end)

  it("are noticed by who asks whether the state is there", function()
    local app = new_app()
    run(function()
      local ann = machine(app, "ann", { timeout = 1, patience = 0.3 })
      ann:check()
      cluster:kill(1)
      cluster:kill(2)
      assert.equal("etcd", failure(ann.check, ann).code)
    end)
  end)

  it("make one clear error within the time when two of three are dead", function()
    local app = new_app()
    run(function()
      local ann = machine(app, "ann", { timeout = 2, patience = 0.5 })
      local lost
      local lock = take(ann, "r1", 1, { ttl = 3, beat = 0.3, lost = function(err) lost = err end })
      cluster:kill(2)
      cluster:kill(3)
      local began = core.now()
      local err = failure(ann.save, ann, "r1", { id = "r1" })
      assert.is_true(core.now() - began < 4, core.now() - began)
      assert.equal("etcd", err.code)
      for _, endpoint in ipairs(cluster.endpoints) do assert.truthy(err.message:find(endpoint, 1, true), err.message) end
      assert.truthy(err.message:find("more than half", 1, true), err.message)
      await(6, function() return lost end) -- it must not go on believing in a lease that nobody confirms
      assert.truthy(lost.message:find("this controller must stop", 1, true), lost.message)
      lock:release()
    end)
  end)
end)
