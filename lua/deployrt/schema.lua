-- schema.lua -- Every key of app.yml, declared once: validation, defaults, suggestions and the JSON Schema come from it.
local addresses = require "deployrt.config.address"
local check = require "deployrt.config.check"
local core = require "deployrt.core"
local declaration = require "deployrt.config.declaration"
local errors = require "deployrt.errors"
local json = require "deployrt.config.json"
local permission = require "deployrt.permission"
local version = require "deployrt.library.version"

local schema = {}

---@class deployrt.Spec
---@field type? string      string, integer, number, boolean, duration, amount, percent, list, map, object, ports, statuses, any
---@field either? deployrt.Spec[]             in place of type: one of these
---@field of? string|deployrt.Spec            elements of a list or map
---@field keys? table<string, deployrt.Spec>  of an object
---@field always? boolean   an object that is there, with its defaults, even when it is left out
---@field default? any      as a person would write it
---@field required? boolean
---@field values? string[]  the only ones allowed
---@field beside? string    pattern of what is allowed beside `values`
---@field pattern? string   of Lua
---@field regex? string     the same for JSON Schema
---@field names? string     pattern of a map's keys
---@field expected? string  how errors call what is wanted
---@field least? integer    items of a list
---@field rising? boolean   no item of a list of numbers is less than the one before it
---@field longest? integer  bytes of a text
---@field min? number       of an amount: of its count; 0 allows none
---@field max? number
---@field lowest? integer   of ports and statuses
---@field highest? integer
---@field template? boolean ${port} and the like may stand in it
---@field secret? boolean   never repeated in an error; ${env:N} and the like may stand in it
---@field rule? fun(value: any): string?  what is wrong with a value of the right type
---@field doc? string

local variable = "^[%a_][%w_]*$"

local function words(doc, more)
  local spec = { type = "list", of = { type = "string" }, least = 1, doc = doc }
  for key, value in pairs(more or {}) do spec[key] = value end
  return spec
end

local function text(doc, more)
  local spec = { type = "string", pattern = "%S", expected = "a text that is not empty", doc = doc }
  for key, value in pairs(more or {}) do spec[key] = value end
  return spec
end

local function command(doc)
  return { either = { text("a line for /bin/sh"), words("program and arguments") }, doc = doc }
end

local function address(doc)
  return text(doc, { rule = function(value)
    return not addresses.is_one(value) and ("expected a host name or an address, got '%s'"):format((value:gsub("%c", "?"))) or nil
  end })
end

local function user(doc)
  return text(doc, { pattern = "^[%w_.][%w_.@+\\-]*$", expected = "the name of a user" })
end

local host = { type = "object", doc = "one host", keys = {
  name = text("how it is called here; default: its address", {
    pattern = "^[%w_][%w._-]*$", longest = 63, expected = "a name of letters, digits and ._-" }),
  address = address "host name or address; leave out for this machine, or say with `transport: local` where balancers reach it",
  port = { type = "integer", min = 1, max = 65535, doc = "of sshd" },
  user = user "who to log in as",
  identity = text "private key file",
  group = text "hosts with the same word belong together, such as blue and green",
  transport = { type = "string", values = { "auto", "local", "ssh", "openssh" }, default = "auto",
    doc = "openssh uses the ssh command" },
  known_hosts = text "strict, accept-new, or a known_hosts file",
  jump = text("user@host:port to go through", { pattern = "^[^%s-][^%s]*$", expected = "user@host:port" }),
  dir = text("root of deployrt's files there", { default = ".deployrt" }),
} }

--- A list of hosts.
---@type deployrt.Spec
schema.hosts = { type = "list", of = { either = { text "local, or user@address:port", host } }, least = 1 }

