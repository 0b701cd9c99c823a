-- ssh_auth_spec.lua -- Logging in over SSH: kinds of keys, the agent, passphrases, and the fall-back to the ssh command.
-- weight: 3
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local hosts = require "spec.support.hosts"

if not hosts.possible() then
  print("ssh_auth_spec: skipped: test hosts need root, iproute2 and sshd")
  return
end

--- Runs a command on a terminal, and types the answer once the prompt is there.
local typist = [[
import os, pty, sys, time, select
prompt, answer, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
pid, fd = pty.fork()
if pid == 0: os.execvp(argv[0], argv)
seen, typed, deadline = b"", False, time.time() + 30
while time.time() < deadline:
    if not select.select([fd], [], [], 0.2)[0]: continue
    try: data = os.read(fd, 65536)
    except OSError: break
    if not data: break
    seen += data
    if not typed and prompt.encode() in seen:
        os.write(fd, answer.encode() + b"\n"); typed = True
sys.stdout.write(seen.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
]]

--- Accepts connections, says nothing to them, and prints how many there were at once each time that is more than ever.
local silent = [[
import select, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
clients, most, total = set(), 0, 0
while True:
    select.select([listener, *clients], [], [])
    for client in select.select(list(clients), [], [], 0)[0]:
        try: ended = not client.recv(4096)
        except OSError: ended = True
        if ended: clients.remove(client); client.close()
    if select.select([listener], [], [], 0)[0]:
        clients.add(listener.accept()[0])
        total, most = total + 1, max(most, len(clients))
        print(most, total, flush=True)
]]

describe("logging in over SSH", function()
  local bed, dir, host

  setup(function()
    bed = hosts.up(1)
    host = bed.hosts[1]
  end)
  teardown(function() bed:down() end)
  before_each(function() dir = fixture.dir() end)
  after_each(function() fixture.cleanup() end)

  --- A new key that the host accepts.
  local function new_key(kind, passphrase)
    local path = dir .. "/id_" .. kind
    assert(os.execute(("ssh-keygen -q -t %s -N %s -f %s"):format(kind, fixture.quote(passphrase or ""), path)))
    local public = fixture.read(path .. ".pub"):gsub("%s+$", "")
    bed:exec(1, "echo " .. fixture.quote(public) .. " >> /home/deploy/.ssh/authorized_keys")
    return path
  end

  --- app.yml for the host; `identity` may be missing.
  local function new_app(fields)
    fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web1, address: %s, user: deploy, known_hosts: %s%s}]\n"
      .. "process: {command: [./server], ports: [8080]}\n"):format(host.address, host.known_hosts, fields or ""))
    return { fixture.deployrt(), "exec", "app.yml", "--", "hostname" }
  end

  local function run(argv, env)
    local all = { HOME = dir }
    for key, value in pairs(env or {}) do all[key] = value end
    return fixture.run(argv, { cwd = dir, env = all })
  end

  for _, kind in ipairs { "ed25519", "ecdsa", "rsa" } do
    it("takes an " .. kind .. " key file", function()
      local answer = run(new_app(", identity: " .. new_key(kind)))
      assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
      assert.equal(0, answer.exit)
    end)
  end

  for _, passphrase in ipairs { "", "open sesame" } do
    it("knows an RSA key in the form of PKCS #8, " .. (passphrase == "" and "open" or "encrypted") .. ", with its public half beside it or without", function()
      local key = new_key "rsa"
      fixture.sh(("ssh-keygen -q -p -m PKCS8 -N '%s' -f %s"):format(passphrase, key))
      assert.matches("BEGIN E?N?C?R?Y?P?T?E?D? ?PRIVATE KEY", fixture.read(key))
      local script = fixture.write(dir .. "/typist.py", typist)
      for _ = 1, 2 do
        local answer = run { "python3", script, "Passphrase of", passphrase, table.unpack(new_app(", identity: " .. key)) }
        assert.equal(0, answer.exit, answer.stdout .. answer.stderr)
        fixture.contains(answer.stdout, "web1 | web1")
        os.remove(key .. ".pub")
      end
    end)
  end

  --- A key file whose secret is in a security key; returns its path and its public half (PROTOCOL.key, PROTOCOL.u2f of OpenSSH).
  local function security_key()
    local function text(value) return string.pack(">s4", value) end
    local function base64(bytes)
      return (fixture.sh("base64 -w 0 " .. fixture.write(dir .. "/raw", bytes)))
    end
    local public = text "sk-ssh-ed25519@openssh.com" .. text(("k"):rep(32)) .. text "ssh:"
    local private = string.pack(">I4I4", 1, 1) .. public .. "\1" .. text "handle" .. text "" .. text "comment"
    for i = 1, -#private % 8 do private = private .. string.char(i) end
    local whole = "openssh-key-v1\0" .. text "none" .. text "none" .. text "" .. string.pack(">I4", 1) .. text(public) .. text(private)
    local path = fixture.write(dir .. "/id_sk",
      "-----BEGIN OPENSSH PRIVATE KEY-----\n" .. base64(whole):gsub(("."):rep(70), "%0\n") .. "\n-----END OPENSSH PRIVATE KEY-----\n")
    assert(os.execute("chmod 600 " .. path))
    return path, "sk-ssh-ed25519@openssh.com " .. base64(public)
  end

  it("leaves a security key to the ssh command, whose words are in the error when nobody touches it", function()
    local path, public = security_key()
    bed:exec(1, ("echo '%s' >> /home/deploy/.ssh/authorized_keys"):format(public))
    local answer = run(new_app(", identity: " .. path))
    assert.equal(2, answer.exit)
    assert.truthy(answer.stderr:find("ED25519-SK", 1, true) and answer.stderr:find("device not found", 1, true), answer.stderr)
  end)

  it("leaves no process and no socket of the ssh command behind", function()
    local answer = run(new_app(", identity: " .. new_key "rsa"))
    assert.equal(0, answer.exit, answer.stderr)
    assert.equal("", fixture.sh("find " .. dir .. " -type s"))
    fixture.eventually(function() return fixture.sh("pgrep -f 'ControlPath[=]" .. dir .. "' || true") == "" end)
  end)

  it("the ssh command's own words, as of a refused connection, get into no answer", function()
    new_key "ed25519"
    fixture.write(dir .. "/calls.lua", [[
      local core, ssh = require "deployrt.core", require "deployrt.ssh"
      local address, identity, known_hosts = table.unpack(arg)
      local host = { name = "web1", address = address, user = "deploy", identity = identity, known_hosts = known_hosts, transport = "openssh" }
      assert(core.run(function()
        local link <close> = assert(ssh.connect(host, { root = "shop" }))
        assert(link:call "facts") -- by the process that all others share a connection with
        for _ = 1, 20 do
          local tasks = { core.spawn(function() return link:dial("127.0.0.1", 9, 5) end) }
          for i = 2, 4 do tasks[i] = core.spawn(function() return link:call("eval", { "sleep 0.05; echo answer" }) end) end
          for i, task in ipairs(tasks) do
            local _, said = task:wait()
            if i > 1 then assert(said == "answer\n", said) end
          end
        end
      end))]])
    local env = fixture.modules()
    env.HOME = dir
    local answer = fixture.run({ "lua5.4", dir .. "/calls.lua", host.address, dir .. "/id_ed25519", host.known_hosts }, { env = env })
    assert.equal(0, answer.exit, answer.stdout .. answer.stderr)
  end)

  it("asks the agent, and needs no file then", function()
    local key = new_key "ed25519"
    local agent = fixture.sh("ssh-agent -a " .. dir .. "/agent")
    local pid = agent:match("SSH_AGENT_PID=(%d+)")
    fixture.sh(("SSH_AUTH_SOCK=%s/agent ssh-add -q %s 2>&1"):format(dir, key))
    os.remove(key)
    local answer = run(new_app(), { SSH_AUTH_SOCK = dir .. "/agent" })
    fixture.signal(pid, "TERM")
    assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
  end)

  --- Runs something while an agent has keys.
  local function with_agent(keys, passphrase, fn)
    local pid = fixture.sh("ssh-agent -a " .. dir .. "/agent"):match("SSH_AGENT_PID=(%d+)")
    local helper = fixture.write(dir .. "/askpass", "#!/bin/sh\necho '" .. passphrase .. "'\n")
    os.execute("chmod +x " .. helper)
    for _, key in ipairs(keys) do
      fixture.sh(("SSH_AUTH_SOCK=%s/agent SSH_ASKPASS=%s SSH_ASKPASS_REQUIRE=force DISPLAY=:0 ssh-add -q %s 2>&1"):format(dir, helper, key))
    end
    local ok, err = pcall(fn, { SSH_AUTH_SOCK = dir .. "/agent" })
    fixture.signal(pid, "TERM")
    fixture.eventually(function() return not fixture.alive(pid) end, 10, "the end of the agent")
    if not ok then error(err, 0) end
  end

  it("leaves an RSA key that only the agent has to the ssh command, alone there or beside a refused one", function()
    local key, other = new_key "rsa", dir .. "/other"
    fixture.sh(("ssh-keygen -q -t ed25519 -N '' -f %s"):format(other))
    for _, keys in ipairs { { key }, { other, key } } do
      with_agent(keys, "", function(env)
        local answer = run(new_app(), env)
        assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
      end)
    end
    bed:exec(1, "sed -i '$d' /home/deploy/.ssh/authorized_keys")
    with_agent({ key }, "", function(env)
      local answer = run(new_app(), env)
      assert.equal(2, answer.exit)
      fixture.contains(answer.stderr, "web1", "deploy@" .. host.address .. ": Permission denied")
    end)
  end)

  it("asks nobody for the passphrase of a key that the agent has, also where only that key may be offered", function()
    local key = new_key("ed25519", "open sesame")
    local foreign = {}
    for i = 1, 8 do
      foreign[i] = dir .. "/foreign" .. i
      fixture.sh(("ssh-keygen -q -t ed25519 -N '' -f %s"):format(foreign[i]))
    end
    foreign[9] = key
    with_agent(foreign, "open sesame", function(env)
      local answer = run({ "setsid", "-w", table.unpack(new_app(", identity: " .. key)) }, env)
      assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
      fixture.sh(("mkdir -p %s/.ssh && cp %s %s/.ssh/id_ed25519"):format(dir, key, dir))
      answer = run({ "setsid", "-w", table.unpack(new_app()) }, env)
      assert.equal(2, answer.exit)
      assert.truthy(answer.stderr:find("refuses the keys of the agent, or so many of them: say which one with identity:", 1, true), answer.stderr)
    end)
  end)

  it("takes a public half for the name of a key that the agent has", function()
    for _, kind in ipairs { "ed25519", "rsa" } do
      local key = new_key(kind)
      local other = dir .. "/other_" .. kind
      fixture.sh(("ssh-keygen -q -t ed25519 -N '' -f %s"):format(other))
      with_agent({ other, key }, "", function(env)
        os.remove(key)
        for _, path in ipairs { key .. ".pub", key } do
          local answer = run(new_app(", identity: " .. path), env)
          assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
          fixture.write(dir .. "/.ssh/config", ("IdentitiesOnly yes\nIdentityFile %s\n"):format(path))
          answer = run(new_app(), env)
          assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
          os.remove(dir .. "/.ssh/config")
        end
      end)
      local answer = run(new_app(", identity: " .. key .. ".pub"))
      assert.equal(2, answer.exit)
      fixture.contains(answer.stderr, ("identity %s.pub is a public key, and no agent has its private half: give it to one with 'ssh-add'"):format(key))
    end
  end)

  it("knows a passphrase for each key", function()
    local first, second = new_key("ed25519", "open sesame"), new_key("ecdsa", "shut sesame")
    bed:exec(1, "sed -i '$d' /home/deploy/.ssh/authorized_keys") -- the second one is not accepted, and is asked for last
    fixture.sh(("mkdir -p %s/.ssh && cp %s %s %s/.ssh/"):format(dir, first, second, dir))
    local twice = typist:gsub("if not typed and prompt.encode%(%) in seen:\n[^\n]+\n",
      'if typed < 2 and seen.count(prompt.encode()) > typed:\n        os.write(fd, (answer.split(",")[typed] + "\\n").encode()); typed += 1\n'):gsub("typed, deadline = b\"\", False", 'typed, deadline = b"", 0')
    local script = fixture.write(dir .. "/typist.py", twice)
    local answer = run({ "python3", script, "Passphrase of", "open sesame,shut sesame", table.unpack(new_app()) })
    assert.equal(0, answer.exit, answer.stdout .. answer.stderr)
    assert.truthy(answer.stdout:find("web1 | web1", 1, true))
  end)

  it("an agent that hangs is no reason to hang", function()
    local pid = fixture.start({ "socat", "UNIX-LISTEN:" .. dir .. "/agent,fork", "EXEC:sleep 60" })
    fixture.eventually(function() return os.execute("test -S " .. dir .. "/agent") end)
    local started = os.time()
    local answer = run(new_app(), { SSH_AUTH_SOCK = dir .. "/agent" })
    fixture.stop(pid)
    assert.equal(2, answer.exit)
    assert.is_true(os.time() - started <= 20)
    assert.truthy(answer.stderr:find("agent does not answer", 1, true), answer.stderr)
  end)

  it("asks for the passphrase of a key, and never shows it", function()
    local argv = new_app(", identity: " .. new_key("ed25519", "open sesame"))
    local script = fixture.write(dir .. "/typist.py", typist)
    local answer = run({ "python3", script, "Passphrase of", "open sesame", table.unpack(argv) })
    assert.equal(0, answer.exit, answer.stdout .. answer.stderr)
    assert.truthy(answer.stdout:find("web1 | web1", 1, true))
    assert.is_nil(answer.stdout:find("sesame", 1, true))
  end)

  it("says that a passphrase is wrong, and not that the host refuses anything", function()
    local argv = new_app(", identity: " .. new_key("ed25519", "open sesame"))
    local script = fixture.write(dir .. "/typist.py", typist)
    local answer = run({ "python3", script, "Passphrase of", "open barley", table.unpack(argv) })
    assert.equal(2, answer.exit)
    fixture.contains(answer.stdout, dir .. "/id_ed25519 cannot be read: the passphrase is wrong, so there is no key to offer to deploy@")
    assert.is_nil(answer.stdout:find("refuses", 1, true))
    assert.is_nil(answer.stdout:find("barley", 1, true))
  end)

  it("says without a terminal that a passphrase is needed, and how to do without", function()
    local key = new_key("ed25519", "open sesame")
    local answer = run({ "setsid", "-w", table.unpack(new_app(", identity: " .. key)) })
    assert.equal(2, answer.exit)
    fixture.contains(answer.stderr, ("web1 ! the key %s is encrypted, and there is nobody to ask for its passphrase: give it to an agent with 'ssh-add %s', "
      .. "or run this on a terminal"):format(key, key))
    assert.is_nil(answer.stderr:find("refuses", 1, true))
    fixture.sh(("mkdir -p %s/.ssh && cp %s %s/.ssh/id_ed25519 && ssh-keygen -q -t ecdsa -N '' -f %s/.ssh/id_ecdsa"):format(dir, key, dir, dir))
    answer = run({ "setsid", "-w", table.unpack(new_app()) })
    assert.equal(2, answer.exit)
    fixture.contains(answer.stderr, "refuses every key offered; last: ", "; the key " .. dir .. "/.ssh/id_ed25519 is encrypted")
  end)

  it("says of an encrypted RSA key, too, what to do without a terminal", function()
    local key = new_key("rsa", "open sesame")
    for _, transport in ipairs { "ssh", "openssh" } do
      local answer = run { "setsid", "-w", table.unpack(new_app((", identity: %s, transport: %s"):format(key, transport))) }
      assert.equal(2, answer.exit)
      fixture.contains(answer.stderr, ("the key %s is encrypted, and there is nobody to ask for its passphrase: give it to an agent with 'ssh-add %s'"):format(key, key))
    end
    with_agent({ key }, "open sesame", function(env)
      local answer = run({ "setsid", "-w", table.unpack(new_app(", identity: " .. key)) }, env)
      assert.equal("web1 | web1\n", answer.stdout, answer.stderr)
    end)
  end)

  it("asks for the passphrase of a key that only the ssh command can use, once, and leaves no agent behind", function()
    local script = fixture.write(dir .. "/typist.py", typist)
    local more = hosts.up(2)
    finally(function() more:down() end)
    for kind, transport in pairs { rsa = "ssh", ed25519 = "openssh" } do
      local key, entries = new_key(kind, "open sesame"), {}
      for i, each in ipairs(more.hosts) do
        more:exec(i, "echo " .. fixture.quote(fixture.read(key .. ".pub"):gsub("%s+$", "") .. "") .. " >> /home/deploy/.ssh/authorized_keys")
        entries[i] = ("{name: web%d, address: %s, user: deploy, identity: %s, known_hosts: %s, transport: %s}"):format(
          i, each.address, key, each.known_hosts, transport)
      end
      fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [%s]\nprocess: {command: [./server], ports: [8080]}\n"):format(table.concat(entries, ", ")))
      local function ask(passphrase)
        return run({ "python3", script, "Passphrase of", passphrase, fixture.deployrt(), "exec", "app.yml", "--", "hostname" }, { TMPDIR = dir })
      end
      local answer = ask "open sesame"
      assert.equal(0, answer.exit, answer.stdout .. answer.stderr)
      fixture.contains(answer.stdout, "web1 | web1", "web2 | web2")
      assert.equal(1, select(2, answer.stdout:gsub("Passphrase of", "")))
      assert.is_nil(answer.stdout:find("sesame", 1, true))
      answer = ask "open barley"
      assert.equal(2, answer.exit, answer.stdout)
      fixture.contains(answer.stdout, "the key " .. key .. " cannot be read: the passphrase is wrong")
      fixture.eventually(function() return fixture.sh(("pgrep -f '[s]sh-agent.*%s' || true; find %s -type s; ls -d %s/ssh-* %s/tmp.* 2>/dev/null || true"):format(
        dir, dir, dir, dir)) == "" end, 15, "the end of the agent")
    end
  end)

  it("asks once for the passphrase where the ssh command has to verify the host", function()
    bed:exec(1, "ssh-keygen -q -t rsa -N '' -f /run/rsa && { sed '/^Port/d; /^PidFile/d; /^HostKey/d' /etc/ssh/testbed_config; echo Port 2223; "
      .. "echo HostKey /run/rsa; } > /run/rsa_config && /usr/sbin/sshd -f /run/rsa_config")
    local key, argv = new_key("ed25519", "open sesame"), new_app()
    fixture.write(dir .. "/.ssh/known_hosts", ("[%s]:2223 %s"):format(host.address, bed:exec(1, "cat /run/rsa.pub")))
    fixture.write(dir .. "/app.yml", (fixture.read(dir .. "/app.yml"):gsub("known_hosts: [^}]+", "port: 2223, known_hosts: strict, identity: " .. key)))
    local answer = run { "python3", fixture.write(dir .. "/typist.py", typist), "Passphrase of", "open sesame", table.unpack(argv) }
    assert.equal(0, answer.exit, answer.stdout)
    fixture.contains(answer.stdout, "web1 | web1")
    assert.equal(1, select(2, answer.stdout:gsub("Passphrase of", "")))
  end)

  it("says that an identity is missing", function()
    local answer = run(new_app(", identity: /nonexistent/key"))
    assert.equal(2, answer.exit)
    assert.truthy(answer.stderr:find("identity /nonexistent/key is missing", 1, true), answer.stderr)
  end)

  it("says that a key is cut off", function()
    local path = new_key "ed25519"
    fixture.write(path, "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5v\n-----END OPENSSH PRIVATE KEY-----\n")
    local answer = run(new_app(", identity: " .. path))
    assert.equal(2, answer.exit)
    assert.truthy(answer.stderr:find("no private key", 1, true), answer.stderr)
  end)

  it("goes through a chain of jump hosts", function()
    local more = hosts.up(3)
    fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(
      more.hosts[1].identity, more.hosts[1].known_hosts))
    fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web3, address: %s, jump: '%s,%s'}]\n"
      .. "process: {command: [./server], ports: [8080]}\n"):format(more.hosts[3].address, more.hosts[1].address, more.hosts[2].address))
    local answer = run { fixture.deployrt(), "exec", "app.yml", "--", "sh", "-c", "echo ${SSH_CONNECTION%% *}" }
    more:down()
    assert.equal("web3 | " .. more.hosts[2].address .. "\n", answer.stdout, answer.stderr)
  end)

  it("follows Port and ProxyJump of ~/.ssh/config", function()
    local more = hosts.up(2)
    local first, second = more.hosts[1], more.hosts[2]
    more:exec(2, "sed 's/^Port .*/Port 2222/; /^PidFile/d' /etc/ssh/testbed_config > /run/other && /usr/sbin/sshd -f /run/other")
    local key = fixture.read(second.known_hosts):match(second.address:gsub("%.", "%%.") .. " ([^\n]+)")
    local known = fixture.write(dir .. "/known", fixture.read(second.known_hosts) .. ("[%s]:2222 %s\n"):format(second.address, key))
    fixture.write(dir .. "/.ssh/config", ("Host gate\n  HostName %s\n\nHost inner\n  HostName %s\n  Port 2222\n  ProxyJump gate\n\n"
      .. "Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(first.address, second.address, first.identity, known))
    fixture.write(dir .. "/app.yml", "app: shop\nhosts: [inner]\nprocess: {command: [./server], ports: [8080]}\n")
    local answer = run { fixture.deployrt(), "exec", "app.yml", "--", "sh", "-c", "echo ${SSH_CONNECTION%% *} ${SSH_CONNECTION##* }" }
    more:down()
    assert.equal(("inner | %s 2222\n"):format(first.address), answer.stdout, answer.stderr)
  end)

  it("says at once that jump hosts lead in a circle, and how to end it", function()
    for config, circle in pairs {
      ["Host a\n ProxyJump b\nHost b\n ProxyJump a\n"] = { "a is reached through b is reached through a", "Host b" },
      ["Host *\n ProxyJump deploy@bastion:22\n"] = { "bastion is reached through bastion", "Host bastion" },
      ["Host *\n ProxyJump x,y\n"] = { "y is reached through x is reached through y", "Host x" },
    } do
      for _, transport in ipairs { "ssh", "openssh" } do
        fixture.write(dir .. "/.ssh/config", config)
        fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web1, address: a, transport: %s}]\n"):format(transport)
          .. "process: {command: [./server], ports: [8080]}\n")
        local started = os.time()
        local answer = run { fixture.deployrt(), "exec", "app.yml", "--", "true" }
        assert.equal(2, answer.exit)
        fixture.contains(answer.stderr, "web1 ! the jump hosts lead in a circle: " .. circle[1] .. ". Which one is reached directly? Have ~/.ssh/config say so "
          .. "before all else, as: " .. circle[2] .. ", and below it: ProxyJump none")
        assert.is_true(os.time() - started <= 3)
      end
    end
  end)

  it("holds on to each of a chain of jump hosts for as long as somebody is behind it", function()
    local more = hosts.up(3)
    fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(
      more.hosts[1].identity, more.hosts[1].known_hosts))
    fixture.write(dir .. "/chain.lua", [[
      local core, ssh = require "deployrt.core", require "deployrt.ssh"
      assert(core.run(function()
        local link <close> = assert(ssh.connect({ name = "web3", address = arg[1], jump = arg[2] .. "," .. arg[3] }, { root = "shop" }))
        for _ = 1, 3 do
          collectgarbage()
          core.sleep(0.05)
          io.write(assert(link:exec({ "hostname" }, { timeout = 5 })).stdout)
        end
      end))]])
    local env = fixture.modules()
    env.HOME = dir
    local answer = fixture.run({ "lua5.4", dir .. "/chain.lua", more.hosts[3].address, more.hosts[1].address, more.hosts[2].address }, { env = env })
    more:down()
    assert.equal("web3\nweb3\nweb3\n", answer.stdout, answer.stderr)
  end)

  it("says why a host behind a jump host is not reached, and from where", function()
    local more = hosts.up(2)
    local jump, target = more.hosts[1], more.hosts[2]
    fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(jump.identity, jump.known_hosts))
    local function error_at(port, through)
      fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web2, address: %s, port: %d, jump: '%s'}]\n"):format(target.address, port, through)
        .. "process: {command: [./server], ports: [8080]}\n")
      local answer = run { fixture.deployrt(), "exec", "app.yml", "--", "true" }
      assert.equal(2, answer.exit)
      assert.is_nil(answer.stderr:find("not an SSH server", 1, true), answer.stderr)
      return answer.stderr
    end
    local ok, err = pcall(function()
      fixture.contains(error_at(9, jump.address), ("%s:9: not reached from the jump host %s: connection refused, or nobody there"):format(target.address, jump.address))
      fixture.contains(error_at(22, jump.address .. ":9"), ("the jump host %s: %s:9: Connection refused"):format(jump.address, jump.address))
      more:exec(1, "sed 's/^Port .*/Port 2222/; /^PidFile/d; s/^AllowTcpForwarding.*/AllowTcpForwarding no/' /etc/ssh/testbed_config > /run/other "
        .. "&& /usr/sbin/sshd -f /run/other")
      fixture.write(dir .. "/known", ("[%s]:2222 %s\n"):format(jump.address, fixture.read(jump.known_hosts):match(" ([^\n]+)")))
      fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(jump.identity, dir .. "/known"))
      fixture.contains(error_at(22, jump.address .. ":2222"), ": its sshd forwards no connections there (AllowTcpForwarding?)")
      fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(jump.identity, jump.known_hosts))
      more:off(2)
      fixture.contains(error_at(22, jump.address), "the jump host " .. jump.address)
    end)
    more:down()
    assert.is_true(ok, err)
  end)

  it("goes to another port of its own jump host", function()
    bed:exec(1, "sed 's/^Port .*/Port 2222/; /^PidFile/d' /etc/ssh/testbed_config > /run/other && /usr/sbin/sshd -f /run/other")
    local known = fixture.read(host.known_hosts)
    fixture.write(dir .. "/.ssh/config", ("Host *\n  User deploy\n  IdentityFile %s\n  UserKnownHostsFile %s\n"):format(
      host.identity, fixture.write(dir .. "/known", known .. ("[%s]:2222 %s"):format(host.address, known:match(" ([^\n]+)")))))
    fixture.write(dir .. "/app.yml", ("app: shop\nhosts: [{name: web1, address: %s, port: 2222, jump: %s}]\n"):format(host.address, host.address)
      .. "process: {command: [./server], ports: [8080]}\n")
    local answer = run { fixture.deployrt(), "exec", "app.yml", "--", "sh", "-c", "echo ${SSH_CONNECTION##* }" }
    assert.equal("web1 | 2222\n", answer.stdout, answer.stderr)
  end)

  it("opens no more connections at once than it may, and all of them in the end", function()
    local port, log = fixture.free_port(), dir .. "/log"
    fixture.start({ "python3", "-c", silent, port }, { log = log })
    fixture.eventually(function() return fixture.is_listened(port) end, 60, "the listener")
    local ok, codes = core.run(function()
      core.ssh_concurrency(3)
      local tasks, list = {}, {}
      for i = 1, 9 do
        tasks[i] = core.spawn(core.connect, {
          transport = "ssh", name = "web" .. i, address = "127.0.0.1", port = port, user = "deploy", identities = {}, known_hosts = {}, timeout = 0.3,
        })
      end
      for i, task in ipairs(tasks) do list[i] = select(3, task:wait()).code end
      core.ssh_concurrency(64)
      return list
    end)
    assert.is_true(ok, codes)
    assert.equal(("unreachable "):rep(9), table.concat(codes, " ") .. " ")
    fixture.eventually(function() return fixture.read(log):find("%d 9\n$") end, 60, "nine connections")
    assert.equal("3 9\n", fixture.read(log):match("[^\n]*\n$"))
  end)
end)
