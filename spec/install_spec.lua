-- install_spec.lua -- What `make install` puts where works there, and `make uninstall` removes it.
-- weight: 11
local arguments = require "deployrt.arguments"
local cjson = require "cjson"
local cli = require "deployrt.cli"
local fixture = require "spec.support.fixture"

local sh, quote = fixture.sh, fixture.quote

local function have(tool)
  return os.execute("command -v " .. tool .. " >/dev/null 2>&1") == true
end

--- Runs make without what an outer make hands down, and lets it take what is built already as it is.
local function try_make(target, root, prefix)
  local argv = { "env", "-u", "MAKEFLAGS", "-u", "MFLAGS", "-u", "MAKELEVEL", "make", "--no-print-directory" }
  for _, built in ipairs { "build/deployrt", "build/lib/deployrt/core.so" } do
    if fixture.read(built) then table.move({ "-o", built }, 1, 2, #argv + 1, argv) end
  end
  table.move({ target, "DESTDIR=" .. root, "PREFIX=" .. (prefix or "/usr") }, 1, 3, #argv + 1, argv)
  return fixture.run(argv)
end

local function make(...)
  local result = try_make(...)
  assert(result.exit == 0, result.stdout .. result.stderr)
  assert.equal("", result.stderr)
  return result.stdout
end

--- All paths below a directory, sorted; directories end in a slash.
local function tree(root)
  local list = {}
  for path in sh(("cd %s && find . -mindepth 1 -printf '%%P%%y\\n'"):format(quote(root))):gmatch("[^\n]+") do
    list[#list + 1] = path:gsub("d$", "/"):gsub("[fl]$", "")
  end
  table.sort(list)
  return list
end

local function set_of(list)
  local set = {}
  for _, each in ipairs(list) do set[each] = true end
  return set
end

local function sorted(list)
  table.sort(list)
  return list
end

local function lines(text)
  local list = {}
  for line in text:gmatch("[^\n]+") do list[#list + 1] = line end
  return list
end

local function strategy_names()
  return lines(sh("cd strategies && ls *.lua | sed 's/.lua$//'"))
end

local function command_names()
  local names = {}
  for i, command in ipairs(cli.commands) do names[i] = command[1] end
  return names
end

local function join(...)
  local all = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #all + 1, all) end
  return sorted(all)
end

describe("an installed deployrt", function()
  local root, home, bin, usr

  setup(function()
    root, home = fixture.dir() .. "/a root", fixture.dir()
    os.remove("build/deployrt.1") -- it would pass for new, as what it is made from may not be made again
    make("install", root)
    usr = root .. "/usr"
    bin = usr .. "/bin/deployrt"
  end)

  teardown(function()
    fixture.cleanup()
  end)

  --- Runs the installed command in a clean environment, away from the sources.
  local function deployrt(...)
    return fixture.run({ "env", "-i", "HOME=" .. home, "PATH=/usr/bin:/bin", bin, ... }, { cwd = home })
  end

  local function ok(...)
    local result = deployrt(...)
    assert(result.exit == 0, result.stderr)
    assert.equal("", result.stderr)
    return result.stdout
  end

  local function options_in_help(...)
    local list = {}
    for name in ("\n" .. ok("help", ...)):gmatch("\n  (%-%-[%w-]+)") do list[#list + 1] = name end
    return sorted(list)
  end

  describe("command", function()
    it("says its version and its help", function()
      assert.equal("deployrt " .. cli.version .. "\n", ok("version"))
      assert.truthy(ok("help"):find("deployrt check APP.yml", 1, true))
    end)

    it("checks an app.yml", function()
      fixture.write(home .. "/app.yml", 'app: little\nprocess:\n  command: [sleep, "60"]\n  ports: [18080]\n')
      assert.truthy(ok("check", "app.yml"):find("app.yml is fine: little", 1, true))
      fixture.write(home .. "/bad.yml", "app: little\nproces: {}\n")
      local result = deployrt("check", "bad.yml")
      assert.equal(2, result.exit)
      assert.truthy(result.stderr:find("bad.yml:2:1: unknown key 'proces'", 1, true), result.stderr)
    end)

    it("prints the schema of app.yml", function()
      assert.equal("object", cjson.decode(ok("schema")).type)
    end)

    it("uses an installed strategy that somebody edited, and its own copy when there is none", function()
      local path = usr .. "/share/deployrt/strategies/rolling.lua"
      local shipped = fixture.read(path)
      fixture.write(path, (shipped:gsub('summary = "[^"]*"', 'summary = "Edited by hand."')))
      assert.truthy(ok("help", "rolling"):find("rolling: Edited by hand.", 1, true))
      os.remove(path)
      assert.truthy(ok("help", "rolling"):find("rolling: Replace instances", 1, true))
      fixture.write(path, shipped)
    end)

    it("uses a runtime that somebody edited", function()
      local path = usr .. "/share/deployrt/lua/deployrt/cli/version.lua"
      local shipped = fixture.read(path)
      fixture.write(path, 'return function(command) command.write("edited\\n") return 0 end\n')
      assert.equal("edited\n", ok("version"))
      fixture.write(path, shipped)
    end)

    it("works without its share directory", function()
      os.rename(usr .. "/share/deployrt", usr .. "/share/away")
      local version, help = deployrt("version"), deployrt("help", "canary")
      os.rename(usr .. "/share/away", usr .. "/share/deployrt")
      assert.equal("deployrt " .. cli.version .. "\n", version.stdout)
      assert.equal(0, help.exit)
    end)

    it("carries its modules compiled, and as text for another Lua than the one that compiled them", function()
      local source = home .. "/another.c"
      fixture.write(source, 'const char lua_ident[] = "$LuaVersion: Lua 5.4.99  Copyright";\n')
      assert.equal(0, fixture.run({ "cc", "-shared", "-fPIC", "-o", home .. "/another.so", source }).exit)
      os.rename(usr .. "/share/deployrt", usr .. "/share/away")
      local plain = fixture.run({ usr .. "/bin/deployrt", "help", "rolling" }, { env = { HOME = home } })
      local other = fixture.run({ usr .. "/bin/deployrt", "help", "rolling" }, { env = { HOME = home, LD_PRELOAD = home .. "/another.so" } })
      os.rename(usr .. "/share/away", usr .. "/share/deployrt")
      assert.same({ 0, "" }, { plain.exit, plain.stderr })
      assert.same({ 0, "", plain.stdout }, { other.exit, other.stderr, other.stdout })
    end)
  end)

  it("gives stock Lua its modules", function()
    local result = fixture.run({
      "env", "-i", "HOME=" .. home, "PATH=" .. os.getenv("PATH"),
      "LUA_PATH=" .. usr .. "/share/lua/5.4/?.lua;;", "LUA_CPATH=" .. usr .. "/lib/lua/5.4/?.so;;",
      "lua5.4", "-e",
      'assert(require("deployrt.core").sha256)\n'
        .. 'print(require("deployrt.cli").version, package.searchpath("deployrt.cli", package.path))',
    }, { cwd = home })
    assert.equal("", result.stderr)
    assert.equal(cli.version .. "\t" .. usr .. "/share/lua/5.4/deployrt/cli.lua\n", result.stdout)
  end)

  it("has the readme and the licence where there are any", function()
    for _, name in ipairs { "README.md", "LICENSE" } do
      assert.equal(fixture.read(name), fixture.read(usr .. "/share/doc/deployrt/" .. name))
    end
  end)

  describe("manual page", function()
    --- The terms of a section: the first word in bold after each .TP.
    local function terms(section)
      local page = fixture.read(usr .. "/share/man/man1/deployrt.1"):gsub("\\%-", "-")
      local list = {}
      local text = page:match("\n%.SH " .. section .. "\n(.-)\n%.SH ") or ""
      for word in text:gmatch("%.TP\n[%.\\][fB ]+([%w_-]+)") do list[#list + 1] = word end
      return list
    end

    it("lists the commands that there are", function()
      assert.same(command_names(), terms("COMMANDS"))
    end)

    it("lists the options that help lists, and names no other", function()
      assert.same(options_in_help(), terms("OPTIONS"))
      local page = fixture.read(usr .. "/share/man/man1/deployrt.1"):gsub("\\%-", "-")
      for name in page:gmatch("%-%-(%l[%w-]*)") do
        assert(arguments.flags[name], "no such option: --" .. name)
      end
    end)

    it("lists the strategies and the exit codes that there are", function()
      assert.same(strategy_names(), terms("STRATEGIES"))
      local codes = {}
      for code in ok("help"):match("Exit: .*"):gmatch("%f[%w](%d+) ") do codes[#codes + 1] = code end
      assert.same(codes, terms("EXIT STATUS"))
    end)

    it("renders without a warning", function()
      if not have("groff") then return pending("there is no groff") end
      local result = fixture.run { "groff", "-man", "-ww", "-Tutf8", usr .. "/share/man/man1/deployrt.1" }
      assert.equal("", result.stderr)
      assert.truthy(result.stdout:find("deployrt " .. cli.version, 1, true))
      assert.falsy(result.stdout:find("@%l+@"))
    end)
  end)

  --- A project directory with an app.yml, a strategy of its own and things that are of no use to complete.
  local function project()
    local dir = fixture.dir()
    local text = fixture.read("strategies/rolling.lua")
    for name, content in pairs {
      ["strategies/careful.lua"] = text, ["one off.lua"] = text,
      ["app.yml"] = "", ["app.production.yaml"] = "", ["notes.txt"] = "", ["state/x"] = "",
    } do fixture.write(dir .. "/" .. name, content) end
    return dir
  end

  describe("completion in bash", function()
    local dir

    setup(function() dir = project() end)

    --- What bash offers for the last of the words, as readline splits them.
    local function complete(...)
      local result = fixture.run({
        "env", "-i", "HOME=" .. home, "PATH=/usr/bin:/bin", "bash", "--norc", "--noprofile", "-c",
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _deployrt "$1" "${!#}"\n'
          .. '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}" || :',
        usr .. "/share/bash-completion/completions/deployrt", bin, ...,
      }, { cwd = dir })
      assert.equal("", result.stderr)
      return sorted(lines(result.stdout))
    end

    it("is declared for deployrt", function()
      local script = usr .. "/share/bash-completion/completions/deployrt"
      local result = fixture.run { "bash", "--norc", "-c", 'source "$0"; complete -p deployrt', script }
      assert.equal("complete -F _deployrt deployrt\n", result.stdout)
    end)

    it("offers all commands and strategies", function()
      local of_project = { "careful", "one off.lua", "state", "strategies" }
      assert.same(join(command_names(), strategy_names(), of_project), complete(""))
      assert.same({ "rollback", "rolling" }, complete("roll"))
    end)

    it("offers for each command the options that help lists for it", function()
      for _, name in ipairs(command_names()) do
        assert.same(options_in_help(name), complete(name, "-"), name)
      end
      assert.same(options_in_help("run"), complete("rolling", "app.yml", "--"))
      assert.same({ "--connect" }, complete("check", "app.yml", "--con"))
    end)

    it("offers YAML files and directories where an app.yml goes", function()
      local expected = { "app.production.yaml", "app.yml", "state", "strategies" }
      for _, name in ipairs { "check", "status", "rolling", "careful", "./one off.lua" } do
        assert.same(expected, complete(name, ""), name)
      end
      assert.same(expected, complete("run", "canary", ""))
      assert.same(expected, complete("--quiet", "--state", "state", "check", ""))
      assert.same({}, complete("check", "app.yml", ""))
    end)

    it("offers what an option takes", function()
      assert.same({ "state", "strategies" }, complete("check", "app.yml", "--state", ""))
      assert.same({ "state", "strategies" }, complete("check", "app.yml", "--state", "=", "st"))
      assert.same({ "state", "strategies" }, complete("check", "app.yml", "--state", "="))
      assert.same({ "strategy.batch=" }, complete("rolling", "app.yml", "--set", "strategy.b"))
      assert.same({ "strategy.errors=" }, complete("run", "canary", "--set", "=", "strategy.e"))
      assert.same({}, complete("check", "app.yml", "--release", ""))
      local keys = complete("canary", "app.yml", "--set", "strategy.")
      assert.truthy(set_of(keys) ["strategy.metrics="])
      for i, key in ipairs(keys) do -- not what stands below an option
        assert.matches("^strategy%.[%a_]+=$", key)
        assert.not_equal(keys[i - 1], key)
      end
    end)

    it("offers commands of the system after --", function()
      assert.truthy(set_of(complete("exec", "app.yml", "--", "unam")).uname)
    end)

    it("takes the name of a file for what it is, not for shell text", function()
      fixture.write(dir .. "/strategies/$(touch oops).lua", "")
      assert.truthy(set_of(complete("")) ["$(touch oops)"])
      os.remove(dir .. "/strategies/$(touch oops).lua")
      assert.is_nil(fixture.read(dir .. "/oops"))
    end)
  end)

  describe("completion in zsh", function()
    local file

    --- Types a line and Tab in a real zsh; every match is inserted, and the line that results is shown.
    local typist = [=[
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1= PS2= RPS1=; unsetopt prompt_cr prompt_sp"
zpty -w z "fpath=(${(q)1} \$fpath); path=(${(q)2} \$path); cd ${(q)3}"
zpty -w z 'autoload -Uz compinit; compinit -u -D
all() { _main_complete; compstate[insert]=all; compstate[list]= }
zle -C all complete-word all; bindkey "^I" all
show() { print -r -- "<<<$BUFFER>>>"; BUFFER=; zle accept-line }
zle -N show; bindkey "^O" show; print rea""dy'
zpty -r -m z seen '*ready*'
for line in "${@[4,-1]}"; do
  zpty -w -n z "$line"$'\t\x0f'
  zpty -r -m z seen '*<<<*>>>*'
  print -r -- ${${seen##*<<<}%%>>>*}
done
zpty -d z
]=]

    setup(function() file = fixture.write(fixture.dir() .. "/typist", typist) end)

    --- For each line what stands there after Tab, without the line itself.
    local function complete(dir, typed)
      local result = fixture.run({
        "env", "-i", "HOME=" .. home, "PATH=/usr/bin:/bin", "TERM=dumb", "COLUMNS=2000", "LC_ALL=C.UTF-8",
        "zsh", "-f", file, usr .. "/share/zsh/site-functions", usr .. "/bin", dir, table.unpack(typed),
      }, { timeout = 120 })
      assert.equal("", result.stderr)
      assert.equal(0, result.exit)
      local offered = {}
      for i, line in ipairs(lines(result.stdout)) do
        offered[i] = {}
        for word in line:gsub("\\ ", "\1"):sub(#typed[i]:match("^.* ") + 1):gmatch("%S+") do
          table.insert(offered[i], (word:gsub("\1", " ")))
        end
        table.sort(offered[i])
      end
      return offered
    end

    it("is valid", function()
      if not have("zsh") then return pending("there is no zsh") end
      local result = fixture.run { "zsh", "-n", usr .. "/share/zsh/site-functions/_deployrt" }
      assert.same({ 0, "" }, { result.exit, result.stderr })
    end)

    it("offers what bash is offered", function()
      if not have("zsh") then return pending("there is no zsh") end
      local files = { "app.production.yaml", "app.yml", "state/", "strategies" }
      local of_project = { "careful", "one off.lua", "state", "strategies/" }
      local expected = {
        ["deployrt "] = join(command_names(), strategy_names(), of_project),
        ["deployrt roll"] = { "rollback", "rolling" },
        ["deployrt careful "] = files,
        ["deployrt run canary "] = files,
        ["deployrt --state state check "] = files,
        ["deployrt check --con"] = { "--connect" },
        ["deployrt rolling app.yml --set "] = { "strategy.allow_gap=", "strategy.batch=", "strategy.settle=", "strategy.timeout=" },
        ["deployrt canary --set=strategy.e"] = { "--set=strategy.errors=" },
        ["deployrt --state="] = { "--state=state", "--state=strategies/" },
        ["deployrt exec app.yml -- unam"] = { "uname" },
        ["deployrt check app.yml "] = {},
      }
      for _, name in ipairs(command_names()) do
        expected["deployrt " .. name .. " -"] = options_in_help(name)
      end
      local typed = {}
      for line in pairs(expected) do typed[#typed + 1] = line end
      local offered = complete(project(), typed)
      -- Only the last of several directories is inserted with its slash.
      local function plain(list)
        for i, each in ipairs(list) do list[i] = each:gsub("/$", "") end
        return sorted(list)
      end
      for i, line in ipairs(typed) do assert.same(plain(expected[line]), plain(offered[i]), line) end
    end)
  end)
end)

describe("make uninstall", function()
  teardown(function() fixture.cleanup() end)

  it("leaves nothing of an installation", function()
    local root = fixture.dir()
    make("install", root, "/opt/deploy tools")
    local list = lines(fixture.read(root .. "/opt/deploy tools/share/deployrt/installed"))
    for i, path in ipairs(list) do list[i] = path:sub(2) end
    assert.same(sorted(list), sorted(tree(root)))
    make("uninstall", root, "/opt/deploy tools")
    assert.same({}, tree(root))
  end)

  it("leaves what is not ours, directories that were there before included", function()
    local root = fixture.dir()
    sh("mkdir -p " .. root .. "/usr/share/zsh/site-functions")
    fixture.write(root .. "/usr/bin/other", "x")
    make("install", root)
    fixture.write(root .. "/usr/share/deployrt/strategies/ours.lua", "return 1")
    make("uninstall", root)
    assert.same({
      "usr/", "usr/bin/", "usr/bin/other", "usr/share/",
      "usr/share/deployrt/", "usr/share/deployrt/strategies/", "usr/share/deployrt/strategies/ours.lua",
      "usr/share/zsh/", "usr/share/zsh/site-functions/",
    }, sorted(tree(root)))
  end)

  it("leaves what stood in the way of an installation, and removes what had been put before that", function()
    local root = fixture.dir()
    fixture.write(root .. "/usr/share/lua/5.4/deployrt/theirs.lua", "return 1")
    local before = tree(root)
    local result = try_make("install", root)
    assert.equal(2, result.exit)
    assert.truthy(result.stderr:find("share/lua/5.4/deployrt", 1, true), result.stderr)
    make("uninstall", root)
    assert.same(before, tree(root))
  end)

  it("says so when nothing is installed", function()
    assert.truthy(make("uninstall", fixture.dir()):find("nothing is installed", 1, true))
  end)

  it("is part of an upgrade: a file that the new version lacks goes", function()
    local root = fixture.dir()
    make("install", root)
    local before = tree(root)
    local list = root .. "/usr/share/deployrt/installed"
    fixture.write(root .. "/usr/share/deployrt/lua/deployrt/former.lua", "return {}")
    fixture.write(list, fixture.read(list) .. "/usr/share/deployrt/lua/deployrt/former.lua\n")
    make("install", root)
    assert.same(before, tree(root))
  end)
end)
