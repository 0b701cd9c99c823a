-- world/release.lua -- Releases on hosts: complete or absent, switched by rename.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local instance = require "deployrt.world.instance"

local release = {}

--- The releases on a host: version -> {sha256, time}.
function release.list(_, host)
  local found = {}
  for version, sum, time in host:call("release_list"):gmatch("([^\t\n]+)\t(%x*)\t(%d+)") do
    found[version] = { sha256 = sum, time = math.tointeger(time) }
  end
  return found
end

--- Brings the archive into a function of the host's library.
local function send(host, archive, call)
  local result = errors.check(host:with_link(function(link)
    return core.pipe {
      from = archive:source(), to = { link = link, library = true, command = call },
      timeout = 3600, hash = false, -- the host compares it
    }
  end))
  if result.from.status ~= 0 then
    errors.raise("archive", ("cannot read %s"):format(archive.path), { host = host.name, detail = result.from.output })
  end
  return result.to
end

--- Streams the archive to a host, where it is checked by SHA-256, unpacked aside, and renamed.
function release.upload(context, host, args)
  local archive = context.archive
  if not archive then
    errors.raise("archive", ("%s lacks release %s, and release.path does not hold it any more: bring its files back, or roll back with `deployrt abort`"):format(
      host.name, args.release), { host = host.name })
  end
  local result = send(host, archive, { "release_receive", args.release, args.sha256, archive.filter })
  if result.status ~= 0 then
    local code, message = result.output:match("([%l_]+): ([^\n]*)")
    local full = result.output:find("No space left", 1, true)
    errors.raise(full and "full" or code or "upload", ("%s: release %s was not unpacked: %s%s"):format(host.name, args.release,
      message or result.output, full and "; make room below " .. host.root or ""), { host = host.name })
  end
  return { bytes = archive.bytes }
end

--- Removes a release from the host; a missing one is fine. One that runs still is refused, unless the run itself started it
--- and a copy of its journal that lags knows nothing of that.
function release.remove(context, host, args)
  local words = { args.release }
  local ok, err = pcall(host.call, host, "release_remove", words, 120)
  if not ok and err.code ~= "busy" then error(err, 0) end
  if not ok then
    instance.end_own(context, host, args.release)
    host:call("release_remove", words, 120)
  end
  return {}
end

--- The version that `current` points to; false for none.
function release.current(_, host)
  local version = host:call("current_get")
  return { release = version ~= "" and version or false }
end

--- Lets `current` point to a release, or to none.
function release.activate(_, host, args)
  host:call("current_set", { args.release or "" })
  return {}
end

return release
