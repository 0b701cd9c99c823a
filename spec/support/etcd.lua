-- etcd.lua -- A cluster of real etcd members on loopback, each in a directory of its own.
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"

local etcd = {}
local Cluster = {}
Cluster.__index = Cluster

local function output(command)
  local pipe <close> = assert(io.popen(command))
  return pipe:read("l")
end

local function free_ports(count)
  local found = {}
  for i = 1, count do found[i] = fixture.free_port() end
  return found
end

--- Starts a cluster and waits until all its members answer.
---@param size? integer  default 3
function etcd.start(size)
  size = size or 3
  local self = setmetatable({ directory = output("mktemp -d /tmp/deployrt-etcd.XXXXXX"), members = {}, endpoints = {} }, Cluster)
  local ports, peers = free_ports(2 * size), {}
  for i = 1, size do
    self.members[i] = { name = "m" .. i, client = ports[i], peer = ports[size + i] }
    self.endpoints[i] = "127.0.0.1:" .. ports[i]
    peers[i] = ("m%d=http://127.0.0.1:%d"):format(i, ports[size + i])
  end
  self.peers = table.concat(peers, ",")
  for i = 1, size do self:start(i) end
  for i = 1, size do self:await(i) end
  return self
end

--- Starts a member, or starts it again with what it had on its disk.
function Cluster:start(i)
  local member = self.members[i]
  member.pid = output(("cd %s && exec 3>&1 && { etcd --name %s --data-dir %s --listen-client-urls http://127.0.0.1:%d "
    .. "--advertise-client-urls http://127.0.0.1:%d --listen-peer-urls http://127.0.0.1:%d "
    .. "--initial-advertise-peer-urls http://127.0.0.1:%d --initial-cluster %s --initial-cluster-token %s "
    .. "--heartbeat-interval 50 --election-timeout 500 < /dev/null >> %s.log 2>&1 3>&- & echo $! >&3; }"):format(
    self.directory, member.name, member.name, member.client, member.client, member.peer, member.peer, self.peers,
    self.directory:match("[^/]+$"), member.name))
end

--- Waits until a member answers and knows a leader.
function Cluster:await(i)
  local deadline = core.now() + 20
  local url = ("http://127.0.0.1:%d/health"):format(self.members[i].client)
  local ok, err = core.run(function()
    repeat
      local response = core.http.request { url = url, timeout = 1, no_reuse = true }
      if response and response.body:find('"true"', 1, true) then return end
      core.sleep(0.05)
    until core.now() > deadline
    error(("member %d of etcd does not become healthy, see %s"):format(i, self.directory), 0)
  end)
  assert(ok, err)
end

local function signal(member, name)
  os.execute(("kill -%s %s 2>/dev/null"):format(name, member.pid))
end

--- Kills a member.
function Cluster:kill(i)
  local member = self.members[i]
  if not member.pid then return end
  signal(member, "KILL")
  os.execute(("while [ -d /proc/%s/fd ] && ls -A /proc/%s/fd 2>/dev/null | grep -q .; do :; done"):format(member.pid, member.pid))
  member.pid = nil
end

--- Holds a member still, or lets it go on: it accepts connections and does not answer.
function Cluster:freeze(i) signal(self.members[i], "STOP") end
function Cluster:thaw(i) signal(self.members[i], "CONT") end

--- An endpoint before a member that passes requests on and no answers back.
---@return {endpoint: string, stop: fun(self: table)}
function Cluster:one_way(i)
  local port = free_ports(1)[1]
  local pid = output(("exec 3>&1; { socat -u TCP-LISTEN:%d,bind=127.0.0.1,fork,reuseaddr TCP:127.0.0.1:%d < /dev/null "
    .. "> /dev/null 2>&1 3>&- & echo $! >&3; }"):format(port, self.members[i].client))
  local listens = ("grep -c ':%04X 00000000:0000 0A' /proc/net/tcp"):format(port)
  local deadline = core.now() + 5
  while output(listens) == "0" do assert(core.now() < deadline, "socat does not listen") end
  return { endpoint = "127.0.0.1:" .. port, stop = function() os.execute("kill " .. pid .. " 2>/dev/null") end }
end

--- Starts what is not running, and waits for all.
function Cluster:heal()
  for i, member in ipairs(self.members) do
    if member.pid then self:thaw(i) else self:start(i) end
  end
  for i in ipairs(self.members) do self:await(i) end
end

--- Kills all members and removes what they left.
function Cluster:stop()
  for i in ipairs(self.members) do self:kill(i) end
  os.execute("rm -rf " .. self.directory)
end

return etcd
