-- nginx_route.lua -- Routed requests in nginx: a file that says who gets the new release, and ends in two variables.
local cjson = require "cjson"
local file = require "deployrt.balancer.nginx_file"
local route = require "deployrt.balancer.route"

local nginx_route = {}

--- A variable of ours; the names of upstreams take signs that those of variables do not.
---@param entry table   of app.yml: upstream
---@param what string   "target": where a request goes; "cookie": what its answer sets, or nothing
---@return string       without the $
function nginx_route.variable(entry, what)
  return (entry.upstream:gsub("[^%w_]", "_")) .. "_" .. what
end

local head = "# Written by deployrt: who gets which release. Changes are overwritten.\n"

local function constant(entry, target)
  return ('map "" $%s { default %s; }\nmap "" $%s { default ""; }\n'):format(nginx_route.variable(entry, "target"), target,
    nginx_route.variable(entry, "cookie"))
end

--- What the file holds while nobody is told apart, and to begin with.
---@param entry table
---@return string
function nginx_route.beginning(entry)
  return head .. constant(entry, entry.upstream)
end

--- Text in a regular expression in double quotes.
local function literal(text)
  return (text:gsub("[^%w_/~=:, -]", function(sign) return ("\\x%02x"):format(sign:byte()) end))
end

local function cookie_pattern(name, value)
  return ("~(^|;) *%s=%s"):format(literal(name), value and literal(value) .. " *(;|$)" or "")
end

local sources = {}

--- The variable that a rule looks at, and the regular expression that it fits; maps compare plain words without their case.
function sources.header(given)
  local name, value = route.pair(given)
  return "$http_" .. (name:lower():gsub("-", "_")), value and ("~(^|,) *%s *(,|$)"):format(literal(value)) or "~."
end

function sources.cookie(given)
  return "$http_cookie", cookie_pattern(route.pair(given))
end

--- What the client asked for, not what others rewrote it to.
function sources.path(given)
  return "$request_uri", "~^" .. literal(given) .. (given:find("/$") and "" or "([/?]|$)")
end

local kinds = { "header", "cookie", "path" }

--- Why nginx cannot tell requests apart by these rules; nil when it can.
---@param rules deployrt.RouteRule[]
---@return string?
function nginx_route.refusal(rules)
  for _, rule in ipairs(rules) do
    local name = rule.header and route.pair(rule.header)
    if name and name:find("[^%w_-]") then
      return ("nginx has no variable for the header '%s': only for names of letters, digits, - and _"):format(name)
    end
  end
end

