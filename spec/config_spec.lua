local config = require "deployrt.config"
local connection = require "deployrt.connection"
local secrets = require "deployrt.secrets"

local directory

local function write(name, text)
  local path = directory .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

local function load(text, opts)
  return config.load(write("app.yml", text), opts)
end

--- What config.load says, without the directory.
local function complaint(text, opts)
  local ok, err = pcall(load, text, opts)
  assert.is_false(ok)
  assert.equal("table", type(err), tostring(err))
  assert.equal("config", err.code)
  return (err.message:gsub(directory:gsub("%p", "%%%0") .. "/", "")), err
end

--- A minimal file, with more below it; the rest begins in line 3.
local function with(rest)
  return "app: shop\nprocess: {command: [./server], ports: [8080, 8081]}\n" .. rest
end

setup(function()
  directory = io.popen("mktemp -d /tmp/deployrt-spec.XXXXXX"):read("l")
end)

teardown(function()
  os.execute("rm -rf '" .. directory .. "'")
end)

describe("app.yml", function()
  it("whose value is wrong is not missing besides", function()
    local text = complaint(with("balancer: {type: haproxy, managed: true, listen: 8000}\n"))
    assert.equal('app.yml:3:42: balancer.listen: expected an address and a port like "127.0.0.1:8000", got "8000"', text)
  end)

  it("names the file of a driver that is not there, with its place", function()
    local says = " cannot be read: a type is caddy, command, haproxy, nginx, or the path of a driver in Lua"
    assert.equal("app.yml:3:12: balancer.type: ./none.lua" .. says, complaint(with "balancer: {type: ./none.lua}\n"))
    assert.equal("app.yml:3:35: balancer[2].type: /none.lua" .. says, complaint(with "balancer: [{type: caddy, id: x}, {type: /none.lua}]\n"))
    assert.equal("--set: balancer.type: /none.lua" .. says, complaint(with "balancer: {type: caddy, id: x}\n", { set = { "balancer.type=/none.lua" } }))
  end)

  it("may say where balancers elsewhere reach this machine", function()
    local app = load(with("hosts: [{name: here, address: 10.0.0.5, transport: local}, web1]\nbalancer: {type: haproxy, socket: /s, backend: shop, host: web1}\n"))
    local here = connection.new(app.hosts[1], app.app)
    assert.same({ true, "10.0.0.5" }, { here.is_local, connection.address(app.hosts[1]) })
  end)

  it("may have hosts at one address that a port, a user or a hop tells apart", function()
    local app = load(with("hosts: [{name: a, address: x}, {name: b, address: x, port: 2222}, {name: c, address: x, user: c}, {name: d, address: x, jump: y}]\n"))
    assert.equal(4, #app.hosts)
  end)

  it("has the files that hosts name beside it", function()
    local app = load(with("hosts: [{name: a, address: a, identity: keys/id, known_hosts: known}, {name: b, address: b, known_hosts: strict}]\n"))
    assert.same({ directory .. "/keys/id", directory .. "/known", "strict" }, { app.hosts[1].identity, app.hosts[1].known_hosts, app.hosts[2].known_hosts })
  end)

  it("needs very little", function()
    local app = load(with(""))
    assert.equal("shop", app.app)
    assert.equal(directory, app.dir)
    assert.equal(directory .. "/app.yml", app.file)
    assert.same({ keep = 5 }, app.release)
    assert.same({ { name = "local", dir = ".deployrt", transport = "auto" } }, app.hosts)
    assert.same({ command = { "./server" }, ports = { 8080, 8081 }, instances = 1, supervisor = "process",
      stop = { signal = "TERM", timeout = 30 } }, app.process)
    assert.same({ tcp = true, interval = 0.5, timeout = 2, successes = 2, deadline = 60 }, app.health)
    assert.same({}, app.balancers)
    assert.same({}, app.strategy)
    assert.is_nil(app.hooks)
  end)

  it("may say everything", function()
    local app = load [[
app: shop
release: {path: build/, version: 1.10, keep: 3}
hosts:
  - local
  - deploy@10.0.0.11:2222
  - {name: web3, address: 10.0.0.13, port: 22, user: deploy, identity: ~/.ssh/id, group: green, known_hosts: accept-new,
     jump: me@gate, transport: openssh, dir: /srv/d}
process:
  command: [./server, --port, "${port}", 7]
  env: {LOG: info, N: 007, ON: true, AT: "${host}:${port}"}
  secrets: {DB_URL: "${env:DB_URL}", KEY: "${file:k.pem}", TOKEN: "x-${command:pass show t}", PLAIN: literal}
  ports: [8080, "8082-8084"]
  instances: 2
  stop: {signal: INT, timeout: 1m}
health: {http: /healthz, status: [200, "300-399"], body: ok, interval: 100ms, timeout: 1s, successes: 1, deadline: 5s}
balancer: {type: haproxy, socket: /run/haproxy.sock, backend: shop, host: web3, drain: {timeout: 0}}
strategy: {batch: 25%}
hooks: {before: ./migrate.sh, after: [echo, done]}
x-notes: {anything: [goes]}
]]
    assert.same({ path = directory .. "/build/", version = "1.10", keep = 3 }, app.release)
    assert.same({ name = "10.0.0.11", address = "10.0.0.11", port = 2222, user = "deploy", dir = ".deployrt", transport = "auto" },
      app.hosts[2])
    assert.same({ name = "web3", address = "10.0.0.13", port = 22, user = "deploy", identity = "~/.ssh/id", group = "green",
      known_hosts = "accept-new", jump = "me@gate", transport = "openssh", dir = "/srv/d" }, app.hosts[3])
    assert.same({ "./server", "--port", "${port}", "7" }, app.process.command)
    assert.same({ LOG = "info", N = "007", ON = "true", AT = "${host}:${port}" }, app.process.env)
    assert.equal("x-${command:pass show t}", app.process.secrets.TOKEN)
    assert.same({ 8080, 8082, 8083, 8084 }, app.process.ports)
    assert.same({ signal = "INT", timeout = 60 }, app.process.stop)
    assert.same({ 200, { from = 300, to = 399 } }, app.health.status)
    assert.is_nil(app.health.tcp)
    assert.same({ { type = "haproxy", socket = "/run/haproxy.sock", backend = "shop", host = "web3", drain = { timeout = 0 } } },
      app.balancers)
    assert.same({ batch = "25%" }, app.strategy)
    assert.same({ before = "./migrate.sh", after = { "echo", "done" } }, app.hooks)
  end)

  it("takes several balancers, and x- keys in any mapping", function()
    local app = load(with [[
balancer:
  - {type: haproxy, managed: true, listen: "127.0.0.1:8000", x-why: [inner]}
  - {type: haproxy, socket: "127.0.0.1:9999", backend: shop}
]])
    assert.equal(2, #app.balancers)
    assert.same({ type = "haproxy", managed = true, listen = "127.0.0.1:8000", drain = { timeout = 30 } }, app.balancers[1])
  end)

  it("takes null for not given", function()
    local app = load(with "release:\nhealth: {http: ~}\nbalancer: null\nstrategy:\nhooks: {after: }\n")
    assert.equal(5, app.release.keep)
    assert.is_true(app.health.tcp)
    assert.same({}, app.balancers)
    assert.same({}, app.hooks)
  end)

  it("gives the place of what was written, or of what is nearest", function()
    local app = load(with "health:\n  http: /\nhosts:\n  - local\n  - {address: a, name: b}\n")
    local file = directory .. "/app.yml"
    assert.equal(file .. ":4:3", (app.place "health.http"))
    assert.equal(file .. ":3:1", (app.place "health.deadline"))
    assert.equal(file .. ":7:18", (app.place "hosts[2].name"))
    assert.equal(file, (app.place "notify"))
  end)
end)

describe("a wrong app.yml", function()
  it("is refused with the place and what was meant", function()
    assert.equal("app.yml:3:1: unknown key 'heath' (did you mean 'health'?)", complaint(with "heath: {}\n"))
    assert.equal("app.yml:3:10: unknown key 'intervall' (did you mean 'interval'?)", complaint(with "health: {intervall: 1s}\n"))
    assert.equal("app.yml:3:1: unknown key 'ports' (did you mean 'process.ports'?)", complaint(with "ports: [1]\n"))
    assert.equal("app.yml:3:1: unknown key 'zzz'", complaint(with "zzz: 1\n"))
  end)

  it("has each error told once, in the order of the file", function()
    local message, err = complaint [[
app: Shop!
process:
  comand: [x]
  ports: eighty
  instances: none
hosts: 7
]]
    assert.equal([[
app.yml:1:1: app: expected a name of small letters, digits, - and _ (63 at most), got "Shop!"
app.yml:3:3: unknown key 'comand' (did you mean 'command'?)
app.yml:4:3: process.ports: expected a list of ports or a range like "8080-8087", got "eighty"
app.yml:5:3: process.instances: expected a whole number, got "none"
app.yml:6:1: hosts: expected a list or a mapping, got 7]], message)
    assert.equal(5, #err.problems)
  end)

  it("has at most 20 errors shown", function()
    local lines = {}
    for i = 1, 25 do lines[i] = ("k%dzz: 1\n"):format(i) end
    local message = complaint(with(table.concat(lines)))
    assert.equal("... and 5 more", message:match("[^\n]*$"))
    assert.equal(20, select(2, message:gsub("\n", "")))
  end)

  local cases = {
    { "process is missing", "app: a", "app.yml: process is missing" },
    { "no command", "app: a\nprocess: {ports: 80}", "app.yml:2:1: process.command is missing" },
    { "an empty command", "app: a\nprocess: {ports: 80, command: []}", "app.yml:2:22: process.command: this list is empty" },
    { "a command that is a line", "app: a\nprocess: {ports: 80, command: ./s -p}",
      'app.yml:2:22: process.command: expected a list like [./server, --port, "${port}"], got "./s -p"' },
    { "no ports", "app: a\nprocess: {ports: [], command: [x]}", "app.yml:2:11: process.ports: at least one port is needed" },
    { "a port out of range", "app: a\nprocess: {ports: [80, 70000], command: [x]}",
      "app.yml:2:23: process.ports: 70000 is not from 1 to 65535" },
    { "a port twice", 'app: a\nprocess: {ports: [80, "79-81"], command: [x]}', "app.yml:2:23: process.ports: port 80 is there twice" },
    { "a range backwards", 'app: a\nprocess: {ports: "81-80", command: [x]}', "app.yml:2:11: process.ports: the range 81-80 runs backwards" },
    { "more instances than ports", "app: a\nprocess: {ports: 80, instances: 2, command: [x]}",
      "app.yml:2:22: process.instances: 2 instances need as many ports, and process.ports has 1" },
    { "a version that is a path", with "release: {version: ../../etc}",
      'app.yml:3:11: release.version: expected at most 64 letters, digits and ._+-, not beginning with . or -, got "../../etc"' },
    { "keeping no release", with "release: {keep: 0}", "app.yml:3:11: release.keep: expected at least 1, got 0" },
    { "a bare duration", with "health: {deadline: 60}",
      'app.yml:3:10: health.deadline: expected a duration with its unit, such as "60s", got 60' },
    { "probing without a pause", with "health: {interval: 0s}", "app.yml:3:10: health.interval: expected at least 0.01s, got 0s" },
    { "two ways to probe", with "health: {http: /, tcp: true}", "app.yml:3:1: health: one of http, tcp and command, not several" },
    { "no way to probe", with "health: {tcp: false}",
      "app.yml:3:10: health.tcp: without it nothing is probed; give http or command instead" },
    { "a status without HTTP", with "health: {status: 204}", "app.yml:3:10: health.status is of an answer over HTTP; give health.http too" },
    { "a wrong signal", "app: a\nprocess: {ports: 80, command: [x], stop: {signal: TEM}}",
      "app.yml:2:43: process.stop.signal: 'TEM' is not one of TERM, INT, QUIT, HUP, USR1, USR2, KILL (did you mean 'TERM'?)" },
    { "an unknown variable", 'app: a\nprocess: {ports: 80, command: [x, "${prt}"]}',
      "app.yml:2:35: process.command[2]: unknown ${prt} (did you mean ${port}?); there are ${port}, ${host}, ${release} and ${dir}" },
    { "a secret in the open", "app: a\nprocess: {ports: 80, command: [x], env: {A: '${env:X}'}}",
      "app.yml:2:42: process.env.A: unknown ${env:X}; ${env:...} belongs in process.secrets; there are ${port}, ${host}, ${release} and ${dir}" },
    { "a variable of the shell", 'app: a\nprocess: {ports: 80, command: [sh, -c, "echo ${HOME}"]}',
      "app.yml:2:40: process.command[3]: unknown ${HOME}; for a variable of the shell write $HOME; "
      .. "there are ${port}, ${host}, ${release} and ${dir}" },
    { "an open variable", with 'health: {http: "/${port"}', "app.yml:3:10: health.http: a '${' has no '}' of its own" },
    { "a bad name in the environment", "app: a\nprocess: {ports: 80, command: [x], env: {A-B: 1}}",
      "app.yml:2:42: process.env: 'A-B' is not a name of a variable" },
    { "one name in env and secrets", "app: a\nprocess: {ports: 80, command: [x], env: {A: 1}, secrets: {A: b}}",
      "app.yml:2:42: process.env: A is one of process.secrets too" },
    { "a secret under a name that shells keep", "app: a\nprocess: {ports: 80, command: [x], secrets: {UID: x}}",
      "app.yml:2:46: process.secrets: shells keep UID for themselves, and do not pass a secret on as it is: give it another name" },
    { "two local hosts", with "hosts: [local, {name: me}]", "app.yml:3:16: hosts: 'local' and 'me' are both this machine; one is enough" },
    { "a machine under two names", with "hosts: [{name: a, address: web1}, {name: b, address: web1, dir: x}]",
      "app.yml:3:35: hosts: 'a' and 'b' are both at web1, and would take the same process.ports; one is enough" },
    { "a machine by its address and under a name", with 'hosts: ["deploy@web1:2222", {name: b, address: web1, user: deploy, port: 2222}]',
      "app.yml:3:29: hosts: 'web1' and 'b' are both at deploy@web1:2222, and would take the same process.ports; one is enough" },
    { "a host twice", with 'hosts: ["a:1", "a:2"]', "app.yml:3:16: hosts: 'a' is there twice; give each host a name of its own" },
    { "no host", with "hosts: []", "app.yml:3:1: hosts: this list is empty" },
    { "a host that is an option of ssh", with "hosts: [-oProxyCommand=x]",
      "app.yml:3:9: hosts[1]: '-oProxyCommand=x' is not a host; write local, user@address or user@address:port" },
    { "a host's port out of range", with 'hosts: ["a:99999"]',
      "app.yml:3:9: hosts[1]: 'a:99999' is not a host; write local, user@address or user@address:port" },
    { "a host's port that is no number", with 'hosts: ["u@h:abc"]',
      "app.yml:3:9: hosts[1]: 'u@h:abc' is not a host; write local, user@address or user@address:port" },
    { "a port in an address", with "hosts: [{name: a, address: 'h:abc'}]", "app.yml:3:19: hosts[1].address: expected a host name or an address, got 'h:abc'" },
    { "a host without name and address", with "hosts: [{user: me}]",
      "app.yml:3:9: hosts[1]: a host needs an address, or a name when it is this machine" },
    { "ssh to nowhere", with "hosts: [{name: a, transport: ssh}]", "app.yml:3:9: hosts[1].transport: ssh needs an address" },
    { "a balancer without type", with "balancer: {managed: true}", "app.yml:3:1: balancer.type is missing" },
    { "a managed balancer with a socket", with 'balancer: {type: haproxy, managed: true, listen: "a:1", socket: /s}',
      "app.yml:3:1: balancer: either `managed: true` with `listen`, or `socket` and `backend` of your own HAProxy, not both" },
    { "a managed balancer that listens nowhere", with "balancer: {type: haproxy, managed: true}",
      'app.yml:3:1: balancer.listen is missing: where shall the managed HAProxy listen? Such as "127.0.0.1:8000"' },
    { "a balancer without backend", with "balancer: {type: haproxy, socket: /s}",
      "app.yml:3:1: balancer: `backend` of your HAProxy is needed, or `managed: true` with `listen`" },
    { "a balancer without anything", with "balancer: [{type: haproxy}]",
      "app.yml:3:12: balancer[1]: `socket` and `backend` of your HAProxy are needed, or `managed: true` with `listen`" },
    { "a socket that is beside something", with "balancer: {type: haproxy, socket: ./h.sock, backend: b}",
      "app.yml:3:27: balancer.socket: './h.sock' is no absolute path, and has no port: write such as /run/haproxy/admin.sock or 127.0.0.1:9999" },
    { "a socket that is only a port", with "balancer: {type: haproxy, socket: 29999, backend: b}",
      "app.yml:3:27: balancer.socket: port 29999 of what address? Write such as 127.0.0.1:29999" },
    { "a socket at no address", with "balancer: [{type: haproxy, socket: ':29999', backend: b}]",
      "app.yml:3:28: balancer[1].socket: port 29999 of what address? Write such as 127.0.0.1:29999" },
    { "a socket at no port", with 'balancer: {type: haproxy, socket: "localhost:99999", backend: b}',
      "app.yml:3:27: balancer.socket: 'localhost:99999' has no port from 1 to 65535: write such as 127.0.0.1:9999" },
    { "a socket in HAProxy's own words", with 'balancer: {type: haproxy, socket: "unix@/run/h.sock", backend: b}',
      "app.yml:3:27: balancer.socket: 'unix@/run/h.sock' is no absolute path, and has no port: write such as /run/haproxy/admin.sock or 127.0.0.1:9999" },
    { "an admin API at a name alone", with "balancer: {type: caddy, admin: caddy.sock, id: x}",
      "app.yml:3:25: balancer.admin: 'caddy.sock' is no absolute path, and has no port: write such as /run/caddy/admin.sock or 127.0.0.1:2019" },
    { "a balancer on a port of the process", with 'balancer: {type: haproxy, managed: true, listen: "0.0.0.0:8081"}',
      "app.yml:3:42: balancer.listen: port 8081 is one of process.ports" },
    { "statistics on a port of the process", with 'balancer: {type: haproxy, managed: true, listen: ":80", stats: "127.0.0.1:8081"}',
      "app.yml:3:57: balancer.stats: port 8081 is one of process.ports" },
    { "statistics where the service is to be", with 'balancer: {type: haproxy, managed: true, listen: "127.0.0.1:80", stats: "0.0.0.0:80"}',
      "app.yml:3:66: balancer.stats: at 0.0.0.0:80 visitors would get the statistics, and not the service: give it another port than `listen`" },
    { "two managed balancers on a machine", with "hosts: [local]\nbalancer: [{type: haproxy, managed: true, listen: ':80'}, {type: haproxy, managed: true, listen: ':81', host: local}]",
      "app.yml:4:75: balancer[2].managed: balancer[1] is run on that machine already; one HAProxy can listen at one address: put the other on another host" },
    { "a balancer on an unknown host", with "hosts: [{name: web1}]\nbalancer: {type: haproxy, socket: /s, backend: b, host: web2}",
      "app.yml:4:51: balancer.host: there is no host named 'web2' (did you mean 'web1'?)" },
    { "a key of another balancer", with "balancer: {type: haproxy, socket: /s, backend: b, file: /f}",
      "app.yml:3:51: balancer.file: haproxy has no such key" },
    { "options that are no mapping", with "strategy: rolling", 'app.yml:3:1: strategy: expected a mapping, got "rolling"' },
    { "a path per instance for one balancer",
      with 'health: {http: "/${port}"}\nbalancer: {type: haproxy, managed: true, listen: "a:1"}',
      "app.yml:3:10: health.http: a managed balancer probes all instances at the same path, so ${...} cannot stand in it" },
  }
  for _, case in ipairs(cases) do
    it("is refused: " .. case[1], function() assert.equal(case[3], (complaint(case[2]))) end)
  end
end)

describe("what this version has not", function()
  local cases = {
    ["supervisor: systemd"] = { "app: a\nprocess: {ports: 80, command: [x], supervisor: systemd}",
      "app.yml:2:36: process.supervisor: 'systemd' is not supported by this version; use 'process'" },
    ["notify"] = { with "notify: [{url: x, on: [failed]}]",
      "app.yml:3:1: notify: this is not supported by this version; use hooks.after and hooks.failed" },
  }
  for name, case in pairs(cases) do
    it("is refused plainly: " .. name, function() assert.equal(case[2], (complaint(case[1]))) end)
  end

  it("is allowed where it asks for what there is", function()
    local app = load "app: a\nstate: files\nprocess: {ports: 80, command: [x], supervisor: process, adopt: false}\n"
    assert.equal("files", app.state)
  end)
end)

describe("hosts that a command prints", function()
  it("are refused with their place in what it printed", function()
    for text, says in pairs {
      ["[{name: q, adress: web1}]"] = "hosts.command:1:12: unknown key 'adress' (did you mean 'address'?)",
      ['[{"name": "q",\n"address": "x", "port": "ssh"}]'] = 'hosts.command:2:17: hosts[1].port: expected a whole number, got "ssh"',
      ["[]"] = "hosts.command: hosts: this list is empty",
      ["- a\n- a"] = "hosts.command:2:3: hosts: 'a' is there twice; give each host a name of its own",
      ["- {user: me}"] = "hosts.command:1:3: hosts[1]: a host needs an address, or a name when it is this machine",
      ["none"] = "hosts.command: it prints what is no list of hosts: none",
    } do
      local ok, err = pcall(config.hosts, text, "hosts.command", directory)
      assert.same({ false, says }, { ok, err.message })
    end
    assert.equal("a", config.hosts("[a]", "hosts.command", directory)[1].address)
  end)
end)

describe("a secret", function()
  local function secret(value)
    return complaint("app: a\nprocess: {ports: 80, command: [x], secrets: " .. value .. "}\n")
  end

  it("is refused where its reference is malformed", function()
    local only = "app.yml:2:46: process.secrets.A: only ${env:NAME}, ${file:PATH} and ${command:COMMAND} are known here"
    assert.equal(only .. " (did you mean ${env:DB_URL}?)", secret '{A: "${DB_URL}"}')
    assert.equal(only .. " (did you mean ${env:...}?)", secret '{A: "${evn:DB_URL}"}')
    assert.equal(only .. "; ${env:} names nothing", secret '{A: "${env:}"}')
    assert.equal(only .. " (did you mean ${env:...}?)", secret '{A: "${env:a b}"}')
    assert.equal("app.yml:2:46: process.secrets.A: a '${' has no '}' of its own", secret '{A: "${env:X"}')
  end)

  it("that is not to be had is named with its place", function()
    local app = load "app: a\nprocess:\n  ports: 80\n  command: [x]\n  secrets:\n    A: given\n    DB: '${env:NOT_THERE}'\n"
    local ok, err = pcall(secrets.read, app.process.secrets, directory, nil, app.place)
    assert.is_false(ok)
    assert.equal(directory .. "/app.yml:7:5: process.secrets.DB: the environment variable NOT_THERE is not set", err.message)
  end)

  it("comes from a file, and from nothing else that a path may name", function()
    write("key", "s3cret\n")
    assert.equal("s3cret", secrets.read({ A = "${file:key}" }, directory):value "A")
    for path, says in pairs { none = directory .. "/none: No such file or directory", ["/etc"] = "/etc: Is a directory" } do
      local ok, err = pcall(secrets.read, { A = ("${file:%s}"):format(path) }, directory)
      assert.is_false(ok)
      assert.same({ "secret", "process.secrets.A: " .. says }, { err.code, err.message })
    end
  end)

  it("is never repeated in an error", function()
    for _, value in ipairs { "hunter2pass", "[hunter2pass]", '{A: "hunter2pass${x}"}', '{A: "hunter2pass${"}',
      "{A: [hunter2pass]}", '{A: "${hunter2pass}"}', '{"A-": hunter2pass}' } do
      assert.is_nil((secret(value):find("hunter2pass", 1, true)))
    end
  end)
end)
