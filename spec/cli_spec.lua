-- cli_spec.lua -- The command line: flags, what machines read, colours, logs that are followed.
-- weight: 6
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local contains = fixture.contains

local function keys(object)
  local list = {}
  for key in pairs(object) do list[#list + 1] = key end
  table.sort(list)
  return table.concat(list, " ")
end

describe("the command line", function()
  local app

  setup(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  teardown(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  --- Deploys with these words, in their order, and returns the events.
  local function events_of(words)
    local run = app:command(words)
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    local list = {}
    for line in run.stdout:gmatch("[^\n]+") do list[#list + 1] = cjson.decode(line) end
    return list
  end

  it("takes flags anywhere, also with their value behind an equals sign", function()
    for _, words in ipairs {
      { "--json", "--force", "run", "rolling", "app.yml", "--set", "strategy.batch=1" },
      { "rolling", "--set=strategy.batch=1", "app.yml", "--force", "--json" },
      { "--set", "strategy.batch=1", "run", "--json", "rolling", "--force", "app.yml" },
    } do
      local events = events_of(words)
      assert.equal("succeeded", events[#events].outcome)
    end
    local run = app:command { "rolling", "--set", "strategy.batch=many", "app.yml" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("batch", 1, true))
  end)

  it("refuses words and flags that a command would not heed, and does nothing", function()
    local before = app:status().instances
    for _, case in ipairs {
      { { "rolling", "app.yml", "2.0", "--force" }, "does not know what to do with '2.0'; a version is --release 2.0; nothing was done" },
      { { "rollback", "app.yml", "0.9" }, "a version is --to 0.9" },
      { { "rollback", "app.yml", "--release", "0.9" }, "`deployrt rollback` has no option --release: it is --to VERSION" },
      { { "stop", "app.yml", "other.yml", "--yes" }, "what to do with 'other.yml'; nothing was done (see `deployrt help stop`)" },
      { { "exec", "app.yml", "touch", "done" }, "the command stands behind --" },
      { { "rolling", "app.yml", "--force", "--", "x" }, "what to do with '--'" },
      { { "rolling", "app.yml", "--force", "--offline" }, "`deployrt run` has no option --offline: that is for plan" },
      { { "status", "app.yml", "--to", "1" }, "that is for rollback" },
      { { "test", "rolling", "--time", "5" }, "--time: expected a duration with its unit" },
      { { "test", "rolling", "--host", "web1" }, "--host would change nothing: no app.yml names hosts" },
      { { "test", "rolling", "--release", "2" }, "--release would change nothing: no app.yml is given" },
      { { "test", "rolling", "app.yml", "--fleet", "3" }, "--fleet would change nothing: the hosts are those of app.yml" },
      { { "test", "rolling", "--seed", "1", "--seeds", "5" }, "--seeds would change nothing: --seed plays one" },
      { { "test", "rolling", "--seed", "1", "--time", "5s" }, "--time would change nothing: --seed plays one" },
      { { "test", "rolling", "--fault", "crash", "--fault", "frozen" }, "--fault takes one value, and is given 'crash' and 'frozen'" },
      { { "new", "strategy", "own", "--host", "web1" }, "`deployrt new` has no option --host; nothing was done" },
      { { "repl", "app.yml", "--json" }, "`deployrt repl` has no option --json; nothing was done" },
      { { "plan" }, "which app.yml? For example: deployrt plan rolling app.yml" },
      { { "plan", "canary" }, "which app.yml? For example: deployrt plan canary app.yml" },
      { { "plan", "app.yml" }, "which strategy? For example: deployrt plan rolling app.yml" },
      { { "run", "canary" }, "which app.yml? For example: deployrt run canary app.yml" },
      { { "canary" }, "which app.yml? For example: deployrt canary app.yml" },
      { { "rolling", "app.yml", "--force", "--state", "" }, "--state needs a value: DIR" },
      { { "rolling", "app.yml", "--force", "--release=" }, "--release needs a value: VERSION" },
    } do
      local run = app:command(case[1])
      assert.equal(2, run.exit, run.stdout)
      assert.truthy(run.stderr:find(case[2], 1, true), run.stderr)
    end
    assert.same(before, app:status().instances)
    local help = app:command { "help", "logs" }
    assert.truthy(help.stdout:find("--follow", 1, true) and not help.stdout:find("--seeds", 1, true), help.stdout)
    assert.is_nil(app:command({ "help", "repl" }).stdout:find("--json", 1, true))
    help = app:command { "help", "test" }
    assert.truthy(help.stdout:find("--fault NAME +only faults of this kind, or none %(abort, [%l, -]*stubborn%)\n"), help.stdout)
    for _, name in ipairs { "schema", "new", "help", "lib" } do
      help = app:command { "help", name }
      for _, flag in ipairs { "--host", "--force", "--release", "--yes" } do assert.is_nil(help.stdout:find(flag, 1, true), name .. flag) end
      assert.equal(name == "lib", help.stdout:find("--set", 1, true) ~= nil)
      assert.truthy(help.stdout:find("--json", 1, true))
    end
  end)

  it("remembers runs below HOME where XDG_STATE_HOME is empty", function()
    local home = app.dir .. "/home"
    fixture.sh(("mkdir -p %s/.local/state && cp -r %s/state %s/.local/state/deployrt"):format(home, app.dir, home))
    local run = fixture.run({ fixture.deployrt(), "history", "app.yml" }, { cwd = app.dir, env = { HOME = home, XDG_STATE_HOME = "", TERM = "dumb" } })
    fixture.sh(("rm -r %s/.local"):format(home))
    assert.equal(0, run.exit, run.stderr)
    assert.truthy(run.stdout:find("rolling", 1, true), run.stdout)
  end)

  it("says with status --json what the documents promise, and nothing is missing", function()
    local status = app:status()
    assert.equal("app instances lock mixed release run", keys(status))
    assert.same({ "shop", "1.0", false, cjson.null }, { status.app, status.release, status.mixed, status.lock })
    assert.same({ "rolling", "succeeded" }, { status.run.strategy, status.run.outcome })
    assert.is_string(status.run.id)
    assert.equal(1, #status.instances)
    local instance = status.instances[1]
    assert.equal("healthy host pid port release share state weight", keys(instance))
    assert.same({ "local", "1.0", "serving", true, 1 }, { instance.host, instance.release, instance.state, instance.healthy, instance.share })
  end)

  it("tells what it can where a host, or the balancer, cannot be asked", function()
    local dead = "hosts=[local, {name: dead, address: 127.0.0.1, port: 1, transport: ssh}]"
    local trouble = app:command { "status", "app.yml", "--json", "--set", dead }
    local status = cjson.decode(trouble.stdout)
    assert.same({ 2, "dead", "unreachable", "1.0", nil }, { trouble.exit, status.unreachable[1].host, status.unreachable[1].code, status.release, status.balancer })
    for _, command in ipairs { "status", "logs", "unlock" } do
      local run = app:command { command, "app.yml", "--set", dead }
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      assert.truthy(run.stderr:find("deployrt: dead: .*refused"), run.stderr)
      assert.truthy(run.stdout:find(({ status = "serving  healthy", logs = "local:%d+ | GET /", unlock = "there is no lock on the hosts that could be asked\n" })[command]), run.stdout)
    end
    local nobody = "hosts=[{name: dead, address: 127.0.0.1, port: 1, transport: ssh}]"
    trouble = app:command { "unlock", "app.yml", "--set", nobody }
    assert.same({ 2, "" }, { trouble.exit, trouble.stdout }, "it could not look")
    trouble = app:command { "status", "app.yml", "--set", nobody }
    assert.equal(2, trouble.exit)
    assert.truthy(trouble.stdout:find("shop: nobody knows what serves\n", 1, true), trouble.stdout)
    assert.equal(cjson.null, cjson.decode(app:command({ "status", "app.yml", "--json", "--set", nobody }).stdout).mixed)
    trouble = app:command { "status", "app.yml", "--set", dead, "--set", "app=other" }
    assert.truthy(trouble.stdout:find("other: nothing serves on the hosts that could be asked\n", 1, true), trouble.stdout)
    local away = "balancer={type: haproxy, socket: /nowhere, backend: shop}"
    local run = app:command { "status", "app.yml", "--set", away }
    assert.equal(2, run.exit)
    assert.truthy(run.stdout:find("nobody knows what serves", 1, true) and run.stdout:find("unknown  healthy", 1, true) and run.stderr:find("/nowhere", 1, true), run.stdout .. run.stderr)
    run = app:command { "status", "app.yml", "--json", "--set", away }
    status = cjson.decode(run.stdout)
    local instance = status.instances[1]
    assert.same({ 2, "unknown", true }, { run.exit, status.balancer.state, instance.healthy })
    assert.same({ cjson.null, cjson.null, cjson.null, cjson.null, cjson.null }, { status.release, status.mixed, instance.state, instance.weight, instance.share })
    assert.truthy(status.balancer.message:find("/nowhere", 1, true), status.balancer.message)
    local both = ("balancer=[{type: haproxy, managed: true, listen: '127.0.0.1:%d'}, {type: haproxy, socket: /nowhere, backend: shop}]"):format(app.listen)
    run = app:command { "status", "app.yml", "--json", "--set", both }
    status = cjson.decode(run.stdout)
    assert.same({ 2, "differs", "1.0" }, { run.exit, status.balancer.state, status.release })
    assert.truthy(status.balancer.message:find("balancer 2 (haproxy) is away", 1, true), status.balancer.message)
  end)

  it("checks rules of routes for what no balancer could do", function()
    for rule, says in pairs { ["{source: 10.0.0.0/99}"] = "10.0.0.0/99 in strategy.route is no network", ["{}"] = "rule 1 of strategy.route has no condition" } do
      local run = app:command { "check", "canary", "app.yml", "--set", ("strategy={route: [%s]}"):format(rule) }
      assert.equal(2, run.exit, run.stdout)
      assert.truthy(run.stderr:find(says, 1, true), run.stderr)
    end
  end)

  it("checks what a strategy needs from app.yml alone, with the place, and reads no secret", function()
    local before = fixture.read(app.file)
    fixture.write(app.file, (before:gsub("\n  ports: [^\n]+", ("\n  ports: [%d]\n  secrets: {A: '${env:NOT_THERE}'}"):format(app.ports[1]))))
    for strategy, says in pairs { blue_green = "needs a full second set", canary = "needs a spare slot", in_place = "nothing would serve meanwhile" } do
      local run = app:command { "check", strategy, "app.yml" }
      assert.equal(2, run.exit, run.stdout)
      assert.matches("^deployrt: app.yml:%d+:%d+: ", run.stderr)
      assert.truthy(run.stderr:find(says, 1, true), run.stderr)
    end
    fixture.write(app.file, before)
    for _, strategy in ipairs { "blue_green", "canary", "rolling" } do
      assert.equal(0, app:command({ "check", strategy, "app.yml" }).exit)
    end
  end)

  it("checks with --connect what a strategy needs, as its run would", function()
    local argv = { "check", "blue_green", "app.yml", "--connect" }
    assert.equal(0, app:command(argv).exit)
    for set, says in pairs { ["process.ports=[" .. math.tointeger(app:status().instances[1].port) .. "]"] = "full second set", ["release.path=nowhere"] = "nowhere",
      ["process.secrets={A: '${env:NOT_THERE}'}"] = "NOT_THERE is not set" } do
      local run = app:command { "check", "blue_green", "app.yml", "--connect", "--set", set }
      assert.equal(2, run.exit, run.stdout)
      assert.truthy(run.stderr:find(says, 1, true), run.stderr)
    end
  end)

  it("checks with --connect that secrets can be read, without a strategy too, and warns of empty ones", function()
    local argv = { "check", "app.yml", "--connect", "--set", "process.secrets={A: 'x${env:GIVEN}', B: '${env:GIVEN}', C: ''}" }
    local run = app:command(argv)
    assert.equal(2, run.exit, run.stdout)
    assert.truthy(run.stderr:find("--set: process.secrets.A: the environment variable GIVEN is not set", 1, true), run.stderr)
    run = app:command(argv, { env = { GIVEN = "" } })
    assert.equal(0, run.exit, run.stderr)
    assert.truthy(run.stdout:find("warning: process.secrets.B is empty", 1, true), run.stdout)
    assert.is_nil(run.stdout:find("process%.secrets%.[AC]"), run.stdout)
    assert.is_nil(app:command(argv, { env = { GIVEN = "hunter2" } }).stdout:find("warning", 1, true))
  end)

  it("checks that the release is there, unless it is yet to be built", function()
    local alone = app:command { "check", "app.yml", "--set", "release.path=nowhere" }
    assert.equal(0, alone.exit, alone.stderr)
    contains(alone.stdout .. alone.stderr, "warning: --set: release.path: ", "/nowhere is not there: a run would be refused for it")
    for _, argv in ipairs { { "check", "app.yml", "--connect" }, { "check", "rolling", "app.yml" } } do
      for _, word in ipairs { "--set", "release.path=nowhere" } do argv[#argv + 1] = word end
      local run = app:command(argv)
      assert.equal(2, run.exit, run.stdout)
      contains(run.stderr, "deployrt: --set: release.path: ", "/nowhere: No such file or directory: make it first, or have hooks.build do so")
      argv[#argv + 1], argv[#argv + 2] = "--set", "hooks.build=make"
      assert.equal(0, app:command(argv).exit)
    end
  end)

  it("names the place of a release that is not there, or that is no archive", function()
    local before = fixture.read(app.file)
    fixture.write(app.dir .. "/broken.tar", "this is no archive")
    for path, says in pairs { nowhere = "/nowhere: No such file", ["broken.tar"] = "/broken.tar is not a readable tar archive; pack it again" } do
      fixture.write(app.file, (before:gsub("\nrelease: [^\n]+", "\nrelease: {path: " .. path .. "}")))
      for _, argv in ipairs { { "check", "app.yml", "--connect" }, { "check", "rolling", "app.yml" }, { "plan", "rolling", "app.yml" }, { "rolling", "app.yml" } } do
        local run = app:command(argv)
        assert.equal(2, run.exit, run.stdout)
        contains(run.stderr, "deployrt: app.yml:2:11: release.path: ", says)
      end
    end
    local run = app:command { "check", "app.yml", "--connect", "--json" }
    local problem = cjson.decode(run.stdout)
    assert.same({ "app.yml", 2, 11 }, { problem.file, problem.line, problem.column })
    fixture.write(app.file, before)
  end)

  it("says with status --json that an instance is down", function()
    local pid = app:status().instances[1].pid
    fixture.signal(pid, "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end)
    local instance = app:status().instances[1]
    assert.same({ "down", false, cjson.null, 0 }, { instance.state, instance.healthy, instance.pid, instance.share })
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--force" }).exit)
    assert.same({ "1.0" }, app:serving())
  end)

  it("writes each kind of event with its fields", function()
    app:write(fixture.release("2.0"), "2.0")
    local seen = {}
    for _, event in ipairs(events_of { "blue_green", "app.yml", "--json", "--set", "strategy={settle: 0, overlap: 300ms}" }) do
      seen[event.event] = seen[event.event] or {}
      table.insert(seen[event.event], event)
    end
    for _, kind in ipairs { "run.started", "step.started", "step.finished", "op", "traffic", "run.finished" } do
      assert.truthy(seen[kind], kind)
    end
    assert.is_string(seen["step.started"][1].step)
    local both = false
    for _, event in ipairs(seen.traffic) do
      both = both or (event.share["1.0"] or 0) > 0 and (event.share["2.0"] or 0) > 0
    end
    assert.is_true(both, "both sets serve while they overlap")
    assert.same({ ["2.0"] = 100 }, seen.traffic[#seen.traffic].share)
    local failed = app:deploy("rolling", "3.0", { fault = "dies" }, { "--json" })
    assert.equal(1, failed.exit)
    for _, kind in ipairs { "rollback.started", "rollback.finished" } do
      assert.truthy(failed.stdout:find(('"event":"%s"'):format(kind), 1, true), kind)
    end
  end)

  it("is silent with --quiet when all goes well, and names the failure otherwise", function()
    app:write(fixture.release("2.0"), "2.0")
    local run = app:command { "rolling", "app.yml", "--quiet", "--force" }
    assert.same({ 0, "", "" }, { run.exit, run.stdout, run.stderr })
    run = app:deploy("rolling", "3.0", { fault = "dies" }, { "--quiet" })
    assert.same({ 1, "" }, { run.exit, run.stdout })
    assert.truthy(run.stderr:find("exited before it was healthy", 1, true), run.stderr)
  end)

  it("colours a terminal unless told not to, by flag or by NO_COLOR", function()
    app:write(fixture.release("2.0"), "2.0")
    local function picture(flags, env)
      local line = ("%s --state %s/state rolling app.yml --force %s"):format(fixture.deployrt(), app.dir, flags)
      local all = { HOME = app.dir .. "/home", TERM = "xterm-256color" }
      for key, value in pairs(env or {}) do all[key] = value end
      local run = fixture.run({ "script", "-qec", line, "/dev/null" }, { cwd = app.dir, env = all })
      assert.equal(0, run.exit, run.stdout)
      assert.truthy(run.stdout:find("\27[", 1, true), "the live view moves the cursor")
      return run.stdout:find("\27%[[%d;]*3%d[%d;]*m") ~= nil
    end
    assert.is_true(picture "")
    assert.is_false(picture "--no-color")
    assert.is_false(picture("", { NO_COLOR = "1" }))
  end)

  it("follows logs: what an instance says later is passed on, and nothing stays behind on the host", function()
    app:write(fixture.release("2.0"), "2.0")
    assert.equal(0, app:command({ "rolling", "app.yml" }).exit)
    local log = app.dir .. "/followed"
    local pid = app:command({ "logs", "app.yml", "--follow", "--lines", "0" }, { background = true, log = log })
    local tails = ("pgrep -f 'tail -F -n 0 %s/[h]ome' || true"):format(app.dir)
    fixture.eventually(function() return fixture.sh(tails) ~= "" end, 10, "the following")
    fixture.sh(("curl -s http://127.0.0.1:%d/said-later"):format(app.listen))
    fixture.eventually(function() return (fixture.read(log) or ""):find("| GET /said%-later 200") end, 10, "the line")
    fixture.stop(pid)
    fixture.eventually(function() return fixture.sh(tails) == "" end, 10, "the end of tail")
  end)

  it("ends to follow logs when nobody reads them any more", function()
    local pid = fixture.start({ "sh", "-c", 'cd "$1" && shift && "$@" | head -n 1', "sh", app.dir, "env", "HOME=" .. app.dir .. "/home", fixture.deployrt(),
      "--state", app.dir .. "/state", "logs", "app.yml", "--follow", "--lines", "1" }, { log = app.dir .. "/first" })
    fixture.eventually(function() return (fixture.read(app.dir .. "/first") or ""):find("\n", 1, true) end, 10, "the first line")
    fixture.eventually(function()
      fixture.sh(("curl -s http://127.0.0.1:%d/said-later"):format(app.listen))
      return not fixture.alive(pid)
    end, 10, "the end")
  end)

  it("gives logs as objects to machines", function()
    local run = app:command { "logs", "app.yml", "--json", "--lines", "3" }
    assert.equal(0, run.exit, run.stderr)
    local entry = cjson.decode(run.stdout:match("[^\n]+"))
    assert.same({ "local", app:status().instances[1].port, app:serving()[1], "string" }, { entry.host, entry.port, entry.release, type(entry.line) })
  end)

  it("says when what was asked for cannot be written", function()
    local function to_a_full_disk(...)
      return fixture.run({ "sh", "-c", 'exec "$@" > /dev/full', "sh", fixture.deployrt(), "--state", app.dir .. "/state", ... },
        { cwd = app.dir, env = { HOME = app.dir .. "/home", TERM = "dumb" } })
    end
    for _, argv in ipairs { { "version" }, { "help" }, { "schema" }, { "status", "app.yml" }, { "history", "app.yml" } } do
      local run = to_a_full_disk(table.unpack(argv))
      assert.equal(2, run.exit)
      assert.truthy(run.stderr:find("cannot write to standard output: No space left on device", 1, true), run.stderr)
    end
    local run = to_a_full_disk("rolling", "app.yml", "--force")
    assert.equal(0, run.exit, run.stderr) -- what was done is done
  end)

  it("prints its version, and says what it does not know", function()
    assert.truthy(app:command({ "version" }).stdout:find("^deployrt %d+%.%d+%.%d+"))
    local run = app:command { "rolling", "app.yml", "--jsn" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("unknown option --jsn (did you mean --json?)", 1, true), run.stderr)
    for _, argv in ipairs { { "satus", "app.yml" }, { "satus" } } do
      run = app:command(argv)
      assert.equal(2, run.exit)
      assert.truthy(run.stderr:find("or did you mean the command 'status'?", 1, true), run.stderr)
    end
  end)

  it("runs without standard descriptors, and takes no file of its own for one", function()
    for _, closed in ipairs { "<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-" } do
      local version = fixture.run { "sh", "-c", fixture.deployrt() .. " version " .. closed .. "; echo status $? >> " .. app.dir .. "/status" }
      assert.equal("", version.stderr)
      assert.equal("status 0\n", fixture.read(app.dir .. "/status"), closed)
      os.remove(app.dir .. "/status")
    end
    local line = ("cd %s && %s --state %s/state status app.yml <&- >&- 2>&-"):format(app.dir, fixture.deployrt(), app.dir)
    assert.equal(0, fixture.run({ "sh", "-c", line }, { env = { HOME = app.dir .. "/home" } }).exit)
  end)
end)
