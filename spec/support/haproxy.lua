-- haproxy.lua -- A user's own HAProxy for specs, in a directory of its own.
local machine = require "spec.support.machine"

local haproxy, HAProxy = {}, {}
HAProxy.__index = HAProxy

--- A user's own HAProxy in a directory of its own.
---@param opts {backend?: string, servers: string[], check?: string[], after?: string[], level?: string, listen?: integer, master?: boolean}
---  servers: the rest of each `server` line; check: lines of the backend; after: what follows it; listen: default a free port; master: with -W, for reload()
function haproxy.start(opts)
  local self = setmetatable({ dir = machine.dir(), port = opts.listen or machine.free_port() }, HAProxy)
  self.socket, self.backend, self.master = self.dir .. "/admin.sock", opts.backend or "shop", opts.master
  local lines = {
    "global", ("  stats socket %s mode 600 level %s expose-fd listeners"):format(self.socket, opts.level or "admin"),
    "defaults", "  mode http", "  timeout connect 2s", "  timeout client 30s", "  timeout server 30s",
    "  option redispatch 1", "  retries 3", "frontend in", "  bind 127.0.0.1:" .. self.port,
    "  default_backend " .. self.backend, "backend " .. self.backend, "  balance roundrobin",
  }
  for _, line in ipairs(opts.check or {}) do lines[#lines + 1] = "  " .. line end
  for _, server in ipairs(opts.servers) do lines[#lines + 1] = "  server " .. server end
  for _, line in ipairs(opts.after or {}) do lines[#lines + 1] = line end
  self.config = machine.write(self.dir .. "/haproxy.cfg", table.concat(lines, "\n") .. "\n")
  self:start()
  return self
end

function HAProxy:start()
  os.remove(self.socket)
  local argv = { "/usr/sbin/haproxy", self.master and "-W" or "-db", "-f", self.config }
  self.pid = machine.start(argv, { log = self.dir .. "/log" })
  local function is_up() return machine.is_listened(self.port) and os.execute("test -S " .. self.socket) end
  local ok, problem = pcall(machine.eventually, is_up, 20, "HAProxy of the spec")
  if not ok then error(problem .. ": " .. (machine.read(self.dir .. "/log") or ""), 2) end
end

--- Says commands to the admin socket; returns the answer.
---@param commands string  with `;` between
function HAProxy:command(commands)
  return machine.sh(("printf '%%s\\n' %s | socat -t 5 - UNIX-CONNECT:%s"):format(machine.quote(commands), self.socket))
end

--- Kills it and starts it anew; what was changed at runtime is lost.
function HAProxy:restart()
  self:kill()
  self:start()
end

--- Reads the configuration file anew, as `systemctl reload` does; only with master. Returns once a new worker serves.
function HAProxy:reload()
  assert(self.master, "reload needs a HAProxy with `master = true`")
  local before, asked = self:worker(), 0
  machine.eventually(function()
    if self:worker() ~= before then return true end
    if os.time() - asked >= 5 then -- a master that is still starting does not hear it
      asked = os.time()
      machine.signal(self.pid, "USR2")
    end
  end, 10, "reload of HAProxy")
end

--- The process that answers on the admin socket.
function HAProxy:worker()
  return self:command("show info"):match("\nPid: (%d+)") or nil
end

--- Its processes: the master, and the workers that it has now.
function HAProxy:pids()
  local workers = machine.sh(("cat /proc/%s/task/%s/children 2>/dev/null"):format(self.pid, self.pid))
  return (self.pid .. " " .. workers):gmatch("%d+")
end

function HAProxy:kill()
  for pid in self:pids() do
    machine.signal(pid, "KILL")
    machine.eventually(function() return not machine.alive(pid) end)
  end
end

--- Ends it; a master that has not learned its signals yet leaves its workers behind.
function HAProxy:stop()
  for pid in self:pids() do machine.stop(pid) end
end

return haproxy
