-- build_spec.lua -- hooks.build makes the release before anything else; a build that fails changes nothing.
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("hooks.build", function()
  local app

  --- app.yml with a build of its own; the release is what it makes.
  local function build(line, version)
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {build: '" .. line .. "'}"
    app:write(app.dir .. "/made", version)
  end

  before_each(function() app = fixture.app { instances = 1 } end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- A line that makes a release of the service, and counts.
  local function good()
    return ("echo built $APP $RELEASE >> built; rm -rf made; cp -r %s made"):format(fixture.release("any"))
  end

  local function built()
    return fixture.read(app.dir .. "/built")
  end

  --- All files of host and controller, but for what goes on by itself: the service's log, and the note that a release has
  --- reached the disk.
  local function files()
    return fixture.sh(("find %s/home %s/state -type f | grep -Ev '[.](sha256|log)$' | sort | xargs sha256sum"):format(app.dir, app.dir))
  end

  it("makes the release that is deployed, once a run and in the directory of app.yml", function()
    build(good(), "1.0")
    local run = app:command { "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "building: ")
    assert.equal("built shop 1.0\n", built())
    assert.same({ "1.0" }, app:serving())
  end)

  it("that fails changes nothing, and shows what it said", function()
    app:write(fixture.release("1.0"), "1.0")
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--set", "strategy.settle=0" }).exit)
    app.opts.process = "  secrets: {TOKEN: hunter2literal}\n  stop: {timeout: 3s}"
    build("echo compiling; echo no such class hunter2literal >&2; exit 7", "2.0")
    local before = files()
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "hooks.build failed with status 7: nothing was changed", "compiling", "no such class (secret)")
    assert.equal(before, files())
    app.opts.process = nil
    assert.same({ "1.0" }, app:serving())
  end)

  it("comes before a host is asked for anything", function()
    app.opts.hosts = "[nobody@127.0.0.1:1]"
    build("echo begun; false", "1.0")
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit)
    contains(run.stderr, "hooks.build failed with status 1", "begun")
    app.opts.hosts = nil
    build("true", "1.0")
  end)

  it("is named by a plan, which does not run it", function()
    build(good(), "1.0")
    local plan = app:command { "plan", "rolling", "app.yml" }
    assert.equal(2, plan.exit)
    contains(plan.stderr, "hooks.build has not made it; a plan does not run hooks.build")
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    build(good(), "2.0")
    plan = app:command { "plan", "rolling", "app.yml" }
    assert.equal(0, plan.exit, plan.stderr)
    contains(plan.stdout, "hooks.build would run before")
    assert.equal("built shop 1.0\n", built())
  end)

  it("is no part of a rollback, nor of a run that is taken up again", function()
    build(good(), "1.0")
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    build(good(), "2.0")
    assert.equal(137, app:mortal("after", 12, { "rolling", "app.yml" }).exit)
    assert.equal(0, app:command({ "resume", "app.yml" }).exit)
    assert.same({ "2.0" }, app:serving())
    assert.equal(0, app:command({ "rollback", "app.yml" }).exit)
    assert.same({ "1.0" }, app:serving())
    assert.equal("built shop 1.0\nbuilt shop 2.0\n", built())
  end)

  --- Begins a deployment, and waits until it builds; the pid of the build.
  local function begin(log)
    os.remove(app.dir .. "/pid")
    local pid = app:command({ "rolling", "app.yml" }, { background = true, log = log })
    return pid, fixture.eventually(function() return (fixture.read(app.dir .. "/pid") or ""):match("%d+") end, 10, "the build")
  end

  it("is not begun beside one that is under way, and one whose controller died is ended first", function()
    build("echo $$ > pid; echo $$ >> begun; [ -e go ] || sleep 300; " .. good(), "1.0")
    local pid, building = begin()
    local run = app:command { "rolling", "app.yml" }
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "hooks.build of another run is under way in " .. app.dir, "begun by pid " .. pid, "wait until it has ended; nothing was changed")
    assert.is_true(fixture.alive(building))
    fixture.signal(pid, "KILL")
    app:await_end(pid)
    assert.is_true(fixture.alive(building))
    fixture.write(app.dir .. "/go", "")
    run = app:command { "rolling", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.matches("hooks.build of a controller that died ran still, with pid %d+: it was ended", run.stderr)
    assert.is_false(fixture.alive(building))
    assert.equal(2, select(2, fixture.read(app.dir .. "/begun"):gsub("%d+\n", "")))
    assert.equal("built shop 1.0\n", built())
    assert.same({ "1.0" }, app:serving())
  end)

  it("that leaves something behind is over all the same, and how it ended is told", function()
    build("sleep 1004 & echo $! > child; " .. good(), "1.0")
    for i = 1, 2 do
      local run = app:command { "rolling", "app.yml", "--force" }
      fixture.signal(fixture.read(app.dir .. "/child"):match("%d+"), "KILL")
      assert.equal(0, run.exit, i .. run.stdout .. run.stderr)
    end
    build("kill -KILL $$", "1.0")
    contains(app:command({ "rolling", "app.yml" }).stderr, "hooks.build was ended by SIGKILL: nothing was changed")
    build("true", "1.0")
  end)

  it("ends with a run that is interrupted meanwhile: exit 130, nothing was changed", function()
    build("echo $$ > pid; exec sleep 300", "1.0")
    local log = app.dir .. "/log"
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@"; echo "exit $?"', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home",
      fixture.deployrt(), "--state", app.dir .. "/state", "rolling", "app.yml" }, { log = log })
    local building = fixture.eventually(function() return (fixture.read(app.dir .. "/pid") or ""):match("%d+") end, 10, "the build")
    fixture.signal(fixture.sh(("cat /proc/%s/task/%s/children"):format(pid, pid)):match("%d+"), "INT")
    fixture.eventually(function() return not fixture.alive(pid) and not fixture.alive(building) end, 10, "end of both")
    contains(fixture.read(log), "interrupted by SIGINT: nothing was changed", "exit 130")
    assert.is_nil(fixture.read(app.dir .. "/home/.deployrt/shop/lock"))
    build("true", "1.0")
  end)
end)
