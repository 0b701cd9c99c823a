-- plain_host.lua -- A host for specs of balancers: this machine, by stock Lua and socat.
local machine = require "spec.support.machine"

local plain_host = {}
plain_host.__index = plain_host

--- A host whose directory is a fresh temporary one.
---@param root? string
function plain_host.new(root)
  local pipe <close> = assert(io.popen("mktemp -d /tmp/deployrt-plain.XXXXXX"))
  local directory = pipe:read("l")
  local self = { name = "here", directory = directory, root = root or directory .. "/app" }
  return setmetatable(self, plain_host)
end

local function quote(word)
  return "'" .. tostring(word):gsub("'", "'\\''") .. "'"
end

local function slurp(path)
  local file <close> = io.open(path, "rb")
  return file and file:read("a")
end

function plain_host:execute(argv, opts)
  local words, base = {}, os.tmpname()
  for i, word in ipairs(argv) do words[i] = quote(word) end
  local input = "/dev/null"
  if opts and opts.stdin then
    input = base .. ".in"
    local file <close> = assert(io.open(input, "wb"))
    file:write(opts.stdin)
  end
  local line = ("%s < %s > %s.out 2> %s.err"):format(table.concat(words, " "), input, base, base)
  local _, how, status = os.execute(line)
  local result = { stdout = slurp(base .. ".out"), stderr = slurp(base .. ".err"), status = status }
  if how == "signal" then result.status, result.signal = 0, status end
  for _, suffix in ipairs { "", ".in", ".out", ".err" } do os.remove(base .. suffix) end
  return result
end

local codes = { { "No such file", "missing" }, { "refused", "refused" }, { "Permission denied", "denied" } }

function plain_host:talk(address, text, timeout)
  self.requests = (self.requests or 0) + 1
  self.last_request = text
  local target = (address:sub(1, 1) == "/" and "UNIX-CONNECT:" or "TCP:") .. address
  local result = self:execute({ "timeout", timeout or 10, "socat", "-t", "60", "-", target }, { stdin = text })
  if result.status == 124 then error({ code = "timeout", message = "no answer" }, 0) end
  if result.status == 0 then return result.stdout end
  for _, entry in ipairs(codes) do
    if result.stderr:find(entry[1], 1, true) then error({ code = entry[2], message = result.stderr }, 0) end
  end
  error({ code = "lost", message = result.stderr }, 0)
end

function plain_host:reaches(address, port, timeout)
  local target = ("TCP:%s:%d"):format(address, port)
  local result = self:execute { "timeout", tostring(timeout), "socat", "-u", "/dev/null", target }
  return result.status == 0, result.stderr
end

function plain_host:write(path, text, mode)
  self:execute { "mkdir", "-p", path:match("^(.*)/") }
  local part = path .. ".part"
  do
    local file <close> = assert(io.open(part, "wb"))
    file:write(text)
  end
  self:execute { "chmod", mode or "600", part }
  assert(os.rename(part, path))
end

function plain_host:alone(_, action, ...)
  return action(...)
end

function plain_host:read(path)
  return slurp(path)
end

--- Starts a process in the background; returns its pid and the file that its output goes to.
---@param argv string[]
---@return string pid
---@return string log
function plain_host:spawn(argv)
  self.pids = self.pids or {}
  local log = ("%s/spawn-%d.log"):format(self.directory, #self.pids + 1)
  self.pids[#self.pids + 1] = machine.start(argv, { cwd = self.directory, log = log })
  return self.pids[#self.pids], log
end

--- Ends what spawn started and removes the directory.
function plain_host:close()
  for _, pid in ipairs(self.pids or {}) do machine.signal(pid, "KILL") end
  self:execute { "rm", "-rf", self.directory }
end

return plain_host
