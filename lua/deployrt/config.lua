-- config.lua -- From app.yml to the table that the runtime works with; every error has its place.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local schema = require "deployrt.schema"
local suggest = require "deployrt.suggest"

local config = {}

local most_errors = 20

local variables = { "port", "host", "release", "dir" }

-- What the design has and this version does not, by path: how to recognise it, and what to say.
local planned = {
  { "process.supervisor", function(v) return v ~= "process" end, "use 'process'" },
  { "process.adopt", function(v) return v == true end, "stop the process by hand first" },
  { "notify", nil, "use hooks" }, { "require", nil, "put the strategy into ./strategies" },
  { "state", function(v) return v ~= "files" end, "runs are remembered in files; see --state" }, { "report", nil, "use --json" },
  { "hooks.build", nil, "build before you deploy" },
}

local function read(path)
  local file, err = io.open(path, "rb")
  if not file then errors.raise("config", err) end
  local text = file:read("a")
  file:close()
  if not text then errors.raise("config", ("%s: this is a directory; name the file in it"):format(path)) end
  return text
end

--- Values over defaults: mappings merge, everything else replaces.
local function merge(base, over, marks, null)
  if type(base) ~= "table" or type(over) ~= "table" or #base > 0 or #over > 0 then return over end
  local out, places = {}, {}
  for key, value in pairs(base) do out[key], places[key] = value, (marks[base] or {})[key] end
  for key, value in pairs(over) do
    out[key] = (out[key] ~= nil and value ~= null) and merge(out[key], value, marks, null) or value
    places[key] = (marks[over] or {})[key]
  end
  marks[out] = places
  return out
end

--- Parses a file and those that it extends, into one tree; marks know the file of each key.
local function parse_file(path, parse, marks, seen)
  if seen[path] then errors.raise("config", ("%s: `extends` leads back to itself"):format(path)) end
  seen[path] = true
  local value, found = parse(read(path), path)
  if value == nil then errors.raise("config", found.message) end
  if type(value) ~= "table" or #value > 0 then
    errors.raise("config", ("%s:1:1: expected a mapping that begins with `app:`, got %s"):format(path,
      type(value) == "table" and "a list" or "nothing of the kind"))
  end
  for node, places in pairs(found) do
    for _, mark in pairs(places) do
      if type(mark) == "table" then mark.file = path end
    end
    marks[node] = places
  end
  if type(value.extends) ~= "string" then return value end
  local base = value.extends
  if base:sub(1, 1) ~= "/" then base = (path:match("^(.*/)") or "") .. base end
  return merge(parse_file(base, parse, marks, seen), value, marks, core.yaml.null)
end

local function place_of(mark, fallback)
  if not mark then return fallback end
  return ("%s:%d:%d"):format(mark.file or fallback, mark.line, mark.column)
end

