-- library/fetch.lua -- Getting a library with luarocks or git. Only its Lua files are taken, and nothing of it is run.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local read = require("deployrt.file").read
local rock = require "deployrt.library.rock"
local version = require "deployrt.library.version"

local fetch = {}

local patience = 300 -- seconds for one command

---@class deployrt.Fetching
---@field controller deployrt.Connection  this machine
---@field dir string   of app.yml, where relative places begin
---@field work string  a directory of its own for what is only needed meanwhile

--- Runs a program in the working directory; what it says is the error's detail.
local function run(job, words, what)
  local result = job.controller:execute(words, { cwd = job.work, timeout = patience, env = { GIT_TERMINAL_PROMPT = "0" } })
  if result.status == 0 and not result.signal then return result.stdout, result.stderr end
  if result.status == 127 then
    errors.raise("library", ("%s needs %s, which is not installed here: apt install %s"):format(what, words[1], words[1]))
  end
  errors.raise("library", what .. " failed", { detail = (result.stdout .. result.stderr):sub(-2000) })
end

--- A place as app.yml has it: a URL, or a directory beside app.yml.
local function place_of(job, text)
  if text:find("^%a[%w+.-]*:") or text:find("^[%w._-]+@[^/]+:") or text:sub(1, 1) == "/" then return text end
  if text:sub(1, 2) == "~/" then return (os.getenv("HOME") or "~") .. text:sub(2) end
  return job.dir .. "/" .. text
end

