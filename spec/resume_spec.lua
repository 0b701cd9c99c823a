-- resume_spec.lua -- A run whose controller is killed: resumed it ends all-new, aborted all-old, wherever it died.
-- Before and after every operation of each strategy, on real processes behind a HAProxy under load. By itself each place
-- has one of the two endings, in turn; `make kills` (KILLS=all) has both, and KILLS=full more instances, so that operations
-- run side by side.
-- weight: 60
local cjson = require "cjson"
local fixture = require "spec.support.fixture"

local full = os.getenv("KILLS") == "full"
local both = full or os.getenv("KILLS") == "all"

local function count_lines(path, wanted)
  local count = 0
  for line in (fixture.read(path) or ""):gmatch("[^\n]+") do
    if line == wanted then count = count + 1 end
  end
  return count
end

---@class spec.Case
---@field strategy string
---@field instances integer
---@field slots integer
---@field yaml string       the strategy's options
---@field managed? boolean  behind the HAProxy that deployrt starts; else behind a user's own
---@field script? string    the strategy's text, where it is not a shipped one
---@field keeps? boolean    old processes stay up, so that an abort starts none again
---@field asks? boolean     it waits for a person, whom --yes answers for

---@class spec.Lane  one application, which goes through a share of the kills
local Lane = {}
Lane.__index = Lane