local balancer = { type = "object", keys = {
  type = { type = "string", required = true, values = { "haproxy", "nginx", "caddy", "command" }, beside = "[./]",
    doc = "haproxy, nginx, caddy, command, or a path to a driver in Lua" },
  socket = text "HAProxy's runtime socket: an absolute path, or address:port",
  backend = text "HAProxy's backend",
  map = text "HAProxy of your own: the map file by which it tells requests apart",
  host = text "the host that the balancer runs on; default: this machine",
  managed = { type = "boolean", doc = "deployrt writes the configuration and runs HAProxy itself" },
  listen = text("where a managed balancer listens", {
    pattern = "^[^%s,]*:%d+$", expected = 'an address and a port like "127.0.0.1:8000"' }),
  stats = text("where a managed balancer shows statistics: / for people, /metrics for Prometheus, /monitor", {
    pattern = "^[^%s,]*:%d+$", expected = 'an address and a port like "127.0.0.1:8404"' }),
  maintenance = text "a page that a managed balancer shows while nothing serves",
  state_file = text "HAProxy: the server-state-file of your own one, which deployrt keeps up to date",
  template = text("HAProxy: the prefix of a server-template of your own one, whose free servers new slots get", {
    pattern = "^[%w_.:-]+$", expected = "letters, digits and _.:-" }),
  drain = { type = "object", always = true, doc = "letting requests in flight finish", keys = {
    timeout = { type = "duration", default = "30s", doc = "then the instance is stopped all the same" },
    long = { type = "duration", doc = "the same for WebSockets and other upgraded connections; default: the timeout" },
  } },
  options = { type = "map", of = { type = "any" }, doc = "what a driver of your own is to know" },
  style = { type = "string", values = { "upstream", "variable" }, doc = "nginx: what the file holds" },
  file = text "nginx: the file that deployrt writes",
  upstream = text "nginx: the upstream's name",
  variable = text "nginx: the variable's name",
  routes = text "nginx: the file by which it tells requests apart, which deployrt writes too",
  config = text "nginx: its configuration, for nginx -t",
  reload = command "nginx: how to reload it",
  admin = text "Caddy's admin API: address:port, or an absolute path; default: 127.0.0.1:2019",
  id = text("Caddy: the @id of a reverse_proxy", { pattern = "^[%w_.-]+$", expected = "letters, digits and ._-" }),
  server = text("Caddy: a server with one reverse_proxy", { pattern = "^[%w_.-]+$", expected = "letters, digits and ._-" }),
  command = command "command: what sets the balancer",
  can = { type = "list", of = { type = "string", values = { "many", "share" } }, doc = "command: what the balancer can do; default: [many]" },
  access_log = text "nginx: a log that deployrt counts requests in; `deployrt help nginx`",
} }

local process = { type = "object", required = true, doc = "what runs", keys = {
  command = words("program and arguments; runs in the release's directory", { required = true,
    of = { type = "string", template = true }, expected = 'a list like [./server, --port, "${port}"]' }),
  env = { type = "map", of = { type = "string", template = true }, names = variable, doc = "environment" },
  secrets = { type = "map", of = { type = "string", secret = true }, names = variable, secret = true,
    doc = "environment that is never shown: ${env:NAME}, ${file:PATH}, ${command:COMMAND}" },
  ports = { type = "ports", required = true, lowest = 1, highest = 65535, doc = "the slots of each host",
    expected = 'a list of ports or a range like "8080-8087"' },
  instances = { type = "integer", min = 1, default = 1,
    doc = "serving per host; ports above it are room for a second release" },
  supervisor = { type = "string", values = { "process", "systemd", "container" }, default = "process",
    doc = "what keeps it running" },
  adopt = { type = "boolean", doc = "a service that was started by hand on a slot is taken over as the old release" },
  stop = { type = "object", always = true, doc = "how an instance is stopped", keys = {
    signal = { type = "string", values = { "TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL" },
      default = "TERM", doc = "sent first" },
    timeout = { type = "duration", default = "30s", doc = "then KILL" },
  } },
} }

local health = { type = "object", always = true, doc = "when an instance is healthy; default: its port is open", keys = {
  http = { type = "string", pattern = "^/%S*$", expected = "a path like /healthz", template = true,
    doc = "path of a GET on the instance's port" },
  tcp = { type = "boolean", doc = "the port accepts connections" },
  command = words("a command on the host that exits with 0", { of = { type = "string", template = true } }),
  status = { type = "statuses", lowest = 100, highest = 599, expected = 'a status like 200, a range like "200-299" or a list',
    doc = "statuses that mean healthy; default: 200-299" },
  body = text "text that the answer contains",
  interval = { type = "duration", default = "500ms", min = 0.01, doc = "between probes" },
  timeout = { type = "duration", default = "2s", min = 0.01, doc = "of one probe" },
  successes = { type = "integer", min = 1, default = 2, doc = "in a row" },
  deadline = { type = "duration", default = "60s", min = 0.01, doc = "for an instance to become healthy" },
} }

