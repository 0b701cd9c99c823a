-- disk_spec.lua -- Disks that are full, on the controller and on hosts, in the middle of a run: all-new or all-old, and
-- the exit code tells the truth.
-- weight: 8
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local journal = require "deployrt.journal"
local contains = fixture.contains

if fixture.sh("id -u") ~= "0\n" then
  print("disk_spec: skipped: small disks need root")
  return
end

describe("a full disk", function()
  local app, disks

  --- Puts a directory on a disk of its own, with what it has.
  local function small_disk(path, size)
    fixture.sh(("mkdir -p %s && cp -a %s %s.aside && mount -t tmpfs -o size=%s tmpfs %s && cp -a %s.aside/. %s/ && rm -r %s.aside"):format(
      path, path, path, size or "8m", path, path, path, path))
    disks[#disks + 1] = path
  end

  local function fill(path)
    fixture.sh(("dd if=/dev/zero of=%s/filler bs=4096 2>/dev/null; true"):format(path))
  end

  local function make_room(path)
    os.remove(path .. "/filler")
  end

  local function strategy(text)
    fixture.write(app.dir .. "/own.lua", 'local strategy = require "deployrt.strategy"\nlocal own = strategy.extend("rolling", { name = "own" })\n'
      .. "function own:deploy()\n" .. text .. "\nend\nreturn own\n")
  end

  --- Starts the strategy, waits until it says "now", does `action`, and waits for the end.
  ---@return string exit, string text
  local function at_now(action)
    local log = app.dir .. "/log"
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
      "--state", app.dir .. "/state", "./own.lua", "app.yml" }, { log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("now\n", 1, true) end, 30, "the moment")
    action()
    fixture.eventually(function() return not fixture.alive(pid) end, 60, "end of the run")
    local text = fixture.read(log)
    return text:match("exit (%d+)%s*$"), text
  end

  local function host_disk() return app.dir .. "/home/.deployrt/shop" end

  before_each(function()
    disks = {}
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, timeout: 5s, deadline: 20s}" }
    small_disk(host_disk())
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:write(fixture.release("2.0"), "2.0")
  end)
  after_each(function()
    for _, path in ipairs(disks) do make_room(path) end
    app:stop()
    for i = #disks, 1, -1 do fixture.sh("umount -l " .. disks[i]) end
    fixture.cleanup()
  end)

  it("on the controller, where the journal is, rolls the run back; the next one goes as always", function()
    local disk = app.dir .. "/state"
    small_disk(disk)
    strategy "self.super.deploy(self) self:log('now') self:sleep(1) self.fleet.hosts[1]:run { 'true', ('x'):rep(9000) }"
    local exit, text = at_now(function() fill(disk) end)
    assert.equal("1", exit, text)
    contains(text, "cannot write the journal", "No space left", disk)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit, run.stdout)
    contains(run.stderr, "No space left")
    make_room(disk)
    run = app:command { "resume", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "nothing to resume or abort")
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    assert.same({ "2.0" }, app:serving())
  end)

  it("on the controller at the very end of a run does not undo it, and does not fail it either", function()
    local disk = app.dir .. "/state"
    small_disk(disk)
    app.opts.yaml = ("strategy: {settle: 0}\nhooks: {after: 'dd if=/dev/zero of=%s/filler bs=4096 2>/dev/null; true'}"):format(disk)
    app:write(fixture.release("2.0"), "2.0")
    local run = app:command { "rolling", "app.yml" }
    assert.is_true(run.exit == 0 or run.exit == 1, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "No space left")
    app.opts.yaml = nil
    app:write(fixture.release("3.0"), "3.0")
    assert.same({ run.exit == 0 and "2.0" or "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  it("on a host at the start is an error before anything is changed", function()
    local disk = host_disk()
    fill(disk)
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "No space left", "local")
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
    make_room(disk)
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
  end)

  it("on a host is noticed by check --connect, which says how much is free, and so is one that cannot be written", function()
    local disk = host_disk()
    local function check(directory)
      local run = app:command { "check", "app.yml", "--connect", "--set", "process.adopt=true", "--set", ("hosts=[{name: local, dir: %s}]"):format(directory) }
      return run.exit, run.stderr
    end
    for _, directory in ipairs { disk .. "/..", disk .. "/not/there" } do
      local before = fixture.sh("find " .. disk)
      assert.equal(0, check(directory))
      assert.equal(before, fixture.sh("find " .. disk))
      fill(disk)
      local exit, text = check(directory)
      assert.equal(2, exit, text)
      contains(text, "local: ", "0 KB are free", "make room there")
      make_room(disk)
      fixture.sh(("mount --bind %s %s && mount -o remount,bind,ro %s"):format(disk, disk, disk))
      exit, text = check(directory)
      fixture.sh("umount " .. disk)
      assert.equal(2, exit, text)
      contains(text, "local: cannot write to " .. disk, ": Read-only file system: have ", "or give the host another `dir`")
    end
    small_disk(disk .. "/releases", "2m")
    fill(disk .. "/releases")
    local exit, text = check(disk .. "/..")
    assert.equal(2, exit, text)
    contains(text, "shop/releases", "0 KB are free")
  end)

  it("on a host is noticed by check --connect also where files are lacking, and so is a directory that leads nowhere", function()
    local disk = host_disk()
    local function check(directory)
      local run = app:command { "check", "app.yml", "--connect", "--set", "process.adopt=true", "--set", ("hosts=[{name: local, dir: %s}]"):format(directory) }
      return run.exit, run.stderr
    end
    fixture.sh(("mkdir -p %s/files/shop && mount -t tmpfs -o size=8m,nr_inodes=1 deployrt-spec %s/files/shop"):format(app.dir, app.dir))
    local exit, text = check(app.dir .. "/files")
    fixture.sh(("umount %s/files/shop"):format(app.dir))
    assert.equal(2, exit, text)
    contains(text, "local: no file can be made at " .. app.dir .. "/files/shop, though ", "`df -i` shows inodes): make room there")
    fixture.sh(("ln -s %s/nowhere %s/link"):format(disk, app.dir))
    exit, text = check(app.dir .. "/link")
    assert.equal(2, exit, text)
    contains(text, ("local: %s/link is a link to %s/nowhere, which is not there: make that, or give the host another `dir`"):format(app.dir, disk))
  end)

  for _, balancer in ipairs { "with a balancer", "without one" } do
    it("on a host " .. balancer .. " keeps nobody from going back, and what served serves again", function()
      local disk = host_disk()
      app.opts.yaml = "strategy: {settle: 2s}"
      if balancer == "without one" then
        app:stop()
        app.opts.balancer = false
        assert.equal(0, app:deploy("rolling", "1.0").exit)
      end
      app:write(fixture.release("2.0"), "2.0")
      strategy "function self.observe(...) self:log('now') self.super.observe(...) error('so') end self.super.deploy(self)"
      local exit, text = at_now(function() fill(disk) end)
      assert.equal("1", exit, text)
      assert.same({ "1.0" }, app:serving())
      assert.equal(cjson.null, app:status().lock)
      make_room(disk)
      assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    end)
  end

  it("on a host makes the copy of the journal lag until there is room", function()
    local disk = host_disk()
    strategy "self.super.deploy(self) self:log('now') self:sleep(0.5) for _ = 1, 60 do self:sleep(0.02) end self:log('waits') self:sleep(3)"
    local exit, text = at_now(function()
      fill(disk)
      fixture.eventually(function() return fixture.read(app.dir .. "/log"):find("waits\n", 1, true) end, 30, "the wait")
      make_room(disk)
    end)
    assert.equal("0", exit, text)
    assert.same({ "2.0" }, app:serving())
    local copy = fixture.sh(("cat $(ls -d %s/runs/*/journal | tail -n 1)"):format(disk))
    local whole, count = journal.restore(copy)
    assert.not_equal(whole, copy) -- it was torn, or the disk was not full
    local all = fixture.read(app:journal_path())
    assert.equal(all:sub(1, #whole), whole)
    contains(whole, '"release.activate"') -- what came last
    assert.is_true(count > 130)
  end)

  it("on a host keeps nobody from holding a run, letting it go on and rolling it back, and what serves can be started again", function()
    local disk = host_disk()
    strategy "self.super.deploy(self) self:log('now') self:approve('sure?') for i = 1, 200 do self:step('step ' .. i, function() self:sleep(0.1) end) end"
    local exit, text = at_now(function()
      fill(disk)
      fixture.eventually(function() return fixture.read(app.dir .. "/log"):find("sure?", 1, true) end, 10, "the gate")
      for _, verb in ipairs { "approve", "pause", "abort" } do
        local run = app:command { verb, "app.yml" }
        assert.equal(0, run.exit, run.stdout .. run.stderr)
      end
    end)
    assert.equal("130", exit, text)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
  end)

  it("on a host keeps nobody from rolling back a run whose controller died", function()
    local disk = host_disk()
    strategy "self.super.deploy(self) self:log('now') self:sleep(60)"
    local log = app.dir .. "/log"
    local pid = app:begin({ "./own.lua", "app.yml" }, log)
    fixture.eventually(function() return fixture.read(log):find("now\n", 1, true) end, 30, "the moment")
    fill(disk)
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1.0" }, app:serving())
    assert.equal(cjson.null, app:status().lock)
    make_room(disk)
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
  end)

  it("on a host, with room for no more files when all runs, is an error that says so, and all is put back", function()
    local disk = host_disk()
    strategy "self.super.deploy(self) self:log('now') self:sleep(1)"
    local exit, text = at_now(function()
      fixture.sh(("mount -o remount,nr_inodes=$(($(df --output=iused %s | tail -n 1))) %s"):format(disk, disk))
    end)
    fixture.sh(("mount -o remount,nr_inodes=9999 %s"):format(disk))
    contains(text, "/current to 2.0: ln: ", "No space left on device", "== rolled back")
    assert.equal("1", exit, text)
    assert.same({ "1.0" }, app:serving())
  end)

  it("on a host before a command is an error at once, and the command is not begun", function()
    local disk = host_disk()
    strategy(("self:log('now') self:sleep(1) self.fleet.hosts[1]:run({ '/bin/sh', '-c', 'cat > %s/done' }, { stdin = ('x'):rep(20000) })"):format(app.dir))
    local exit, text = at_now(function() fill(disk) end)
    assert.equal("1", exit, text)
    contains(text, "No space left", "local")
    assert.is_nil(fixture.read(app.dir .. "/done"))
    assert.same({ "1.0" }, app:serving())
  end)

  it("on a host before a start, and no room kept for that either, is an error, and nothing is left of it", function()
    local disk = host_disk()
    strategy "self:log('now') self:sleep(1) self.super.deploy(self)"
    local exit, text = at_now(function()
      os.remove(disk .. "/.reserve")
      fill(disk)
    end)
    assert.equal("1", exit, text)
    contains(text, "No space left")
    make_room(disk)
    assert.same({ "1.0" }, app:serving())
    assert.equal(1, #app:status().instances)
    assert.equal("", fixture.sh(("ls -A %s/instances | grep part || true"):format(disk)))
    assert.equal(cjson.null, app:status().lock)
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
  end)
end)
