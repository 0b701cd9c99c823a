-- driver.lua -- What a balancer's driver is, and where one is found: built in, or a file of the user's.
local errors = require "deployrt.errors"
local library = require "deployrt.library"
local read = require("deployrt.file").read
local route = require "deployrt.balancer.route"

--- A driver knows one balancer. It works on states that are wanted, not on steps: what attaches, drains, shares or switches
--- is a list of changes, applied as one. Calls wait, raise deployrt.Error, and may be repeated.
---@class deployrt.Driver
---@field can? table<deployrt.Capability, boolean>  set by driver.open
---@field remembers? boolean  it comes up with its states after a restart or reload, whoever set them
---@field check fun(self): string[]?  raises what would stop a run, and tells what people should know; changes nothing
---@field left? table<string, true>  set by read: slots that it knows although app.yml does not name them any more
---@field outdated? boolean  set by check: it is set up otherwise than app.yml says, and prepare would change that
---@field prepare fun(self, run?: string, wanted?: table<string, table>)  makes every slot known to the balancer; run: the id of one that may
---  want back what it finds; wanted: the slots that it has in hand
---@field health? table      set from outside: how the health of what is to serve in the end is checked; default: as context.health says
---@field lenient? boolean   set by prepare: health is not checked so yet, for what serves may be another release, and is to go on until examine
---@field examine? fun(self, strict: boolean)  health is checked so; or, not strictly, whatever listens passes
---@field unprepare? fun(self, run: string, lenient: boolean, is_other?: fun(slot: string): boolean)  puts back what prepare changed for that run,
---  if it did; lenient: what serves may be another than what it was set up for, and is to go on; is_other: slots that other runs may be about
---@field stopped? boolean   set by unprepare: the run had started it, and it has no part in the rest of the way back
---@field read fun(self, names?: string[]): {slots: table<string, deployrt.DriverSlot>, instance: string, others?: deployrt.OtherServer[]}  as the
---  balancer has it now; of the named ones at least
---@field apply fun(self, changes: deployrt.SlotChange[], forward?: "serve"|"gap"): table<string, deployrt.DriverSlot>?  returns when the balancer
---  does what was asked: it is read back; tells the slots as they were before, where it had to look; forward: nothing is put
---  back, so that what gets traffic must be in reach; serve: somebody who is up must be left
---@field checked? fun(self, names: string[]): string[]  slots that are to get traffic, and are to pass a check of the balancer's own before,
---  which deployrt does not know
---@field pass_checks? fun(self, names: string[]): string?  has it check them, without traffic; tells why not all have passed by now
---@field stats fun(self): table<string, deployrt.SlotStats>  counters that only grow, until the balancer is restarted
---@field persist fun(self, wanted: table<string, {state?: deployrt.SlotState, weight?: integer}>)  over a restart; what is absent is
---  for another run to say
---@field conclude? fun(self, wanted: table<string, {state?: deployrt.SlotState, weight?: integer}>)  a run is over: notes what it has to
---  know of these slots when app.yml does not name them any more; those that are absent are as they are
---@field route? fun(self, route?: deployrt.Route)  who gets the routed slots; nil: nobody is told apart
---@field stop fun(self)     ends what the driver itself started

--- What a driver's module is.
---@class deployrt.DriverModule
---@field open fun(entry: table, context: deployrt.DriverContext): deployrt.Driver  asks nothing of the balancer yet
---@field keys string[]      the keys of app.yml that it takes, besides type, host, drain and options
---@field help? string       what a user must have in his configuration: `deployrt help TYPE`
---@field rules? fun(entry: table, path: string, fail: fun(path: string, message: string))  combinations that cannot work
---@field capabilities fun(entry: table): table<deployrt.Capability, boolean>
---@field remedy? fun(entry: table, capability: deployrt.Capability): string?  what gives it one that it lacks
---@field refusal? fun(rules: deployrt.RouteRule[]): string?  why it cannot tell requests apart by these

