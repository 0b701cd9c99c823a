-- known_hosts_spec.lua -- Whose host key is believed, and why not: what known_hosts may say, as ssh understands it.
-- weight: 4
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("known_hosts_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

describe("known_hosts", function()
  local bed, host, dir, name, key, file

  setup(function()
    bed = hosts.loopback(2)
    host = bed.hosts[1]
    name, key = fixture.read(host.known_hosts):match("^(%S+) ([^\n]+)")
  end)
  teardown(function() bed:down() end)
  before_each(function()
    dir = fixture.dir()
    file = dir .. "/known_hosts"
  end)
  after_each(function() fixture.cleanup() end)

  --- A public key that nobody has; only its last letters differ when it is of the same type.
  local function other_key(type)
    local path = dir .. "/other_" .. type
    if not fixture.read(path .. ".pub") then assert(os.execute(("ssh-keygen -q -t %s -N '' -f %s"):format(type, path))) end
    return fixture.read(path .. ".pub"):match("^%S+ %S+")
  end

  --- What comes of a connection: "open", or the code of its error and what it says.
  local function connect(text, options)
    if text then fixture.write(file, text) end
    local given = {
      transport = "ssh", name = "web1", address = host.address, port = host.port, user = host.user,
      identities = { host.identity }, known_hosts = { file }, agent = false,
    }
    for option, value in pairs(options or {}) do given[option] = value end
    local ok, code, message = core.run(function()
      local link, err = core.connect(given)
      if not link then return err.code, err.message end
      link:close()
      return "open"
    end)
    assert.is_true(ok, code)
    return code, message
  end

  --- The line with its hosts hidden, as ssh does it with HashKnownHosts.
  local function hashed(line)
    fixture.write(dir .. "/hashed", line .. "\n")
    assert(os.execute(("ssh-keygen -q -H -f %s/hashed >/dev/null 2>&1"):format(dir)))
    return (fixture.read(dir .. "/hashed"):gsub("%s+$", ""))
  end

  it("believes the key of the host's line: by its name, in a list, by a pattern, or hidden", function()
    local lines = { name .. " " .. key, "gate,[10.0.0.1]:22," .. name .. " " .. key .. " a comment", "[127.0.*]:" .. host.port .. " " .. key,
      "[127.0.1.?]:* " .. key, "* " .. key, hashed(name .. " " .. key), "\n# a comment\n  " .. name .. "\t" .. key }
    for _, line in ipairs(lines) do assert.equal("open", (connect(line .. "\n")), line) end
    for _, line in ipairs { "[127.0.2.*]:" .. host.port, "[127.0.1.1]:1", "127.0.1", "?", "*,!" .. name .. ",!127.*", "|1|x|y", "|1||", "|1|" } do
      local code, message = connect(line .. " " .. key .. "\n")
      assert.equal("host_key", code, line)
      assert.matches("is not in " .. file, message, 1, true)
    end
  end)

  it("refuses a key that is marked as revoked, wherever it stands and however the host is named", function()
    local good = name .. " " .. key .. "\n"
    for _, hidden in ipairs { "*", name, "gate,[127.*]:*", host.address, (hashed(name .. " " .. key):match("^%S+")) } do
      local revoked = "@revoked " .. hidden .. " " .. key .. "\n"
      for _, text in ipairs { good .. revoked, revoked .. good, revoked } do
        if hidden ~= host.address or text == revoked then
          local code, message = connect(text, { accept_new = true })
          assert.equal("host_key", code, text)
          assert.matches("is marked as revoked in line %d of " .. file:gsub("%p", "%%%0"), message)
          assert.equal(text, fixture.read(file))
        end
      end
    end
    local others = "@revoked * " .. other_key "ed25519" .. "\n@revoked [127.0.2.*]:* " .. key .. "\n"
    assert.equal("open", (connect(others .. good)))
    assert.equal("open", (connect(others, { accept_new = true })))
  end)

  it("is not confused by markers: an authority is no key of the host, and what is unknown says nothing", function()
    local lines = "@cert-authority * " .. other_key "ed25519" .. "\n@new-marker * " .. key .. "\n"
    assert.equal("open", (connect(lines .. name .. " " .. key .. "\n")))
    assert.equal("host_key", (connect("@new-marker * " .. key .. "\n@cert-authority elsewhere " .. key .. "\n")))
    assert.equal("open", (connect("@new-marker * " .. other_key "ed25519" .. "\n", { accept_new = true })))
    assert.equal("host_key", (connect("@cert-authority\n@revoked\n@\n")))
  end)

  it("tells a host by its port: what listens on another one is another", function()
    local elsewhere = host.address .. " " .. other_key "ed25519" .. "\n"
    local code, message = connect(elsewhere)
    assert.equal("host_key", code)
    assert.matches("is not in " .. file, message, 1, true)
    assert.equal("open", (connect(elsewhere, { accept_new = true })))
    assert.equal(elsewhere .. name .. " " .. key .. "\n", fixture.read(file))
    assert.equal("open", (connect(host.address .. " " .. key .. "\n")), "the same machine by its other port, as ssh has it")
    code, message = connect(host.address .. " " .. key .. "\n" .. name .. " " .. other_key "ed25519" .. "\n")
    assert.equal("host_key", code)
    assert.matches("is not the one in " .. file .. " (line 2): somebody may be listening in", message, 1, true)
  end)

  it("takes the name that was given in place of address and port", function()
    assert.equal("open", (connect("shop " .. key .. "\n", { known_as = "shop" })))
    assert.equal("host_key", (connect(name .. " " .. key .. "\n", { known_as = "shop" })))
    assert.equal("open", (connect("", { known_as = "shop", accept_new = true })))
    assert.equal("shop " .. key .. "\n", fixture.read(file))
  end)

  it("adds a line of its own to a file whose last line lacks its end", function()
    local others = "elsewhere " .. other_key "ed25519"
    assert.equal("open", (connect(others, { accept_new = true })))
    assert.equal(others .. "\n" .. name .. " " .. key .. "\n", fixture.read(file))
    assert.equal("open", (connect(nil, { accept_new = true })))
    assert.equal(others .. "\n" .. name .. " " .. key .. "\n", fixture.read(file))
  end)

  it("makes the file, and the directory that it lies in, for their owner alone", function()
    file = dir .. "/.ssh/known_hosts"
    assert.equal("open", (connect(nil, { accept_new = true, known_hosts = { file } })))
    assert.equal(name .. " " .. key .. "\n", fixture.read(file))
    assert.equal("700 600", fixture.sh(("stat -c %%a %s/.ssh %s | tr '\\n' ' ' | sed 's/ $//'"):format(dir, file)))
    local code, message = connect(nil, { accept_new = true, known_hosts = { dir .. "/a/b/known_hosts" } })
    assert.equal("host_key", code)
    assert.matches("cannot write the new host key of .*/a/b/known_hosts: No such file", message)
  end)

  it("understands lines that end as on Windows", function()
    assert.equal("open", (connect(("elsewhere %s\r\n%s %s\r\n"):format(other_key "ed25519", name, key))))
    assert.equal("host_key", (connect(("@revoked * %s\r\n%s %s\r\n"):format(key, name, key))))
  end)

  --- Another sshd of the host, with keys of these types; returns its port and its public keys by type.
  local function another_sshd(...)
    local port, lines, keys = fixture.free_port(), {}, {}
    for i, type in ipairs { ... } do
      local path = ("/etc/ssh/%s_%d"):format(type, port)
      keys[type] = bed:exec(1, ("ssh-keygen -q -t %s -N '' -f %s && cut -d' ' -f1,2 %s.pub"):format(type, path, path)):gsub("%s+$", "")
      lines[i] = "HostKey " .. path
    end
    local config = ("/run/sshd_%d"):format(port)
    bed:exec(1, ("{ sed '/^Port /d; /^PidFile/d; /^HostKey/d' /etc/ssh/testbed_config; printf '%%s\\n' 'Port %d' 'PidFile %s.pid' '%s'; } > %s && "
      .. "/usr/sbin/sshd -f %s"):format(port, config, table.concat(lines, "' '"), config, config))
    fixture.eventually(function() return fixture.is_listened(port) end, 10, "another sshd")
    return port, keys, ("[%s]:%d "):format(host.address, port)
  end

  --- The command for the host at that port.
  local function exec(port, known_hosts)
    fixture.write(dir .. "/.ssh/config", "UserKnownHostsFile " .. file .. "\n")
    fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web1, address: %s, port: %d, user: deploy, identity: %s, known_hosts: %s}]\n"
      .. "process: {command: [./server], ports: [8080]}\n"):format(host.address, port, host.identity, known_hosts or file))
    return fixture.run({ fixture.deployrt(), "exec", "app.yml", "--", "echo", "here" }, { cwd = dir, env = { HOME = dir } })
  end

  it("has the server show the key that is known, of whatever type", function()
    local port, keys, at = another_sshd("ed25519", "ecdsa")
    for _, type in ipairs { "ed25519", "ecdsa" } do
      assert.equal("open", (connect(at .. keys[type] .. "\n", { port = port })), type)
      assert.equal("open", (connect(("[%s]:* "):format(host.address) .. keys[type] .. "\n", { port = port })), type)
      assert.equal("open", (connect(host.address .. " " .. keys[type] .. "\n", { port = port })), type)
    end
  end)

  it("does not take a key of another type for that of somebody who listens in, nor for a new host's", function()
    local port, _, at = another_sshd("ed25519")
    local text = at .. other_key "ecdsa" .. "\n"
    local code, message = connect(text, { port = port, accept_new = true })
    assert.equal("host_key", code)
    assert.matches("shows a host key of the type ssh-ed25519, but " .. file .. " (line 1) knows it by another type only", message, 1, true)
    assert.equal(text, fixture.read(file))
  end)

  it("leaves it to the ssh command to verify what libssh2 cannot", function()
    local port, keys, at = another_sshd("ed25519", "rsa")
    fixture.write(file, at .. keys.rsa .. "\n")
    local answer = exec(port)
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    fixture.write(file, at .. other_key "rsa" .. "\n")
    answer = exec(port)
    assert.equal(2, answer.exit, answer.stdout)
    assert.truthy(answer.stderr:find("web1", 1, true) and answer.stderr:find("HOST IDENTIFICATION HAS CHANGED", 1, true), answer.stderr)
  end)

  it("reaches a server that has an RSA key only, and remembers it", function()
    local port, keys, at = another_sshd("rsa")
    fixture.write(file, at .. keys.rsa .. "\n")
    local answer = exec(port)
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    fixture.write(file, "")
    answer = exec(port, "strict")
    assert.equal(2, answer.exit, answer.stdout)
    assert.truthy(answer.stderr:find("key", 1, true), answer.stderr)
    answer = exec(port, "accept-new")
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    assert.truthy(fixture.read(file):find(keys.rsa .. "\n", 1, true)) -- its name may be hidden
    assert.equal("web1 | here\n", exec(port, "strict").stdout)
  end)

  --- The command by the ssh command, at home in a directory that has nothing yet.
  local function exec_openssh(home, known_hosts)
    fixture.write(home .. "/app.yml", ("app: shop\nhosts: [{name: web1, address: %s, port: %d, user: deploy, identity: %s, transport: openssh, known_hosts: '%s'}]\n"
      .. "process: {command: [./server], ports: [8080]}\n"):format(host.address, host.port, host.identity, known_hosts))
    return fixture.run({ fixture.deployrt(), "exec", "app.yml", "--", "echo", "here" }, { cwd = home, env = { HOME = home } })
  end

  it("by the ssh command, too, a new key is kept where nobody had a ~/.ssh, and another one is refused then", function()
    local answer = exec_openssh(dir, "accept-new")
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    assert.equal("700 600", fixture.sh(("stat -c %%a %s/.ssh %s | tr '\\n' ' ' | sed 's/ $//'"):format(dir, dir .. "/.ssh/known_hosts")))
    assert.truthy(fixture.read(dir .. "/.ssh/known_hosts"):find(key, 1, true))
    fixture.write(dir .. "/.ssh/known_hosts", name .. " " .. other_key "ed25519" .. "\n")
    answer = exec_openssh(dir, "accept-new")
    assert.equal(2, answer.exit, answer.stdout)
    assert.truthy(answer.stderr:find("HOST IDENTIFICATION HAS CHANGED", 1, true), answer.stderr)
  end)

  it("by the ssh command, too, every command says once which host has another key, and what to do", function()
    local path = fixture.write(dir .. "/.ssh/known_hosts", name .. " " .. other_key "ed25519" .. "\n")
    exec_openssh(dir, "strict")
    for _, argv in ipairs { { "status", "app.yml" }, { "logs", "app.yml" }, { "unlock", "app.yml" }, { "exec", "app.yml", "--", "true" } } do
      local answer = fixture.run({ fixture.deployrt(), table.unpack(argv) }, { cwd = dir, env = { HOME = dir } })
      assert.is_true(answer.exit ~= 0, answer.stdout)
      fixture.contains(answer.stderr, "web1", ("the host key of %s is not the one in %s (line 1): somebody may be listening in"):format(name, path),
        ("ssh-keygen -f '%s' -R '%s'"):format(path, name))
      assert.is_nil(answer.stderr:find("web1: web1", 1, true), answer.stderr)
    end
    fixture.write(path, "")
    local answer = fixture.run({ fixture.deployrt(), "status", "app.yml" }, { cwd = dir, env = { HOME = dir } })
    fixture.contains(answer.stderr, "web1: the ssh command fails with status 255: No ED25519 host key is known for")
  end)

  it("by the ssh command, too, a new key that cannot be kept is refused", function()
    fixture.write(dir .. "/.ssh", "")
    local answer = exec_openssh(dir, "accept-new")
    assert.equal(2, answer.exit, answer.stdout)
    assert.truthy(answer.stderr:find("web1 ! its host key is new and cannot be written (" .. dir .. "/.ssh/known_hosts: Not a directory), so it is not accepted",
      1, true), answer.stderr)
  end)

  it("by the ssh command, too, the path of the file may be any", function()
    local path = dir .. '/my files/100% "known"'
    fixture.write(path, name .. " " .. key .. "\n")
    local answer = exec_openssh(dir, path)
    assert.equal("web1 | here\n", answer.stdout, answer.stderr)
    fixture.write(path, "")
    assert.equal(2, exec_openssh(dir, path).exit)
  end)

  it("leaves it to the ssh command to believe an authority", function()
    local port, keys, at = another_sshd("ed25519")
    local authority = other_key "ed25519"
    fixture.write(dir .. "/host.pub", keys.ed25519 .. "\n")
    fixture.sh(("ssh-keygen -q -s %s/other_ed25519 -I web1 -h -n %s %s/host.pub 2>&1"):format(dir, host.address, dir))
    bed:exec(1, ("echo '%s' > /run/certificate && echo HostCertificate /run/certificate >> /run/sshd_%d && kill -HUP $(cat /run/sshd_%d.pid)"):format(
      fixture.read(dir .. "/host-cert.pub"):gsub("%s+$", ""), port, port))
    fixture.write(file, "@cert-authority " .. at .. authority .. "\n")
    fixture.eventually(function() return exec(port).stdout == "web1 | here\n" end, 20, "the certificate")
    fixture.write(file, "@cert-authority " .. at .. keys.ed25519 .. "\n")
    assert.equal(2, exec(port).exit)
  end)
end)
