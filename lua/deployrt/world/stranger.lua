-- world/stranger.lua -- Services that were started by hand: looked at, taken over as they run, and let go again.
local cjson = require "cjson"
local core = require "deployrt.core"

local stranger = {}
local json = cjson.new()

local function call(host, ...)
  return host:call("with", { core.adopt_library(), ... })
end

--- Who listens on a port: {pid, start, boot, user, command, obstacle}; nil when nobody does.
function stranger.look(_, host, args)
  local text = call(host, "stranger_show", tostring(args.port))
  local pid, start, boot, user, obstacle, command = text:match("^(%d+)\t(%d+)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\n]*)")
  if not pid then return nil end
  return {
    pid = math.tointeger(pid), start = start, boot = boot, user = user, command = command:gsub("%s+$", ""),
    obstacle = obstacle ~= "" and obstacle or nil,
  }
end

--- Makes an instance of it, if the very process that was seen still has the port.
function stranger.adopt(_, host, args, key)
  local found = args.process
  call(host, "process_adopt", tostring(args.port), tostring(found.pid), found.start, found.boot, key, json.encode(args.launch),
    args.launch.obstacle and "" or "origin")
  return { pid = found.pid }
end

--- The opposite: it runs on, and is none of ours.
function stranger.disown(_, host, args)
  local pid = host:call("process_show", { tostring(args.port) }):match("^%d+\t%l+\t(%d+)")
  call(host, "process_disown", tostring(args.port), pid)
  return {}
end

--- What was adopted once is no longer what a rollback goes back to.
function stranger.forget(_, host)
  call(host, "origins_forget")
  return {}
end

return stranger
