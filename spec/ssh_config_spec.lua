-- ssh_config_spec.lua -- What ssh understands of ~/.ssh/config, and as a jump host, is understood here.
-- weight: 8
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"
local ssh = require "deployrt.ssh"
local ssh_config = require "deployrt.ssh_config"

describe("where ssh would connect", function()
  local bed, dir, host, key

  setup(function()
    if not hosts.possible() then return end
    bed = hosts.loopback(2)
    host = bed.hosts[1]
    key = fixture.read(host.known_hosts):match("^%S+ ([^\n]+)")
  end)
  teardown(function()
    if bed then bed:down() end
  end)
  before_each(function() dir = fixture.dir() end)
  after_each(function() fixture.cleanup() end)

  --- What `hostname` says on a host with these fields, for who has this ~/.ssh/config.
  local function exec(fields, config, env)
    fixture.write(dir .. "/.ssh/config", config)
    fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{%s}]\nprocess: {command: [./server], ports: [8080]}\n"):format(fields))
    local all = { HOME = dir }
    for name, value in pairs(env or {}) do all[name] = value end
    return fixture.run({ fixture.deployrt(), "exec", "app.yml", "--", "echo", "here" }, { cwd = dir, env = all })
  end

  local function assert_reached(fields, config, env)
    local answer = exec(fields, config, env)
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    assert.equal(0, answer.exit)
  end

  local function lookup(text, name)
    return ssh_config.lookup(name or "web1", fixture.write(dir .. "/config", text))
  end

  it("takes the words of a line as ssh does, in quotes or not, up to a comment", function()
    for pattern, names in pairs {
      ['"a b" plain \'single\' # other'] = { "a b", "plain", "single" }, ['wi"ld*"'] = { "wild", "wild1" }, ['a\\ b'] = { "a b" }, ["x#y !z"] = { "x#y" },
    } do
      for _, name in ipairs(names) do assert.equal("me", lookup("Host " .. pattern .. "\n User me\n", name).user, name) end
      for _, name in ipairs { "other", "#", "quoted", "z" } do assert.is_nil(lookup("Host " .. pattern .. "\n User me\n", name).user, name) end
    end
    assert.same({ "/x y/z q" }, lookup("IdentityFile \"/x y/\"'z q' # mine\n").identityfile)
    assert.same({ "one", "two three", 'a"b', "a\\nb" }, lookup('UserKnownHostsFile one "two three" a\\"b a\\nb\n').userknownhostsfile)
    fixture.write(dir .. "/in clude", "User me\n")
    fixture.write(dir .. "/more", "Port 77\n")
    local found = lookup(('Include "%s/in clude" %s/more\n'):format(dir, dir))
    assert.same({ "me", "77" }, { found.user, found.port })
  end)

  --- What our reading of a file (path) says of web1, and what ssh says, by the names of settings.
  local function both(path)
    local ours, theirs = {}, {}
    assert(core.run(function()
      local found = ssh_config.lookup("web1", path)
      ours = { hostname = found.hostname or "web1", user = found.user or fixture.sh "id -un":match "%S+", port = found.port or "22",
        identitiesonly = found.identitiesonly or "no", new_keys = found.stricthostkeychecking == "accept-new", proxycommand = found.proxycommand,
        identityfile = found.identityfile and table.concat(found.identityfile, " "), proxyjump = found.proxyjump }
    end))
    local said, identities = fixture.sh(("ssh -T -G -F '%s' web1"):format(path)), {}
    for name, value in said:gmatch "(%S+) ([^\n]*)" do
      if name == "identityfile" and not value:find "^~/%.ssh/id_" then identities[#identities + 1] = value end
      if name ~= "identityfile" and ours[name] then theirs[name] = value end
    end
    theirs.identityfile = identities[1] and table.concat(identities, " ")
    theirs.new_keys = said:find "stricthostkeychecking accept%-new" ~= nil
    return ours, theirs
  end

  it("takes Match lines as ssh does", function()
    local me = fixture.sh "id -un":match "%S+"
    for _, criteria in ipairs {
      "all", "host WEB1", "host db,web?", "host *,!web1", "!host db", "!host web1", "host=web1", 'host "db,web1" # mine', "originalhost web1",
      "user " .. me, "user nobody,*", "!user " .. me, "localuser " .. me, "localuser nobody", "host web1 !user nobody localuser *", "host web1 user nobody",
      'exec "true"', 'exec "exit 3"', 'exec "test %n-%h-%p = web1-web1-22"', '!exec "true"', "canonical", "final", "final host web1", "!final",
    } do
      local ours, theirs = both(fixture.write(dir .. "/config", ("Match %s\n Port 7\n IdentityFile k\n"):format(criteria)))
      assert.same(theirs, ours, criteria)
    end
  end)

  it("judges Match lines by what the lines before them say", function()
    for _, text in ipairs {
      "HostName web1.lan\nMatch host web1.lan originalhost web1\n Port 7\n", "User bob\nMatch user bob\n Port 7\nMatch !user bob\n Port 8\n",
      'User bob\nPort 9\nHostName h\nMatch exec "test %h-%r-%p = h-bob-9"\n IdentityFile k\n',
      "Host web1\n HostName h\nHost h\n Port 7\nMatch final\n HostName late\n IdentityFile k\nHost *\n IdentityFile k\n",
      "Match host db\n Include more\nMatch all\n Port 7\n",
    } do
      local ours, theirs = both(fixture.write(dir .. "/config", text))
      assert.same(theirs, ours, text)
    end
    assert.equal("7", ssh_config.lookup("web1", fixture.write(dir .. "/config", "Match user deploy\n Port 7\n"), nil, { user = "deploy" }).port)
  end)

  it("takes values in any case, and the first of ProxyJump and ProxyCommand", function()
    for _, text in ipairs {
      "IdentitiesOnly true\n", "IdentitiesOnly YES\n", "IdentitiesOnly No\nIdentitiesOnly yes\n", "StrictHostKeyChecking Accept-New\n",
      "ProxyCommand nc %h # %p\nProxyJump gate\n", "ProxyJump gate\nProxyCommand nc %h\n",
    } do
      local ours, theirs = both(fixture.write(dir .. "/config", text))
      assert.same(theirs, ours, text)
    end
    local found = lookup "ProxyJump None\nProxyCommand NONE\nProxyJump gate\n"
    assert.same({ "none", "none" }, { found.proxyjump, found.proxycommand })
  end)

  it("includes the files that a pattern stands for, also by the names of directories", function()
    for name, text in pairs { ["a/file"] = "User of-a\n", ["b/file"] = "Port 77\n", [".c/file"] = "HostName hidden\n", ["a/other"] = "HostName other\n" } do
      fixture.write(("%s/%s"):format(dir, name), text)
    end
    for _, pattern in ipairs { "*/file", "[ab]/fi?e", "*/* # but not", "a", "none/*" } do
      local ours, theirs = both(fixture.write(dir .. "/config", ("Include %s/%s\n"):format(dir, pattern)))
      assert.same(theirs, ours, pattern)
    end
  end)

  it("refuses a port that is none, wherever it stands", function()
    for _, port in ipairs { "22x", "0", "65536", "-1", "22 33", '""' } do
      local path = fixture.write(dir .. "/config", ("# mine\nHost other\n Port %s\n"):format(port))
      local ok, err = pcall(ssh_config.lookup, "web1", path)
      assert.is_false(ok, port)
      assert.equal(("%s:3: '%s' is not a port: expected a number from 1 to 65535"):format(path, port), err.message)
    end
  end)

  it("refuses what depends on a Match line that only ssh can judge, and nothing else", function()
    local path = fixture.write(dir .. "/config", "User me\nMatch host web* sessiontype shell\n Port 7\n User other\n Ciphers x\nMatch all\n Port 8\n")
    local found = ssh_config.lookup("web1", path)
    assert.equal("me", found.user)
    local ok, err = pcall(function() return found.port end)
    assert.is_false(ok)
    assert.equal(("%s:2: only ssh can judge 'Match sessiontype', on which Port of web1 depends: have that line begin with 'Match !originalhost web1', "
      .. "and a 'Host web1' above it say what it is to be"):format(path), err.message)
    assert.equal("8", ssh_config.lookup("db", path).port)
    fixture.write(path, (fixture.read(path):gsub("Match", "Host web1\n Port 9\nMatch !originalhost web1")))
    assert.equal("9", ssh_config.lookup("web1", path).port)
    fixture.write(dir .. "/more", "Host web1\n ProxyJump gate\nHost db\n User other\n")
    found = lookup(("Match tagged x\n Include %s/more\nMatch all\n ProxyCommand nc\n User me\n"):format(dir))
    assert.equal("me", found.user)
    for _, way in ipairs { "proxyjump", "proxycommand" } do
      assert.is_false(pcall(function() return found[way] end), way)
    end
  end)

  it("takes jump hosts by their URIs, which the ssh command gets as plain ones", function()
    local target = { known_hosts = {}, identities = {}, port = 22, user = "me", address = "there" }
    for given, expected in pairs {
      ["ssh://deploy@B:22"] = "deploy@B:22", ["ssh://a%40b@B/"] = "a@b@B", ["a,ssh://b:2"] = "a,b:2", ["ssh://[::1]:5,::1"] = "[::1]:5,[::1]",
    } do
      target.jump = given
      assert.truthy((table.concat(ssh.command(target), " ") .. " "):find(" -J " .. expected .. " there ", 1, true), expected)
    end
  end)

  it("keeps the connections apart that go through other commands or jump hosts", function()
    local seen = {}
    for _, way in ipairs { {}, { jump = "a" }, { jump = "b" }, { proxy_command = "a" }, { proxy_command = "b" } } do
      local target = { known_hosts = {}, identities = {}, port = 22, user = "me", address = "there", jump = way.jump, proxy_command = way.proxy_command }
      local path = table.concat(ssh.command(target), " "):match "ControlPath=(%S+)"
      assert.is_nil(seen[path])
      assert.truthy((table.concat(ssh.command(target), " ")):find(path, 1, true))
      seen[path] = true
    end
  end)

  if not hosts.possible() then
    print("ssh_config_spec: hosts are skipped: test hosts need root, iproute2 and sshd")
    return
  end

  --- A ~/.ssh/config by which everything is known and let in.
  local function open_to_all()
    local known = fixture.write(dir .. "/known", ("[%s]:%d %s\n[::1]:%d %s\n"):format(host.address, host.port, key, host.port, key))
    return ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(host.identity, known)
  end

  it("goes through a jump host that has an address of IPv6", function()
    local target = ("name: web1, address: %s, port: %d"):format(host.address, host.port)
    local jump = ("deploy@[::1]:%d"):format(host.port)
    assert_reached(("%s, jump: '%s'"):format(target, jump), open_to_all())
    assert_reached(target, ("Host %s\n  ProxyJump %s\n"):format(host.address, jump) .. open_to_all())
    for _, alone in ipairs { "[::1]", "::1" } do
      assert_reached(("%s, jump: '%s'"):format(target, alone), ("Host ::1\n  Port %d\n"):format(host.port) .. open_to_all())
    end
    local answer = exec(("%s, jump: '[::1]:9'"):format(target), open_to_all())
    assert.equal(2, answer.exit)
    fixture.contains(answer.stderr, "the jump host ::1: ::1:9: ")
  end)

  it("fills in the tokens of paths and jump hosts, and variables", function()
    local me, at = fixture.sh "id -un":match "%S+", ("%s_%d"):format(host.address, host.port)
    fixture.sh(("mkdir -p %s/keys && cp %s %s/keys/known_web1"):format(dir, host.known_hosts, dir))
    fixture.sh(("cp %s '%s/keys/deploy %%_%s_%s'"):format(host.identity, dir, at, me))
    local fields = ("name: web1, address: web1, port: %d, user: deploy"):format(host.port)
    local config = "Host web1\n HostName " .. host.address .. "\n ProxyJump deploy@%h:%p\nHost *\n"
    assert_reached(fields, config .. ' IdentityFile "~/keys/%r %%_%h_%p_%u"\n UserKnownHostsFile %d/keys/known_web1\n')
    assert_reached(fields, config .. " IdentityFile ${KEYS}/%r\\ %%_%h_%p_%u\n UserKnownHostsFile ~/keys/known_web1\n", { KEYS = dir .. "/keys" })
    fixture.sh(("mv %s/keys/deploy* %s/keys/web1"):format(dir, dir))
    assert_reached(fields, "HostName " .. host.address .. "\nIdentityFile ~/keys/%n\nUserKnownHostsFile ~/keys/known_%k\n")
  end)

  it("knows hosts by each of several files", function()
    fixture.write(dir .. "/empty", "")
    local config = open_to_all():gsub("UserKnownHostsFile", "UserKnownHostsFile %%d/empty \"%%d/none at all\"")
    local fields = ("name: web1, address: %s, port: %d"):format(host.address, host.port)
    assert_reached(fields, config)
    assert_reached(fields .. ", transport: openssh", config)
  end)

  it("goes through the command that ~/.ssh/config has, unless app.yml has a jump host", function()
    local fields = ("name: web1, address: web1, port: %d"):format(host.port)
    local config = ("Host web1\n HostName %s\n ProxyCommand sh -c 'echo %%n %%r >> %s/gone; exec socat - TCP:%%h:%%p'\nHost *\n ProxyJump nowhere\n"):format(
      host.address, dir)
    for _, transport in ipairs { "auto", "openssh" } do
      assert_reached(fields .. ", transport: " .. transport, config .. open_to_all())
      fixture.contains(fixture.read(dir .. "/gone"), "web1 deploy\n")
      os.remove(dir .. "/gone")
      assert_reached(fields .. ", jump: none, transport: " .. transport, config .. open_to_all())
      assert.is_nil(fixture.read(dir .. "/gone"))
    end
    assert_reached(fields .. ", jump: gate", ("Host gate\n HostName %s\n Port %d\n ProxyJump none\n"):format(host.address, host.port) .. config .. open_to_all())
    assert.is_nil(fixture.read(dir .. "/gone"))
  end)

  it("goes through a jump host that is itself reached by a command", function()
    local config = ("Host gate\n HostName %s\n Port %d\n ProxyCommand sh -c 'echo %%n >> %s/gone; exec socat - TCP:%%h:%%p'\nHost web1\n HostName %s\n ProxyJump gate\n"):format(
      host.address, host.port, dir, host.address)
    assert_reached(("name: web1, address: web1, port: %d"):format(host.port), config .. open_to_all())
    fixture.contains(fixture.read(dir .. "/gone"), "gate\n")
  end)

  it("says where ~/.ssh/config leaves a host to ssh, before anything is done", function()
    local fields = ("name: web1, address: web1, port: %d"):format(host.port)
    local config = ("Match sessiontype exec\n User nobody\n HostName %s\n"):format(host.address) .. open_to_all()
    local answer = exec(fields, config)
    assert.equal(2, answer.exit)
    fixture.contains(answer.stderr, dir .. "/.ssh/config:1: only ssh can judge 'Match sessiontype', on which HostName of web1 depends")
    config = ("Host web1\n HostName %s\n"):format(host.address) .. config
    fixture.contains(exec(fields, config).stderr, "config:3: only ssh can judge 'Match sessiontype', on which User of web1 depends")
    assert_reached(fields .. ", user: deploy", config)
    assert_reached(fields, ('Match exec "test %%n = web1" user %s\n User deploy\n HostName %s\n'):format(fixture.sh "id -un":match "%S+", host.address) .. open_to_all())
  end)

  it("goes through a jump host that is named by a URI", function()
    local fields = ("name: web1, address: %s, port: %d"):format(host.address, host.port)
    local uri = ("ssh://deploy@[::1]:%d"):format(host.port)
    assert_reached(fields, ("Host %s\n  ProxyJump %s\n"):format(host.address, uri) .. open_to_all())
    assert_reached(("%s, jump: '%s/'"):format(fields, uri), open_to_all())
  end)
end)