--- many: several slots serve at once. share: traffic is split by weights. stats: requests and errors are counted.
--- sessions: requests in flight are known, so that a drain ends when they do; without it, after drain.timeout. route: requests are told apart.
---@alias deployrt.Capability "many"|"share"|"stats"|"sessions"|"route"

---@alias deployrt.SlotState "ready"|"drain"|"maint"

---@class deployrt.DriverContext
---@field app string
---@field dir string            the directory of app.yml
---@field place? fun(key: string): string  where app.yml has a key of this balancer
---@field host deployrt.Connection  where the balancer runs
---@field slots deployrt.Slot[]
---@field health? table         app.health

---@class deployrt.DriverSlot
---@field server string     the balancer's name of it
---@field state deployrt.SlotState
---@field up boolean        as the balancer's health check sees it; true without one
---@field weight integer
---@field sessions integer  requests in flight; 0 where the driver lacks "sessions"
---@field long? integer     those of them that are, or may be, upgraded connections: they get `drain.long`
---@field queue integer     requests that wait for it
---@field left? boolean      app.yml does not name it any more, and it gets, or got, traffic still

--- Somebody who gets traffic beside the slots: the user's own, which no run touches.
---@class deployrt.OtherServer
---@field name string     the balancer's name of it; its address where it has none
---@field address string
---@field weight integer  beside those of the slots
---@field via string      what sends it traffic, in words: "backend 'shop'"
---@field differs? boolean  it has another weight on another of several balancers

---@class deployrt.Slot
---@field name string
---@field address string
---@field port integer

---@class deployrt.SlotChange
---@field slot string
---@field state? deployrt.SlotState
---@field weight? integer   0 to 256

---@class deployrt.SlotStats
---@field requests integer
---@field errors integer    5xx answers, failed connections and broken answers
---@field sessions integer
---@field latency number    seconds, mean of the last requests
---@field seconds? number   that all requests took together, where a balancer knows it
---@field window? integer   else: of how many requests `latency` is an exponential mean; nil: of the last 1024, or nobody knows

local driver = {}

local built_in = {
  haproxy = "deployrt.balancer.haproxy", nginx = "deployrt.balancer.nginx", caddy = "deployrt.balancer.caddy",
  command = "deployrt.balancer.command",
}

--- What is missing where a driver lacks a capability, in words.
local lacking = {
  many = "it sends traffic to one instance only",
  share = "it cannot split traffic by shares",
  stats = "it does not count requests and errors",
  sessions = "it does not know the requests in flight",
  route = "it cannot tell requests apart",
}

--- A driver of the user's: a Lua file with all of Lua at hand, which returns what deployrt.DriverModule describes.
local function load_file(path)
  local text = read(path)
  if not text then errors.raise("balancer", ("balancer.type: %s: there is no such driver"):format(path)) end
  local chunk, problem = load(text, "@" .. path, "t")
  if not chunk then errors.raise("balancer", ("balancer.type: %s"):format(problem)) end
  local module = chunk()
  if type(module) ~= "table" or type(module.open) ~= "function" or type(module.capabilities) ~= "function" then
    errors.raise("balancer", ("balancer.type: %s: a driver returns a table with `open` and `capabilities`"):format(path))
  end
  return module
end

--- Whether a type names a file of the user's.
---@param type_name string
---@return boolean
function driver.is_file(type_name)
  return type_name:find("%.lua$") ~= nil
end

local function path_of(type_name, dir)
  return type_name:sub(1, 1) == "/" and type_name or (dir or ".") .. "/" .. type_name
end

--- Whether a type is none that is built in, nor a file that can be read.
---@param type_name string
---@param dir string  where a relative path begins
---@return boolean
function driver.is_missing(type_name, dir)
  return not built_in[type_name] and not (driver.is_file(type_name) and read(path_of(type_name, dir)))
end

