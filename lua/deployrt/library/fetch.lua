-- library/fetch.lua -- Getting a library with luarocks or git. Only its Lua files are taken, and nothing of it is run.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local sandbox = require "deployrt.sandbox"
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

--- Refuses a rock that would run programs or compile while it is installed, or that needs others.
local function check_rockspec(wanted, text)
  local spec = {}
  sandbox.run(text, wanted.rock .. ".rockspec", spec)
  local build = type(spec.build) == "table" and spec.build or {}
  local kind = build.type or "builtin"
  local problem = kind ~= "builtin" and kind ~= "module" and kind ~= "none" and ("builds with '%s'"):format(tostring(kind)) or nil
  for name, path in pairs(type(build.modules) == "table" and build.modules or {}) do
    if type(path) ~= "string" or not path:find("%.lua$") then problem = ("has a module that is not Lua (%s)"):format(tostring(name)) end
  end
  for _, each in ipairs(type(spec.dependencies) == "table" and spec.dependencies or {}) do
    local name = tostring(each):match("^[^%s<>=~]+")
    if name ~= "lua" then problem = ("depends on '%s'; name that in app.yml's require too, and leave it out of the rockspec"):format(tostring(name)) end
  end
  if problem then errors.raise("library", ("the rock %s %s: a library of strategies is Lua only"):format(wanted.rock, problem)) end
end

local function fetch_rock(job, wanted, exact)
  local chosen = exact or choose_version(job, wanted)
  local what = ("fetching the rock %s %s"):format(wanted.rock, chosen)
  run(job, luarocks(job, wanted, { "download", "--rockspec", wanted.rock, chosen }), what)
  local path = ("%s/%s-%s.rockspec"):format(job.work, wanted.rock:lower(), chosen)
  local file <close> = io.open(path, "rb")
  if not file then errors.raise("library", what .. ": its server has no rockspec of it") end
  check_rockspec(wanted, file:read("a"))
  run(job, luarocks(job, wanted, { "install", "--no-doc", "--deps-mode", "none", wanted.rock, chosen }), what)
  return job.work .. "/tree/share/lua/5.4", { version = chosen }
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
    umask 077 && mkdir -p "$2" && cd "$1" && find . -name .git -prune -o -type f -name '*.lua' -print | tar -cf - -T - | tar -xf - -C "$2" &&
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
