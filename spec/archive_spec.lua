-- archive_spec.lua -- A release that is a tar archive: what is taken, and what is refused before anything is touched.
-- weight: 6
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("an archive", function()
  local app

  before_each(function()
    app = fixture.due()
  end)
  after_each(function()
    assert.same({}, app:stop())
    fixture.cleanup()
  end)

  --- One error, exit 2, and nothing was touched.
  local function refused(run, ...)
    assert.equal(2, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "deployrt: app.yml:2:11: release.path: ", ...)
    assert.same({ "1.0" }, app:serving())
  end

  it("that is corrupt is refused", function()
    local path = fixture.dir() .. "/release.tar.gz"
    fixture.write(path, "\x1f\x8bthis is no archive")
    refused(app:deploy("rolling", "2.0", { path = path }), "not a readable tar archive")
  end)

  it("that was cut off between two of its files is refused, compressed or not; tar itself is content with it", function()
    local path = fixture.dir()
    fixture.sh(("cd %s && touch a b && tar -cf full.tar a b && head -c 512 full.tar > cut.tar && gzip -k cut.tar && tar -tf cut.tar && cp full.tar lone.tar && truncate -s 1536 lone.tar"):format(path))
    for _, name in ipairs { "cut.tar", "cut.tar.gz" } do
      local run = app:command { "check", "app.yml", "--set", ("release.path=%s/%s"):format(path, name) }
      assert.equal(2, run.exit, run.stdout .. run.stderr)
      contains(run.stderr, ("release.path: %s/%s has no end: it was cut off between two of its files"):format(path, name), "pack or copy it again")
    end
    assert.equal(0, app:command({ "check", "app.yml", "--set", ("release.path=%s/lone.tar"):format(path) }).exit)
  end)

  it("with paths that leave its directory, or absolute ones, is refused", function()
    local path = fixture.dir()
    fixture.write(path .. "/x/file", "content")
    fixture.sh(("cd %s/x && tar -cPf ../up.tar ../x/file && tar -cPf ../absolute.tar %s/x/file"):format(path, path))
    refused(app:deploy("rolling", "2.0", { path = path .. "/up.tar" }), "a path that leaves it", "../x/file")
    refused(app:deploy("rolling", "2.0", { path = path .. "/absolute.tar" }), "an absolute path")
  end)

  it("that writes through a link of its own which leads out of it is refused; other links are fine", function()
    local path, out = fixture.release("2.0"), fixture.dir()
    fixture.sh(("cd %s && mkdir lib && ln -s ../.. up && ln -s lib also && ln -s lib 'a -> b' && tar -cf %s/fine.tar . && rm up also && mkdir up also && touch up/file also/file"
      .. " && cd %s && cp fine.tar bad.tar && tar -rf fine.tar -C %s ./also/file && tar -rf bad.tar -C %s ./up/file"):format(path, out, out, path, path))
    refused(app:deploy("rolling", "2.0", { path = out .. "/bad.tar" }), "bad.tar contains a path through its own link up to ../..: ./up/file; pack it again without")
    assert.equal(0, app:deploy("rolling", "2.0", { path = out .. "/fine.tar" }).exit)
    app:deploy("rolling", "1.0", { path = fixture.release("1.0") })
  end)

  it("that a host does not unpack is undone, with all lines of why", function()
    local path = fixture.dir()
    fixture.sh(("mkdir %s/a %s/b && touch %s/a/x && mkdir %s/b/x && touch %s/b/x/file && tar -cf %s/r.tar -C %s/a x && tar -rf %s/r.tar -C %s/b x/file"):format(
      path, path, path, path, path, path, path, path, path))
    local run = app:deploy("rolling", "2.0", { path = path .. "/r.tar" })
    assert.equal(1, run.exit, run.stdout .. run.stderr)
    contains(run.stderr, "local: release 2.0 was not unpacked: tar: x/file: Cannot open: Not a directory; tar: Exiting with failure status due to previous errors\n")
  end)

  it("is taken compressed or not", function()
    local path, out = fixture.release("2.0"), fixture.dir() .. "/r.tar.gz"
    fixture.sh(("tar -czf %s -C %s ."):format(out, path))
    assert.equal(0, app:deploy("rolling", "2.0", { path = out }).exit)
    assert.same({ "2.0" }, app:serving())
    app:deploy("rolling", "1.0", { path = fixture.release("1.0") })
  end)
end)