--- The module of a type of balancer.
---@param type_name string  a built-in name, or the path of a Lua file
---@param dir? string       where a relative path begins
---@return deployrt.DriverModule
--- Raises deployrt.Error: "balancer" when a file is no driver.
function driver.module(type_name, dir)
  if built_in[type_name] then return require(built_in[type_name]) end
  library.check_file(dir or ".", type_name)
  return load_file(path_of(type_name, dir))
end

--- The module of a built-in type, for the checks of app.yml; nil for another one.
---@return deployrt.DriverModule?
function driver.built_in(type_name)
  return built_in[type_name] and require(built_in[type_name])
end

--- What a user must have in his balancer's configuration; nil for what is no built-in driver.
---@param type_name string
---@return string?
function driver.help(type_name)
  local module = driver.built_in(type_name)
  return module and module.help
end

--- The built-in types.
---@return string[]
function driver.names()
  local names = {}
  for name in pairs(built_in) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- Opens the driver of an entry of app.yml.
---@param entry table
---@param context deployrt.DriverContext
---@return deployrt.Driver
function driver.open(entry, context)
  local module = driver.module(entry.type, context.dir)
  local opened = module.open(entry, context)
  opened.can = module.capabilities(entry)
  return opened
end

--- The slots of changes.
---@param changes deployrt.SlotChange[]
---@return string[]
function driver.names_of(changes)
  local names = {}
  for i, change in ipairs(changes) do names[i] = change.slot end
  return names
end

--- Looks at what would stop a run.
---@async
---@param drivers deployrt.Driver[]
---@param without? boolean  it goes on without those that are away, if any of them is there
---@return string[] notes  what people should know
---@return table<integer, deployrt.Error> away  by place
function driver.check_all(drivers, without)
  local notes, away, problem = {}, {}, nil
  for i, each in ipairs(drivers) do
    local ok, found = pcall(each.check, each)
    if not ok and not (without and errors.is_away(found)) then error(found, 0) end
    if not ok then
      away[i], problem = found, problem or found
    elseif type(found) == "table" then
      table.move(found, 1, #found, #notes + 1, notes)
    end
  end
  for i in ipairs(drivers) do
    if not away[i] then return notes, away end
  end
  if problem then error(problem, 0) end
  return notes, away
end

--- Whether the next run sets a balancer up anew, in words.
---@async
---@param drivers deployrt.Driver[]  that were checked
---@return string?
function driver.renewal(drivers)
  for _, each in ipairs(drivers) do
    if each.outdated then return "the next deployment sets the balancer up anew: app.yml says otherwise than what runs" end
  end
end

--- How an error names a balancer.
---@param entry table  of app.yml
---@return string
function driver.label(entry)
  return entry.type .. (entry.style and (" (style: %s)"):format(entry.style) or "")
end

--- What a strategy with these options needs of every balancer.
local function needs_of(strategy, options)
  local list = table.move(strategy.needs or {}, 1, #(strategy.needs or {}), 1, {})
  if route.is_wanted(options) then list[#list + 1] = "route" end
  return list
end

local function refuse(strategy, entry, why, remedy)
  errors.raise("balancer", ("strategy '%s' cannot work with %s: %s; %s"):format(strategy.name, driver.label(entry), why,
    remedy or "choose another strategy, or another balancer"))
end

--- Refuses a strategy that needs what one of the balancers cannot do. Nothing is asked of a balancer.
---@param app deployrt.App
---@param strategy {name?: string, needs?: deployrt.Capability[]}
---@param options? table  of the strategy
--- Raises deployrt.Error: "balancer".
function driver.check_needs(app, strategy, options)
  local needs = needs_of(strategy, options)
  for _, entry in ipairs(app.balancers) do
    local module = driver.module(entry.type, app.dir)
    local can = module.capabilities(entry)
    for _, need in ipairs(needs) do
      if not can[need] then
        refuse(strategy, entry, lacking[need] or need, module.remedy and module.remedy(entry, need))
      end
    end
    local rules = options and options.route or {}
    local problem = route.problem(rules) or module.refusal and module.refusal(rules)
    if problem then refuse(strategy, entry, problem, "choose another rule") end
  end
end

return driver