local function own_balancer(app)
  local servers = {}
  for _, port in ipairs(app.ports) do servers[#servers + 1] = ("local-%d 127.0.0.1:%d check inter 200ms disabled"):format(port, port) end
  local proxy = fixture.haproxy { servers = servers }
  app.opts.balancer, app.listen = ("{type: haproxy, socket: %s, backend: shop, drain: {timeout: 5s}}"):format(proxy.socket), proxy.port
  return proxy
end

--- An application whose processes and hooks leave a line each time they are started.
local function new_lane(case, path)
  local app = fixture.app { instances = case.instances, slots = case.slots, keep = 1, health = "{http: /healthz, interval: 10ms, timeout: 5s, deadline: 30s, successes: 1}" }
  app.opts.command = ("  command: [/bin/sh, -c, 'echo \"$0\" >> %s/starts; exec \"$@\"', '${release}', ./server, --port, '${port}']"):format(app.dir)
  app.opts.yaml = ("strategy: %s\nhooks: {before: 'echo \"before $RELEASE\" >> %s/hooks', after: 'echo \"after $RELEASE\" >> %s/hooks'}"):format(case.yaml, app.dir, app.dir)
  if not case.managed then own_balancer(app) end
  if case.script then fixture.write(app.dir .. "/own.lua", (case.script:gsub("DIR", app.dir))) end
  local self = setmetatable({ app = app, case = case, path = path, version = 1, serving = "1", tried = 0 }, Lane)
  self.flags = case.asks and { "--yes" } or {}
  app:write(path, "1")
  local run = app:command({ "rolling", "app.yml", "--set", "strategy={settle: 0}" }, { timeout = 120 })
  assert.equal(0, run.exit, run.stdout .. run.stderr)
  return self
end

--- app.yml for the next version; returns it and the one that serves now.
function Lane:next_version()
  self.version = self.version + 1
  self.app:write(self.path, tostring(self.version))
  return tostring(self.version), self.serving
end

--- Nothing of a run is left: as many processes as there should be, no lock, no half release.
function Lane:assert_clean(serving, where)
  self.serving = serving
  local status = self.app:status()
  assert.equal(cjson.null, status.lock, where)
  local running = {}
  for _, each in ipairs(status.instances) do
    if each.state == "serving" then running[#running + 1] = each.release end
    assert.is_true(each.state == "serving" or each.state == "idle", where .. ": " .. each.state)
  end
  table.sort(running)
  local wanted = {}
  for i = 1, self.case.instances do wanted[i] = serving end
  assert.same(wanted, running, where)
  local listing = fixture.sh(("ls -A %s/home/.deployrt/shop/releases | grep -c -e part -e gone || true"):format(self.app.dir))
  assert.equal("0\n", listing, where)
end

function Lane:starts(version) return count_lines(self.app.dir .. "/starts", version) end
function Lane:hooks(name, version) return count_lines(self.app.dir .. "/hooks", name .. " " .. version) end
function Lane:commands(version) return count_lines(self.app.dir .. "/commands", version) end

--- Resumes or aborts. Only a hook may be in doubt, and only a person may have it done again; --yes says so beforehand.
function Lane:finish(ending, point, where)
  local run = self.app:command({ ending, "app.yml", table.unpack(self.flags) }, { timeout = 120 })
  if self.case.asks then return run, ending == "resume" and point.name == "host.hook" end
  local doubtful = ending == "resume" and run.exit == 2 and run.stderr:find("nobody knows whether it was done", 1, true)
  if doubtful then
    assert.equal("host.hook", point.name, where .. run.stderr)
    run = self.app:command({ ending, "app.yml", "--yes" }, { timeout = 120 })
  end
  return run, doubtful ~= nil and doubtful ~= false
end

--- What was done how often, once a run was resumed or aborted.
function Lane:assert_done_once(ending, when, versions, again)
  local new, old, instances = versions.new, versions.old, self.case.instances
  local where = versions.where
  local twice = again and when == "after" and 1 or 0 -- a person said so
  if ending == "resume" then
    assert.equal(instances, self:starts(new), where .. ": starts of the new release")
    local hooks = self:hooks("before", new) + self:hooks("after", new)
    assert.is_true(hooks == 2 + twice or self.case.asks and hooks == 2, where .. ": hooks")
    if self.case.script then assert.equal(2, self:commands(new), where .. ": commands") end
  else
    assert.is_true(self:starts(new) <= instances, where .. ": starts of the new release")
    assert.is_true(self:hooks("before", new) <= 1 and self:hooks("after", new) <= 1, where .. ": hooks")
    if self.case.script then assert.is_true(self:commands(new) <= 2, where .. ": commands") end
  end
  local allowed = versions.starts_before + (ending == "abort" and not self.case.keeps and instances or 0)
  assert.is_true(self:starts(old) <= allowed, where .. ": starts of the old release")
end

--- One run, killed at one place, and its ending.
function Lane:kill_once(ending, when, n, points)
  local new, old = self:next_version()
  local where = ("%s: %s operation %d of %d (%s), %s"):format(self.case.strategy, when, n, #points, points[n].name, ending)
  local before = self:starts(old)
  local killed = self.app:mortal(when, n, { self.case.strategy, "app.yml", table.unpack(self.flags) })
  if killed.exit == 0 then return self:assert_clean(new, where) end -- this run had fewer operations than the one that was counted
  assert.equal(137, killed.exit, where .. killed.stdout .. killed.stderr)
  self.tried = self.tried + 1
  local run, again = self:finish(ending, points[n], where)
  if run.exit == 2 and run.stderr:find("nothing to resume or abort", 1, true) then
    return self:assert_clean(old, where) -- it died before it changed anything
  end
  assert.equal(0, run.exit, where .. "\n" .. killed.stdout .. run.stdout .. run.stderr)
  self:assert_clean(ending == "resume" and new or old, where)
  self:assert_done_once(ending, when, { new = new, old = old, where = where, starts_before = before }, again)
end

local own_script = [[
local strategy = require "deployrt.strategy"
local own = strategy.extend("rolling", { name = "own" })
local function note(self) self.fleet.hosts[1]:run { "/bin/sh", "-c", 'echo "$0" >> DIR/commands', self.release.version } end
function own:deploy()
  note(self)
  self:undo(function() self:log("undone") end)
  self:sleep(0.01)
  self.super.deploy(self)
  note(self)
end
return own
]]

---@type spec.Case[]
local cases = {
  { strategy = "rolling", instances = 1, slots = 2, yaml = "{settle: 0}", managed = true },
  { strategy = "blue_green", instances = 1, slots = 2, yaml = "{settle: 0}", keeps = true },
  { strategy = "canary", instances = 1, slots = 2, yaml = "{hold: 0, latency: 1000, steps: [25%, 100%]}" },
  { strategy = "canary_blue_green", instances = 1, slots = 2, yaml = "{hold: 0, settle: 0, latency: 1000, steps: [25%, 100%]}", keeps = true },
  { strategy = "ab", instances = 1, slots = 2, yaml = "{sticky: false}", asks = true },
  { strategy = "in_place", instances = 2, slots = 2, yaml = "{settle: 0, batch: 1}" },
  { strategy = "./own.lua", instances = 1, slots = 2, yaml = "{settle: 0}", script = own_script },
}
if full then
  for _, case in ipairs(cases) do case.instances, case.slots, case.yaml = 4, case.strategy == "in_place" and 4 or 8, case.yaml:gsub("batch: 1", "batch: 2") end
end

describe("a controller that is killed", function()
  local path
  before_each(function() path = fixture.release("1") end)
  after_each(function() fixture.cleanup() end)

  it("that could not begin again is as interrupted as before", function()
    local app = fixture.app { instances = 2, slots = 4, yaml = "strategy: {settle: 0, batch: 1}" }
    local proxy = own_balancer(app)
    assert.equal(0, app:deploy("rolling", "1.0").exit)
    app:write(fixture.release "2.0", "2.0")
    assert.equal(137, app:mortal("after", 14, { "rolling", "app.yml" }).exit)
    os.rename(proxy.socket, proxy.socket .. ".away")
    for _, verb in ipairs { "resume", "abort" } do assert.equal(2, app:command({ verb, "app.yml" }).exit) end
    os.rename(proxy.socket .. ".away", proxy.socket)
    assert.equal(4, app:deploy("rolling", "3.0").exit)
    local run = app:command { "resume", "app.yml" }
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.same({ "2.0", "2.0" }, app:serving())
    app:stop()
  end)

  for _, case in ipairs(cases) do
    it(("in %s, before and after every operation, is resumed to all-new and aborted to all-old"):format(case.strategy), function()
      local counting, load = new_lane(case, path), nil
      counting:next_version()
      local run, count, points = counting.app:mortal("count", nil, { case.strategy, "app.yml", table.unpack(counting.flags) })
      assert.equal(0, run.exit, run.stdout .. run.stderr)
      assert.is_true(count > 10)
      counting.app:stop()
      -- What only looks changes nothing: before it and after it are the same.
      local kills = {}
      for n, point in ipairs(points) do
        for i, when in ipairs(point.looks and { "before" } or { "before", "after" }) do
          for k, ending in ipairs { "resume", "abort" } do
            if both or (n + i + k) % 2 == 0 then kills[#kills + 1] = { ending = ending, when = when, n = n } end
          end
        end
      end
      local tried = 0
      local function lane()
        local self = new_lane(case, path)
        load = self.app:load { rate = 100 }
        local mine, kill = load, table.remove(kills, 1)
        while kill do
          self:kill_once(kill.ending, kill.when, kill.n, points)
          kill = table.remove(kills, 1)
        end
        assert.same({}, mine:stop().errors)
        self.app:stop()
        tried = tried + self.tried
      end
      local total = #kills
      fixture.together { lane, lane, lane, lane }
      assert.is_true(tried > total * 0.9, ("only %d of %d kills were tried"):format(tried, total))
    end)
  end
end)
