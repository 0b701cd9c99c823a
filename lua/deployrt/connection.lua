-- connection.lua -- A host that stays usable: one link, dialled again when it is lost, and what can be asked of it.
local core = require "deployrt.core"
local endpoint = require "deployrt.balancer.endpoint"
local errors = require "deployrt.errors"
local session_command = require "deployrt.session_command"
local ssh = require "deployrt.ssh"
local variables = require "deployrt.variables"

---@class deployrt.Connection
---@field name string
---@field is_local boolean
---@field root string     the application's directory there, absolute once connected
---@field away? deployrt.Error  why it is not to be had: it is not asked again
---@field machine? string  the same for two connections to one machine; containers are machines; nil: it cannot be told
local Connection = {}
Connection.__index = Connection

local connection = {}

local retry_for = 20 -- seconds in which a lost connection is dialled again before the host counts as gone
local call_timeout = 30
local uncopied = 64 -- added to the status of a call by the host that had no room for the copy of the journal
local longest_hold = 30 -- seconds after which a lock is given up, whatever became of who has it

local function is_here(entry)
  return entry.address == nil or entry.transport == "local"
end

--- Where balancers reach the ports of a host.
---@param entry table  an entry of app.hosts
---@param read? fun(path: string): table[]  an ssh_config.reader(), for who asks about many hosts
---@return string
function connection.address(entry, read)
  return is_here(entry) and (entry.address or "127.0.0.1") or ssh.address(entry, read)
end

---@param entry table  an entry of app.hosts
---@param app string
---@param dial? fun(entry: table, opts: {root: string}): deployrt.Link?, deployrt.Error?  default: over SSH or a local pipe
---@return deployrt.Connection
function connection.new(entry, app, dial)
  return setmetatable({
    dial = dial or ssh.connect, name = entry.name, entry = entry, is_local = is_here(entry), root = (entry.dir or ".deployrt") .. "/" .. app,
  }, Connection)
end

--- The open link; dials when there is none. One task dials, the others wait for it.
---@async
function Connection:link()
  if self.away then return nil, self.away end
  while self.dialling do self.dialling:wait() end
  if self.open_link and self.open_link:state() == "open" then return self.open_link end
  self.dialling = core.event()
  if self.open_link then self.open_link:close() end
  self.open_link = nil
  local ok, link, err, hop = pcall(self.dial, self.entry, { root = self.root })
  if not ok then link, err = nil, errors.wrap(link) end
  self.open_link, self.hop = link, hop or self.hop
  self.dialling:set()
  self.dialling = nil
  return link, err
end

--- Does `action(link)` and, when the connection is lost meanwhile, again on a new one until the deadline.
--- What it does must be safe to repeat.
function Connection:with_link(action, patience)
  local deadline, pause = core.now() + (self.gone and 0 or patience or retry_for), 0.1
  while true do
    local link, err = self:link()
    if link then
      local result = table.pack(action(link))
      err = result[2]
      if result[1] ~= nil or type(err) ~= "table" then
        self.gone = false
        return table.unpack(result, 1, result.n)
      end
    end
    if not errors.is_gone(err) or core.now() + pause > deadline then
      err.host = self.name
      self.gone = errors.is_gone(err) -- so that each further operation tries only once
      return nil, err
    end
    local slept, canceled = core.sleep(pause)
    if not slept then return nil, canceled end
    pause = math.min(pause * 2, 2)
  end
end

--- Connects, and learns where things are there. Fails at once when the host is not to be had.
---@async
function Connection:connect()
  local answer = errors.check(self:with_link(function(link) return link:call("facts", {}, 15) end, 0))
  local root, home, boot, user, node, last = answer:match("^(/[^\t\n]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\n]*)")
  if not root then
    local noise = answer:match("^(.*\n)/[^\t\n]*\t")
    errors.raise("shell", noise and ("its shell prints %q before it does anything: have ~/.bashrc and its like be silent for commands"):format(noise:sub(1, 100))
      or "its shell does not understand us: " .. answer, { host = self.name })
  end
  self.root, self.home, self.boot, self.user, self.last_run = root, home, boot, user, last
  self.machine = boot ~= "unknown" and node ~= "" and boot .. " " .. node or nil
end

