-- config.lua -- From app.yml to the table that the runtime works with; every error has its place.
local check = require "deployrt.config.check"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local rules = require "deployrt.config.rules"
local schema = require "deployrt.schema"
local source = require "deployrt.config.source"

local config = {}

local most_shown = 20

---@class deployrt.App  app.yml, checked and normalized; durations in seconds
---@field app string
---@field file string   as given
---@field dir string    absolute directory of the file
---@field release {path?: string, version?: string, keep: integer}  path is absolute
---@field hosts {name: string, address?: string, port?: integer, user?: string, identity?: string, group?: string,
---  transport: string, dir: string, known_hosts?: string, jump?: string}[]
---@field inventory? {command: string|string[], release?: string|string[]}  where the hosts come from, if not from app.yml
---@field groups? deployrt.HostGroups
---@field all_hosts table[]  also those that --host leaves out: balancers know their slots
---@field process {command: string[], env?: table<string,string>, secrets?: table<string,string>, ports: integer[],
---  instances: integer, supervisor: string, adopt?: boolean, stop: {signal: string, timeout: number}}
---@field health {http?: string, tcp?: boolean, command?: string[], status?: integer|table, body?: string,
---  interval: number, timeout: number, successes: integer, deadline: number}
---@field balancers table[]  each with type and drain.timeout; empty when there is none
---@field strategy table  options as written
---@field require deployrt.Requirement[]  shared libraries
---@field files table<string, string>  the texts that it comes from, by path, without the secrets that stand in them
---@field settings string[]  the same of `--set`
---@field hooks? table<string, string|string[]>
---@field place fun(path: string): string, deployrt.config.Mark?  "process.command" gives "app.yml:7:3"

