local cjson = require "cjson"
local config = require "deployrt.config"
local core = require "deployrt.core"
local declaration = require "deployrt.config.declaration"
local json_schema = require "spec.support.json_schema"
local sandbox = require "deployrt.sandbox"
local schema = require "deployrt.schema"

local directory

local function write(name, text)
  local path = directory .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

local function short(text)
  return (text:gsub(directory:gsub("%p", "%%%0") .. "/?", ""))
end

local function complaint(path, opts)
  local ok, err = pcall(config.load, path, opts)
  assert.is_false(ok)
  assert.equal("table", type(err), tostring(err))
  assert.equal("config", err.code)
  return short(err.message)
end

local minimal = "app: shop\nprocess: {command: [./server], ports: [8080, 8081]}\n"

setup(function()
  directory = io.popen("mktemp -d /tmp/deployrt-spec.XXXXXX"):read("l")
end)

teardown(function()
  os.execute("rm -rf '" .. directory .. "'")
end)

describe("a file that is no app.yml", function()
  it("gets one clear error", function()
    assert.equal("none.yml: no such file or directory", complaint(directory .. "/none.yml"))
    assert.equal(": this is a directory; name the file in it", complaint(directory))
    local empty = "app.yml: this file is empty; it needs at least `app:` and `process:`"
    assert.equal(empty, complaint(write("app.yml", "")))
    assert.equal(empty, complaint(write("app.yml", " \n\n")))
    assert.equal(empty, complaint(write("app.yml", "# nothing yet\n")))
    assert.equal("app.yml:1:1: expected a mapping that begins with `app:`, got a list", complaint(write("app.yml", "- a\n")))
    assert.equal("app.yml:1:1: expected a mapping that begins with `app:`, got a single value", complaint(write("app.yml", "shop\n")))
    assert.matches("^app.yml:2:1: ", complaint(write("app.yml", "{app: shop\n")))
    assert.equal("app.yml: too large for an app.yml", complaint(write("app.yml", ("#"):rep(2 ^ 20 + 1))))
  end)
end)

