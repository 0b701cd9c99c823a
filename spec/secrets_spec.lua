-- secrets_spec.lua -- What is shown, and kept, of what a process, a probe or a command prints that knows a secret.
-- weight: 8
local fixture = require "spec.support.fixture"
local contains = fixture.contains

describe("a secret", function()
  local app, token

  before_each(function()
    app = fixture.app { instances = 1, yaml = "strategy: {settle: 0}" }
    token = ("hunter2-"):rep(800) -- longer than what is shown of any output
    fixture.write(app.dir .. "/token", token .. "\n")
    app.opts.process = '  secrets: {TOKEN: "${file:token}"}\n  stop: {timeout: 3s}'
  end)
  after_each(function()
    app:stop()
    fixture.cleanup()
  end)

  --- Deploys, and expects a failure that tells nothing of the secret, here or in what is kept: only a process's own log has it.
  local function fails(exit, ...)
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "rolling", "app.yml", "--verbose" }
    assert.equal(exit, run.exit, run.stdout .. run.stderr)
    contains(run.stdout .. run.stderr, "(secret)", ...)
    assert.is_nil((run.stdout .. run.stderr):find("hunter2", 1, true), run.stdout .. run.stderr)
    assert.equal("", fixture.sh(("grep -rl hunter2 %s/home %s/state | grep -v '/logs/' || true"):format(app.dir, app.dir)))
  end

  it("of many lines is not shown where the log of a process ends with some of them", function()
    local lines = {}
    for i = 1, 42 do lines[i] = ("  hunter2+%02d%s"):format(i, ("x"):rep(50)) end
    fixture.write(app.dir .. "/token", table.concat(lines, "\n") .. "\n")
    app.opts.command = [[  command: [sh, -c, 'echo "$TOKEN"; echo the end; exit 1']
]]
    fails(1, "exited before it was healthy", "the end")
  end)

  it("that stands in a text is not shown where a process takes it out of there", function()
    app.opts.process = '  secrets: {TOKEN: "pg://app:${command:printf hunter2-only}@db"}\n  stop: {timeout: 3s}'
    app.opts.command = [[  command: [sh, -c, 'echo "$TOKEN" | tr :@ "\n\n"; exit 1']
]]
    fails(1, "exited before it was healthy", "| //app", "| (secret)", "| db")
  end)

  it("is not shown where a health command says the end of it", function()
    app.opts.health = ("{command: [sh, -c, 'cat %s/token; exit 1'], interval: 50ms, deadline: 500ms}"):format(app.dir)
    fails(1, "is not healthy after 0.5s: health command: status 1 (secret)")
  end)

  it("is not shown where a hook says the end of it", function()
    app.opts.yaml = "hooks: {before: 'cat token; exit 1'}"
    fails(1, "hook 'before' failed with status 1")
    app.opts.yaml = "hooks: {build: 'cat token; exit 1'}"
    fails(2, "hooks.build failed with status 1")
  end)

  it("that is not to be had is told with all others, and with the end of what its command says of it", function()
    app.opts.process = [[
  secrets:
    A: "${command:echo hunter2-partly; echo 'vault: sealed' >&2; echo hunter2-partly of $(cat token) >&2; echo; echo >&2; exit 3}"
    B: "${env:NOT_THERE}"
    C: "${command:set -x; test hunter2-traced = ''}"
    D: "${file:token}"
    E: "pg://${command:printf 'hunter2\\000nul'}@db"
  stop: {timeout: 3s}]]
    app:write(fixture.release("1.0"), "1.0")
    local run = app:command { "rolling", "app.yml" }
    assert.equal(2, run.exit, run.stdout)
    local lines = {}
    for line in run.stderr:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.matches("^deployrt: app.yml:9:5: process%.secrets%.A: the command '.*' failed with status 3: %(secret%) of %(secret%)$", lines[1])
    assert.equal("app.yml:10:5: process.secrets.B: the environment variable NOT_THERE is not set", lines[2])
    assert.matches("^app.yml:11:5: process%.secrets%.C: the command '.*' failed with status 1$", lines[3])
    assert.equal("app.yml:13:5: process.secrets.E: it holds a NUL byte, which no environment variable can: give the secret without it, or in another form, such as base64", lines[4])
    assert.equal(4, #lines, run.stderr)
  end)
end)
