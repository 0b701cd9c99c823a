-- hosts.lua -- Real test hosts for specs: up, cut off, powered off, and gone again.
local hosts = {}

local script = debug.getinfo(1, "S").source:match("^@(.*/)") .. "testbed.sh"

---@class spec.Host
---@field name string          web1, web2, ...
---@field address string
---@field port integer
---@field user string
---@field identity string      file with the private key
---@field known_hosts string   file with the keys of the bed's hosts
---@field group? string         yours to set

---@class spec.Bed
---@field dir string           all that the bed is; gone after down()
---@field hosts spec.Host[]
local Bed = {}
Bed.__index = Bed

local function quote(text)
  return "'" .. tostring(text):gsub("'", "'\\''") .. "'"
end

local function line_of(...)
  local words = { "sh", quote(script) }
  for _, word in ipairs { ... } do words[#words + 1] = quote(word) end
  return table.concat(words, " ")
end

local function output_of(line)
  local pipe = assert(io.popen(line))
  local text = pipe:read("a")
  local ok, _, status = pipe:close()
  return text, ok and 0 or status
end

--- Runs the script; raises what it says when it fails.
local function testbed(...)
  local text, status = output_of(line_of(...) .. " 2>&1")
  if status ~= 0 then error(("testbed.sh %s: %s"):format((...), text), 0) end
  return text
end

--- Whether this machine lets us make hosts: root, iproute2, util-linux and sshd.
---@return boolean
function hosts.possible()
  local line = "for each in ip nsenter unshare ssh-keygen; do command -v $each || exit 1; done; test -x /usr/sbin/sshd"
  return os.execute("test $(id -u) = 0 && (" .. line .. ") >/dev/null") == true
end

--- Takes a bed down once the specs that made it are ended without doing so: the shell that waits has their process for its parent.
local function end_with_specs(dir)
  os.execute(("(specs=$PPID; while [ -d %s ] && kill -0 $specs; do sleep 1; done; [ ! -d %s ] || %s) </dev/null >/dev/null 2>&1 &"):format(
    quote(dir), quote(dir), line_of("down", dir)))
end

local function new_bed(count, describe, command, ...)
  local dir = output_of("mktemp -d /tmp/deployrt-bed.XXXXXX"):match("%S+")
  end_with_specs(dir)
  local self = setmetatable({ dir = dir, hosts = {}, severed = {} }, Bed)
  testbed(command, dir, count, ...)
  for i = 1, count do
    local host = describe(self, i)
    host.user, host.identity, host.known_hosts = "deploy", dir .. "/id_ed25519", dir .. "/known_hosts"
    self.hosts[i] = host
  end
  return self
end

--- Hosts with addresses, processes and files of their own, behind one bridge. Four take a quarter
--- of a second.
---@param count integer  1 to 200
---@return spec.Bed
function hosts.up(count)
  local net
  return new_bed(count, function(self, i)
    net = net or testbed("address", self.dir, 1):match("^(.*)%.")
    return { name = "web" .. i, address = ("%s.%d"):format(net, 10 + i), port = 22 }
  end, "up")
end

--- The cheap variant: one sshd on this machine's loopback that answers for `count` addresses. They
--- share processes, files and the account, so give each a `dir` of its own. off() and on() of host 1
--- mean all; there is nothing to cut.
---@param count? integer  default 4
---@param port? integer   default: a free one
---@return spec.Bed
function hosts.loopback(count, port)
  port = port or require("spec.support.fixture").free_port()
  return new_bed(count or 4, function(_, i)
    return { name = "web" .. i, address = "127.0.1." .. i, port = port }
  end, "loopback", port)
end

--- Power off: every process ends by SIGKILL and the wire falls silent. Files persist, /tmp and /run do not.
---@param index integer
function Bed:off(index) testbed("off", self.dir, index) end

--- Power on; returns once sshd listens. The boot id is another.
---@param index integer
function Bed:on(index) testbed("on", self.dir, index) end

--- Pulls the network cable; processes run on.
---@param index integer
function Bed:cut(index)
  self.severed[index] = true
  testbed("cut", self.dir, index)
end

---@param index integer
function Bed:mend(index)
  testbed("mend", self.dir, index)
  self.severed[index] = nil
end

--- Mends what a spec has cut and not mended, as one that failed.
function Bed:mend_all()
  for index in pairs(self.severed) do self:mend(index) end
end

--- Drops packets both ways; 0 ends it.
---@param index integer
---@param percent integer
function Bed:lossy(index, percent) testbed("lossy", self.dir, index, percent) end

--- Runs a shell line as root on a host.
---@param index integer
---@param command string
---@return string output   stdout and stderr
---@return integer status
function Bed:exec(index, command)
  return output_of(line_of("exec", self.dir, index, command) .. " 2>&1")
end

--- Runs a shell line as the host's user through the ssh client.
---@param index integer
---@param command string
---@param timeout? integer  seconds to connect in; default 2
---@return string output   stdout and stderr
---@return integer status  255: ssh failed
function Bed:ssh(index, command, timeout)
  local host = self.hosts[index]
  local words = { "ssh", "-F", "none", "-i", host.identity, "-p", host.port, "-o", "IdentitiesOnly=yes",
    "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=" .. (timeout or 2),
    "-o", "UserKnownHostsFile=" .. host.known_hosts, host.user .. "@" .. host.address, command }
  for i, word in ipairs(words) do words[i] = quote(word) end
  return output_of(table.concat(words, " ") .. " </dev/null 2>&1")
end

--- The hosts as a YAML list for app.yml.
---@param some? spec.Host[]  default: all
---@return string
function Bed:yaml(some)
  local list = {}
  for i, host in ipairs(some or self.hosts) do
    local fields = {}
    for _, key in ipairs { "name", "address", "port", "user", "identity", "known_hosts", "group" } do
      if host[key] then fields[#fields + 1] = key .. ": " .. host[key] end
    end
    list[i] = "{" .. table.concat(fields, ", ") .. "}"
  end
  return "[" .. table.concat(list, ", ") .. "]"
end

--- Removes the bed; once more does nothing.
function Bed:down()
  testbed("down", self.dir)
end

return hosts
