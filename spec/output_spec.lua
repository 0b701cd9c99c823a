-- output_spec.lua -- What commands that only look give to people and to machines: logs, answers of hosts, objects.
-- weight: 4
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local contains = fixture.contains

local function objects(text)
  local list = {}
  for line in text:gmatch("[^\n]+") do list[#list + 1] = cjson.decode(line) end
  return list
end

describe("logs and answers", function()
  local app

  setup(function()
    app = fixture.app { instances = 1, slots = 2, yaml = "strategy: {settle: 0}", balancer = false }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  teardown(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  local function log_file(port) return ("%s/home/.deployrt/shop/logs/%d.log"):format(app.dir, port) end
  local function say(port, text) fixture.sh(("printf %%s %s >> %s"):format(fixture.quote(text), log_file(port))) end
  local function logs(...)
    local run = app:command { "logs", "app.yml", ... }
    assert.equal(0, run.exit, run.stderr)
    return run.stdout, run.stderr
  end

  it("shows lines of any length in a time that grows as they do", function()
    local port = app:status().instances[1].port
    fixture.sh(("for i in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero | tr '\\0' $i; echo; done >> %s"):format(log_file(port)))
    local run = app:command({ "logs", "app.yml", "--lines", "8" }, { timeout = 5 })
    assert.equal(0, run.exit, run.stderr)
    local label = ("local:%d | "):format(port)
    local lines = {}
    for i = 1, 8 do lines[i] = label .. tostring(i):rep(1000000) .. "\n" end
    assert.is_true(run.stdout == table.concat(lines), #run.stdout)
  end)

  it("shows what a crashed instance said, to its last word", function()
    local instance = app:status().instances[1]
    say(instance.port, "the last word")
    assert.truthy(logs():find("| the last word\n$"))
    fixture.signal(instance.pid, "KILL")
    fixture.eventually(function() return not fixture.alive(instance.pid) end)
    assert.truthy(logs():find(("local:%d | the last word\n"):format(instance.port), 1, true))
    assert.equal("1.0", objects(logs "--json")[1].release)
    assert.equal(0, app:deploy("rolling", "1.0", nil, { "--force" }).exit)
  end)

  it("shows what there is where nothing runs any more, and says when there is nothing", function()
    local port = app:status().instances[1].port
    say(port, "before the end\n")
    assert.same({}, app:stop())
    assert.truthy(logs():find("| before the end\n", 1, true))
    assert.equal(cjson.null, objects(logs "--json")[1].release)
    for _, each in ipairs(app.ports) do os.remove(log_file(each)) end
    local said, told = logs()
    assert.equal("", said)
    assert.truthy(told:find("nothing runs there, and nothing has left a log", 1, true))
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)

  it("follows an instance that starts later in another slot, from its first word on", function()
    local log = app.dir .. "/followed"
    local old = app:status().instances[1]
    local pid = app:command({ "logs", "app.yml", "--follow", "--json", "--lines", "0" }, { background = true, log = log })
    fixture.eventually(function() return fixture.sh(("pgrep -f 'tail -F -n 0 %s/[h]ome' || true"):format(app.dir)) ~= "" end, 10, "the following")
    for _, port in ipairs(app.ports) do
      if port ~= old.port then say(port, "of an earlier life\n") end
    end
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    local new = app:status().instances[1]
    assert.not_equal(old.port, new.port)
    fixture.eventually(function()
      local first = objects((fixture.read(log) or ""):match('[^\n]*"release":"2.0"[^\n]*\n') or "")[1]
      return first and first.port == new.port
    end, 10, "its lines")
    fixture.stop(pid)
    fixture.eventually(function() return fixture.sh(("pgrep -f 'tail -F .*%s/[h]ome' || true"):format(app.dir)) == "" end, 10, "the end of tail")
    assert.falsy(fixture.read(log):find("earlier life", 1, true))
  end)

  it("tells no share of the traffic where there is no balancer", function()
    local instance = app:status().instances[1]
    assert.same({ "serving", cjson.null, cjson.null }, { instance.state, instance.weight, instance.share })
    local said = app:command({ "status", "app.yml" }).stdout
    assert.truthy(said:find("serving  healthy", 1, true) and not said:find("%", 1, true), said)
  end)

  it("has time, run and event in each object, whatever command wrote it", function()
    for event, argv in pairs { exec = { "exec", "app.yml", "--json", "--", "true" }, line = { "logs", "app.yml", "--json", "--lines", "1" },
      run = { "history", "app.yml", "--json" }, ["test.finished"] = { "test", "rolling", "--seeds=1", "--json" } } do
      local list = objects(app:command(argv).stdout)
      assert.is_true(#list > 0, event)
      for _, object in ipairs(list) do
        assert.equal(event, object.event)
        assert.matches("^%d+%-%d%d%-%d%dT", object.time)
        assert.equal(event == "run" and object.id or cjson.null, object.run)
      end
    end
  end)

  it("names no release that an application was stopped for", function()
    assert.same({}, app:stop())
    local status = app:status()
    assert.same({ "stop", nil }, { status.run.strategy, status.run.release })
    local last = objects(app:command({ "history", "app.yml", "--json" }).stdout)
    assert.same({ "stop", nil }, { last[#last].strategy, last[#last].release })
    assert.truthy(app:command({ "status", "app.yml" }).stdout:find("stop: succeeded", 1, true))
    assert.falsy(app:command({ "stop", "app.yml", "--json" }).stdout:find('"none"', 1, true))
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)

  it("writes nothing to standard error that does something to a terminal, whatever a script says", function()
    app:extend_rolling [[ error("its\nwords\27[31m are\0red") ]]
    for _, flags in ipairs { { "--json" }, { "--json", "--verbose" }, { "--quiet" }, {} } do
      local run = app:command { "./own.lua", "app.yml", "--force", table.unpack(flags) }
      assert.equal(1, run.exit, run.stdout .. run.stderr)
      assert.matches("own%.lua:%d+: its\n +| words are red", run.stderr)
      assert.falsy(run.stderr:find("[\0-\9\11-\31\127]"), run.stderr)
    end
  end)

  it("gives the status of a command that a signal ended as shells do", function()
    local argv = { "exec", "app.yml", "--json", "--", "sh", "-c", "kill -KILL $$" }
    local run = app:command(argv)
    local answer = cjson.decode(run.stdout)
    assert.same({ 1, 137, "KILL" }, { run.exit, answer.status, answer.signal })
    table.remove(argv, 3)
    run = app:command(argv)
    assert.same({ 1, "local ! signal KILL\n" }, { run.exit, run.stderr })
  end)

  it("ends a command on this machine when it is interrupted, whatever its environment, and also one that lives through a hangup", function()
    local log = app.dir .. "/interrupted"
    for _, words in ipairs { { "sleep", "599.5" }, { "nohup", "sleep", "599.5" }, { "env", "-i", "sleep", "599.5" }, { "timeout", "600", "sleep", "599.5" } } do
      local pid = app:command({ "exec", "app.yml", "--", table.unpack(words) }, { background = true, log = log })
      local function running() return fixture.sh("pgrep -fx 'sleep 599.5' || true") ~= "" end
      fixture.eventually(running, 5, "the command")
      fixture.signal(pid, "TERM")
      fixture.eventually(function() return not fixture.alive(pid) and not running() end, 5, "the end of both")
      assert.truthy(fixture.read(log):find("interrupted by SIGTERM: the command was ended on local", 1, true), fixture.read(log))
    end
  end)

  it("ends a command when the terminal is lost, and does not wait for what one that has ended left behind", function()
    local log = app.dir .. "/interrupted"
    local function running() return fixture.sh("pgrep -fx 'sleep 599.6' || true") ~= "" end
    local pid = app:command({ "exec", "app.yml", "--", "sleep", "599.6" }, { background = true, log = log })
    fixture.eventually(running, 5, "the command")
    fixture.signal(pid, "HUP")
    fixture.eventually(function() return not fixture.alive(pid) and not running() end, 5, "the end of both")
    assert.truthy(fixture.read(log):find("interrupted by SIGHUP: the command was ended on local", 1, true), fixture.read(log))
    local run = app:command({ "exec", "app.yml", "--", "sh", "-c", "sleep 599.6 & echo begun; echo $! >&2" }, { timeout = 10 })
    local left = run.stdout:match("| (%d+)\n$")
    if left then fixture.signal(left, "KILL") end
    assert.matches("^local | begun\nlocal | %d+\n$", run.stdout)
    assert.equal(0, run.exit)
  end)

  it("shows what a command that lasts says as it comes, and keeps what it said when it is interrupted", function()
    local log = app.dir .. "/lasting"
    local pid = app:command({ "exec", "app.yml", "--", "sh", "-c", "echo one; echo two >&2; exec sleep 599.7" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log) == "local | one\nlocal | two\n" end, 5, "its first words")
    fixture.signal(pid, "INT")
    fixture.eventually(function() return not fixture.alive(pid) end, 5, "the end")
    assert.equal("local | one\nlocal | two\ndeployrt: interrupted by SIGINT: the command was ended on local\n", fixture.read(log))
  end)

  it("passes on more than it keeps, and ends a command whose output nobody reads any more", function()
    local words = ("%s exec app.yml -- "):format(fixture.deployrt())
    local function sh(line) return fixture.run({ "bash", "-c", line }, { cwd = app.dir, env = { HOME = app.dir .. "/home", TERM = "dumb" }, timeout = 60 }) end
    local run = sh(words .. "sh -c 'head -c 80000000 /dev/zero | tr \"\\0\" x | fold -w 100000; echo; echo end' | tail -n 1")
    assert.same({ 0, "local | end\n", "" }, { run.exit, run.stdout, run.stderr })
    run = sh(words .. "yes 599.8 | head -n 2; echo ${PIPESTATUS[0]}")
    assert.same({ 0, "local | 599.8\nlocal | 599.8\n0\n", "" }, { run.exit, run.stdout, run.stderr })
    assert.equal("", fixture.sh("pgrep -fx 'yes 599.8' || true"))
  end)

  it("says so where there is no host to ask", function()
    local none = 'hosts={command: "false", release: "true"}'
    for _, argv in ipairs { { "exec", "app.yml", "--set", none, "--", "true" }, { "logs", "app.yml", "--set", none }, { "logs", "app.yml", "--follow", "--set", none } } do
      local run = app:command(argv)
      assert.same({ 0, "" }, { run.exit, run.stdout })
      assert.truthy(run.stderr:find("app.yml has no hosts now", 1, true), run.stderr)
    end
  end)

  it("writes JSON that is UTF-8, whatever hosts say", function()
    local run = app:command { "exec", "app.yml", "--json", "--", "printf", "caf\\351" }
    assert.equal("caf\u{FFFD}", cjson.decode(run.stdout).stdout)
    say(app:status().instances[1].port, "caf\233\n")
    local list = objects(logs("--json", "--lines", "1"))
    assert.equal("caf\u{FFFD}", list[#list].line)
    assert.truthy(utf8.len(run.stdout .. logs "--json"))
  end)

  it("gives machines an object where people get a line", function()
    for _, case in ipairs {
      { "version", { "version" } }, { "checked", { "check", "app.yml" } }, { "unlocked", { "unlock", "app.yml" } },
      { "checked", { "check", "rolling", "app.yml", "--connect" } },
    } do
      table.insert(case[2], "--json")
      local run = app:command(case[2])
      local object = objects(run.stdout)[1]
      assert.same({ 0, case[1], cjson.null, "string" }, { run.exit, object.event, object.run, type(object.message) })
    end
  end)

  it("tells of an option that no strategy has, where app.yml is checked without one", function()
    local function warned(options)
      fixture.write(app.dir .. "/options.yml", "extends: app.yml\nstrategy: " .. options .. "\n")
      local run = app:command { "check", "options.yml" }
      assert.equal(0, run.exit, run.stderr)
      return run.stdout:match("warning: ([^\n]*)")
    end
    assert.equal("options.yml:2:12: no strategy here has an option 'bach' (did you mean 'batch'?)", warned "{bach: 2, hold: 1s, x-own: 1}")
    assert.is_nil(warned "{batch: 2, hold: 1s, x-own: 1}")
    fixture.write(app.dir .. "/strategies/own-one.lua", 'return require("deployrt.strategy").extend("rolling", { name = "own-one", options = { bach = { type = "any" } } })\n')
    assert.is_nil(warned "{bach: 2}")
  end)

  it("gives machines help as an object: what there is, and what it takes", function()
    local function help(...)
      local run = app:command { "help", "--json", ... }
      local list = objects(run.stdout)
      assert.same({ 0, 1, "help" }, { run.exit, #list, list[1].event })
      assert.equal(app:command({ "help", ... }).stdout, list[1].message .. "\n")
      return list[1]
    end
    local all = help()
    assert.same({ "run", "STRATEGY APP.yml" }, { all.commands[1].name, all.commands[1].operands })
    assert.same({ "VERSION", { "rollback" } }, { all.options.to.value, all.options.to.commands })
    assert.truthy(table.concat(all.strategies, " "):find("rolling", 1, true) and table.concat(all.balancers, " "):find("nginx", 1, true))
    local one = help "logs"
    assert.same({ "logs", "N", true, nil }, { one.name, one.options.lines.value, one.options.host.list, one.options.to })
    local rolling = help "rolling"
    assert.same({ "rolling", "amount", "25%" }, { rolling.name, rolling.options.batch.type, rolling.options.batch.default })
    assert.equal("nginx", help("nginx").name)
  end)

  it("says why a command was refused as an object too, each problem with its place", function()
    fixture.write(app.dir .. "/wrong.yml", "app: shop\nproces: {}\nprocess:\n  command: [a]\n  ports: many\n")
    local run = app:command { "check", "wrong.yml", "--json" }
    local list = objects(run.stdout)
    assert.same({ 2, 2 }, { run.exit, #list })
    assert.same({ "error", "config", "wrong.yml", 2, 1, "unknown key 'proces' (did you mean 'process'?)", 2 },
      { list[1].event, list[1].code, list[1].file, list[1].line, list[1].column, list[1].message, list[1].exit })
    for _, argv in ipairs { { "rolling", "nowhere.yml", "--json" }, { "roling", "app.yml", "--json" }, { "rolling", "app.yml", "--json", "--jsn" },
      { "pause", "app.yml", "--json" }, { "unlock", "app.yml", "--json", "--set", "hosts=[{name: dead, address: 127.0.0.1, port: 1, transport: ssh}]" } } do
      run = app:command(argv)
      list = objects(run.stdout)
      assert.same({ 2, "error", 2 }, { run.exit, list[#list].event, list[#list].exit })
      assert.truthy(run.stderr:find("^deployrt: "))
    end
  end)
end)

describe("a history that cannot be read", function()
  it("is an error or a warning, and never taken for none", function()
    local app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    finally(function()
      app:stop()
      fixture.cleanup()
    end)
    local runs = app.dir .. "/state/shop/runs"
    fixture.sh(("mkdir -p %s && ln -s run.json %s/run.json"):format(runs .. "/20000101T000000.000-abcdef", runs .. "/20000101T000000.000-abcdef"))
    local wanted = ("the history cannot be read: %s/20000101T000000.000-abcdef/run.json: Too many levels of symbolic links; let this user read it"):format(runs)
    for _, place in ipairs { wanted, ("the history cannot be read: %s: Too many levels of symbolic links; let this user read it"):format(runs) } do
      for _, command in ipairs { "history", "rollback", "resume" } do
        local run = app:command { command, "app.yml" }
        assert.equal(2, run.exit, command)
        contains(run.stderr, place)
        assert.equal("", run.stdout)
      end
      local run = app:command { "status", "app.yml" }
      assert.equal(0, run.exit, run.stderr)
      contains(run.stderr, "deployrt: warning: " .. place)
      fixture.sh(("rm -r %s && ln -s runs %s"):format(runs, runs))
    end
    fixture.sh("rm " .. runs)
  end)
end)

describe("what the ssh command says", function()
  after_each(function() fixture.cleanup() end)

  it("is told line by line, after a host that is named once; exec says by its code whether any host could be used", function()
    local dir = fixture.dir()
    fixture.write(dir .. "/bin/ssh", "#!/bin/sh\nprintf 'ssh: Could not resolve hostname gate: Name or service not known\\r\\n' >&2\nsleep 0.3\n"
      .. "printf 'kex_exchange_identification: Connection closed by remote host\\r\\n' >&2\nexit 255\n")
    fixture.sh(("chmod +x %s/bin/ssh"):format(dir))
    fixture.write(dir .. "/app.yml", "app: shop\nhosts: [{name: web1, address: 10.0.0.1, transport: openssh}]\nprocess: {command: [./server], ports: [8080]}\n")
    local run = fixture.run({ fixture.deployrt(), "exec", "app.yml", "--", "true" },
      { cwd = dir, env = { HOME = dir, PATH = dir .. "/bin:" .. os.getenv "PATH" } })
    assert.equal("web1 ! the ssh command fails with status 255: kex_exchange_identification: Connection closed by remote host\n"
      .. "  | ssh: Could not resolve hostname gate: Name or service not known\n  | kex_exchange_identification: Connection closed by remote host\n", run.stderr)
    assert.equal(2, run.exit)
    fixture.sh(("sed -i 's/^hosts: ./&local, /' %s/app.yml"):format(dir))
    run = fixture.run({ fixture.deployrt(), "exec", "app.yml", "--", "true" }, { cwd = dir, env = { HOME = dir, PATH = dir .. "/bin:" .. os.getenv "PATH" } })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
  end)
end)

describe("stopping an application", function()
  it("is told as what it is: no release, no empty line, and a history that begins with none", function()
    local app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    finally(function()
      app:stop()
      fixture.cleanup()
    end)
    assert.equal("no run yet\n", app:command({ "history", "app.yml" }).stdout)
    assert.equal("", app:command({ "history", "app.yml", "--json" }).stdout)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local said = app:command({ "stop", "app.yml" }).stdout
    assert.matches("stop      shop  1%.0  1 instance on 1 host  %(run ", said)
    assert.matches("stop      the balancer", said)
    assert.falsy(said:find("none", 1, true) or said:find("traffic *\n"), said)
    assert.matches("stop       succeeded      1%.0 %-> nothing  ", app:command({ "history", "app.yml" }).stdout)
  end)
end)
