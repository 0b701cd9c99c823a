-- load.lua -- Requests against a port, and what became of them.
local cjson = require "cjson"
local machine = require "spec.support.machine"

--- Whether a load is ready for signals; before that they would end it.
local function blocks_usr1(pid)
  local mask = (machine.read("/proc/" .. pid .. "/status") or ""):match("SigBlk:%s*(%x+)")
  return mask ~= nil and tonumber(mask:sub(-8), 16) & 0x200 ~= 0
end

local load, Load = {}, {}
Load.__index = Load

--- Starts requests against a port.
---@param opts {port: integer, address?: string, connections?: integer, keepalive?: boolean, rate?: number, path?: string}
function load.start(opts)
  local log = os.tmpname()
  local argv = { machine.compile("spec/support/load.c", "build/spec/load"), "--port", opts.port, "--connections", opts.connections or 8, "--rate", opts.rate or 1000 }
  if opts.path then table.move({ "--path", opts.path }, 1, 2, #argv + 1, argv) end
  if opts.address then table.move({ "--address", opts.address }, 1, 2, #argv + 1, argv) end
  if opts.keepalive == false then argv[#argv + 1] = "--no-keepalive" end
  local self = setmetatable({ pid = machine.start(argv, { log = log }), log = log }, Load)
  machine.eventually(function() return blocks_usr1(self.pid) end, 5, "start of the load")
  return self
end

--- Ends the load and returns its numbers: requests, failed, retried, versions, errors, p50_ms, p99_ms.
function Load:stop()
  machine.signal(self.pid, "TERM")
  machine.eventually(function() return not machine.alive(self.pid) end, 15, "end of the load")
  local line = machine.read(self.log):match("({[^\n]*})%s*$")
  os.remove(self.log)
  return cjson.decode(line)
end

--- The numbers so far.
function Load:numbers()
  local before = #machine.read(self.log)
  machine.signal(self.pid, "USR1")
  machine.eventually(function() return #machine.read(self.log) > before end, 5, "numbers of the load")
  return cjson.decode(machine.read(self.log):match("({[^\n]*})%s*$"))
end

return load