--- A call as the controller of a run makes it: with the run's epoch, and with what the copy of its journal lacks.
local function guarded(self, name, arguments)
  local words = { self.guard.run, self.guard.epoch, self.mirror and self.mirror:take() or "", name }
  table.move(arguments or {}, 1, arguments and #arguments or 0, #words + 1, words)
  return words
end

local function ask(self, link, name, arguments, timeout)
  if not self.guard then return link:call(name, arguments, timeout) end
  local mark = self.mirror and self.mirror.sent
  local words = guarded(self, name, arguments)
  local answer, status = link:call("as", words, timeout)
  local lags = answer and status >= uncopied
  if mark and (lags or answer == nil) then self.mirror:put_back(mark) end
  return answer, lags and status - uncopied or status
end

--- Calls a function of the host library; raises with the code that it answers.
---@async
---@param name string
---@param arguments? string[]
---@param timeout? number  seconds
---@param what? string  whose answer is waited for, as its user knows it; default: the name
---@return string output
--- Raises deployrt.Error: "timeout", "lost", "unreachable", or what the host says.
function Connection:call(name, arguments, timeout, what)
  timeout = timeout or call_timeout
  local output, status = errors.check(self:with_link(function(link)
    local answer, problem = ask(self, link, name, arguments, timeout)
    if answer == nil and problem.code == "timeout" then problem.message = ("%s: no answer within %gs"):format(what or name, timeout) end
    return answer, problem
  end))
  if status == 0 then return output end
  local code, message = output:match("([%l_]+): ([^\n]*)\n?$")
  errors.raise(code or "host", message or (name .. ": " .. output), { host = self.name, detail = not code and output or nil })
end

--- A command and its options, with variables that shells pass on.
local function passable(argv, opts)
  local env, words = variables.passable(opts and opts.env, argv)
  return words, setmetatable({ env = env }, { __index = opts })
end

--- Runs a command once, and waits for it; its end is told apart by status and signal.
---@async
---@param argv string[]
---@param opts? {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string}
---@return {status: integer, signal?: string, stdout: string, stderr: string}
function Connection:execute(argv, opts)
  local link = errors.check(self:link())
  return errors.check(link:exec(passable(argv, opts)))
end

--- The same for one that may last: when its task is canceled, or its time is over, it is ended with all that it started.
---@async
---@param argv string[]
---@param opts? {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string, begun?: fun(pid: integer), output?: fun(which: 1|2, text: string): boolean}
---  begun: it runs, and its pid is that of its session; output: takes what it writes, as it comes, and the result lacks it;
---  when it returns false the command is ended
---@return deployrt.ExecResult? result
---@return deployrt.Error? err
---@return "ended"|"left"|nil cut  what became of it where it was not waited for; left: it may run still; nil: it had ended by itself
function Connection:attend(argv, opts)
  local link, err = self:link()
  if not link then return nil, err end
  return session_command.run(self, link, passable(argv, opts))
end

--- A directory there, as a script names it: below the application's.
local function directory_of(self, cwd)
  if not cwd then return self.root end
  return cwd:sub(1, 1) == "/" and cwd or self.root .. "/" .. cwd
end

--- Runs a command that survives the connection: a lost one is dialled again and asked for the outcome.
---@async
---@param key string    names this execution; the same key never runs twice
---@param argv string[]
---@param opts? {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string}
---@return {status: integer, signal?: integer, stdout: string, stderr: string}
function Connection:execute_once(key, argv, opts)
  local what = ("`%s`"):format(errors.clip(core.quote(argv)))
  argv, opts = passable(argv, opts)
  local words = { key, directory_of(self, opts.cwd), opts.stdin or "" }
  for name, value in pairs(opts.env) do words[#words + 1] = name .. "=" .. value end
  words[#words + 1] = "--"
  table.move(argv, 1, #argv, #words + 1, words)
  local timeout = opts.timeout or 600
  local ok, answer = pcall(self.call, self, "operation_run", words, timeout, what)
  if not ok then
    if answer.code == "timeout" then self:call("operation_stop", { key }) end
    error(answer, 0)
  end
  local status, signal, out_length, rest = answer:match("^(%d+)\t(%d*)\t(%d+)\t%d+\n()")
  return {
    status = math.tointeger(status), signal = math.tointeger(signal),
    stdout = answer:sub(rest, rest + out_length - 1), stderr = answer:sub(rest + out_length),
  }
end

--- Writes a small file, aside and renamed.
---@async
function Connection:write(path, text, mode)
  self:call("file_write", { path, mode or "600", text })
end

--- Reads a small file; nil when there is none.
---@async
function Connection:read(path)
  local ok, text = pcall(self.call, self, "file_read", { path })
  if ok then return text end
  if text.code == "missing" then return nil end
  error(text, 0)
end

--- Sends a request to a socket that is reached from the host, and returns all that comes back.
---@async
---@param address string   "/path", "127.0.0.1:9999" or "localhost:9999"
---@param request string
---@param timeout? number
---@return string
function Connection:talk(address, request, timeout)
  local where, port = endpoint.parse(address)
  local link = errors.check(self:link())
  return errors.check(link:talk(where, port, request, { timeout = timeout or 10 }))
end

--- Has the lock of a directory for as long as its standard input is open; says so when it has, or when the host knows no locks.
local holder = 'umask 077; mkdir -p -- "$1"; exec 9< "$1" && flock 9; echo; exec timeout "$2" cat > /dev/null'

--- Does `action(...)` while no other controller does something under the same lock, which ends with the connection of who has
--- it. Who does not get it in the time that it may be held goes on without.
---@async
---@param directory string  made where there is none
---@param action fun(...): ...
---@return any ...
function Connection:alone(directory, action, ...)
  local link = errors.check(self:link())
  local stream <close> = link:stream({ "/bin/sh", "-c", holder, "sh", directory, tostring(longest_hold) }, { open_stdin = true })
  local said, err = stream:read(longest_hold)
  if said == nil and err.code ~= "timeout" then error(err, 0) end
  return action(...)
end

--- Whether a TCP connection from the host to an address succeeds.
---@async
---@param address string
---@param port integer
---@param timeout number  seconds
---@return boolean
---@return deployrt.Error? why_not
function Connection:reaches(address, port, timeout)
  local link, err = self:link()
  local ok = false
  if link then ok, err = link:dial(address, port, timeout) end
  return ok == true, err
end

function Connection:close()
  if self.open_link then self.open_link:close() end
  if self.hop then self.hop:close() end
  self.open_link, self.hop = nil, nil
end

return connection
