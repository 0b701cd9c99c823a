-- library_rock_spec.lua -- Shared libraries that are rocks: only their Lua files are taken, and nothing of them is run.
-- weight: 3
local fixture = require "spec.support.fixture"
local library = require "spec.support.library"

describe("a shared library of LuaRocks", function()
  local dir, write, sh, expect, app, repository

  before_each(function()
    local place = library.new()
    dir, write, sh, expect, app, repository = place.dir, place.write, place.sh, place.expect, place.app, place.repository
  end)
  after_each(fixture.cleanup)

  --- A directory that serves rocks, each {version, build = text of the build table, dependencies}.
  local function server(rocks)
    for _, rock in ipairs(rocks) do
      write("rocks/acme-" .. rock[1] .. ".rockspec", ([[
        package = "acme" version = "%s" source = { url = "file://%s/rocks/acme-%s.tar.gz", dir = "acme" }
        description = { license = "MIT" } dependencies = { %s } build = %s]]):format(rock[1], dir, rock[1], rock.dependencies or '"lua >= 5.4"',
        rock.build or '{ type = "builtin", modules = { ["acme.waves"] = "acme/waves.lua", ["acme.name"] = "acme/name.lua" } }'))
      write("source/acme/acme/waves.lua", library.waves)
      write("source/acme/acme/name.lua", ("return 'waves %s'\n"):format(rock[1]))
      sh(("tar -czf rocks/acme-%s.tar.gz -C source acme"):format(rock[1]))
    end
    sh "luarocks-admin make-manifest rocks > /dev/null"
  end

  it("is the newest version that fits, until `update`", function()
    server { { "1.0-1" }, { "1.2-1" }, { "2.0-1" } }
    app '{rock: acme, version: "~> 1.0, >= 1.0", server: rocks}'
    expect(0, "acme 1.0-1: installed, and locked", "lib", "install")
    expect(0, "waves 1.0-1: Rolling", "help", "waves")
    server { { "1.0.1-1" } }
    expect(0, "acme 1.0-1: is there", "lib", "install")
    expect(0, "acme 1.0.1-1: installed, in place of 1.0-1", "lib", "update")
    app '{rock: acme, version: ">= 1.2", server: rocks}'
    expect(0, "acme 2.0-1: installed", "lib", "install")
    app '{rock: acme, version: ">= 3", server: rocks}'
    sh "luarocks-admin make-manifest rocks > /dev/null && for each in rocks/*.rockspec; do cp rocks/acme-2.0-1.tar.gz ${each%.rockspec}.src.rock; done"
    sh "luarocks-admin make-manifest rocks > /dev/null"
    assert.matches("fits '>= 3'; at rocks there are: [^\n]*2.0%-1", expect(2, nil, "lib", "install").stderr)
    local listed = {}
    for each in expect(2, nil, "lib", "install").stderr:match("there are: ([^\n]*)"):gmatch("[^, ]+") do
      assert.is_nil(listed[each], each)
      listed[each] = true
    end
    sh "rm rocks/*.src.rock && luarocks-admin make-manifest rocks > /dev/null"
    server { { "2.0-1", dependencies = "" } }
    sh "echo 'return 1' > source/acme/acme/name.lua && tar -czf rocks/acme-2.0-1.tar.gz -C source acme && rm -rf .deployrt"
    app '{rock: acme, version: ">= 1.2", server: rocks}'
    expect(2, "acme/name.lua has changed", "lib", "install")
  end)

  it("that would run or compile something, or pull in more, is refused before it is built", function()
    local ran = ("touch %s/ran"):format(dir)
    for _, rock in ipairs {
      { "1-1", build = ('{ type = "command", build_command = %q, install_command = %q }'):format(ran, ran), says = "builds with 'command'" },
      { "1-1", build = '{ type = "builtin", modules = { acme = { sources = { "a.c" } } } }', says = "a module that is not Lua" },
      { "1-1", dependencies = '"lua >= 5.4", "lpeg"', says = "depends on 'lpeg'" },
      { "1-1", dependencies = '"lua >= 5.4", platforms = { unix = { "lpeg" } }', says = "'dependencies.platforms'" },
      { "1-1", build = ('{ type = "builtin", modules = {}, platforms = { unix = { type = "command", build_command = %q } } }'):format(ran), says = "'build.platforms'" },
      { "1-1", build = ('{ type = "builtin", modules = {} } if ("").dump then build = { type = "command", build_command = %q } end'):format(ran), says = "are there any?" },
      { "1-1", build = '{ type = "builtin", modules = {}, patches = { ["a.diff"] = "" } }', says = "'build.patches'" },
      { "1-1", build = '{ type = "builtin", modules = { ["../../ran"] = "acme/name.lua" } }', says = "no place in it" },
      { "1-1", build = '{ type = "builtin", modules = { ran = "../acme/name.lua" } }', says = "no place in it" },
      { "1-1", build = ('{ type = "builtin", modules = {} } hooks = { post_install = %q }'):format(ran), says = "'hooks'" },
      { "1-1", build = '{ type = "builtin", modules = {} } external_dependencies = { Z = { header = "z.h" } }', says = "'external_dependencies'" },
      { "1-1", build = '{ type = "builtin", modules = {} } source.platforms = { unix = { url = "hg://x" } }', says = "'source.platforms'" },
      { "1-1", build = '{ type = "builtin", modules = {} } source.url = "hg+ssh://-oProxyCommand=x/y"', says = "and not by http, https, git" },
      { "1-1", build = '{ type = "builtin", modules = {} } source.branch = "--upload-pack=x"', says = "for its source.branch" },
      { "1-1", build = '{ type = "builtin", modules = {} } source.file = "../../ran.lua"', says = "for its source.file" },
    } do
      server { rock }
      app "{rock: acme, server: rocks}"
      expect(2, rock.says, "lib", "install")
    end
    write("rocks/acme-1-1.rockspec", 'package = "acme" version = "1-1" source = { url = "x" } while true do end')
    expect(2, nil, "lib", "install")
    assert.is_nil(fixture.read(dir .. "/ran"))
    assert.is_nil(fixture.read(dir .. "/deployrt.lock"))
  end)

  it("lies where its modules are called, and where it names none as in the rock; LuaRocks builds nothing", function()
    write("source/acme/src/acme/init.lua", "return 1")
    write("source/acme/acme.c", "int luaopen_acme(void *L) { return 0; }")
    for build, files in pairs {
      ['{ type = "builtin", modules = { acme = "./src/acme/init.lua" }, install = { lua = { "acme/name.lua", ["a.b"] = "acme/name.lua" } } }'] =
        "a/b.lua\nacme/init.lua\nname.lua\n",
      ['{ type = "none", install = { lua = { ["acme.init"] = "src/acme/init.lua" } }, copy_directories = { "src" } }'] = "acme/init.lua\n",
      ["{}"] = "acme/init.lua\n",
    } do
      server { { "1-1", build = build } }
      app "{rock: acme, server: rocks}"
      expect(0, nil, "lib", "update")
      assert.equal(files, sh "cd .deployrt/lib/acme && find * -type f | sort", build)
    end
    server { { "1-1", build = '{ type = "builtin", modules = { none = "none.lua" } }' } }
    expect(2, "has no file 'none.lua'", "lib", "update")
  end)

  it("is unpacked below its own directory: an archive with files that lead out of it is refused", function()
    server { { "1-1" } }
    app "{rock: acme, server: rocks}"
    sh "tar -P --transform='s,^acme/acme/name,acme/../../../../../../../name,' -czf rocks/acme-1-1.tar.gz -C source acme/acme/waves.lua acme/acme/name.lua"
    expect(2, "Member name contains '..'", "lib", "install")
    assert.is_nil(fixture.read(dir .. "/name.lua"))
    write("source/acme/acme.lua", "return 1")
    for archive, pack in pairs { ["acme-1.zip"] = "zip -qr ../rocks/acme-1.zip acme", ["acme.tar.bz2"] = "tar -cjf ../rocks/acme.tar.bz2 acme" } do
      sh("cd source && " .. pack)
      write("rocks/acme-1-1.rockspec", ([[package = "acme" version = "1-1" source = { url = "file://%s/rocks/%s" } build = { modules = { acme = "acme.lua" } }]]):format(
        dir, archive))
      sh "luarocks-admin make-manifest rocks > /dev/null"
      expect(0, "acme 1-1: installed", "lib", "update")
    end
  end)

  it("may have its source in a git repository, where links are not followed", function()
    repository("v1", nil, "ln -s /etc/passwd lua/acme/secret.lua &&")
    local rockspec = ([[package = "acme" version = "1-1" source = { url = "git+file://%s/repository", tag = "v1" }
      build = { type = "builtin", modules = { ["acme.waves"] = "lua/acme/waves.lua", ["acme.name"] = "lua/acme/name.lua" } }]]):format(dir)
    write("rocks/acme-1-1.rockspec", (rockspec:gsub("/name.lua", "/secret.lua")))
    sh "luarocks-admin make-manifest rocks > /dev/null"
    app "{rock: acme, server: rocks}"
    expect(2, "has a link where its rockspec names 'lua/acme/secret.lua'", "lib", "install")
    sh "mkdir out && ln -s $PWD/out repository/out && cd repository && git add -A && git commit -q -m x && git tag -f v1 2> /dev/null"
    write("rocks/acme-1-1.rockspec", (rockspec:gsub('tag = "v1"', '%0, dir = "repository/out"')))
    expect(2, "has a link where its rockspec names 'repository/out'", "lib", "install")
    assert.equal("", sh "ls out")
    write("rocks/acme-1-1.rockspec", rockspec)
    expect(0, "acme 1-1: installed, and locked", "lib", "install")
    expect(0, "waves: Rolling, shared.", "help", "waves")
  end)

  --- Leaves a server that has nothing but such a rock of the source in `source/acme`, made by LuaRocks from a rockspec that is
  --- then as `edit` (of sed) has it, and whose source is gone.
  local function packed(kind, source, edit)
    sh "rm -rf rocks packing && mkdir -p rocks packing"
    write("packing/acme-1-1.rockspec", ([[package = "acme" version = "1-1" source = { %s } description = { license = "MIT" }
      build = { type = "builtin", modules = { ["acme.waves"] = "acme/waves.lua", ["acme.name"] = "acme/name.lua" } }]]):format((source:gsub("DIR", dir))))
    write("source/acme/acme/waves.lua", library.waves)
    write("source/acme/acme/name.lua", "return 'waves packed'\n")
    local pack = kind == "src" and "luarocks --lua-version 5.4 pack acme-1-1.rockspec"
      or "cp -R ../source/acme made && cd made && luarocks --lua-version 5.4 make --deps-mode none --pack-binary-rock ../acme-1-1.rockspec && mv *.rock .."
    sh(([[cd packing; { tar -czf acme-1.tar.gz -C ../source acme
      cp -R ../source/acme acme.git && cd acme.git && git init -q && git add -A && git commit -q -m x && git tag v1 && cd ..
      (%s) && rm -rf acme-1.tar.gz acme.git && sed -i '%s' acme-1-1.rockspec && zip -q acme-1-1.*.rock acme-1-1.rockspec && mv acme-1-1.*.rock ../rocks; } > log 2>&1 || { cat log; exit 1; }
      luarocks-admin make-manifest ../rocks > log 2>&1]]):format(pack, edit or ""))
    app "{rock: acme, server: rocks}"
  end

  local archive, git = [[url = "file://DIR/packing/acme-1.tar.gz", dir = "acme"]], [[url = "git+file://DIR/packing/acme.git", tag = "v1"]]
  local nowhere = 's#url = "[^"]*"#url = "git+https://127.0.0.1:1/acme.git"#'

  it("is taken from the rock, where the server has one with its source or built: where that came from is not asked", function()
    for _, case in ipairs { { "src", archive }, { "src", git, nowhere }, { "src", archive, nowhere }, { "all", git, nowhere },
      { "all", [[url = "."]] } } do
      packed(table.unpack(case))
      sh "rm -rf .deployrt"
      expect(0, "acme 1-1: installed", "lib", "install") -- all have the same files, also for the lock
      expect(0, "waves packed: Rolling, shared.", "help", "waves")
      assert.equal("acme/name.lua\nacme/waves.lua\n", sh "cd .deployrt/lib/acme && find * -type f | sort")
    end
  end)

  it("is refused where its rock has more inside than Lua files, or a rockspec that asks for more", function()
    local command = ("$a build.platforms = { unix = { type = \"command\", build_command = \"touch %s/ran\" } }"):format(dir)
    for _, kind in ipairs { "src", "all" } do
      packed(kind, archive, command)
      expect(2, "has 'build.platforms' in its rockspec", "lib", "install")
      packed(kind, archive)
      sh "cd packing && ln -s /etc/passwd link && zip -q -y ../rocks/*.rock link"
      expect(2, "has a link 'link'", "lib", "install")
      packed(kind, archive)
      sh "cd packing && zip -q ../rocks/*.rock ../source/acme/acme/name.lua"
      expect(2, "has a file '../source/acme/acme/name.lua', which is no place in it", "lib", "install")
      packed(kind, archive)
      sh "zip -q -d rocks/*.rock acme-1-1.rockspec"
      expect(2, "has no acme-1-1.rockspec in it", "lib", "install")
    end
    packed("all", archive)
    write("packing/lib/acme.so", "x")
    sh "cd packing && zip -q ../rocks/*.rock lib/acme.so"
    expect(2, "has compiled files, below lib", "lib", "install")
    packed("src", archive, 's#dir = "acme"#dir = "none"#')
    expect(2, "the source of the rock acme has no directory 'none'", "lib", "install")
    packed("src", archive)
    sh "cd packing && touch more && zip -q ../rocks/*.rock more"
    expect(2, "the rock acme has 2 files and directories beside its rockspec", "lib", "install")
    assert.is_nil(fixture.read(dir .. "/ran"))
    assert.is_nil(fixture.read(dir .. "/deployrt.lock"))
  end)
end)
