-- analysis/options.lua -- The options of a strategy that judges the new release by its traffic, declared once.
local options = {}

local function text(doc)
  return { type = "string", pattern = "%S", expected = "a text that is not empty", doc = doc }
end

local values = { "requests", "errors", "seconds", "buckets" }

local metric = { type = "object", keys = {
  name = text "how it is called in what is shown; default: its source",
  source = { type = "string", required = true, values = { "balancer", "prometheus", "http", "command", "function" },
    doc = "where the counts come from" },
  url = text "prometheus: the server; http: the page that answers JSON",
  command = { type = "list", of = "string", least = 1, doc = "command: program and arguments, run on the controller; it prints JSON" },
  method = text "function: the method of the strategy that returns the counts of a side",
  requests = text "requests: a query of Prometheus, or a path into the JSON",
  errors = text "those of them that failed",
  seconds = text "the time that they took together",
  buckets = text "how many took at most so long, by bucket of a histogram",
  edge = { type = "number", min = 0, doc = "seconds above which a request is slow; default: the bucket near the old side's p90 to p95" },
  counts = { type = "string", values = { "cumulative", "interval" }, default = "cumulative",
    doc = "whether each answer counts from the beginning, or since the one before" },
  timeout = { type = "duration", default = "5s", min = 0.01, doc = "of one question" },
} }

local needs = { prometheus = { "url" }, http = { "url" }, command = { "command" }, ["function"] = { "method" }, balancer = {} }
local named = { prometheus = true } -- each value needs a query; elsewhere it is found under its own name

--- What a metric gives: "errors", "seconds" or "buckets"; nil when it says none of them.
---@param declared table
---@return string?
function options.kind(declared)
  if declared.source == "balancer" then return "errors" end
  for _, key in ipairs { "buckets", "seconds", "errors" } do
    if declared[key] then return key end
  end
  return not named[declared.source] and "errors" or nil
end

local function stranger(declared, allowed)
  for _, key in ipairs { "url", "command", "method", table.unpack(values) } do
    if declared[key] ~= nil and not allowed[key] then return key end
  end
end

--- What is wrong with a metric beyond the types of its keys; nil when nothing is.
---@param declared table
---@return string?
function options.problem(declared)
  local source, allowed = declared.source, {}
  for _, key in ipairs(needs[source] or {}) do
    if declared[key] == nil then return ("a metric from %s needs `%s`"):format(source, key) end
    allowed[key] = true
  end
  local kind = options.kind(declared)
  if source ~= "balancer" then
    if not kind then return "a metric from prometheus needs queries: `requests` and `errors`, `requests` and `seconds`, or `buckets`" end
    if named[source] and kind ~= "buckets" and not declared.requests then return ("beside `%s` a metric needs `requests`"):format(kind) end
    allowed[kind], allowed.requests = true, kind ~= "buckets"
  end
  local key = stranger(declared, allowed)
  return key and ("`%s` has no place in a metric of %s from %s"):format(key, kind, source) or nil
end

metric.rule = options.problem

--- The same as a script gives it: its timeout may be seconds, as those of app.yml have become.
---@param declared any
---@return deployrt.Spec
function options.metric(declared)
  if type(declared) ~= "table" or type(declared.timeout) ~= "number" then return metric end
  local keys = {}
  for name, spec in pairs(metric.keys) do keys[name] = spec end
  keys.timeout = { type = "number", min = metric.keys.timeout.min }
  return { type = "object", rule = metric.rule, keys = keys }
end

--- By name, as strategy.define takes them.
---@type table<string, deployrt.Spec>
options.declared = {
  gate = { type = "string", values = { "evidence", "thresholds" }, default = "evidence", doc = "how new and old are compared" },
  inconclusive = { type = "string", values = { "pass", "hold", "ask", "fail" }, default = "pass",
    doc = "after a share that could not be judged: go on with a warning, look on, ask a person, or roll back" },
  errors = { type = "number", min = 0, default = 1, doc = "failed requests allowed above the old release, in percentage points" },
  latency = { type = "number", min = 1, default = 2, doc = "how many times as slow as the old release it may be" },
  minimum = { type = "integer", min = 1, default = 20, doc = "thresholds: requests below which a share is not judged" },
  alpha = { type = "number", min = 1e-9, max = 0.5, default = 0.01, doc = "evidence: chance that a release that is no worse fails" },
  metrics = { type = "list", of = metric, least = 1, doc = "what is compared; default: the balancer's counters" },
}

--- What a call may say otherwise than app.yml: a part of alpha, which is shared by several looks.
options.of_call = setmetatable({ alpha = { type = "number", min = 1e-15, max = 0.5 }, metrics = { type = "list", of = "any", least = 1 } },
  { __index = options.declared })

return options