--- Collects failures, and raises all of them as one error.
local function new_collector(tree)
  local problems = {}
  local function add(mark, message)
    problems[#problems + 1] = { mark = mark, nth = #problems, message = message, text = ("%s: %s"):format(source.text(mark, tree.file), message) }
  end
  local function at(mark)
    return {
      null = core.yaml.null, refuse = schema.refusal,
      fail = function(message) add(mark, message) end,
      failures = function() return #problems end,
      source = function() return mark and mark.source end,
      child = function(node, key) return at((tree.marks[node] or {})[key] or mark) end,
    }
  end
  return problems, at(nil), add
end

--- In the order of the file; what has no place comes first.
local function earlier(a, b)
  local one, other = a.mark or {}, b.mark or {}
  for _, key in ipairs { "order", "line", "column" } do
    local x, y = one[key] or 0, other[key] or 0
    if x ~= y then return x < y end
  end
  return a.nth < b.nth
end

--- A key whose value is wrong is not missing besides.
local function without_echoes(problems)
  local wrong, list = {}, {}
  for _, problem in ipairs(problems) do wrong[problem.message:match("^([%w_.%[%]]+): ") or ""] = true end
  for _, problem in ipairs(problems) do
    if not wrong[problem.message:match("^([%w_.%[%]]+) is missing")] then list[#list + 1] = problem end
  end
  return list
end

local function raise_all(problems)
  if #problems == 0 then return end
  table.sort(problems, earlier)
  local lines, seen = {}, {}
  for _, problem in ipairs(without_echoes(problems)) do
    if not seen[problem.text] then lines[#lines + 1] = problem.text end
    seen[problem.text] = true
  end
  local shown = table.move(lines, 1, math.min(#lines, most_shown), 1, {})
  if #lines > most_shown then shown[#shown + 1] = ("... and %d more"):format(#lines - most_shown) end
  errors.raise("config", table.concat(shown, "\n"), { problems = lines })
end

local function absolute(path, directory)
  if path:sub(1, 2) == "~/" then return (os.getenv("HOME") or "~") .. path:sub(2) end
  return path:sub(1, 1) == "/" and path or directory .. "/" .. path
end

local words = { strict = true, ["accept-new"] = true } -- of known_hosts, and no files

--- Files that hosts name are beside app.yml, as all others are.
local function find_files(hosts, directory)
  for _, entry in ipairs(hosts or {}) do
    for _, key in ipairs { "identity", "known_hosts" } do
      local path = entry[key]
      if path and not words[path] and not path:find("^~") then entry[key] = absolute(path, directory) end
    end
  end
end

--- A function that gives the directory of the file that names a path: what is extended may lie elsewhere than what extends it.
local function directories(app, tree)
  return function(path)
    local mark = tree:find(path)
    local file = mark and tree.files[mark.file] and mark.file
    return file and core.fs.realpath(file:match("^(.*/)[^/]*$") or ".") or app.dir
  end
end

--- Paths become absolute where they are not beside app.yml; the others are found from there by whoever reads them.
local function find_elsewhere(app, directory_of)
  for i, balancer in ipairs(app.balancers) do
    local name = #app.balancers > 1 and ("balancer[%d]"):format(i) or "balancer"
    local directory, type_name = directory_of(name .. ".type"), balancer.type or ""
    if directory ~= app.dir and type_name:find("%.lua$") then balancer.type = absolute(type_name, directory) end
    balancer.maintenance = balancer.maintenance and absolute(balancer.maintenance, directory_of(name .. ".maintenance"))
  end
  local secrets = app.process and app.process.secrets or {}
  for name, text in pairs(secrets) do
    local directory = directory_of("process.secrets." .. name)
    if directory ~= app.dir then
      secrets[name] = text:gsub("%${file:([^}]*)}", function(path) return ("${file:%s}"):format(absolute(path, directory)) end)
    end
  end
end

--- What a checked tree still lacks: shapes, combinations, paths.
local function finish(app, tree, add)
  local function fail(path, message) add(tree:find(path), message) end
  local function given(path)
    local node = tree.root
    for key in path:gmatch("[^.]+") do node = type(node) == "table" and node[key] or nil end
    return node ~= nil and node ~= core.yaml.null
  end
  app.file, app.dir = tree.file, core.fs.realpath(tree.file:match("^(.*/)[^/]*$") or ".") or "."
  rules.hosts(app, fail)
  rules.balancers(app, fail)
  local directory_of = directories(app, tree)
  find_elsewhere(app, directory_of)
  rules.process(app, fail)
  rules.capacity(app, fail)
  rules.health(app, fail, given)
  rules.libraries(app, fail)
  app.strategy = app.strategy or {}
  if not app.inventory then find_files(app.hosts, directory_of "hosts") end
  local release = app.release
  if release and release.path then release.path = absolute(release.path, directory_of "release.path") end
end

--- Hosts that a command printed, checked as those of app.yml are.
---@param text string
---@param label string  for messages
---@param directory string  of app.yml
---@return table[]  as app.hosts
--- Raises deployrt.Error: "config".
function config.hosts(text, label, directory)
  local list, marks = core.yaml.parse(text, label)
  if type(list) ~= "table" then
    errors.raise("config", ("%s: it prints what is no list of hosts: %s"):format(label, list == nil and marks.message or tostring(list)), { detail = text:sub(1, 500) })
  end
  local tree = source.printed("hosts", list, marks, label)
  local problems, at, add = new_collector(tree)
  local app = check.value(tree.root, { type = "object", keys = { hosts = schema.hosts } }, at, "")
  rules.hosts(app, function(path, message) add(tree:find(path), message) end)
  raise_all(problems)
  find_files(app.hosts, directory)
  return app.hosts
end

--- Keeps only the hosts that are named.
---@param app deployrt.App
---@param names string[]
---@return string? problem
function config.keep_hosts(app, names)
  return rules.keep_hosts(app, names)
end

--- Reads and checks app.yml; `--set`, `--release` and `--host` of the command line come on top.
---@param path string
---@param opts? {set?: string[], release?: string, hosts?: string[], parse?: function, kept?: table<string, string>}
---@return deployrt.App
--- Raises deployrt.Error: "config", whose message has a line for each thing that is wrong, and `problems` all of them.
function config.load(path, opts)
  opts = opts or {}
  local tree = source.open(path, opts.parse or core.yaml.parse, opts.kept)
  for _, text in ipairs(opts.set or {}) do tree:set(text, schema.root) end
  if opts.release then tree:set_release(opts.release) end
  local problems, at, add = new_collector(tree)
  local app = check.value(tree.root, schema.root, at, "")
  finish(app, tree, add)
  app.files, app.settings = tree.files, tree.settings
  raise_all(problems)
  function app.place(where)
    local mark = tree:find(where)
    return source.text(mark, path), mark
  end
  local problem = opts.hosts and not app.inventory and rules.keep_hosts(app, opts.hosts)
  if problem then errors.raise("config", problem) end
  return app
end

return config