describe("extends", function()
  it("leaves paths where they are: beside the file that names them", function()
    os.execute(("mkdir -p %s/common %s/env"):format(directory, directory))
    write("common/edge.lua", "")
    write("common/base.yml", minimal:gsub("}", ", secrets: {A: '${file:key}', B: '${env:HOME}'}}") .. "release: {path: build/}\nhosts: [{name: a, address: a, identity: id}]\n"
      .. "balancer: {type: ./edge.lua}\n")
    local function loaded(more)
      return config.load(write("env/app.yml", "extends: ../common/base.yml\n" .. more))
    end
    local common, env = directory .. "/common/", directory .. "/env/"
    local app = loaded ""
    assert.same({ common .. "build/", common .. "id", common .. "./edge.lua", "${file:" .. common .. "key}", "${env:HOME}" },
      { app.release.path, app.hosts[1].identity, app.balancers[1].type, app.process.secrets.A, app.process.secrets.B })
    app = loaded "release: {path: own/, version: '1'}\nprocess: {secrets: {A: '${file:key}'}}\nhosts: [{name: a, address: a, identity: id}]\n"
    assert.same({ env .. "own/", env .. "id", "${file:key}" }, { app.release.path, app.hosts[1].identity, app.process.secrets.A })
    assert.equal(common .. "build/", loaded("release: {version: '2'}\n").release.path)
    assert.equal(env .. "other", config.load(directory .. "/env/app.yml", { set = { "release.path=other" } }).release.path)
  end)

  it("has each file kept without the secrets that stand in it, and all else in its place", function()
    local base = write("base.yml", minimal:gsub("}", ", secrets: {A: hunter2, B: '${env:HOME}', C: 'hun''ter2'}}"))
    local own = write("app.yml", [[
extends: base.yml
x-common: &common {D: hunter2, E: &e hunter2, F: "${env:HOME}"}
x-old: hunter2
release: {version: &v 2-hunter2}
process:
  secrets:
    <<: *common
    G: |
      hunter2
      hunter2

    H: &h hunter2
    I: *h
    J: *v
    K: a hunter2 ${env:HOME}
    L: ~
  instances: 2 # two
balancer: {type: ./edge.lua, options: {x-e: *e, x-h: hunter2}}
]])
    write("edge.lua", "return {}")
    local app = config.load(own)
    assert.equal(minimal:gsub("}", ", secrets: {A: \"(not kept)\", B: '${env:HOME}', C: \"(not kept)\"}}"), app.files[base])
    assert.equal([[
extends: base.yml
x-common: &common {D: "(not kept)", E: &e hunter2, F: "${env:HOME}"}
x-old: "(not kept)"
release: {version: &v 2-hunter2}
process:
  secrets:
    <<: *common
    G: "(not kept)"



    H: &h "(not kept)"
    I: *h
    J: *v
    K: "(not kept)"
    L: ~
  instances: 2 # two
balancer: {type: ./edge.lua, options: {x-e: *e, x-h: hunter2}}
]], app.files[own])
    local again = config.load(own, { kept = app.files })
    assert.same(app.files, again.files)
    assert.equal(app.place "process.instances", again.place "process.instances")
    assert.same({ "(not kept)", "${env:HOME}", "2-hunter2", "(not kept)" },
      { again.process.secrets.A, again.process.secrets.F, again.process.secrets.J, again.process.secrets.K })
  end)

  it("has a secret of --set left out where it is no YAML", function()
    local path = write("app.yml", minimal)
    local app = config.load(path, { set = { "process.secrets.A=hunter #2", "process.env.B=a #b" } })
    assert.same({ 'process.secrets.A="(not kept)"', "process.env.B=a #b" }, app.settings)
    app = config.load(path, { set = app.settings })
    assert.equal("a #b", app.process.env.B)
  end)

  it("has --set kept without the secrets that it gives", function()
    local app = config.load(write("app.yml", minimal), { set = { "process.secrets.A=hunter2", "process.secrets.B=${env:HOME}",
      "process.secrets={C: 'hunter2', D: '${file:d}'}", "process.env={E: hunter2}", "process={instances: 1, command: [x], ports: 80, secrets: {F: &f hunter2, G: *f}}" } })
    assert.same({ 'process.secrets.A="(not kept)"', "process.secrets.B=${env:HOME}", [[process.secrets={C: "(not kept)", D: '${file:d}'}]],
      "process.env={E: hunter2}", 'process={instances: 1, command: [x], ports: 80, secrets: {F: &f "(not kept)", G: *f}}' }, app.settings)
  end)

  it("merges mappings, replaces lists, and lets null take away", function()
    write("base.yml", minimal .. "health: {http: /healthz, deadline: 9s}\nhosts: [a, b]\nhooks: {after: ./x}\n")
    local app = config.load(write("app.yml", "extends: base.yml\nhealth: {deadline: 5s}\nhosts: [c]\nhooks: ~\n"))
    assert.equal("shop", app.app)
    assert.equal("/healthz", app.health.http)
    assert.equal(5, app.health.deadline)
    assert.equal(1, #app.hosts)
    assert.is_nil(app.hooks)
    assert.equal("base.yml:3:10", short((app.place "health.http")))
    assert.equal("app.yml:2:10", short((app.place "health.deadline")))
  end)

  it("is relative to the file that says it, and may go on", function()
    os.execute("mkdir -p '" .. directory .. "/common/deep'")
    write("common/deep/root.yml", minimal)
    write("common/base.yml", "extends: deep/root.yml\nrelease: {keep: 2}\n")
    local app = config.load(write("app.yml", "extends: common/base.yml\n"))
    assert.equal(2, app.release.keep)
    assert.equal(directory, app.dir)
  end)

  it("names the file of each error", function()
    write("base.yml", minimal .. "heath: 1\n")
    assert.equal("app.yml:2:1: unknown key 'hots' (did you mean 'hosts'?)\nbase.yml:3:1: unknown key 'heath' (did you mean 'health'?)",
      complaint(write("app.yml", "extends: base.yml\nhots: 1\n")))
  end)

  it("is refused where it leads nowhere, or back", function()
    assert.equal("app.yml:1:1: extends: none.yml: no such file or directory", complaint(write("app.yml", "extends: none.yml\n")))
    write("base.yml", "extends: ./app.yml\n")
    assert.matches("^base.yml:1:1: extends: %./app.yml leads back to itself", complaint(write("app.yml", "extends: base.yml\n")))
    assert.matches("^app.yml:1:1: extends: app.yml leads back to itself", complaint(write("app.yml", "extends: app.yml\n")))
    assert.matches("^app.yml:1:1: extends: expected a text", complaint(write("app.yml", "extends: [a]\n" .. minimal)))
  end)
end)

describe("--set", function()
  local function set(...)
    return config.load(write("app.yml", minimal .. "health: {http: /}\n"), { set = { ... } })
  end

  local function refused(...)
    return complaint(write("app.yml", minimal .. "balancer: [{type: haproxy, socket: /s, backend: b}]\n"), { set = { ... } })
  end

  it("sets any key, and the value is YAML", function()
    local app = set("process.instances=2", "hosts=[a, b]", "process.env={A: 1}", "release.version=1.10", "health.http=/x=y",
      "process.stop.timeout=5s", "x-mine.deep=1", "strategy.batch=50%", "process.env.B=007")
    assert.equal(2, app.process.instances)
    assert.equal(2, #app.hosts)
    assert.same({ A = "1", B = "007" }, app.process.env)
    assert.equal("1.10", app.release.version)
    assert.equal("/x=y", app.health.http)
    assert.equal(5, app.process.stop.timeout)
    assert.equal("50%", app.strategy.batch)
    assert.equal("--set", (app.place "strategy.batch"))
  end)

  it("takes what is no YAML with brackets or quotes as the text that it is", function()
    local function value(text) return set("x-it=" .. text, "process.env.IT=" .. text).process.env.IT end
    for _, text in ipairs { "#fff", "a #b", "a: b", "- a", "*a", "&a b", "!a b", "|", "%", "@x", "---", "...", "it's", "two\nlines", " b ", "\\d", "a\tb", "ä" } do
      assert.equal(text, value(text))
    end
    assert.equal("a #b", value '"a #b"')
    assert.equal("it's", value "'it''s'")
    assert.equal("'a' #b", value "'a' #b")
    for text, of_yaml in pairs { ["0x10"] = 16, ["1e3"] = 1000.0, ["-1.5"] = -1.5, ["5."] = 5.0, ["true"] = true, no = "no", ["5 #b"] = "5 #b", ["[a] #b"] = "[a] #b" } do
      assert.equal(of_yaml, set("strategy.it=" .. text).strategy.it, text)
    end
    assert.matches("control characters", refused "process.env.IT=a\1b")
    assert.matches("UTF%-8", refused "process.env.IT=a\255b")
  end)

  it("takes away with nothing", function()
    assert.is_true(set("health.http=").health.tcp)
  end)

  it("refuses unknown keys, with what was meant", function()
    assert.equal("--set: unknown key 'heath' (did you mean 'health'?)", refused "heath=1")
    assert.equal("--set: unknown key 'process.instance' (did you mean 'process.instances'?)", refused "process.instance=1")
    assert.equal("--set: unknown key 'process.instances.x': process.instances has no keys below it, set it as a whole",
      refused "process.instances.x=1")
    assert.equal("--set: unknown key 'balancer.socket': balancer is a list here, set it as a whole", refused "balancer.socket=/x")
  end)

  it("refuses what is no key=value, and values of the wrong type", function()
    for _, text in ipairs { "instances", "=1", "a..b=1", ".a=1", "a.=1" } do
      assert.equal(("--set %s: expected key=value, such as process.instances=2"):format(text), refused(text))
    end
    assert.equal('--set: process.instances: expected a whole number, got "many"', refused "process.instances=many")
    assert.equal("--set: unknown key 'fast' (did you mean 'path'?)", refused("release={fast: 1}"):gsub("%s*%(.*", "") .. " (did you mean 'path'?)")
    assert.matches("^%-%-set process.instances:%d+:%d+: ", refused "process.instances={")
  end)
end)

describe("--release and --host", function()
  local path

  before_each(function() path = write("app.yml", minimal .. "release: {version: 1.0}\nhosts: [web1, web2, web3]\n") end)

  it("replace the version, as text", function()
    assert.equal("2.10", config.load(path, { release = "2.10" }).release.version)
    assert.matches("^%-%-release: release.version: expected at most 64", complaint(path, { release = "../x" }))
  end)

  it("limit the hosts, in the order of the file", function()
    local app = config.load(path, { hosts = { "web3", "web1", "web3" } })
    assert.same({ "web1", "web3" }, { app.hosts[1].name, app.hosts[2].name })
    assert.equal("--host: there is no host 'wbe2' (did you mean 'web2'?); there are: web1, web2, web3",
      complaint(path, { hosts = { "web1", "wbe2" } }))
  end)
end)

describe("a strategy's options", function()
  local options = {
    batch = { type = "amount", default = "25%" }, settle = { type = "duration", default = "5s", min = 1 },
    steps = { type = "list", of = "percent", least = 1, rising = true, default = { "1%", "5%" } }, gap = { type = "boolean", default = false },
    color = { type = "string", values = { "blue", "green" } }, minimum = { type = "integer", min = 1, max = 9 },
  }

  local function check(text)
    local app = config.load(write("app.yml", minimal .. "strategy: " .. text .. "\n"))
    return schema.validate_options(options, app.strategy, app.place, "rolling")
  end

  local function refused(text)
    local ok, err = pcall(check, text)
    assert.is_false(ok)
    assert.equal("config", err.code)
    return short(err.message)
  end

  it("have their defaults, and arrive in plain units", function()
    assert.same({ batch = { percent = 25 }, settle = 5, steps = { 1, 5 }, gap = false }, check "{}")
    assert.same({ batch = { count = 2 }, settle = 1, steps = { 10, 100 }, gap = true, color = "green", minimum = 3 },
      check "{batch: 2, settle: 1000ms, steps: [10%, 100], gap: true, color: green, minimum: 3, x-y: 1}")
    assert.equal(5, check("{settle: ~}").settle)
  end)

  it("are refused with place and suggestion", function()
    assert.equal("app.yml:3:12: strategy 'rolling' has no option 'bach' (did you mean 'batch'?)", refused "{bach: 1}")
    assert.equal("app.yml:3:12: strategy.batch: expected an amount such as 2 or 25%, got 'x'", refused "{batch: x}")
    assert.equal("app.yml:3:12: strategy.settle: expected at least 1s, got 0.5s", refused "{settle: 500ms}")
    assert.equal("app.yml:3:12: strategy.color: 'gren' is not one of blue, green (did you mean 'green'?)", refused "{color: gren}")
    assert.equal("app.yml:3:12: strategy.minimum: expected from 1 to 9, got 10", refused "{minimum: 10}")
    assert.equal("app.yml:3:23: strategy.steps[2]: expected a percentage such as 5%, got 'x'", refused "{steps: [1, x]}")
    assert.equal("app.yml:3:26: strategy.steps[2]: it is less than what stands before it, and these only rise", refused "{steps: [100%, 50%, 60%]}")
    assert.equal("app.yml:3:12: strategy.steps: this list is empty", refused "{steps: []}")
    assert.equal("app.yml:3:12: strategy.gap: expected true or false, got nothing", refused("{gap: [~]}"):gsub("a list", "nothing"))
  end)

  it("that are declared wrongly are the author's error, one that names the option", function()
    local function declared(option, key)
      local ok, err = pcall(declaration.check, { [key or "o"] = option }, "mine")
      assert.is_false(ok)
      assert.equal("strategy", err.code, err.message)
      return (err.message:gsub("^strategy 'mine': ", ""))
    end
    assert.equal("option 'o' has the unknown type 'durtion' (did you mean 'duration'?)", declared { type = "durtion" })
    assert.equal("the default of option 'o': expected a duration with its unit, such as \"5s\", got 5", declared { type = "duration", default = 5 })
    assert.equal("option 'o' has no type of items", declared { type = "list" })
    assert.equal("option 'o' has no type", declared {})
    assert.equal("option 'o' is declared by a table with a type", declared("5s"))
    for says, option in pairs {
      ["option 'o': `values` is a list of texts, not 'abc'"] = { type = "string", values = "abc" },
      ["option 'o': `values` is a list of texts, not a table"] = { type = "string", values = { {} } },
      ["option 'o': `min` is a number, not 'x'"] = { type = "integer", min = "x" },
      ["option 'o': `longest` is a whole number, not 'x'"] = { type = "string", longest = "x" },
      ["option 'o': `doc` is a text, not a table"] = { type = "string", doc = {} },
      ["option 'o': `keys` is a table of declarations by name, not 5"] = { type = "object", keys = 5 },
      ["option 'o' is an object, and has no `keys`"] = { type = "object" },
      ["option 'o': the type ports needs `lowest` and `highest`"] = { type = "ports" },
      ["an item of option 'o' has no type of items"] = { type = "list", of = "list" },
      ["key 'k' of an item of option 'o': `min` is a number, not a table"] = { type = "list", of = { type = "object", keys = { k = { type = "number", min = {} } } } },
      ["option 'o': `pattern` is a pattern of Lua, not '%': malformed pattern (ends with '%')"] = { type = "string", pattern = "%" },
      ["option 'o': `beside` is a pattern of Lua, not 'ab(': unfinished capture"] = { type = "string", values = { "a" }, beside = "ab(" },
      ["option 'o': a declaration has no key 'defualt' (did you mean 'default'?)"] = { type = "string", defualt = "x" },
      ["option 'o': a declaration has no key [1]"] = { type = "string", "x" },
      ["the default of key 'k' of an item of option 'o': expected a whole number, got \"x\""] = { type = "list", of = { type = "object",
        keys = { k = { type = "integer", default = "x" } } } },
    } do assert.equal(says, declared(option)) end
    assert.matches("an option's name is of letters, digits and _, at most 40, and not 1", declared({ type = "string" }, 1))
    assert.matches("and not '%?%[2J'", declared({ type = "string" }, "\27[2J"))
    assert.matches("not 'aaaaa", declared({ type = "string" }, ("a"):rep(1000)))
    declaration.check({ o = { type = "list", of = "percent", least = 1, default = { "1%" } }, ["a-b"] = { type = "map", of = { either = {
      { type = "string", pattern = "^(%a)%1%f[%W]()[^]%]]-$" }, { type = "list", of = "any" } } } } }, "mine")
  end)

  it("are matched for so long and no longer", function()
    local before = sandbox.limits
    sandbox.limits = setmetatable({ instructions = 4e6 }, { __index = before })
    local slow, text = (".-"):rep(20) .. "b", ("a"):rep(30000)
    for _, case in ipairs {
      { { type = "string", pattern = slow, default = text } }, { { type = "string", pattern = slow }, text },
      { { type = "string", values = { "x" }, beside = slow }, text },
      { { type = "map", of = "any", names = slow }, { [text] = 1 } },
      { { type = "list", of = { type = "object", keys = { k = { type = "string", pattern = slow } } } }, { { k = text } } },
    } do
      local ok, err = pcall(schema.validate_options, { fine = { type = "integer" }, o = case[1] }, { o = case[2] }, function() return "app.yml" end, "mine")
      assert.is_false(ok)
      assert.equal("strategy 'mine': option 'o' cannot be checked: ran 4 million instructions without waiting: is this an endless loop?", err.message)
    end
    sandbox.limits = before
  end)
end)

describe("the JSON Schema", function()
  local json = schema.json()

  it("knows every key, and what an editor shows of it", function()
    assert.equal("https://json-schema.org/draft/2020-12/schema", json["$schema"])
    assert.is_false(json.additionalProperties)
    assert.same({ "process", "systemd", "container", cjson.null }, json.properties.process.properties.supervisor.enum)
    assert.equal("60s", json.properties.health.properties.deadline.default)
    for name, spec in pairs(schema.root.keys) do assert.equal(spec.doc, json.properties[name].description) end
  end)

  it("takes what check takes, and refuses what lacks something", function()
    local process = "process: {command: [x], ports: 80}\n"
    write("base.yml", "app: a\n" .. process .. "hosts: [a, b]\nbalancer: {type: haproxy, socket: /s, backend: b}\n")
    local function both(text)
      return (pcall(config.load, write("app.yml", text))), json_schema.fits(json, (core.yaml.parse(text, "app.yml")))
    end
    local function accepted(text) assert.same({ true, true }, { both(text) }, text) end
    local function refused(text) assert.same({ false, false }, { both(text) }, text) end
    accepted "extends: base.yml"
    accepted "extends: base.yml\nprocess: {instances: 1}\nbalancer: {backend: c}\nhosts:\n"
    accepted("app: 5\n" .. process)
    for _, each in ipairs { "release: {version: 2}", "release: {version: 1.5}", "release: {path: }", "release:", "hosts:", "hooks:", "health: {http: }", "strategy: {x: }",
      "process:\n  command: [x]\n  ports: 80\n  env: {A: }\n  instances: \n  stop:\n  adopt: ~", "balancer:", "state:", "x-mine: 1" } do
      accepted("app: a\n" .. (each:find("^process") and "" or process) .. each)
    end
    refused "app: a"
    refused(process)
    refused("app:\n" .. process)
    refused "app: a\nprocess: {command: [x]}"
    refused("app: a\n" .. process .. "balancer: {socket: /s}")
    refused("app: a\n" .. process .. "balancer: [{socket: /s}]")
    refused("app: a\n" .. process .. "state: {}")
    refused "extends: base.yml\nprocess: {instance: 1}"
    refused "extends: base.yml\nbalancer: [{socket: /s, backend: b}]"
  end)

  it("can be written as JSON", function()
    assert.same(json.properties.release, cjson.decode(cjson.encode(json)).properties.release)
  end)
end)

describe("any change to a good file", function()
  local text = minimal .. [[
release: {path: a, version: 1, keep: 2}
hosts: [local, {name: web, address: a, port: 22}]
health: {http: /, status: [200], interval: 1s}
balancer: [{type: haproxy, socket: /s, backend: b, drain: {timeout: 1s}}]
hooks: {after: [x], before: y}
strategy: {a: 1}
]]
  local odd = { "~", "7", "-1", "1.5", "true", "''", "x", "${", "[]", "{}", "[~]", "[[1]]", "{a: {b: 1}}", "[7, x]", "{1: 2}" }

  it("loads, or is refused with a message", function()
    local words = {}
    for from, to in text:gmatch("()[^%s:,%[%]{}]+()") do words[#words + 1] = { from, to - 1 } end
    local count = 0
    for _, at in ipairs(words) do
      for _, value in ipairs(odd) do
        local path = write("app.yml", text:sub(1, at[1] - 1) .. value .. text:sub(at[2] + 1))
        local ok, err = pcall(config.load, path)
        if not ok then
          assert.equal("table", type(err), ("%s for %s: %s"):format(value, text:sub(at[1], at[2]), tostring(err)))
          count = count + 1
        end
      end
    end
    assert.is_true(count > 100)
  end)
end)