--- A context for schema.check: knows where it is, and collects failures.
local function new_context(marks, problems, file)
  local Context = {}
  Context.__index = Context
  local function make(mark)
    local context = setmetatable({ mark = mark, null = core.yaml.null }, Context)
    context.fail = function(message) problems[#problems + 1] = { mark = mark, text = ("%s: %s"):format(place_of(mark, file), message) } end
    context.source = function() return mark and mark.source end
    return context
  end
  function Context.at(_, node, key) return make((marks[node] or {})[key]) end
  return make(nil)
end

--- Sets `a.b=value` in the tree; the value is YAML.
local function override(tree, text, parse, marks)
  local path, value_text = text:match("^([%w_.%-]+)=(.*)$")
  if not path then errors.raise("config", ("--set %s: expected key=value"):format(text)) end
  local value, found = parse(value_text, "--set " .. path)
  if value == nil then errors.raise("config", found.message) end
  local wrapped = parse("v: " .. value_text, "--set " .. path)
  local node, spec, keys = tree, schema.root, {}
  for key in path:gmatch("[^.]+") do keys[#keys + 1] = key end
  for i, key in ipairs(keys) do
    local known = spec and spec.keys
    if known and not known[key] and not key:find("^x%-") then
      local names = {}
      for name in pairs(known) do names[#names + 1] = name end
      local close = suggest.closest(key, names)
      errors.raise("config", ("--set: unknown key '%s'%s"):format(key, close and (" (did you mean '%s'?)"):format(close) or ""))
    end
    spec = known and known[key]
    if i < #keys then
      if type(node[key]) ~= "table" then node[key] = {} end
      node = node[key]
    end
  end
  node[keys[#keys]] = value
  marks[node] = marks[node] or {}
  marks[node][keys[#keys]] = { file = "--set", line = 1, column = 1, source = value_text }
  _ = wrapped
end

local function look_up(tree, path)
  for key in path:gmatch("[^.]+") do
    if type(tree) ~= "table" then return nil end
    tree = tree[key]
  end
  return tree
end

local function refuse_planned(raw, place, fail)
  for _, entry in ipairs(planned) do
    local value = look_up(raw, entry[1])
    if value ~= nil and value ~= core.yaml.null and (not entry[2] or entry[2](value)) then
      fail(entry[1], ("%s%s is not supported by this version; %s"):format(entry[1], type(value) == "string" and (": '%s'"):format(value) or "", entry[3]))
    end
  end
  local balancers = raw.balancer
  for _, each in ipairs(type(balancers) == "table" and (#balancers > 0 and balancers or { balancers }) or {}) do
    if each.type and each.type ~= "haproxy" then
      fail("balancer", ("balancer.type: '%s' is not supported by this version; use 'haproxy'"):format(tostring(each.type)))
    end
  end
  if type(raw.hosts) == "table" and raw.hosts.command then fail("hosts", "hosts.command is not supported by this version; list the hosts") end
  _ = place
end

local function check_templates(app, fail)
  local known = {}
  for _, name in ipairs(variables) do known[name] = true end
  local function look(path, text)
    for name in tostring(text):gmatch("%${([^}]*)}") do
      if not known[name] then
        local close = suggest.closest(name, variables)
        fail(path, ("%s: unknown ${%s}%s; there are ${port}, ${host}, ${release} and ${dir}"):format(path, name,
          close and (" (did you mean ${%s}?)"):format(close) or ""))
      end
    end
  end
  for _, word in ipairs(app.process.command or {}) do look("process.command", word) end
  for name, value in pairs(app.process.env or {}) do look("process.env." .. name, value) end
  for _, word in ipairs(app.health.command or {}) do look("health.command", word) end
  for name, value in pairs(app.process.secrets or {}) do
    for inside in tostring(value):gmatch("%${([^}]*)}") do
      if not inside:find("^env:.") and not inside:find("^file:.") and not inside:find("^command:.") then
        fail("process.secrets." .. name, ("process.secrets.%s: ${%s} is neither ${env:NAME}, ${file:PATH} nor ${command:...}"):format(name, inside))
      end
    end
  end
end

local function check_names(app, fail)
  for _, group in ipairs { "env", "secrets" } do
    for name in pairs(app.process[group] or {}) do
      if not name:find("^[%a_][%w_]*$") then fail(("process.%s.%s"):format(group, name), ("process.%s: '%s' is not a name of a variable"):format(group, name)) end
    end
  end
end

local function normalize_host(entry, index, fail)
  if type(entry) == "string" then
    if entry == "local" then return { name = "local", dir = ".deployrt", transport = "auto" } end
    local user, rest = entry:match("^([^@]+)@(.+)$")
    rest = rest or entry
    local address, port = rest:match("^([^:]+):(%d+)$")
    return { name = address or rest, address = address or rest, port = math.tointeger(port), user = user, dir = ".deployrt", transport = "auto" }
  end
  if not entry.name and not entry.address then fail("hosts", ("hosts[%d]: a host needs a name or an address"):format(index)) end
  entry.name = entry.name or entry.address
  return entry
end

local function check_hosts(app, fail)
  local seen, locals = {}, 0
  for i, entry in ipairs(app.hosts or {}) do
    local each = normalize_host(entry, i, fail)
    app.hosts[i] = each
    if seen[each.name or ""] then fail("hosts", ("hosts: '%s' stands there twice"):format(each.name)) end
    seen[each.name or ""] = true
    if not each.address then locals = locals + 1 end
  end
  if locals > 1 then fail("hosts", "hosts: this machine (a host without an address) stands there more than once") end
  if #(app.hosts or {}) == 0 then fail("hosts", "hosts: at least one host is needed") end
end

local function check_balancers(app, fail)
  local given = app.balancer
  app.balancers = given and (#given > 0 and given or { given }) or {}
  for _, each in ipairs(app.balancers) do
    if each.managed and each.socket then fail("balancer", "balancer: either `managed: true` with `listen`, or a `socket` of your own HAProxy, not both") end
    if each.managed and not each.listen then fail("balancer", "balancer.listen is missing: where should the managed HAProxy listen?") end
    if not each.managed and not (each.socket and each.backend) and each.type == "haproxy" then
      fail("balancer", "balancer: `socket` and `backend` of your HAProxy are needed, or `managed: true` with `listen`")
    end
  end
end

local function check_combinations(app, fail)
  local process = app.process
  if process.instances and process.ports and process.instances > #process.ports then
    fail("process.instances", ("process.instances: %d instances need as many ports, and there are %d"):format(process.instances, #process.ports))
  end
  if process.command and #process.command == 0 then fail("process.command", "process.command is empty") end
  local kinds = (app.health.http and 1 or 0) + (app.health.tcp and 1 or 0) + (app.health.command and 1 or 0)
  if kinds > 1 then fail("health", "health: one of http, tcp and command, not several") end
  if kinds == 0 then app.health.tcp = true end
end

local function keep_hosts(app, names)
  if not names then return end
  local kept, wanted = {}, {}
  for _, name in ipairs(names) do wanted[name] = true end
  local all = {}
  for _, each in ipairs(app.hosts) do
    all[#all + 1] = each.name
    if wanted[each.name] then kept[#kept + 1] = each end
    wanted[each.name] = nil
  end
  local missing = next(wanted)
  if missing then
    local close = suggest.closest(missing, all)
    errors.raise("config", ("--host: there is no host '%s'%s; there are: %s"):format(missing, close and (" (did you mean '%s'?)"):format(close) or "",
      table.concat(all, ", ")))
  end
  app.hosts = kept
end

local function raise_all(problems)
  table.sort(problems, function(a, b)
    local la, lb = a.mark and a.mark.line or 0, b.mark and b.mark.line or 0
    if la ~= lb then return la < lb end
    return a.text < b.text
  end)
  local lines = {}
  for i, problem in ipairs(problems) do
    if i <= most_errors and lines[#lines] ~= problem.text then lines[#lines + 1] = problem.text end
  end
  errors.raise("config", table.concat(lines, "\n"))
end

--- Reads and checks app.yml.
---@param path string
---@param opts? {set?: string[], release?: string, hosts?: string[], parse?: function}
---@return table app
function config.load(path, opts)
  opts = opts or {}
  local parse = opts.parse or core.yaml.parse
  local marks, problems = {}, {}
  local raw = parse_file(path, parse, marks, {})
  for _, text in ipairs(opts.set or {}) do override(raw, text, parse, marks) end
  if opts.release then
    if type(raw.release) ~= "table" then raw.release = {} end
    raw.release.version = opts.release
  end
  local function place(where)
    local node, mark = raw, nil
    for key in where:gmatch("[^.]+") do
      if type(node) ~= "table" then break end
      mark = (marks[node] or {})[key] or mark
      node = node[key]
    end
    return place_of(mark, path), mark
  end
  local function fail(where, message)
    local text, mark = place(where)
    problems[#problems + 1] = { mark = mark, text = ("%s: %s"):format(text, message) }
  end
  refuse_planned(raw, place, fail)
  if #problems > 0 then raise_all(problems) end
  local app = schema.check(raw, schema.root, new_context(marks, problems, path), "")
  if #problems > 0 then raise_all(problems) end
  app.file, app.place = path, place
  app.dir = core.fs.realpath(path:match("^(.*)/[^/]*$") or ".") or "."
  check_hosts(app, fail)
  check_balancers(app, fail)
  check_combinations(app, fail)
  check_templates(app, fail)
  check_names(app, fail)
  if #problems > 0 then raise_all(problems) end
  if app.release and app.release.path and app.release.path:sub(1, 1) ~= "/" then app.release.path = app.dir .. "/" .. app.release.path end
  if app.strategy == core.yaml.null then app.strategy = nil end
  keep_hosts(app, opts.hosts)
  return app
end

return config