local rock_name = { pattern = "^[%w][%w._-]*$", expected = "a name of letters, digits and ._-" }

local library = { type = "object", keys = {
  rock = text("LuaRocks: the name of the rock", rock_name),
  version = { type = "string", doc = 'of the rock: ">= 1.2, < 2", "~> 1.2", "1.2.0"; default: the newest',
    rule = function(value) return select(2, version.parse(value)) end },
  server = text "where the rock is: a URL, or a directory; default: luarocks' own servers",
  git = text("a git repository: a URL, or a directory", { pattern = "^[^%s-]%S*$", expected = "a URL or a directory" }),
  ref = text("git: a tag, a branch or a commit; default: what the repository offers", {
    pattern = "^[%w][%w._/-]*$", expected = "the name of a tag or branch, or a commit" }),
  path = text("git: the directory with the Lua files; default: the whole", {
    pattern = "^[%w_.][%w._/-]*$", expected = "a directory of the repository", rule = function(value)
      return ("/" .. value .. "/"):find("/../", 1, true) and "it may not leave the repository" or nil
    end }),
  name = text("how it is called here; default: of the rock or the repository", rock_name),
  allow = { type = "list", of = { type = "string", values = permission.names }, doc = "what its code may do; default: [balancer]" },
} }

--- The root of app.yml.
---@type deployrt.Spec
schema.root = { type = "object", keys = {
  app = { type = "string", required = true, pattern = "^[a-z0-9][a-z0-9_-]*$", regex = "^[a-z0-9][a-z0-9_-]{0,62}$",
    longest = 63, expected = "a name of small letters, digits, - and _ (63 at most)", doc = "name of the application" },
  extends = text "a file whose keys hold where this one says nothing else",
  release = { type = "object", always = true, doc = "the application's files", keys = {
    path = text "a directory or a tar archive; leave out where the command is already on the host",
    version = { type = "string", pattern = "^[%w_+][%w._+-]*$", regex = "^[A-Za-z0-9_+][A-Za-z0-9._+-]{0,63}$",
      longest = 64, expected = "at most 64 letters, digits and ._+-, not beginning with . or -",
      doc = "default: from the SHA-256 of the content" },
    keep = { type = "integer", min = 1, default = 5, doc = "releases kept on a host" },
  } },
  hosts = { either = {
    schema.hosts,
    { type = "object", keys = {
      command = { either = command("").either, required = true, doc = "prints the hosts, as JSON or YAML; with `release`: those of a new group" },
      release = command "gives the hosts of a group back, which stand as JSON on its standard input: each deployment has a group of its own",
    } },
  }, default = { "local" }, doc = "where it runs" },
  process = process,
  health = health,
  balancer = { either = { balancer, { type = "list", of = balancer } }, doc = "one, or a list that is kept alike" },
  strategy = { type = "map", of = { type = "any" }, doc = "the strategy's own options" },
  hooks = { type = "object", doc = "commands on this machine, ended when their run is stopped", keys = {
    before = command "before anything is changed", after = command "after a success",
    failed = command "after a failure", before_traffic = command "before the first of the new release gets requests from a balancer",
    build = command "makes the release: before a run looks at anything",
  } },
  notify = { type = "list", doc = "who is told", of = { type = "object", keys = {
    url = text "where to post", command = command "what to run", on = words "which outcomes" } } },
  require = { type = "list", doc = "shared libraries of strategies: `deployrt lib install` fetches them", of = { either = {
    text("the name of a rock", rock_name), library } } },
  state = { either = { { type = "string", values = { "files" } }, { type = "object", keys = { etcd = words("endpoints, such as 10.0.0.5:2379", { required = true }) } } },
    doc = "where lock, journal and history are kept" },
  report = { type = "any", doc = "the HTML report" },
} }

local function is(...)
  local refused = {}
  for _, value in ipairs { ... } do refused[value] = true end
  return function(value) return refused[value] or type(value) == "string" and refused[value:match("%.%l+$")] end
end