--- What decides about a request, in the order of its weight: variables that are "new", "old", or empty.
local function add_rules(entry, rules, add)
  local deciders, networks = {}, {}
  for _, rule in ipairs(rules) do
    for _, kind in ipairs(kinds) do
      if rule[kind] then
        local name, source, pattern = nginx_route.variable(entry, "rule" .. #deciders + 1), sources[kind](rule[kind])
        add(('map %s $%s {\n    default "";\n    "%s" new;\n}'):format(source, name, pattern))
        deciders[#deciders + 1] = name
      end
    end
    if rule.source then networks[#networks + 1] = ("    %s new;\n"):format(rule.source) end
  end
  if #networks > 0 then
    deciders[#deciders + 1] = nginx_route.variable(entry, "network")
    add(('geo $%s {\n    default "";\n%s}'):format(deciders[#deciders], table.concat(networks)))
  end
  return deciders
end

--- Visitors who were there before.
local function add_kept(entry, cookie, sticky, add)
  local name = nginx_route.variable(entry, "kept")
  add(('map $http_cookie $%s {\n    default "";\n    "%s" new;\n    "%s" old;\n}'):format(name, cookie_pattern(cookie, sticky.new),
    cookie_pattern(cookie, sticky.old)))
  return name
end

--- The share of all others, in hundredths of a percent; each request is thrown for anew.
local function add_share(entry, parts, add)
  if parts <= 0 then return "old" end
  local name = nginx_route.variable(entry, "share")
  add(('split_clients "%s$request_id" $%s {\n    %d.%02d%% new;\n    * old;\n}'):format(entry.upstream, name, parts // 100, parts % 100))
  return ("${%s}"):format(name)
end

local function add_cookie(entry, cookie, sticky, decided, share, add)
  local name = nginx_route.variable(entry, "cookie")
  if not sticky then return add(('map "" $%s { default ""; }'):format(name)) end
  local value = '    ",%s" "%s=%s; Path=/; HttpOnly; SameSite=Lax";\n'
  add(('map "%s,%s" $%s {\n    default "";\n%s%s}'):format(decided, share, name, value:format("new", cookie, sticky.new),
    value:format("old", cookie, sticky.old)))
end

--- The maps that lead to the routed upstream. What rules say counts more than what a cookie does, and that more than the
--- share: the first word of them all together decides.
local function add_decision(entry, cookie, wanted, routed, add)
  local parts = route.parts(wanted.percent)
  if parts >= 10000 then return add((constant(entry, routed):gsub("\n$", ""))) end
  local deciders = add_rules(entry, wanted.rules or {}, add)
  if wanted.sticky then deciders[#deciders + 1] = add_kept(entry, cookie, wanted.sticky, add) end
  local decided, share = "", add_share(entry, parts, add)
  for _, name in ipairs(deciders) do decided = ("%s${%s}"):format(decided, name) end
  add(('map "%s%s" $%s {\n    default %s;\n    "~^new" %s;\n}'):format(decided, share, nginx_route.variable(entry, "target"), entry.upstream, routed))
  add_cookie(entry, cookie, wanted.sticky, decided, share, add)
end

--- The route as a comment that tells it back: its fields in a fixed order, so that the same one gives the same text.
local function memory(wanted)
  local function list(values, each)
    local parts = {}
    for i, value in ipairs(values) do parts[i] = each(value) end
    return table.concat(parts, ",")
  end
  local function fields(values, names)
    return list(names, function(name) return values[name] and ("%s:%s"):format(cjson.encode(name), cjson.encode(values[name])) end)
  end
  local function rule_of(rule)
    local names = {}
    for _, kind in ipairs { "header", "cookie", "path", "source" } do names[#names + 1] = rule[kind] and kind end
    return ("{%s}"):format(fields(rule, names))
  end
  return ('# deployrt route {"percent":%.14g,"generation":%d,"slots":[%s],"rules":[%s]%s}'):format(wanted.percent, wanted.generation or 1,
    list(wanted.slots, cjson.encode), list(wanted.rules or {}, rule_of),
    wanted.sticky and (',"sticky":{%s}'):format(fields(wanted.sticky, { "new", "old" })) or "")
end

--- The upstream of the routed slots. When none of them answers, those that serve all others do.
local function upstream_lines(name, stand, routed)
  local out = { ("upstream %s {"):format(name) }
  for _, slot in ipairs(stand.slots) do
    local state = stand.states[slot.name]
    if routed[slot.name] then
      out[#out + 1] = ("    server %s%s;"):format(file.endpoint(slot), (state.more or ""):gsub(" backup", "") .. "")
    elseif file.serves(state) then
      out[#out + 1] = ("    server %s weight=%d backup;"):format(file.endpoint(slot), state.weight)
    end
  end
  for _, statement in ipairs(stand.keepalive) do out[#out + 1] = "    " .. statement end
  out[#out + 1] = "}"
  return table.concat(out, "\n")
end

---@class deployrt.NginxStand
---@field app string
---@field slots deployrt.Slot[]
---@field states table<string, {state: deployrt.SlotState, weight: integer, more?: string}>  in the upstream of all others
---@field keepalive string[]   statements of that upstream, for the routed one too

--- The text of the file.
---@param entry table   of app.yml
---@param stand deployrt.NginxStand
---@param wanted? deployrt.Route|false
---@return string
function nginx_route.write(entry, stand, wanted)
  if not wanted then return nginx_route.beginning(entry) end
  local routed, lines = {}, { head .. memory(wanted) }
  for _, name in ipairs(wanted.slots) do routed[name] = stand.states[name] end
  local function add(line) lines[#lines + 1] = line end
  if next(routed) then
    local name = entry.upstream .. "-routed"
    add(upstream_lines(name, stand, routed))
    add_decision(entry, route.cookie(stand.app), wanted, name, add)
  else
    add((constant(entry, entry.upstream):gsub("\n$", "")))
  end
  return table.concat(lines, "\n") .. "\n"
end

--- The route that the file has; nil when it tells nobody apart.
---@param text string
---@return deployrt.Route?
function nginx_route.read(text)
  local ok, found = pcall(cjson.decode, text:match("# deployrt route ({[^\n]*})") or "")
  local is_one = ok and type(found) == "table" and type(found.slots) == "table" and type(found.percent) == "number"
  return is_one and found or nil
end

return nginx_route
