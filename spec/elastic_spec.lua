-- elastic_spec.lua -- Hosts that a command gives: an inventory, or a group of its own for each deployment, given back later.
-- weight: 15
local cjson = require "cjson"
local etcd = require "spec.support.etcd"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("elastic_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("hosts that a command gives", function()
  local bed, app, pool

  --- One file a host in free/ or in use/: what a cloud would know. A group gets two; each call leaves a line.
  local provision = [[#!/bin/sh
set -e
cd POOL
echo "provision $GROUP for $APP $RELEASE" >> calls
[ ! -e broken ] || { echo "out of quota" >&2; exit 7; }
[ ! -e empty ] || { echo '[]'; exit 0; }
[ ! -e print ] || { cat print; exit 0; }
while [ -e hold ]; do sleep 0.05; done
mkdir -p "use/$GROUP"
for host in $(ls free | head -n 2); do mv "free/$host" "use/$GROUP"; done
printf '['; cat "use/$GROUP"/* | paste -s -d,; printf ']'
]]
  local release = [[#!/bin/sh
set -e
cd POOL
echo "release $GROUP $RELEASE $(cat)" >> calls
[ ! -e stuck ] || { echo "the cloud is down" >&2; exit 9; }
while [ -e linger ]; do sleep 0.05; done
for host in $(ls "use/$GROUP" 2> /dev/null); do mv "use/$GROUP/$host" free/; done
[ ! -d "use/$GROUP" ] || rmdir "use/$GROUP"
[ ! -e doomed ] || kill -KILL $(cat doomed)
]]

  local function pool_state()
    local function list(what) return (fixture.sh(("cd %s && find %s -type f -printf '%%f\\n' | sort"):format(pool, what)):gsub("%s+$", "")) end
    return { list "free", list "use" }
  end

  local function calls(what, group)
    return select(2, (fixture.read(pool .. "/calls") or ""):gsub("%f[%w]" .. what .. " " .. (group or "g"), ""))
  end

  local function groups()
    return fixture.sh(("ls -A %s/state/shop/groups 2>/dev/null | wc -l"):format(app.dir)):gsub("%s", "")
  end

  setup(function() bed = hosts.up(4) end)
  teardown(function() bed:down() end)

  before_each(function()
    pool = fixture.dir()
    os.execute(("mkdir -p %s/free %s/use"):format(pool, pool))
    for i, host in ipairs(bed.hosts) do
      fixture.write(("%s/free/%d"):format(pool, i), cjson.encode { name = host.name, address = host.address, port = host.port, user = host.user,
        identity = host.identity, known_hosts = host.known_hosts } .. "\n")
    end
    for name, text in pairs { provision = provision, release = release } do
      fixture.write(("%s/%s"):format(pool, name), (text:gsub("POOL", pool)))
      os.execute(("chmod +x %s/%s"):format(pool, name))
    end
    app = fixture.app { slots = 1, instances = 1, yaml = "strategy: {settle: 0}", health = "{http: /healthz, interval: 20ms, deadline: 5s, successes: 1}" }
    app.opts.hosts = ("{command: %s/provision, release: %s/release}"):format(pool, pool)
  end)
  after_each(function()
    app:stop()
    for i = 1, 4 do assert.equal("", bed:exec(i, "rm -rf /home/deploy/.deployrt; pgrep -x server || true")) end
    fixture.cleanup()
  end)

  it("serve as the next group, under load, and the group that is left is given back", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    assert.same({ "3\n4", "1\n2" }, pool_state())
    local load = app:load { rate = 200 }
    local run = app:deploy("blue_green", "2")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local told = load:stop()
    assert.same({}, told.errors)
    assert.is_true(told.versions["2"] > 0)
    assert.same({ "1\n2", "3\n4" }, pool_state())
    assert.same({ "2", "2" }, app:serving())
    assert.equal("", bed:exec(1, "pgrep -x server || true"))
    run = app:command { "blue_green", "app.yml" }
    assert.truthy(run.exit == 0 and run.stdout:find("nothing to change", 1, true), run.stdout .. run.stderr)
    assert.equal(2, calls "provision")
    assert.equal("1", groups())
    assert.equal(0, app:command({ "stop", "app.yml", "--yes" }).exit)
    assert.same({ "1\n2\n3\n4", "" }, pool_state())
    assert.equal("0", groups())
  end)

  it("leave nothing that a rollback could go back to, and it says so", function()
    for _, version in ipairs { "1", "2" } do assert.equal(0, app:deploy("blue_green", version).exit) end
    local run = app:command { "rollback", "app.yml" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("those of the one before were given back: deploy the earlier release again", 1, true), run.stderr)
  end)

  it("are planned with before they are made", function()
    local function planned(...)
      local run = app:command { "plan", "blue_green", "app.yml", ... }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      return run.stdout
    end
    app:write(fixture.release "1", "1")
    local first = planned()
    assert.truthy(first:find("hosts.command would make the hosts before, of which 1 are assumed", 1, true), first)
    assert.truthy(first:find("start       new%-1:%d+  1\n"), first)
    assert.equal(0, app:deploy("blue_green", "1").exit)
    assert.truthy(planned():find("nothing to change: release 1 serves already", 1, true))
    app:write(fixture.release "2", "2")
    local before = { pool_state(), fixture.read(pool .. "/calls"), groups() }
    for _, flag in ipairs { "--quiet", "--offline" } do
      local second = planned(flag)
      assert.truthy(second:find("of which 2 are assumed", 1, true), second)
      assert.truthy(second:find("start       new%-2:%d+  2\n"), second)
      local old = bed.hosts[1].name
      assert.truthy(second:find("stop        " .. old .. ":", 1, true), second)
      assert.truthy(second:find("= 2 100%", 1, true), second)
      assert.is_nil(second:find("stop        new", 1, true), second)
    end
    local run = app:command { "plan", "rolling", "app.yml" }
    assert.truthy(run.exit == 2 and run.stderr:find("hosts of its own", 1, true), run.stderr)
    assert.same(before, { pool_state(), fixture.read(pool .. "/calls"), groups() })
    assert.equal(0, app:command({ "stop", "app.yml", "--yes" }).exit)
  end)

  it("are given back when the run is rolled back, refused or cannot begin", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    local before = pool_state()
    local run = app:deploy("blue_green", "2", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.same(before, pool_state())
    assert.same({ "1", "1" }, app:serving())
    for file, says in pairs { broken = "out of quota", empty = "this list is empty" } do
      fixture.write(pool .. "/" .. file, "")
      run = app:deploy("blue_green", "3")
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find(says, 1, true), run.stderr)
      os.remove(pool .. "/" .. file)
    end
    run = app:deploy("rolling", "3")
    assert.truthy(run.exit == 2 and run.stderr:find("hosts.release says that each deployment gets hosts of its own", 1, true), run.stderr)
    bed:cut(3)
    run = app:deploy("blue_green", "4")
    bed:mend(3)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    assert.same(before, pool_state())
    assert.equal("1", groups())
  end)

  describe("and that serve are never given back", function()
    --- The entry of a host, under another name where that is given.
    local function entry(i, name)
      local host = cjson.decode(fixture.sh(("cat %s/free/%d %s/use/*/%d 2> /dev/null || true"):format(pool, i, pool, i)))
      host.name = name or host.name
      return host
    end

    --- Deploys where hosts.command prints these; nothing that serves is lost.
    local function deploy(version, exit, says, ...)
      fixture.write(pool .. "/print", cjson.encode { ... })
      local run = app:deploy("blue_green", version)
      os.remove(pool .. "/print")
      assert.equal(exit, run.exit, run.stdout .. run.stderr)
      for _, text in ipairs(says) do assert.truthy(run.stderr:find(text, 1, true), run.stdout .. run.stderr) end
      assert.equal(0, calls "release", fixture.read(pool .. "/calls"))
      assert.equal("1", groups())
      assert.same({ "1", "1" }, app:serving())
    end

    before_each(function()
      local first = app:deploy("blue_green", "1")
      assert.equal(0, first.exit, first.stdout .. first.stderr)
    end)

    it("where hosts.command gives them again, also under another name, and whatever refuses the run", function()
      local name = bed.hosts[1].name
      local spared = { "is not given back, and hosts.release was not called: '" .. name .. "' is in group g", "give back by hand what nothing runs on" }
      deploy("2", 2, { "which serves already", table.unpack(spared) }, entry(1), entry(2))
      deploy("2", 2, { "which serves already", table.unpack(spared) }, entry(3), entry(1))
      spared[1] = ("(%s, other) is not given back, and hosts.release was not called: 'other', which is the same machine as '%s'"):format(bed.hosts[3].name, name)
      local alias = entry(1, "other")
      alias.dir = "elsewhere" -- so that the run itself finds nothing amiss with it
      bed:cut(3)
      deploy("2", 2, spared, entry(3), alias)
      bed:mend(3)
      spared[1] = ("(other) is not given back, and hosts.release was not called: 'other', which is the same machine as '%s'"):format(name)
      deploy("2", 2, { "lead to the same machine", table.unpack(spared) }, entry(1, "other"))
    end)

    it("where a controller died before it heard that they serve, or they are of a group that could not be given back", function()
      for _, status in ipairs { "pending", "leaving" } do
        fixture.write(app.dir .. "/state/shop/groups/gleft.json", cjson.encode { name = "gleft", status = status, since = os.time() - 3700, owner = "ann@desk",
          life = "desk boot 1 2", hosts = { entry(3), entry(2, "other") } })
        deploy("2", 2, { "group gleft", ", other) is not given back", "which serves already" }, entry(1))
      end
    end)

    it("where nobody remembers that they serve", function()
      os.execute(("rm -rf %s/state"):format(app.dir))
      fixture.write(pool .. "/print", cjson.encode { entry(1), entry(2) })
      local run = app:deploy("blue_green", "1")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find(("hosts.release was not called: an instance of shop runs on '%s'"):format(bed.hosts[1].name), 1, true), run.stderr)
      assert.equal(0, calls "release")
      assert.same({ "3\n4", "1\n2" }, pool_state())
      app.opts.hosts = bed:yaml { bed.hosts[1], bed.hosts[2] } -- so that they are stopped
      app:write(fixture.release "1", "1")
    end)
  end)

  it("are the same when the run is resumed or aborted, and are given back by that", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    for i, ending in ipairs { "abort", "resume" } do
      app:write(fixture.release(tostring(i + 1)), tostring(i + 1))
      assert.equal(137, app:mortal("after", 22, { "blue_green", "app.yml" }).exit)
      assert.equal("", pool_state()[1])
      local again = app:command { "blue_green", "app.yml" }
      assert.equal(4, again.exit, again.stdout .. again.stderr)
      local run = app:command { ending, "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same(ending == "abort" and { "1", "1" } or { "3", "3" }, app:serving())
      assert.equal("1", groups())
      assert.equal(2, select(2, (pool_state()[2] .. "\n"):gsub("\n", "")))
    end
  end)

  it("that served are the ones that serve again when the run is aborted that had decided otherwise", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    local before = pool_state()
    for _, again in ipairs { false, 1, 2 } do
      app:write(fixture.release "2", "2")
      assert.equal(137, app:mortal("group", 4, { "blue_green", "app.yml" }).exit)
      if again then assert.equal(137, app:mortal("group", again, { "abort", "app.yml" }).exit) end
      local run = app:command { "abort", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same({ "1", "1" }, app:serving())
      assert.equal(2, app:command({ "abort", "app.yml" }).exit)
      assert.same(before, pool_state())
    end
    local run = app:deploy("blue_green", "3")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1\n2", "3\n4" }, pool_state())
    assert.equal("1", groups())
  end)

  it("are given back by the run itself as long as its controller lives", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    app:write(fixture.release "2", "2")
    fixture.write(pool .. "/linger", "")
    local pid = app:command({ "blue_green", "app.yml" }, { background = true, log = app.dir .. "/log" })
    fixture.eventually(function() return calls "release" == 1 end, 20, "hosts.release")
    local run = app:command { "resume", "app.yml" }
    os.remove(pool .. "/linger")
    app:await_end(pid)
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stderr:find("is under way", 1, true), run.stderr)
    assert.equal(1, calls "release")
    assert.same({ "1\n2", "3\n4" }, pool_state())
  end)

  it("are given back later when the history could not be told that the run is over", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {after: 'cd $(ls -d state/shop/runs/* | tail -n 1) && rm run.json && mkdir run.json'}"
    local run = app:deploy("blue_green", "2")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stdout:find("the history lacks this run, and hosts that it left are given back with the next one", 1, true), run.stdout)
    assert.equal(0, calls "release")
    app.opts.yaml = "strategy: {settle: 0}"
    run = app:deploy("blue_green", "3")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal(2, calls "release")
    assert.equal("1", groups())
  end)

  it("that could not be given back, or that nobody came to use, are given back after the next run", function()
    local first = app:deploy("blue_green", "1")
    assert.equal(0, first.exit, first.stdout .. first.stderr)
    fixture.write(pool .. "/stuck", "")
    local run = app:deploy("blue_green", "2", { fault = "dies" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.truthy((run.stdout .. run.stderr):find("the cloud is down", 1, true), run.stdout .. run.stderr)
    os.remove(pool .. "/stuck")
    assert.equal("2", groups())
    os.execute(("cd %s && mv use/*/3 use/*/4 free/"):format(pool)) -- a person did it
    run = app:deploy("blue_green", "3")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.equal("1", groups())
    assert.same({ "1\n2", "3\n4" }, pool_state())
  end)

  --- Kills a controller while its hosts are being made; what makes them goes on.
  local function die_while_they_are_made(version)
    local made = calls "provision"
    fixture.write(pool .. "/hold", "")
    app:write(fixture.release(version), version)
    local pid = app:command({ "blue_green", "app.yml" }, { background = true, log = app.dir .. "/log" })
    fixture.eventually(function() return calls "provision" > made end, 10, "hosts.command")
    for _, says in ipairs { "is under way with the hosts of group", "still runs, and its controller died" } do
      local run = app:command { "blue_green", "app.yml" }
      assert.equal(4, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find(says, 1, true), run.stderr)
      fixture.signal(pid, "KILL")
      fixture.eventually(function() return not fixture.alive(pid) end)
    end
    local free = #pool_state()[1]
    os.remove(pool .. "/hold")
    fixture.eventually(function() return #pool_state()[1] < free end, 10, "hosts")
  end

  it("for which no run ever began are given back by the next one, `resume` or `abort`", function()
    die_while_they_are_made "1"
    local run = app:command { "abort", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stdout:find("the hosts of 1 group that none had begun to use were given back", 1, true), run.stdout)
    assert.same({ "1\n2\n3\n4", "" }, pool_state())
    assert.equal("0", groups())
    assert.equal(2, app:command({ "abort", "app.yml" }).exit)
    assert.equal(0, app:deploy("blue_green", "1").exit)
    for _, argv in ipairs { { "resume", "app.yml" }, { "blue_green", "app.yml", "--set", "release.version=1", "--set", "release.path=" .. fixture.release "1" },
      { "blue_green", "app.yml" } } do
      die_while_they_are_made "2"
      run = app:command(argv)
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.equal("1", groups())
      assert.equal(3, #pool_state()[1])
    end
    assert.same({ "2", "2" }, app:serving())
    assert.truthy(fixture.read(pool .. "/calls"):find('"hosts":[]}', 1, true)) -- nobody knows which there are
  end)

  it("that another machine began to make are left to it for an hour", function()
    assert.equal(0, app:deploy("blue_green", "1").exit)
    local file = app.dir .. "/state/shop/groups/gother.json"
    for version, age in pairs { [2] = 600, [3] = 3700 } do
      fixture.write(file, cjson.encode { name = "gother", status = "pending", since = os.time() - age, owner = "ann@desk", life = "desk boot 1 2" })
      local run = app:deploy("blue_green", tostring(version))
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.equal(age < 3600, fixture.read(file) ~= nil)
      assert.equal(age > 3600 and 1 or 0, calls("release", "gother"))
      os.remove(pool .. "/calls")
    end
  end)

  it("are no other run's when their own one was interrupted, also the first of all", function()
    app:write(fixture.release "1", "1")
    assert.equal(137, app:mortal("after", 22, { "blue_green", "app.yml" }).exit)
    local run = app:command { "blue_green", "app.yml" }
    assert.equal(4, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stderr:find("`deployrt abort app.yml`", 1, true), run.stderr)
    assert.equal(1, calls "provision")
    assert.equal(0, app:command({ "abort", "app.yml" }).exit)
    assert.same({ "1\n2\n3\n4", "" }, pool_state())
  end)

  it("are made for a release by its name, also where that comes from its content", function()
    app:write(fixture.release "1", "1")
    local text = fixture.read(app.file):gsub(', version: "1"', "")
    fixture.write(app.file, text)
    local run = app:command { "blue_green", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local name = fixture.read(pool .. "/calls"):match("for shop (%x+)\n")
    assert.same({ name, name }, app:serving())
    assert.equal(0, app:command({ "stop", "app.yml", "--yes" }).exit)
    assert.truthy(fixture.read(pool .. "/calls"):find("release g%S+ " .. name .. " {"))
  end)

  it("without `release` are asked for each time, and any strategy deploys to them", function()
    app.opts.hosts = ("{command: 'cat %s/free/1 %s/free/2 | paste -s -d, | sed \"s/.*/[&]/\"'}"):format(pool, pool)
    local run = app:deploy("in_place", "1")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "1", "1" }, app:serving())
    assert.equal(0, app:deploy("in_place", "2").exit)
    assert.same({ "2", "2" }, app:serving())
    run = app:command { "exec", "app.yml", "--host", bed.hosts[2].name, "--", "echo", "here" }
    assert.equal(1, select(2, run.stdout:gsub("here", "")), run.stdout .. run.stderr)
    run = app:command { "status", "app.yml", "--host", "nobody" }
    assert.truthy(run.exit == 2 and run.stderr:find("there is no host 'nobody'", 1, true), run.stderr)
    for text, says in pairs { ["echo nonsense"] = "no list of hosts", ["echo \"[{port: x}]\""] = "port", ["exit 3"] = "failed with status 3" } do
      app.opts.hosts = ("{command: '%s'}"):format(text)
      app:write(fixture.release "3", "3")
      run = app:command { "rolling", "app.yml" }
      assert.truthy(run.exit == 2 and run.stderr:find("hosts.command", 1, true) and run.stderr:find(says, 1, true), run.stderr)
    end
    app.opts.hosts = ("{command: 'cat %s/free/1 %s/free/2 | paste -s -d, | sed \"s/.*/[&]/\"'}"):format(pool, pool)
    app:write(fixture.release "2", "2")
  end)

  describe("and are known to a team", function()
    local cluster

    setup(function() cluster = etcd.start(1) end)
    teardown(function() cluster:stop() end)

    before_each(function()
      app.opts.yaml = ("strategy: {settle: 0}\nstate: {etcd: [%s]}"):format(cluster.endpoints[1])
      local first = app:deploy("blue_green", "1")
      assert.equal(0, first.exit, first.stdout .. first.stderr)
    end)

    it("are not gone back to after they were given back, whatever the copy of the journal has", function()
      app:write(fixture.release "2", "2")
      local pid = app:command({ "blue_green", "app.yml" }, { background = true, log = app.dir .. "/log" })
      fixture.write(pool .. "/doomed", tostring(pid))
      fixture.eventually(function() return not fixture.alive(pid) end, 20)
      os.remove(pool .. "/doomed")
      assert.equal(1, calls "release")
      os.execute(("rm -rf %s/state"):format(app.dir)) -- as if on another machine
      local status = app:command({ "status", "app.yml" }).stdout
      assert.matches("has ended, and its controller died: `deployrt resume app.yml %-%-run %S+` does what it had left to do", status)
      assert.is_nil(status:find("was interrupted", 1, true), status)
      local run = app:command { "abort", "app.yml" }
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stdout:find("had ended already: succeeded", 1, true), run.stdout .. run.stderr)
      assert.same({ "2", "2" }, app:serving())
      assert.same({ "1\n2", "3\n4" }, pool_state())
      run = app:deploy("blue_green", "3")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
    end)

    it("and a run at whose end that is away stays an interrupted one", function()
      app.opts.yaml = ("%s\nhooks: {after: 'kill -KILL %s'}"):format(app.opts.yaml, cluster.members[1].pid)
      local run = app:deploy("blue_green", "2")
      cluster:kill(1)
      cluster:heal()
      assert.equal(3, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find("the run is unfinished: `deployrt resume app.yml --run ", 1, true), run.stderr)
      assert.is_nil(run.stderr:find("could not be kept alive", 1, true), run.stderr)
      assert.equal("unfinished", app:status().run.outcome)
      run = app:command { "resume", "app.yml" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same({ "2", "2" }, app:serving())
      assert.same({ "1\n2", "3\n4" }, pool_state())
    end)

    it("and are remembered as given back once that can be told", function()
      fixture.write(pool .. "/doomed", tostring(cluster.members[1].pid))
      local run = app:deploy("blue_green", "2")
      os.remove(pool .. "/doomed")
      cluster:kill(1)
      cluster:heal()
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stdout:find("was given back, and is still remembered", 1, true), run.stdout)
      assert.equal("succeeded", app:status().run.outcome)
      run = app:deploy("blue_green", "3")
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.same({ "3", "3" }, app:serving())
      assert.equal(3, calls "release")
    end)
  end)
end)
