-- world/metric.lua -- Counts of both sides from where a team has them: Prometheus, a page of JSON, a command.
-- What cannot be read is an answer too, in words: a metric that is away says nothing about a release.
local cjson = require "cjson"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local template = require "deployrt.template"

local metric = {}

local function fail(format, ...)
  errors.raise("metric", format:format(...))
end

--- A finite number, or nil: NaN and infinity are no counts.
local function number(value)
  value = tonumber(value)
  return value and value == value and math.abs(value) < math.huge and value or nil
end

--- The value below a path such as $.shop.counts[0]["5xx"].
---@param document any
---@param path string
---@return any
function metric.at(document, path)
  local rest, value = path:gsub("^%$", ""), document
  while rest ~= "" do
    local key, after = rest:match('^%[["\']([^"\']+)["\']%](.*)$')
    if not key then key, after = rest:match("^%[(%d+)%](.*)$") end
    local index = key and tonumber(key)
    if not key then key, after = rest:match("^%.?([^.%[]+)(.*)$") end
    if not key then fail("the path %s cannot be read: write it like $.shop.requests or $.list[0].errors", path) end
    if type(value) ~= "table" then return nil end
    if index and #value > 0 then value = value[index + 1] else value = value[key] end
    rest = after
  end
  return value
end

local function fetch(url, timeout)
  local response, err = core.http.request { url = url, timeout = timeout }
  if not response then error(err, 0) end
  return response
end

local function decode(context, text, whose)
  local ok, document = pcall(cjson.decode, text)
  if ok and type(document) == "table" then return document end
  fail("%s gives no JSON object: %s", whose, context.secrets:mask(text):sub(1, 80):gsub("%c", " "))
end

local function by_edge(a, b)
  return a[1] < b[1]
end

--- A histogram as {requests, buckets}: the bucket +Inf counts all requests.
local function histogram(edges, whose)
  local buckets, requests = {}, nil
  for edge, count in pairs(edges) do
    local value = number(count)
    if not value then fail("%s: the bucket %s has no value (%s)", whose, edge, tostring(count)) end
    if edge == "+Inf" then requests = value
    elseif number(edge) then buckets[#buckets + 1] = { number(edge), value }
    else fail("%s: a bucket's edge is a number of seconds or +Inf, not %s", whose, edge) end
  end
  if not requests then fail("%s: the bucket +Inf is missing", whose) end
  table.sort(buckets, by_edge)
  return { requests = requests, buckets = buckets }
end

local function percent_encoded(text)
  return (text:gsub("[^%w%-_.~]", function(char) return ("%%%02X"):format(char:byte()) end))
end

local function query(url, text, timeout)
  local response = fetch(("%s/api/v1/query?query=%s"):format(url:gsub("/+$", ""), percent_encoded(text)), timeout)
  local ok, answer = pcall(cjson.decode, response.body)
  if not ok or type(answer) ~= "table" then fail("%s answers %d and is no Prometheus", url, response.status) end
  if answer.status ~= "success" then fail("Prometheus refuses `%s`: %s", text, tostring(answer.error)) end
  local kind, result = answer.data.resultType, answer.data.result
  if kind == "scalar" then return { { metric = {}, value = result } } end
  if kind ~= "vector" then fail("`%s` gives a %s: an instant vector or a number is needed", text, tostring(kind)) end
  return result
end

local function single(url, text, timeout)
  local result = query(url, text, timeout)
  if #result == 0 then fail("`%s` gives no value; where no series means none, add `or vector(0)`", text) end
  if #result > 1 then fail("`%s` gives %d series: sum them", text, #result) end
  return number(result[1].value[2]) or fail("`%s` gives %s", text, tostring(result[1].value[2]))
end

local readers = {}

function readers.prometheus(_, asked)
  if asked.buckets then
    local edges = {}
    for _, series in ipairs(query(asked.url, asked.buckets, asked.timeout)) do
      local edge = series.metric.le or fail("`%s` gives series without the label le: sum by (le)", asked.buckets)
      if edges[edge] then fail("`%s` gives several series for le=%s: sum by (le)", asked.buckets, edge) end
      edges[edge] = series.value[2]
    end
    if not next(edges) then fail("`%s` gives no value", asked.buckets) end
    return histogram(edges, "`" .. asked.buckets .. "`")
  end
  local reading = {}
  for _, key in ipairs { "requests", "errors", "seconds" } do
    reading[key] = asked[key] and single(asked.url, asked[key], asked.timeout)
  end
  return reading
end

--- The values that a metric asks for, out of a document; the path of each is its name unless it says another.
local function pick(document, asked, whose)
  if asked.kind == "buckets" then
    local edges = metric.at(document, asked.buckets or "buckets")
    if type(edges) ~= "table" then fail("%s has no buckets at %s", whose, asked.buckets or "buckets") end
    return histogram(edges, whose)
  end
  local reading = {}
  for _, key in ipairs { "requests", asked.kind } do
    local path = asked[key] or key
    local value = metric.at(document, path)
    reading[key] = number(value) or fail("%s has no number at %s (%s)", whose, path, value == nil and "nothing is there" or tostring(value))
  end
  return reading
end

function readers.http(context, asked)
  local response = fetch(asked.url, asked.timeout)
  if response.status < 200 or response.status > 299 then fail("%s answers %d", asked.url, response.status) end
  return pick(decode(context, response.body, asked.url), asked, asked.url)
end

function readers.command(context, asked)
  local whose = ("`%s`"):format(core.quote(asked.command))
  local result = context.controller:execute(asked.command, { cwd = context.app.dir, timeout = asked.timeout,
    env = context.hook_environment { SIDE = asked.side } })
  if result.status ~= 0 or result.signal then
    fail("%s ended with %s: %s", whose, result.signal and "signal " .. result.signal or "status " .. result.status, context.secrets:mask(result.stderr):sub(-200))
  end
  return pick(decode(context, result.stdout, whose), asked, whose)
end

--- What may stand as ${...} in a metric: the side, its release, and its instances as a regular expression.
local function variables(context, side, name)
  local addresses, seen = {}, {}
  for _, entry in ipairs(context.app.all_hosts) do addresses[entry.name] = connection.address(entry) end
  local list = {}
  for _, each in ipairs(side.instances) do
    for _, host in ipairs { addresses[each.host] or each.host, each.host } do
      local place = ("%s:%d"):format(host, each.port)
      if not seen[place] then list[#list + 1] = place end
      seen[place] = true
    end
  end
  return { side = name, release = side.release, instances = table.concat(list, "|") }
end

local function fill_in(declared, values)
  local asked = {}
  for key, value in pairs(declared) do
    asked[key] = type(value) == "string" and template.expand(value, values)
      or type(value) == "table" and template.expand_all(value, values) or value
  end
  asked.side = values.side
  return asked
end

--- Reads a metric for both sides: {new, old}, each {requests, errors}, {requests, seconds} or {requests, buckets}; or
--- {problem}, in words.
---@async
---@param args {metric: table, sides: table<string, {release: string, instances: {host: string, port: integer}[]}>}
function metric.read(context, _, args)
  local found = {}
  for _, name in ipairs { "new", "old" } do
    local side = args.sides[name]
    local ok, reading = pcall(function()
      return readers[args.metric.source](context, fill_in(args.metric, variables(context, side, name)))
    end)
    if not ok and type(reading) == "table" and reading.code == "canceled" then error(reading, 0) end
    if not ok then return { problem = context.secrets:mask(errors.text(errors.wrap(reading))) } end
    found[name] = reading
  end
  return found
end

return metric