--- What the design has and this version does not: how to recognise it, and what to do instead.
---@type table<string, {when?: (fun(value: any): boolean), instead: string}>
schema.planned = {
  ["process.supervisor"] = { when = is("systemd", "container"), instead = "use 'process'" },
  notify = { instead = "use hooks.after and hooks.failed" },
  report = { instead = "use --json" },
}

--- Why this version refuses what stands at a path; nil when it does not.
---@param path string  "process.supervisor", "balancer[2].type"
---@param value any
---@return string?
function schema.refusal(path, value)
  local plan = schema.planned[(path:gsub("%[%d+%]", ""))]
  if not plan or plan.when and not plan.when(value) then return nil end
  local what = type(value) == "string" and ("'%s' is"):format((value:gsub("%c", "?"))) or "this is"
  return ("%s: %s not supported by this version; %s"):format(path, what, plan.instead)
end

--- A place for options of strategies: `locate` knows the file, and every failure goes to `problems`.
local function option_place(locate, path, problems)
  local at = { null = core.yaml.null }
  at.fail = function(message)
    local text_of_place = locate(path)
    problems[#problems + 1] = ("%s: %s"):format(text_of_place, message)
  end
  at.child = function(_, key) return option_place(locate, ("%s[%s]"):format(path, key), problems) end
  at.failures = function() return #problems end
  at.source = function()
    local _, mark = locate(path)
    return mark and mark.source
  end
  return at
end

--- Options that are none of this strategy's. Those of others may stand in app.yml, which serves them all; who writes one on the
--- command line means this one.
local function unknown_options(options, values, place, name, problems, is_others)
  local suggest, unused = require "deployrt.suggest", {}
  for _, key in ipairs(check.names_of(values)) do
    local where = not options[key] and place("strategy." .. key) or ""
    if where ~= "" and not where:find("^%-%-set") and is_others and is_others(key) then
      unused[#unused + 1] = ("%s: strategy '%s' has no option '%s': it is left out"):format(where, name, key)
    elseif not options[key] and not key:find("^x%-") then
      local hint = suggest.hint(key, check.names_of(options))
      local at = option_place(place, "strategy." .. key, problems)
      at.fail(("strategy '%s' has no option '%s'%s"):format(name, key, hint))
    end
  end
  return unused
end

--- All options, in order; `started(key)` hears which is next.
local function check_options(started, options, values, place, name)
  local out, problems, null = {}, {}, core.yaml.null
  for _, key in ipairs(check.names_of(options)) do
    started(key)
    local option, value = options[key], values[key]
    local at = option_place(place, "strategy." .. key, problems)
    if value ~= nil and value ~= null then
      out[key] = check.value(value, option, at, "strategy." .. key)
    elseif option.required then
      at.fail(("strategy '%s' needs the option '%s'"):format(name, key))
    elseif option.default ~= nil then
      out[key] = check.value(option.default, option, at, "strategy." .. key)
    end
  end
  return out, problems
end

--- Checks the options of a strategy against its declarations, and fills in the defaults.
--- Durations become seconds, percents numbers from 0 to 100, amounts {count=} or {percent=}.
---@param options table<string, deployrt.Spec>  as strategy.load has checked them
---@param values? table                   as written below `strategy:`
---@param place fun(path: string): string, table?  "app.yml:30:14", as app.place
---@param name string                     of the strategy
---@param is_others? fun(key: string): boolean  whether it is an option of another one
---@return table values
---@return string[] unused  what is left out, in words
--- Raises deployrt.Error: "config" (all that is wrong, a line each), "strategy" (a declaration that cannot be checked).
function schema.validate_options(options, values, place, name, is_others)
  local out, problems = declaration.limited(name, check_options, options, values or {}, place, name)
  local unused = unknown_options(options, values or {}, place, name, problems, is_others)
  if #problems > 0 then errors.raise("config", table.concat(problems, "\n"), { problems = problems }) end
  return out, unused
end

--- The JSON Schema of app.yml (draft 2020-12), for editors.
---@return table
function schema.json()
  local out = json.of(schema.root)
  out["if"], out["then"] = { ["not"] = { required = { "extends" } } }, json.needs(schema.root)
  out["$schema"], out.title = "https://json-schema.org/draft/2020-12/schema", "deployrt app.yml"
  return out
end

return schema
