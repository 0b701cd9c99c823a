-- hosts.lua -- Real test hosts for specs: up, cut, powered off, and gone again.
local fixture = require "spec.support.fixture"

local hosts = {}

local Bed = {}
Bed.__index = Bed

local function script(...)
  local words = { "sh spec/support/testbed.sh" }
  for _, word in ipairs { ... } do words[#words + 1] = fixture.quote(word) end
  return table.concat(words, " ")
end

--- Whether this machine lets us make hosts.
function hosts.possible()
  return fixture.sh("id -u") == "0\n" and os.execute("command -v ip >/dev/null && command -v unshare >/dev/null && test -x /usr/sbin/sshd")
end

--- Brings up `count` hosts.
function hosts.up(count)
  local self = setmetatable({ dir = fixture.sh("mktemp -d /tmp/deployrt-bed.XXXXXX"):match("%S+"), hosts = {} }, Bed)
  if not os.execute(script("up", self.dir .. "/bed", count)) then
    self:down()
    error("the test hosts did not come up")
  end
  for i = 1, count do
    self.hosts[i] = {
      name = "web" .. i, address = fixture.sh(script("address", self.dir .. "/bed", i)):match("%S+"), user = "deploy",
      identity = self.dir .. "/bed/id_ed25519", known_hosts = self.dir .. "/bed/known_hosts",
    }
  end
  return self
end

for _, name in ipairs { "off", "on", "cut", "mend", "lossy" } do
  Bed[name] = function(self, index, ...) assert(os.execute(script(name, self.dir .. "/bed", index, ...)), name) end
end

--- Runs a command as root on a host; returns its output.
function Bed:exec(index, command)
  return fixture.sh(script("exec", self.dir .. "/bed", index, command) .. " 2>&1")
end

--- The hosts as a YAML list for app.yml.
function Bed:yaml()
  local list = {}
  for i, each in ipairs(self.hosts) do
    list[i] = ("{name: %s, address: %s, user: %s, identity: %s, known_hosts: %s%s}"):format(each.name, each.address, each.user, each.identity,
      each.known_hosts, each.group and ", group: " .. each.group or "")
  end
  return "[" .. table.concat(list, ", ") .. "]"
end

function Bed:down()
  os.execute(script("down", self.dir .. "/bed"))
  os.execute("rm -rf " .. fixture.quote(self.dir))
end

return hosts
