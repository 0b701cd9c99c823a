-- route.lua -- Who gets the new release: requests that a rule fits, visitors that were there before, a share of all others.
local route = {}

---@class deployrt.Route
---@field slots string[]      what the routed requests go to
---@field percent number      of the requests that no rule fits: 0 to 100
---@field rules deployrt.RouteRule[]  one that fits is enough, and counts more than the percentage
---@field sticky? {new: string, old: string}  values of the cookie by which a visitor stays on the side that he saw first
---@field generation? integer  one more each time that the percentage shrinks
---@field edited? boolean     as read: somebody else changed what the balancer had been told

--- One of these.
---@class deployrt.RouteRule
---@field header? string      "X-Canary: 1"; "X-Canary" alone: it is there, whatever it says
---@field cookie? string      "beta=1"; "beta" alone: it is there
---@field path? string        "/beta": that path and all below it
---@field source? string      "10.0.0.0/8": the client's network

local function text(pattern, expected, doc)
  return { type = "string", pattern = pattern, expected = expected, doc = doc }
end

local token = "[%w!#$&*+.^_|~-]+"

--- The options of a strategy that tells requests apart. They go to `balancer:share`.
---@type table<string, deployrt.Spec>
route.options = {
  route = { type = "list", default = {}, doc = "requests that always get the new release: by header, cookie, path or source",
    of = { type = "object", keys = {
      header = text("^" .. token .. "%f[:\0][^%c\"'\\]*$", 'a header like "X-Canary: 1"', "a request header, and its value"),
      cookie = text("^" .. token .. "%f[=\0][^%c%s\"'\\;,]*$", 'a cookie like "beta=1"', "a cookie, and its value"),
      path = text("^/[%w/._~%%-]*$", 'a path like "/beta"', "that path and all below it"),
      source = text("^[%x.:]+/?%d*$", 'a network like "10.0.0.0/8"', "the client's address"),
    } } },
  sticky = { type = "boolean", default = false, doc = "a visitor stays on the release that he saw first, by a cookie" },
}

--- What no balancer could make of a rule.
---@param rules deployrt.RouteRule[]
---@return string? problem
function route.problem(rules)
  for i, rule in ipairs(rules) do
    if next(rule) == nil then return ("rule %d of strategy.route has no condition"):format(i) end
    local address, bits = (rule.source or ""):match("^(.*)/(%d+)$")
    if bits and tonumber(bits) > (address:find(":", 1, true) and 128 or 32) then return ("%s in strategy.route is no network"):format(rule.source) end
  end
end

--- The name and the value that a header or a cookie must have; no value: it must be there.
---@param rule_text string  "X-Canary: 1", "beta=1"
---@return string name
---@return string? value
function route.pair(rule_text)
  local name, value = rule_text:match("^(" .. token .. ")[:=]%s*(.-)%s*$")
  if not name then return rule_text end
  return name, value
end

--- The cookie of an application.
function route.cookie(app)
  return "deployrt-" .. app
end

--- The value that marks a release in the cookie. A new generation makes visitors choose again: the share of a side that
--- shrinks must not be kept up by those who were there.
local function mark(release, generation)
  return ("%s~%d"):format(release, generation)
end

--- The next route of a strategy.
---@param before deployrt.Route?  the one that holds now
---@param percent number
---@param new deployrt.Instance[]
---@param old deployrt.Instance[]
---@param opts {route?: deployrt.RouteRule[], sticky?: boolean}
---@return deployrt.Route
function route.next(before, percent, new, old, opts)
  local slots = {}
  for i, instance in ipairs(new) do slots[i] = instance.slot end
  local generation = before and before.generation or 1
  if before and percent < before.percent then generation = generation + 1 end
  local sticky = opts.sticky and new[1] and old[1] and { new = mark(new[1].release, generation), old = mark(old[1].release, generation) }
  return { slots = slots, percent = percent, rules = opts.route or {}, sticky = sticky or nil, generation = generation }
end

--- Whether a strategy's options tell requests apart.
---@param opts? {route?: deployrt.RouteRule[], sticky?: boolean}
---@return boolean
function route.is_wanted(opts)
  return opts ~= nil and (opts.sticky or opts.route ~= nil and #opts.route > 0) or false
end

--- A percentage as balancers split by it: in hundredths of a percent.
---@param percent number
---@return integer
function route.parts(percent)
  return math.floor(percent * 100 + 0.5)
end

local function equal(one, other)
  if type(one) ~= "table" or type(other) ~= "table" then return one == other end
  for key, value in pairs(one) do
    if not equal(value, other[key]) then return false end
  end
  for key in pairs(other) do
    if one[key] == nil then return false end
  end
  return true
end

--- Rules and cookies, where a balancer tells them back.
local function is_told_alike(seen, wanted)
  return not seen.rules or equal(seen.rules, wanted.rules or {}) and equal(seen.sticky, wanted.sticky)
end

--- Whether no request is told apart: one's own HAProxy, which does not tell its rules, has its map still.
local function is_none(seen)
  return not seen or not seen.rules and #seen.slots == 0 and route.parts(seen.percent) == 0
end

--- Whether a balancer does what is wanted.
---@param seen? deployrt.Route|false  `edited`: somebody else changed it
---@param wanted? deployrt.Route|false
---@return boolean
function route.is_same(seen, wanted)
  if not wanted then return is_none(seen) end
  if not seen then return false end
  if seen.edited or not is_told_alike(seen, wanted) then return false end
  if route.parts(seen.percent) ~= route.parts(wanted.percent) or #seen.slots ~= #wanted.slots then return false end
  local has = {}
  for _, name in ipairs(seen.slots) do has[name] = true end
  for _, name in ipairs(wanted.slots) do
    if not has[name] then return false end
  end
  return true
end

return route
