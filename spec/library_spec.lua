-- library_spec.lua -- Shared libraries: fetched, locked file by file, and held to what app.yml allows them.
-- weight: 3
local fixture = require "spec.support.fixture"
local library = require "spec.support.library"
local version = require "deployrt.library.version"

describe("versions of libraries", function()
  it("are compared part by part, and what has letters comes before the same without", function()
    local rising = { "scm-1", "0.9", "1.2.0rc1-1", "1.2.0rc2-1", "1.2.0-1", "1.2.0-2", "1.2.1-1", "1.10", "2.0-beta", "2.0" }
    for i = 2, #rising do
      assert.equal(-1, version.compare(rising[i - 1], rising[i]), rising[i])
      assert.equal(1, version.compare(rising[i], rising[i - 1]), rising[i])
    end
    assert.equal(0, version.compare("1.2", "1.2.0"))
  end)

  it("fit what app.yml asks, written as LuaRocks has it", function()
    for _, case in ipairs {
      { "1.2.0-1", ">= 1.2", true }, { "1.1.9-1", ">= 1.2", false }, { "1.2.3-1", "~> 1.2", true }, { "1.3.0-1", "~> 1.2", false },
      { "1.2.0-3", "1.2.0", true }, { "1.2.0-3", "1.2.0-1", false }, { "2.0-1", ">= 1.2, < 2", false }, { "1.9-1", ">= 1.2, < 2", true },
      { "1.5-1", "~= 1.5", false }, { "7-1", nil, true },
    } do assert.equal(case[3], version.fits(case[1], case[2]), case[1] .. " " .. tostring(case[2])) end
    assert.truthy(select(2, version.parse "newest please"):find("write it like", 1, true))
  end)
end)

