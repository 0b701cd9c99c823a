-- library.lua -- A directory whose app.yml requires a library, in a HOME of its own, and what such a library is made from.
local assert = require "luassert"
local fixture = require "spec.support.fixture"

local library = {}

library.waves = [[
local strategy = require "deployrt.strategy"
local name = require "acme.name"
return strategy.extend("rolling", { name = name, summary = "Rolling, shared." })
]]

--- A new one; each of its functions works in its directory.
function library.new()
  local dir = fixture.dir()
  local home = dir .. "/home"
  os.execute(("mkdir -p %s/home %s/repository/lua/acme"):format(dir, dir))

  local function write(path, text)
    os.execute(("mkdir -p %s/%s"):format(dir, path:match("^(.*)/[^/]*$") or "."))
    return fixture.write(dir .. "/" .. path, text)
  end

  local function sh(script)
    local run = fixture.run({ "sh", "-ec", script }, { cwd = dir, env = { HOME = home, GIT_CONFIG_GLOBAL = "/dev/null", GIT_AUTHOR_NAME = "a",
      GIT_AUTHOR_EMAIL = "a@example", GIT_COMMITTER_NAME = "a", GIT_COMMITTER_EMAIL = "a@example" } })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    return run.stdout
  end

  local function deployrt(...)
    return fixture.run({ fixture.deployrt(), "--state", dir .. "/state", ... }, { cwd = dir, env = { HOME = home, TERM = "dumb" } })
  end

  local function expect(exit, part, ...)
    local run = deployrt(...)
    assert.equal(exit, run.exit, run.stdout .. run.stderr)
    if part then assert.truthy((run.stdout .. run.stderr):find(part, 1, true), ("expected %q in:\n%s%s"):format(part, run.stdout, run.stderr)) end
    return run
  end

  --- app.yml with such an entry of `require`, and no balancer.
  local function app(require_text, more)
    write("app.yml", ("app: shop\nprocess: {command: [sleep, '600'], ports: [%d, %d]}\nhealth: {command: ['true'], interval: 10ms}\nrequire: [%s]\n%s\n"):format(
      fixture.free_port(), fixture.free_port(), require_text, more or ""))
  end

  --- A git repository with one strategy and a module, tagged; returns what `require` says of it.
  local function repository(tag, name, more)
    write("repository/lua/acme/waves.lua", library.waves)
    write("repository/lua/acme/name.lua", ("return %q\n"):format(name or "waves"))
    sh(("cd repository && { [ -d .git ] || git init -q; } && %s git add -A && git commit -q -m x && git tag %s"):format(more or "", tag))
    return ("{git: repository, ref: %s, path: lua}"):format(tag)
  end

  return { dir = dir, home = home, write = write, sh = sh, expect = expect, app = app, repository = repository }
end

return library
