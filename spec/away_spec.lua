-- away_spec.lua -- What people can do about a run while one of its hosts is away.
-- weight: 26
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("away_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("while a host is away, a run", function()
  local bed, app, pid

  --- Waits, goes on without one host, and waits for a person.
  local patient = [[
    local own = require("deployrt.strategy").extend("rolling", { name = "own" })
    function own:deploy()
      self:log("now") self:sleep(3)
      self:each(self.fleet:old(), self.replace, { tolerate = 1 })
      for i = 1, 100 do self:step("wait " .. i, function() self:sleep(0.2) end) end
      self:approve "go on?"
    end
    return own]]

  --- Begins own.lua, and cuts the first host off, which words for the run go to first. Waits until it says something then.
  local function begin(moment, text)
    local log = app.dir .. "/log"
    app:write(fixture.release("2.0"), "2.0")
    fixture.write(app.dir .. "/own.lua", text or patient)
    pid = app:begin({ "./own.lua", "app.yml" }, log)
    for _, said in ipairs { "now", moment } do
      fixture.eventually(function() return fixture.read(log):find(said, 1, true) end, 60, said)
      if said == "now" then bed:cut(1) end
    end
    return log
  end

  local function kill()
    fixture.signal(pid, "KILL")
    app:await_end(pid)
  end

  local function ends(exit, words, ...)
    local run = app:command(words)
    local text = run.stdout .. run.stderr
    assert.equal(exit, run.exit, text)
    for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), text) end
  end

  local function serve(...)
    bed:mend(1)
    local expected, seen = { ... }, nil
    local ok = pcall(fixture.eventually, function()
      local found
      found, seen = pcall(app.serving, app)
      return found and table.concat(seen, " ") == table.concat(expected, " ")
    end, 20)
    assert.is_true(ok, "serving: " .. table.concat(type(seen) == "table" and seen or { tostring(seen) }, " "))
  end

  before_each(function()
    bed = hosts.up(3)
    app = fixture.app { yaml = "strategy: {settle: 0}", hosts = bed:yaml(), health = "{http: /healthz, interval: 20ms, deadline: 4s}" }
    app.ports = { 8080, 8081 }
    assert.equal(0, app:deploy("rolling", "1.0").exit)
  end)
  after_each(function()
    if pid then fixture.stop(pid) end
    bed:mend_all()
    app:stop()
    fixture.cleanup()
    bed:down()
  end)

  it("that goes on without it is held, let go, and taken up by a later controller", function()
    local log = begin "going on without"
    ends(0, { "pause", "app.yml" }, "holds at its next step")
    fixture.eventually(function() return fixture.read(log):find("paused before", 1, true) end, 20, "the pause")
    ends(0, { "approve", "app.yml" }, "goes on")
    fixture.eventually(function() return fixture.read(log):find("go on?", 1, true) end, 60, "the gate")
    kill()
    pid = app:command({ "resume", "app.yml" }, { background = true, log = log })
    fixture.eventually(function() return fixture.read(log):find("go on?", 1, true) end, 60, "the gate again")
    ends(0, { "approve", "app.yml" }, "goes on")
    app:await_end(pid)
    assert.truthy(fixture.read(log):find("left as it was when that failed, where the new release may run without traffic: --failed brings them along", 1, true), fixture.read(log))
    serve("1.0", "2.0", "2.0")
    ends(0, { "rolling", "app.yml", "--failed" })
    serve("2.0", "2.0", "2.0")
  end)

  it("that goes on without it, half done there, says so at its end, and so does who finds its lock", function()
    local name = bed.hosts[1].name
    local log = begin("deployed 2.0", [[
      local own = require("deployrt.strategy").extend("rolling", { name = "own" })
      function own:deploy()
        self:each(self.fleet:old(), function(_, old)
          local new = self:successor(old)
          new:start()
          new:await_healthy()
          self:log "now" self:sleep(3)
          old.host:run { "true" }
          self.balancer:swap(old, new)
          old:stop()
        end, { tolerate = 1 })
      end
      return own]])
    app:await_end(pid)
    local text = ("; %s left as it was when that failed, where the new release may run without traffic: --failed brings them along"):format(name)
    assert.truthy(fixture.read(log):find(text, 1, true), fixture.read(log))
    serve("1.0", "2.0", "2.0")
    local words = (" has ended while %s was away: `deployrt resume app.yml --run %s`, or the next run, removes the lock that it has left there"):format(name, app:status().run.id)
    ends(0, { "status", "app.yml" }, words)
    ends(0, { "resume", "app.yml" }, ("had ended already: succeeded, exit 0; %s was away then, and its lock is removed now"):format(name))
    assert.equal(require("cjson").null, app:status().lock)
    ends(0, { "rolling", "app.yml", "--failed" })
    serve("2.0", "2.0", "2.0")
  end)

  it("that went on without it is rolled back, and says what is left there; abort does that once it is back", function()
    begin "going on without"
    kill()
    ends(3, { "abort", "app.yml" }, bed.hosts[1].name)
    bed:mend(1)
    ends(0, { "abort", "app.yml" })
    serve("1.0", "1.0", "1.0")
  end)

  it("that needs it is not taken up, unless it is to be undone on the others", function()
    begin()
    kill()
    local function told() return bed:exec(2, "cd /home/deploy/.deployrt/shop && cut -f1,4 lock && cat runs/*/step") end
    local before = told()
    for _, verb in ipairs { "resume", "abort" } do
      ends(2, { verb, "app.yml" }, bed.hosts[1].name, "goes on when it is back", "`deployrt abort --force app.yml`")
    end
    assert.equal(before, told())
    ends(3, { "abort", "--force", "app.yml" }, bed.hosts[1].name)
    for _, verb in ipairs { "pause", "approve" } do ends(2, { verb, "app.yml" }, bed.hosts[1].name) end
    bed:mend(1)
    ends(0, { "abort", "app.yml" })
    serve("1.0", "1.0", "1.0")
  end)
end)
