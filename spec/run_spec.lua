-- run_spec.lua -- What surrounds a strategy: hooks, groups, journal, history, output for machines.
-- weight: 6
local cjson = require "cjson"
local fixture = require "spec.support.fixture"
local journal = require "deployrt.journal"

describe("a run", function()
  local app

  before_each(function() app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" } end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  local function lines(text)
    local list = {}
    for line in text:gmatch("[^\n]+") do list[#list + 1] = cjson.decode(line) end
    return list
  end

  it("calls the hooks with what they need to know; one that fails before stops the run", function()
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before: 'echo before $APP $RELEASE $PREVIOUS >> hooks.log', after: 'echo after $RELEASE >> hooks.log', "
      .. "failed: 'echo failed: $ERROR >> hooks.log'}"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    assert.equal(0, app:deploy("rolling", "2.0").exit)
    assert.equal(1, app:deploy("rolling", "3.0", { fault = "dies" }).exit)
    local text = fixture.read(app.dir .. "/hooks.log")
    assert.truthy(text:find("before shop 1.0\nafter 1.0\nbefore shop 2.0 1.0\nafter 2.0\nbefore shop 3.0 2.0\nfailed: ", 1, true), text)
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before: 'echo no migration; exit 3'}"
    local run = app:deploy("rolling", "4.0")
    assert.equal(1, run.exit)
    assert.truthy(run.stderr:find("hook 'before' failed with status 3", 1, true))
    assert.truthy(run.stderr:find("no migration", 1, true))
    assert.same({ "2.0" }, app:serving())
    assert.equal(0, app:command({ "stop", "app.yml", "--set", "hooks={after: 'echo stopped >> hooks.log'}" }).exit)
    assert.falsy(fixture.read(app.dir .. "/hooks.log"):find("stopped", 1, true), "a stop is no success to be announced")
  end)

  it("passes on variables under names that shells keep for themselves", function()
    local function has_all(text, where)
      for _, line in ipairs { "OPTIND=xyz", "UID=4711", "RANDOM=7", "PPID=a b" } do
        assert.truthy(("\n" .. text):find("\n" .. line .. "\n", 1, true), where .. ": " .. line .. " in:\n" .. text)
      end
    end
    app.opts.process = "  env: {OPTIND: xyz, UID: 4711, RANDOM: 7, PPID: 'a b'}"
    app:extend_rolling [[
      local env = { OPTIND = "xyz", UID = "4711", RANDOM = "7", PPID = "a b" }
      self:hook("before_traffic", { RANDOM = "7" })
      self:log(self.fleet.hosts[1]:run({ "env" }, { env = env }).stdout)
      self.super.deploy(self)]]
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before_traffic: [sh, -c, 'env > hook.env']}"
    local run = app:deploy("./own.lua", "1.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    has_all(fixture.sh("tr '\\0' '\\n' < /proc/" .. math.tointeger(app:status().instances[1].pid) .. "/environ"), "the process")
    has_all(run.stdout:gsub("\n +", "\n"), "the command")
    assert.matches("RANDOM=7\n", fixture.read(app.dir .. "/hook.env"))
  end)

  it("says which command gave no answer, and in which time", function()
    app:extend_rolling "self.fleet.hosts[1]:run({ 'sh', '-c', 'exec sleep 1003' }, { timeout = 0.5 })"
    local run = app:deploy("./own.lua", "1.0")
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stderr:find("local: `'sh' '-c' 'exec sleep 1003'`: no answer within 0.5s", 1, true), run.stderr)
  end)

  it("leaves out what app.yml says for another strategy, and refuses it on the command line", function()
    app.opts.yaml = "strategy: {settle: 0, batch: 1}"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:deploy("blue_green", "2.0")
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.truthy((run.stdout .. run.stderr):find("app.yml:%d+:%d+: strategy 'blue_green' has no option 'batch': it is left out"), run.stdout .. run.stderr)
    run = app:command { "blue_green", "app.yml", "--set", "strategy.batch=1" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("strategy 'blue_green' has no option 'batch'", 1, true), run.stderr)
    app.opts.yaml = "strategy: {settle: 0, bach: 1}"
    run = app:deploy("rolling", "3.0")
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("strategy 'rolling' has no option 'bach' (did you mean 'batch'?)", 1, true), run.stderr)
  end)

  it("keeps no secret that a hook prints", function()
    app.opts.process = "  secrets: {TOKEN: hunter2-hunter2}"
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before: 'echo the token is $TOKEN'}"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app.opts.process = nil
    local journals = fixture.sh(("cat $(find %s/state %s/home -name journal -type f)"):format(app.dir, app.dir))
    assert.truthy(journals:find("the token is", 1, true), "the hook saw no secret")
    assert.is_nil(journals:find("hunter2", 1, true))
  end)

  it("keeps nothing on hosts of what its commands printed there, and has directories that are private", function()
    app:extend_rolling [[
      self.super.deploy(self)
      self:fill()
      local done = self.fleet.hosts[1]:run({ "sh", "-c", ("tr '\\0' '\\n' < /proc/%d/environ; cat"):format(self.fleet:new()[1].pid) }, { stdin = "input" })
      if not done.stdout:find "TOKEN=" then self:fail(done.stdout .. done.stderr) end]]
    app.opts.process = "  secrets: {TOKEN: hunter2-hunter2}"
    local tree = fixture.release("1.0")
    fixture.sh("chmod 755 " .. tree)
    app:write(tree, "1.0")
    local run = app:command { "./own.lua", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    app.opts.process = nil
    app:write(fixture.release("1.0"), "1.0")
    assert.equal("", fixture.sh(("grep -rl hunter2 %s/home %s/state || true"):format(app.dir, app.dir)))
    local home = app.dir .. "/home/.deployrt/shop"
    assert.equal("700 700 700\n", fixture.sh(("stat -c %%a %s %s/releases %s/releases/1.0 | xargs"):format(home, home, home)))
  end)

  it("removes the oldest releases, whatever they are called and whatever times their files have", function()
    for _, version in ipairs { "8.0", "9.9", "10.0", "10.1" } do
      local tree = fixture.release(version)
      fixture.sh("touch -d 1980-01-01 " .. tree)
      app:write(tree, version)
      local run = app:command { "rolling", "app.yml", "--set", "release.keep=2" }
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      fixture.sh "sleep 1.1" -- hosts tell the age of releases in seconds
    end
    assert.equal("10.0\n10.1\n", fixture.sh(("ls -v %s/home/.deployrt/shop/releases"):format(app.dir)))
  end)

  it("lets before_traffic look at the second set of blue-green before anybody else does", function()
    assert.equal(0, app:deploy("blue_green", "1.0").exit)
    app.opts.yaml = "strategy: {settle: 0}\nhooks: {before_traffic: 'false'}"
    local load = app:load()
    local run = app:deploy("blue_green", "2.0")
    local numbers = load:stop()
    assert.equal(1, run.exit)
    assert.is_nil(numbers.versions["2.0"])
    assert.same({}, numbers.errors)
  end)

  it("asks before_traffic once before the first of the new release gets requests, whatever the strategy", function()
    app = fixture.app { instances = 2, slots = 4 }
    local said = app.dir .. "/said"
    for i, strategy in ipairs { "rolling", "in_place", "canary", "blue_green" } do
      app.opts.yaml = ("strategy: {settle: 0, hold: 200ms, inconclusive: pass}\nhooks: {before_traffic: 'echo $RELEASE >> %s'}"):format(said)
      local old, new = ("%d.0"):format(i), ("%d.1"):format(i)
      os.remove(said)
      app:write(fixture.release(old), old)
      local run = app:command { strategy, "app.yml" }
      assert.same({ 0, old .. "\n" }, { run.exit, fixture.read(said) }, run.stdout .. run.stderr)
      app.opts.yaml = app.opts.yaml:gsub("'echo.*'", "'exit 1'")
      run = app:deploy(strategy, new)
      assert.equal(1, run.exit, run.stdout)
      assert.truthy(run.stderr:find("before_traffic", 1, true), run.stderr)
      assert.same({ old, old }, app:serving())
    end
  end)

  it("writes one JSON object a line", function()
    app:deploy("rolling", "1.0")
    local run = app:deploy("rolling", "2.0", nil, { "--json" })
    local events, ops = lines(run.stdout), 0
    assert.equal("run.started", events[1].event)
    for _, event in ipairs(events) do
      assert.is_string(event.time)
      assert.equal(events[1].run, event.run)
      if event.event == "op" and event.op == "instance.start" then
        ops = ops + 1
        assert.same({ "local", true }, { event.host, event.ok })
        assert.is_number(event.seconds)
        assert.truthy(event.instance:find("^local:%d+$"))
      end
    end
    assert.equal(1, ops)
    local last = events[#events]
    assert.same({ "run.finished", "succeeded", 0 }, { last.event, last.outcome, last.exit })
    local failed = lines(app:deploy("rolling", "3.0", { fault = "dies" }, { "--json" }).stdout)
    last = failed[#failed]
    assert.same({ "rolled_back", 1 }, { last.outcome, last.exit })
  end)

  it("journals an intent before each effect and its outcome after", function()
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    local run = app:status().run.id
    local records = journal.read(("%s/state/shop/runs/%s/journal"):format(app.dir, run))
    assert.equal("HEADER", records[1].type)
    assert.equal(fixture.read(app.file), records[1].files["app.yml"])
    assert.equal(fixture.read("strategies/rolling.lua"), records[1].scripts.rolling.text)
    local open, effects = {}, 0
    for _, record in ipairs(records) do
      if record.type == "INTENT" then
        open[record.id], effects = true, effects + 1
        assert.is_string(record.hash)
      elseif record.type == "DONE" then
        open[record.id] = nil
      end
    end
    assert.is_true(effects >= 4)
    assert.is_nil(next(open))
  end)

  it("tells what its strategy says in check", function()
    fixture.write(app.dir .. "/own.lua", 'local own = require("deployrt.strategy").extend("rolling", { name = "own" })\n'
      .. 'function own:check() self:log "I have looked" end\nreturn own\n')
    for _, argv in ipairs { { "plan", "./own.lua", "app.yml" }, { "./own.lua", "app.yml" } } do
      local run = app:command(argv)
      assert.equal(0, run.exit, run.stderr)
      assert.truthy((run.stdout .. run.stderr):find("I have looked", 1, true), run.stdout .. run.stderr)
    end
  end)

  it("is remembered", function()
    app:deploy("rolling", "1.0")
    app:deploy("rolling", "2.0", { fault = "dies" })
    local text = app:command({ "history", "app.yml" }).stdout
    assert.truthy(text:find("rolling%s+succeeded%s+1.0"))
    assert.truthy(text:find("rolling%s+rolled_back%s+1.0 %-> 2.0"))
  end)

  it("that is limited to a host leaves the others alone", function()
    local run = app:command { "rolling", "app.yml", "--host", "elsewhere" }
    assert.equal(2, run.exit)
    assert.truthy(run.stderr:find("no host 'elsewhere'", 1, true))
  end)

  it("that is to bring hosts along says how the last one ended when that went on without none", function()
    local function says(text)
      local run = app:command { "rolling", "app.yml", "--failed" }
      assert.equal(2, run.exit)
      assert.truthy(run.stderr:find(text, 1, true), run.stderr)
    end
    says "the last run went on without no host: --failed has nothing to bring along"
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    says "the last run went on without no host"
    assert.equal(1, app:deploy("rolling", "2.0", { fault = "dies" }).exit)
    says "ended 'rolled back', and went on without no host: --failed has nothing to bring along; repeat it whole"
  end)

  it("brings hosts along to the release that the others have, and to none else", function()
    local path = fixture.release "1.0"
    local function unnamed(release)
      app:write(release, "1.0")
      fixture.write(app.file, (fixture.read(app.file):gsub(', version: "1.0"', "")))
    end
    unnamed(path)
    assert.equal(0, app:command({ "rolling", "app.yml", "--release", "1.0" }).exit)
    local record = fixture.sh(("ls %s/state/shop/runs/*/run.json"):format(app.dir)):gsub("%s+$", "")
    fixture.write(record, (fixture.read(record):gsub("^{", '{"failed":["local"],'))) -- as if the run had gone on without it
    local function refuses(text, ...)
      for _, words in ipairs { { "rolling", "app.yml" }, { "plan", "rolling", "app.yml" } } do
        local run = app:command(table.move({ "--failed", ... }, 1, 1 + select("#", ...), #words + 1, words))
        assert.equal(2, run.exit, run.stdout)
        assert.truthy(run.stderr:find(text, 1, true) and run.stderr:find("give --release 1.0", 1, true), run.stderr)
      end
    end
    refuses("release 2.0 is asked for", "--release", "2.0")
    unnamed(fixture.release "2.0")
    refuses "is not what run"
    refuses("is not what run", "--release", "1.0")
    unnamed(path)
    assert.equal(0, app:command({ "rolling", "app.yml", "--failed", "--json" }).exit)
    assert.same({ "1.0" }, app:serving())
    assert.equal("1.0\n", fixture.sh(("ls %s/home/.deployrt/shop/releases"):format(app.dir)))
  end)

  it("brings hosts along only with what the others were started with: command, environment and secrets", function()
    local path, secret = fixture.release "1.0", app.dir .. "/secret"
    fixture.write(secret, "first")
    local function write(settings)
      app.opts.process = "  stop: {timeout: 3s}\n  " .. settings
      app:write(path, "1.0")
    end
    local given = "env: {MODE: 1}\n  secrets: {KEY: '${file:secret}'}"
    write(given)
    assert.equal(0, app:command({ "rolling", "app.yml", "--force" }).exit)
    local record = fixture.sh(("ls %s/state/shop/runs/*/run.json"):format(app.dir)):gsub("%s+$", "")
    fixture.write(record, (fixture.read(record):gsub("^{", '{"failed":["local"],'))) -- as if the run had gone on without it
    local function refuses(text)
      local run = app:command { "rolling", "app.yml", "--failed" }
      assert.equal(2, run.exit, run.stdout)
      for _, part in ipairs { text, "is not what run", "deploy what is new on all hosts" } do assert.truthy(run.stderr:find(part, 1, true), run.stderr) end
    end
    write(given:gsub("MODE: 1", "MODE: 2"))
    refuses "process.env"
    write(given)
    app.opts.command = '  command: [./server, "--port=${port}"]'
    write(given)
    refuses "process.command"
    app.opts.command = nil
    write(given)
    fixture.write(secret, "second")
    refuses "process.secrets"
    fixture.write(secret, "first")
    assert.equal(0, app:command({ "rolling", "app.yml", "--failed" }).exit)
    app.opts.process = nil
    app:write(path, "1.0")
  end)

  it("brings no host along when all was stopped since", function()
    app:write(fixture.release "1.0", "1.0")
    assert.equal(0, app:command({ "rolling", "app.yml", "--force" }).exit)
    local record = fixture.sh(("ls %s/state/shop/runs/*/run.json"):format(app.dir)):gsub("%s+$", "")
    fixture.write(record, (fixture.read(record):gsub("^{", '{"failed":["local"],'))) -- as if the run had gone on without it
    assert.equal(0, app:command({ "stop", "app.yml" }).exit)
    local run = app:command { "rolling", "app.yml", "--failed" }
    assert.equal(2, run.exit, run.stdout)
    assert.truthy(run.stderr:find("stopped the application after run", 1, true), run.stderr)
    assert.same({}, app:status().instances)
  end)

  it("help shows the options of a strategy from its own table", function()
    local text = app:command({ "help", "canary" }).stdout
    assert.truthy(text:find("steps", 1, true))
    assert.truthy(text:find("1%, 5%, 25%, 50%, 100%", 1, true))
  end)

  it("schema prints a JSON Schema", function()
    local said = app:command({ "schema" }).stdout
    assert.truthy(cjson.decode(said).properties.process.properties.command)
    for _ = 1, 3 do assert.equal(said, app:command({ "schema" }).stdout) end
  end)
end)