local function luarocks(job, wanted, words)
  local all = { "luarocks", "--lua-version", "5.4", "--tree", job.work .. "/tree" }
  if wanted.server then table.move({ "--only-server", place_of(job, wanted.server) }, 1, 2, #all + 1, all) end
  return table.move(words, 1, #words, #all + 1, all)
end

--- The newest version of a rock that fits.
local function choose_version(job, wanted)
  local listing, said = run(job, luarocks(job, wanted, { "search", "--porcelain", wanted.rock }), "looking for the rock " .. wanted.rock)
  local best, all, seen = nil, {}, {} -- a version is listed once for each form that the server has of it
  for name, each in listing:gmatch("([^\t\n]+)\t([^\t\n]+)\t[^\n]*") do
    if name == wanted.rock and not seen[each] then
      seen[each] = true
      all[#all + 1] = each
      if version.fits(each, wanted.version) and (not best or version.compare(each, best) > 0) then best = each end
    end
  end
  if best then return best end
  local where = wanted.server or "the servers of luarocks"
  if #all == 0 then errors.raise("library", ("there is no rock '%s' at %s"):format(wanted.rock, where), { detail = said }) end
  errors.raise("library", ("no version of the rock %s fits '%s'; at %s there are: %s"):format(wanted.rock, wanted.version, where, table.concat(all, ", ")))
end

--- Gets the best that the servers have of a version, as LuaRocks sees it: a built rock, else one with its source, else the rockspec.
--- Returns its file's name up to the kind, and the kind.
local function download(job, wanted, chosen, what)
  run(job, luarocks(job, wanted, { "download", wanted.rock, chosen }), what)
  local base = ("%s-%s."):format(wanted.rock:lower(), chosen)
  for _, name in ipairs(core.fs.list(job.work) or {}) do
    if name:sub(1, #base) == base then return base, name:sub(#base + 1) end
  end
  errors.raise("library", what .. ": its server has neither a rock nor a rockspec of it")
end

--- Unpacks a rock, which is a zip; returns where, below the working directory.
local function unpack_rock(job, wanted, file, what)
  rock.check_names(wanted, (run(job, { "unzip", "-Z1", file }, what)))
  run(job, { "unzip", "-qq", "-o", file, "-d", "rock" }, what)
  rock.check_links(wanted, (run(job, { "find", "rock", "!", "-type", "f", "!", "-type", "d" }, what)))
  return "rock"
end

--- Unpacks the archive of a rock's source; returns where. What is a Lua file itself lies there already.
local function unpack_archive(job, directory, name, what)
  if name:find("%.lua$") then return directory end
  local file = directory .. "/" .. name
  run(job, name:find("%.zip$") and { "unzip", "-qq", "-o", file, "-d", "source" }
    or { "sh", "-ec", 'mkdir source && exec tar --force-local -xf "$1" -C source --no-same-owner', "sh", file }, what)
  return "source"
end

--- Copies files to their places in a tree; the words are pairs of both.
local function gather(job, from, words, tree, what)
  local all = { "sh", "-ec", [[
    tree=$1 && cd "$2" && shift 2 && mkdir -p "$tree"
    while [ $# -gt 0 ]; do
      case $2 in */*) mkdir -p "$tree/${2%/*}" ;; esac
      cp -- "$1" "$tree/$2"
      shift 2
    done]], "sh", tree, from }
  run(job, table.move(words, 1, #words, #all + 1, all), what)
end

--- Where the Lua files of a rock that names none lie: in the first of these directories, or at its top.
local function whole(directory)
  local real = core.fs.realpath(directory)
  for _, name in ipairs { "src", "lua", "lib" } do
    if core.fs.realpath(directory .. "/" .. name) == real .. "/" .. name then return directory .. "/" .. name end
  end
  return directory
end

--- Where the source lies that is a directory, or an archive, alone or beside its rockspec.
local function source_inside(job, wanted, found, directory, what)
  local name = rock.source_name(wanted, core.fs.list(job.work .. "/" .. directory))
  if core.fs.stat(("%s/%s/%s"):format(job.work, directory, name)).type ~= "directory" then
    directory = unpack_archive(job, directory, name, what)
  end
  return directory .. "/" .. rock.top(wanted, found, job.work .. "/" .. directory, name)
end

--- Has LuaRocks get the source of a rock, and nothing else; returns where it lies, below the working directory.
local function fetch_source(job, wanted, found, what)
  local text, archive = rock.source_only(wanted, found)
  errors.check(core.fs.write(job.work .. "/library-1-1.rockspec", text))
  run(job, luarocks(job, wanted, { "unpack", "library-1-1.rockspec" }), what)
  if archive then os.rename(("%s/library-1-1/%s"):format(job.work, rock.as_fetched), ("%s/library-1-1/%s"):format(job.work, archive)) end
  return source_inside(job, wanted, found, "library-1-1", what)
end

--- Where the Lua files of a rock's source lie, each in its place.
local function take_source(job, wanted, found, source, what)
  if found.whole then return whole(job.work .. "/" .. source) end
  local tree = job.work .. "/tree"
  gather(job, source, rock.files(wanted, found, job.work .. "/" .. source), tree, what)
  return tree
end

-- Where the Lua files lie, by what the server has.
local takers = {
  rockspec = function(job, wanted, found, _, what) return take_source(job, wanted, found, fetch_source(job, wanted, found, what), what) end,
  ["src.rock"] = function(job, wanted, found, directory, what)
    return take_source(job, wanted, found, source_inside(job, wanted, found, directory, what), what)
  end,
}

--- A built rock has them in their places.
local function take_built(job, wanted, _, directory)
  rock.check_built(wanted, job.work .. "/" .. directory)
  return ("%s/%s/lua"):format(job.work, directory)
end

local function fetch_rock(job, wanted, exact)
  local chosen = exact or choose_version(job, wanted)
  local what = ("fetching the rock %s %s"):format(wanted.rock, chosen)
  local base, kind = download(job, wanted, chosen, what)
  local directory = kind == "rockspec" and "." or unpack_rock(job, wanted, base .. kind, what)
  local text = read(("%s/%s/%srockspec"):format(job.work, directory, base))
  if not text then errors.raise("library", ("%s: %s%s has no %srockspec in it"):format(what, base, kind, base)) end
  local take = takers[kind] or take_built
  return take(job, wanted, rock.read(wanted, text), directory, what), { version = chosen }
end

local function git(job, words, what)
  local all = { "git", "-c", "core.hooksPath=/dev/null", "-c", "core.symlinks=false", "-c", "advice.detachedHead=false" }
  return run(job, table.move(words, 1, #words, #all + 1, all), what)
end

local function fetch_git(job, wanted, exact)
  local what = "fetching " .. wanted.git
  git(job, { "clone", "-q", "--no-checkout", "--", place_of(job, wanted.git), "clone" }, what)
  local asked, commit = exact or wanted.ref or "HEAD", nil
  for _, each in ipairs { asked, "refs/remotes/origin/" .. asked } do -- a branch is only known as the server's
    local ok, found = pcall(git, job, { "-C", "clone", "rev-parse", "-q", "--verify", "--end-of-options", each .. "^{commit}" }, what)
    commit = commit or ok and found:match("^%x+") or nil
  end
  if not commit then errors.raise("library", ("%s has no '%s': no tag, branch or commit is called so"):format(wanted.git, asked)) end
  git(job, { "-C", "clone", "checkout", "-q", "--detach", commit }, what)
  local top = job.work .. "/clone" .. (wanted.path and "/" .. wanted.path or "")
  if not core.fs.stat(top) then errors.raise("library", ("%s has no directory '%s' at %s"):format(wanted.git, wanted.path, asked)) end
  return top, { commit = commit }
end

--- Copies the Lua files of a tree. A link is not followed: with core.symlinks off, git leaves the name that it points to.
local function copy(job, from, to)
  local words = { "sh", "-c", [[
    umask 077 && mkdir -p "$2" && cd "$1" && find . -name .git -prune -o -type f -name '*.lua' -print0 | tar --null -cf - -T - | tar -xf - -C "$2" &&
    find "$2" -type f -exec chmod 600 {} + && find "$2" -type f | grep -q .]], "sh", from, to }
  run(job, words, "copying the Lua files of the library (are there any?)")
end

--- Puts the Lua files of a library into a directory.
---@async
---@param job deployrt.Fetching
---@param wanted deployrt.Requirement
---@param exact? string  the version or commit that it must be; nil: the newest that fits
---@param to string      the directory
---@return {version?: string, commit?: string} taken
--- Raises deployrt.Error: "library".
function fetch.get(job, wanted, exact, to)
  local from, taken = (wanted.rock and fetch_rock or fetch_git)(job, wanted, exact)
  if not core.fs.stat(from) then errors.raise("library", ("the library %s has no Lua files"):format(wanted.name)) end
  copy(job, from, to)
  return taken
end

return fetch