describe("a shared library", function()
  local dir, home, write, sh, expect, app, repository

  before_each(function()
    local place = library.new()
    dir, home, write, sh, expect, app, repository = place.dir, place.home, place.write, place.sh, place.expect, place.app, place.repository
  end)
  after_each(fixture.cleanup)

  it("of git is fetched, locked and used; the run goes by its name, and resume needs none of its files", function()
    app(repository "v1")
    expect(2, "run `deployrt lib install app.yml`", "waves", "app.yml")
    expect(0, "installed, and locked", "lib", "install")
    expect(0, "is there", "lib", "install", "app.yml")
    expect(0, "waves: Rolling, shared.", "help", "waves")
    expect(0, "1 library", "lib", "verify")
    expect(0, "acme/waves.lua", "lib", "list")
    expect(0, nil, "test", "waves", "--seeds", "2")
    expect(0, "waves, 1 instance", "waves", "app.yml")
    local commit = sh "git -C repository rev-parse HEAD":gsub("%s", "")
    assert.truthy(fixture.read(dir .. "/deployrt.lock"):find(commit, 1, true))
    write("own.lua", 'local strategy = require "deployrt.strategy"\nlocal own = strategy.extend("waves", { name = "own" })\n'
      .. "function own:deploy() self.super.deploy(self) self:sleep(30) end\nreturn own\n")
    local log = dir .. "/log"
    local pid = fixture.start({ fixture.deployrt(), "--state", dir .. "/state", "./own.lua", "app.yml", "--force", "--set", "strategy.settle=0" },
      { cwd = dir, env = { HOME = home, TERM = "dumb" }, log = log })
    fixture.eventually(function() return (fixture.read(log) or ""):find("batch 1 of 1: done", 1, true) end, 20, "the sleep")
    fixture.signal(pid, "KILL")
    sh "rm -rf .deployrt deployrt.lock own.lua"
    expect(0, "rolled back", "abort", "app.yml")
    expect(0, nil, "stop", "app.yml", "--yes")
  end)

  it("whose code is not as the lock says is not run, and `install` brings the locked one back", function()
    app(repository "v1")
    expect(0, nil, "lib", "install")
    local place = dir .. "/.deployrt/lib/repository/acme/"
    for _, damage in ipairs {
      { "echo '-- x' >> %swaves.lua", "acme/waves.lua is not what deployrt.lock says" }, { "rm %sname.lua", "acme/name.lua is missing" },
      { "echo 'return 1' > %sother.lua", "acme/other.lua is not in deployrt.lock" },
      { "cd %s && ln -s nowhere a && ln -s b b && ln -s . c && mkfifo d.lua", "acme/a is not in deployrt.lock" },
      { "mv %sname.lua . && ln -s ../../../../name.lua %sname.lua", "acme/name.lua is not what deployrt.lock says" },
      { "rm %sname.lua && mkfifo %sname.lua", "acme/name.lua is not what deployrt.lock says" },
    } do
      sh((damage[1]:gsub("%%s", place)))
      expect(0, "not as locked", "lib", "list")
      for _, argv in ipairs { { "waves", "app.yml" }, { "rolling", "app.yml" }, { "plan", "waves", "app.yml" }, { "lib", "verify" } } do
        expect(2, damage[2], table.unpack(argv))
      end
      expect(0, "installed", "lib", "install")
      expect(0, nil, "lib", "verify")
    end
    sh "rm -rf .deployrt/lib/repository && ln -s repository .deployrt/lib/repository"
    expect(2, "is not installed here", "lib", "verify")
    expect(0, "installed", "lib", "install")
    expect(0, nil, "lib", "verify")
    assert.equal("", sh "ls -A .deployrt/lib | grep -v '^repository$' || true")
  end)

  it("changes only when it is asked to: a moved tag is refused, an update shows what it was", function()
    app(repository("v1", "waves"))
    expect(0, nil, "lib", "install")
    sh "git -C repository tag -d v1"
    repository("v1", "changed")
    expect(0, "is there", "lib", "install")
    sh "rm -rf .deployrt"
    expect(0, "installed", "lib", "install") -- the locked commit is still to be had
    expect(0, "waves: Rolling", "help", "waves")
    expect(0, "installed, in place of", "lib", "update", "repository")
    expect(0, "changed: Rolling", "help", "waves")
    expect(2, "did you mean 'repository'?", "lib", "update", "repositry")
    app((repository("v2", "second")))
    expect(2, "deployrt.lock has another repository (v1)", "waves", "app.yml")
    expect(0, nil, "lib", "install")
    expect(0, "second: Rolling", "help", "waves")
  end)

  it("whose lock is damaged says so, and `update` writes it anew; an empty one locks nothing", function()
    app(repository "v1")
    expect(0, nil, "lib", "install")
    local lock = fixture.read(dir .. "/deployrt.lock")
    for text, says in pairs { ["<<<<<<< HEAD\n" .. lock] = "deployrt.lock is damaged", ["7"] = "deployrt.lock is damaged", ["text"] = "deployrt.lock is damaged",
      ["lock: 1\nlibraries: [~]"] = "deployrt.lock is damaged", [lock:gsub('ref: "v1"', "ref: 1.5")] = "deployrt.lock is damaged",
      ["lock: 1\nlibraries: [{name: a, files: {x: 1}}]"] = "deployrt.lock is damaged", ["lock: 2"] = "of another format", ["[]"] = "of another format" } do
      write("deployrt.lock", text)
      for _, action in ipairs { "verify", "list", "install" } do expect(2, says, "lib", action) end
      expect(0, nil, "lib", "update")
      assert.equal(lock, fixture.read(dir .. "/deployrt.lock"))
    end
    for _, text in ipairs { "", "# nothing\n", "~" } do
      write("deployrt.lock", text)
      expect(2, "the library repository is not in deployrt.lock: run `deployrt lib install", "waves", "app.yml")
      expect(0, "not locked", "lib", "list")
      expect(0, "installed, and locked", "lib", "install")
      assert.equal(lock, fixture.read(dir .. "/deployrt.lock"))
    end
  end)

  it("is installed beside any other, whatever the two are called", function()
    repository "v1"
    app("{git: repository, path: lua, name: acme}, {git: repository, path: lua, name: work-acme}, {git: repository, path: lua, name: old-acme}, "
      .. "{git: repository, path: lua, name: work}, {git: repository, path: lua, name: new}")
    for _, action in ipairs { "install", "update" } do
      expect(0, "work-acme", "lib", action)
      expect(0, "5 libraries", "lib", "verify")
    end
  end)

  it("leaves nothing half done for long: the next install removes what a killed one left, and nothing of one that works", function()
    app(repository "v1")
    local log, lib = dir .. "/log", dir .. "/.deployrt/lib"
    write("bin/git", ("#!/bin/sh\necho $$ > %s/in_git; exec sleep 60\n"):format(dir))
    sh "chmod +x bin/git && mkdir -p .deployrt/lib/.part-17000000000 && touch -d '2 hours ago' .deployrt/lib/.part-17000000000"
    local env = { HOME = home, TERM = "dumb", PATH = dir .. "/bin:" .. os.getenv("PATH") }
    local pid = fixture.start({ fixture.deployrt(), "lib", "install" }, { cwd = dir, env = env, log = log })
    local git = fixture.eventually(function() return (fixture.read(dir .. "/in_git") or ""):match("%d+\n") end, 20, "the fetching")
    assert.equal("1\n", sh(("ls -d %s/.part-* | wc -l"):format(lib)))
    expect(0, "installed", "lib", "install")
    assert.equal("1\n", sh(("ls -d %s/.part-* | wc -l"):format(lib)))
    fixture.signal(pid, "KILL")
    fixture.signal(git:match("%d+"), "KILL")
    fixture.eventually(function() return not fixture.alive(pid) end, 20, "its end")
    expect(0, "is there", "lib", "install")
    assert.equal("0\n", sh(("ls -d %s/.part-* 2> /dev/null | wc -l"):format(lib)))
  end)

  it("that cannot be had leaves what was there", function()
    app(repository "v1")
    expect(0, nil, "lib", "install")
    local lock = fixture.read(dir .. "/deployrt.lock")
    for _, case in ipairs {
      { "{git: repository, ref: v9, path: lua}", "has no 'v9'" }, { "{git: nowhere, ref: v1}", "fetching nowhere failed" },
      { "{git: repository, ref: v1, path: none}", "has no directory 'none'" }, { "{git: repository, ref: v1, path: .git}", "are there any?" },
      { "{rock: acme, server: nowhere}", "there is no rock 'acme' at nowhere" },
    } do
      app(case[1])
      expect(2, case[2], "lib", "install")
      assert.equal(lock, fixture.read(dir .. "/deployrt.lock"))
    end
    app "{git: repository, ref: v1, path: lua}"
    expect(0, nil, "lib", "verify")
    assert.equal("", sh "ls -A .deployrt/lib | grep -v '^repository$' || true")
  end)

  it("of a repository with links and hooks gives its Lua files only", function()
    app(repository("v1", nil, "ln -s /etc/passwd lua/acme/secret.lua && ln -s /etc lua/etc && echo x > lua/acme/program.sh &&"))
    write("repository/.git/hooks/post-checkout", "#!/bin/sh\ntouch " .. dir .. "/ran\n")
    sh "chmod +x repository/.git/hooks/post-checkout"
    expect(0, nil, "lib", "install")
    assert.equal("acme/name.lua\nacme/secret.lua\nacme/waves.lua\n", sh "cd .deployrt/lib/repository && find * -type f | sort")
    assert.equal("/etc/passwd", fixture.read(dir .. "/.deployrt/lib/repository/acme/secret.lua"))
    assert.is_nil(fixture.read(dir .. "/ran"))
  end)

  --- A library with one strategy whose `deploy` has such a text.
  local function library_of(text)
    write("repository/acme.lua", 'local strategy = require "deployrt.strategy"\nlocal acme = strategy.extend("rolling", { name = "acme" })\n'
      .. "function acme:deploy() " .. text .. " self.super.deploy(self) end\nreturn acme\n")
    sh "cd repository && { [ -d .git ] || git init -q; } && git add -A && git commit -q -m x"
  end

  it("may do what app.yml allows it, and else says what to add", function()
    for word, text in pairs {
      ["host.run"] = 'self.fleet.hosts[1]:run { "true" }',
      http = 'self:analyse { seconds = 0, new = {}, old = {}, metrics = { { source = "http", url = "http://127.0.0.1:1/" } }, inconclusive = "pass" }',
    } do
      library_of(text)
      app "{git: repository}"
      expect(0, nil, "lib", "update")
      expect(0, nil, "rolling", "app.yml", "--set", "strategy.settle=0", "--force")
      expect(1, ("add %s to its `allow` in app.yml"):format(word), "acme", "app.yml", "--set", "strategy.settle=0", "--force")
      app(("{git: repository, allow: [balancer, %s]}"):format(word))
      expect(0, nil, "lib", "install")
      expect(0, nil, "stop", "app.yml", "--yes")
      expect(0, nil, "acme", "app.yml", "--set", "strategy.settle=0", "--force")
      expect(0, nil, "stop", "app.yml", "--yes")
    end
  end)

  it("gives nothing traffic where it may not use the balancer, also where an instance is missing", function()
    library_of "self:fill() do return end"
    app "{git: repository, allow: []}"
    expect(0, nil, "lib", "update")
    expect(0, nil, "rolling", "app.yml", "--set", "strategy.settle=0")
    expect(1, "add balancer to its `allow` in app.yml", "acme", "app.yml", "--set", "strategy.settle=0", "--force")
    expect(0, nil, "stop", "app.yml", "--yes")
  end)

  it("limits the strategy of one's own that inherits from it, also from a file given by its path", function()
    library_of 'self:reload()'
    write("own.lua", 'local strategy = require "deployrt.strategy"\nlocal own = strategy.extend("acme", { name = "own" })\n'
      .. 'function own:reload() self.fleet.hosts[1]:run { "true" } end\nreturn own\n')
    app "{git: repository}"
    expect(0, nil, "lib", "install")
    expect(0, nil, "rolling", "app.yml", "--set", "strategy.settle=0")
    expect(1, "own.lua:3: the library repository may not run commands on hosts", "own.lua", "app.yml", "--force", "--set", "strategy.settle=0")
    library_of 'self.fleet.hosts[1]:run { "true" }'
    expect(0, nil, "lib", "update")
    sh "mkdir strategies && ln -s .deployrt/lib/repository linked && ln -s ../linked/acme.lua strategies/sly.lua && ln -s linked/acme.lua sly.lua"
    write("sly_too.lua", 'return require "linked.acme"')
    for _, path in ipairs { ".deployrt/lib/repository/acme.lua", ".deployrt//lib/repository/acme.lua", "./.deployrt/./lib/repository/acme.lua",
      ".deployrt/lib/../lib//repository/acme.lua", "linked/acme.lua", "./sly.lua", "sly", "sly_too.lua" } do
      expect(1, "may not run commands on hosts", path, "app.yml", "--force", "--set", "strategy.settle=0")
    end
    sh "mv .deployrt/lib/repository elsewhere && ln -s ../../elsewhere .deployrt/lib/repository"
    expect(1, "may not run commands on hosts", ".deployrt//lib/./repository/acme.lua", "app.yml", "--force", "--set", "strategy.settle=0")
    expect(0, nil, "stop", "app.yml", "--yes")
  end)

  it("is required at the top of a script: what comes later is refused, for nothing would limit it, nor keep it for resume", function()
    write("repository/growth.lua", 'return { go = function(self) self.fleet.hosts[1]:run { "touch", "' .. dir .. '/ran" } end }')
    library_of ""
    app "{git: repository}"
    expect(0, nil, "lib", "install")
    local own = 'local strategy = require "deployrt.strategy"\n%s\nlocal own = strategy.extend("rolling", { name = "own" })\n'
      .. "function own:deploy()\n  %s\n  self.super.deploy(self)\nend\nreturn own\n"
    for _, case in ipairs {
      { "", 'require("growth").go(self)', 'own.lua:5: require "growth" loads something new while the strategy runs: put it at the top of the file' },
      { "", 'pcall(require, "growth") require("growth").go(self)', 'require "growth" loads something new' },
      { "", 'strategy.extend("acme", { name = "x" })', 'own.lua:5: strategy.extend("acme") loads something new while the strategy runs' },
      { 'require "growth"', 'require("growth").go(self)', "may not run commands on hosts" },
      { 'require "growth"', 'self.fleet.hosts[1]:run { "true" }', "may not run commands on hosts" }, -- in a file of one's own, too
    } do
      write("own.lua", own:format(case[1], case[2]))
      expect(1, case[3], "own.lua", "app.yml", "--set", "strategy.settle=0")
    end
    assert.is_nil(fixture.read(dir .. "/ran"))
  end)

  it("brings a balancer driver only where app.yml says so", function()
    write("repository/edge.lua", fixture.read "examples/library/acme/edge.lua")
    library_of ""
    local balancer = "balancer: {type: .deployrt/lib/repository/edge.lua, options: {socket: /nowhere}}"
    app("{git: repository}", balancer)
    expect(2, "may not bring a driver", "check", "app.yml")
    app("{git: repository, allow: [balancer, driver]}", balancer)
    expect(0, nil, "lib", "install")
    sh "ln -s .deployrt/lib/repository/edge.lua edge.lua"
    for _, path in ipairs { ".deployrt//lib/repository/edge.lua", "./.deployrt/lib/./repository/edge.lua", dir .. "/.deployrt/lib//repository/edge.lua", "edge.lua" } do
      app("{git: repository}", (balancer:gsub("type: [^,]+", "type: " .. path)))
      expect(2, "may not bring a driver", "check", "app.yml")
      app("{git: repository, allow: [driver]}", (balancer:gsub("type: [^,]+", "type: " .. path)))
      expect(0, nil, "check", "app.yml")
      sh "echo '-- x' >> .deployrt/lib/repository/edge.lua"
      expect(2, "edge.lua is not what deployrt.lock says", "check", "app.yml")
      expect(0, nil, "lib", "install")
    end
    app("{git: repository, allow: [balancer, driver]}", balancer)
    expect(0, nil, "lib", "install")
    expect(0, nil, "check", "app.yml")
    sh "echo '-- x' >> .deployrt/lib/repository/edge.lua"
    expect(2, "edge.lua is not what deployrt.lock says", "status", "app.yml")
  end)

  it("says where its driver is, when app.yml names that like a module or a file beside it", function()
    sh "mkdir -p repository/acme"
    write("repository/acme/edge.lua", fixture.read "examples/library/acme/edge.lua")
    library_of ""
    local function app_with(type_name)
      app("{git: repository, allow: [balancer, driver]}", ("balancer: {type: %s, options: {socket: /nowhere}}"):format(type_name))
    end
    app_with "acme.edge"
    expect(2, "balancer.type: acme.edge cannot be read: a type is caddy, command, haproxy, nginx, or the path of a driver in Lua; one that a library brings is "
      .. "./.deployrt/lib/LIBRARY/..., once `deployrt lib install` has fetched it", "check", "app.yml")
    app("{git: repository, allow: [balancer, driver]}")
    expect(0, nil, "lib", "install")
    for _, type_name in ipairs { "acme.edge", "acme/edge.lua" } do
      app_with(type_name)
      expect(2, type_name .. " cannot be read: a type is caddy, command, haproxy, nginx, or the path of a driver in Lua; that of the library repository is "
        .. "./.deployrt/lib/repository/acme/edge.lua", "check", "app.yml")
    end
    app_with "./.deployrt/lib/repository/acme/edge.lua"
    expect(0, nil, "check", "app.yml")
  end)

  it("written for another api says what to do", function()
    write("repository/later.lua", 'return require("deployrt.strategy").define { name = "later", api = 2 }')
    sh "cd repository && git init -q && git add -A && git commit -q -m x"
    app "{git: repository}"
    expect(0, nil, "lib", "install")
    expect(2, "strategy 'later' is written for api 2; this deployrt has api 1: use a newer deployrt", "later", "app.yml")
  end)

  it("is one of several only by its path where both have a strategy of the name", function()
    repository "v1"
    sh "cp -R repository other"
    app "{git: repository, path: lua}, {git: other, path: lua}"
    expect(0, nil, "lib", "install")
    expect(2, "several libraries have a strategy 'waves'", "waves", "app.yml")
    app "{git: repository, path: lua}, {git: other/, path: lua, name: repository}"
    expect(2, "there is a library 'repository' already", "check", "app.yml")
  end)

  it("has files with names of several lines, and none of them is an instruction to what copies it", function()
    repository "v1"
    fixture.write(dir .. "/repository/lua/x\n-C..\nname.lua", "return 1")
    write("repository/name.lua", "return 'not of path'")
    sh "cd repository && git add -A && git commit -q -m x"
    app "{git: repository, path: lua}"
    expect(0, "installed", "lib", "install")
    expect(0, nil, "lib", "verify")
    assert.equal("3\n", sh "find .deployrt/lib/repository -type f -print0 | tr -dc '\\0' | wc -c")
    assert.is_nil(fixture.read(dir .. "/.deployrt/lib/repository/name.lua"))
  end)

  it("is described in app.yml without contradictions", function()
    for text, says in pairs {
      ["{rock: a, git: b}"] = "one of rock and git", ["{name: a}"] = "one of rock and git", ["{git: a, version: '1'}"] = "require[1].version is for a rock",
      ["{rock: a, ref: v1}"] = "require[1].ref is for git", ["{rock: a, version: newest}"] = "write it like", ["{git: a, path: ../b}"] = "may not leave the repository",
      ["{git: '--upload-pack=x'}"] = "a URL or a directory", ["{git: a, ref: '--x'}"] = "the name of a tag", ["{rock: a, allow: [root]}"] = "root",
      ["{rock: a, alow: [http]}"] = "did you mean 'allow'?",
    } do
      app(text)
      expect(2, says, "check", "app.yml")
    end
    app ""
    expect(2, "requires no library", "lib", "list")
    expect(2, "install, update, list, verify", "lib", "fetch")
  end)

  it("of one's own needs no lock: a script requires Lua files beside it", function()
    write("strategies/parts/names.lua", 'return "mine"')
    write("strategies/mine.lua", 'local strategy = require "deployrt.strategy"\nreturn strategy.extend("rolling", { name = require "parts.names", summary = "Own." })')
    app ""
    expect(0, "mine: Own.", "help", "mine")
    write("strategies/mine.lua", 'require "parts.none"')
    expect(2, "cannot require 'parts.none'", "help", "mine")
    write("strategies/mine.lua", 'require "..secret"')
    expect(2, "cannot require '..secret'", "help", "mine")
  end)
end)

describe("the example of a library", function()
  it("deploys, and its own specs hold", function()
    local run = fixture.run({ "sh", "examples/library/demo.sh", fixture.deployrt() }, { timeout = 120 })
    assert.equal(0, run.exit, run.stdout .. run.stderr)
    assert.truthy(run.stdout:find("deployed 3.0", 1, true), run.stdout)
    local specs = fixture.run({ "busted", "--lua=lua5.4", "spec/acme_spec.lua" }, { timeout = 120, cwd = fixture.here .. "/examples/library",
      env = fixture.modules() })
    assert.equal(0, specs.exit, specs.stdout .. specs.stderr)
  end)
end)
