-- metrics_spec.lua -- Counts from elsewhere: a real Prometheus, a page of JSON, a command; and what is no count.
-- weight: 6
local cjson = require "cjson"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local fixture = require "spec.support.fixture"
local metric = require "deployrt.world.metric"
local secrets = require "deployrt.secrets"

--- A Prometheus that reads instances on this machine, five times a second.
local function prometheus(ports)
  local dir, port, targets = fixture.dir(), fixture.free_port(), {}
  for i, each in ipairs(ports) do targets[i] = ("'127.0.0.1:%d'"):format(each) end
  local config = fixture.write(dir .. "/prometheus.yml", ("global: {scrape_interval: 200ms}\nscrape_configs:\n"
    .. "- {job_name: shop, static_configs: [{targets: [%s]}]}\n"):format(table.concat(targets, ", ")))
  local pid = fixture.start({ "prometheus", "--config.file=" .. config, "--storage.tsdb.path=" .. dir .. "/data",
    ("--web.listen-address=127.0.0.1:%d"):format(port), "--log.level=warn" }, { log = dir .. "/log" })
  local url = ("http://127.0.0.1:%d"):format(port)
  fixture.eventually(function() return fixture.run({ "curl", "-sf", url .. "/-/ready" }).exit == 0 end, 30, "start of Prometheus")
  return { url = url, pid = pid }
end

local sides = {
  new = { release = "2", instances = { { host = "local", port = 1 } } }, old = { release = "1", instances = { { host = "local", port = 2 }, { host = "web", port = 2 } } },
}

local token = ("hunter2-"):rep(100)

--- Reads a metric as a run does, which knows a secret.
local function read(declared, dir)
  declared.timeout = declared.timeout or 5
  declared.kind = declared.kind or declared.buckets and "buckets" or declared.seconds and "seconds" or "errors"
  local ok, found = core.run(function()
    local controller = connection.new({ name = "local" }, "shop")
    controller:connect()
    local context = {
      app = { dir = dir or ".", all_hosts = { { name = "local" }, { name = "web", address = "10.0.0.1" } } }, controller = controller,
      hook_environment = function(env) return env end, secrets = secrets.read({ TOKEN = token }, "."),
    }
    local result = metric.read(context, nil, { metric = declared, sides = sides })
    controller:close()
    return result
  end)
  assert(ok, tostring(found))
  return found
end

describe("a metric", function()
  after_each(function() fixture.cleanup() end)

  it("is read from a command, which is told the side, its release and its instances", function()
    local dir = fixture.dir()
    fixture.write(dir .. "/count", [[echo "{\"requests\": $2, \"errors\": \"3\", \"said\": \"$SIDE $1 $3\"}"; echo "$SIDE $1 $3" >> said]])
    local found = read({ source = "command", command = { "sh", "count", "${side}", "7${release}", "${instances}" } }, dir)
    assert.same({ new = { requests = 72, errors = 3 }, old = { requests = 71, errors = 3 } }, found)
    assert.equal("new new 127.0.0.1:1|local:1\nold old 127.0.0.1:2|local:2|10.0.0.1:2|web:2\n", fixture.read(dir .. "/said"))
  end)

  it("is read from a page of JSON, by paths into it", function()
    local dir, port = fixture.dir(), fixture.free_port()
    fixture.write(dir .. "/new.json", '{"shop": [{"all": 10, "5xx": 1, "time": 2.5, "h": {"0.1": 4, "+Inf": 10, "0.05": 1}}]}')
    fixture.write(dir .. "/old.json", '{"shop": [{"all": 20, "5xx": 0, "time": 5, "h": {"0.1": 8, "+Inf": 20, "0.05": 2}}]}')
    fixture.start({ "python3", "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", dir }, { cwd = dir })
    local url = ("http://127.0.0.1:%d/${side}.json"):format(port)
    fixture.eventually(function() return fixture.is_listened(port) end, 10)
    assert.same({ new = { requests = 10, errors = 1 }, old = { requests = 20, errors = 0 } },
      read { source = "http", url = url, requests = "$.shop[0].all", errors = '$.shop[0]["5xx"]' })
    assert.same({ requests = 10, seconds = 2.5 }, read({ source = "http", url = url, requests = "shop[0].all", seconds = "shop[0].time" }).new)
    assert.same({ requests = 20, buckets = { { 0.05, 2 }, { 0.1, 8 } } }, read({ source = "http", url = url, buckets = "$.shop[0].h" }).old)
    assert.truthy(read({ source = "http", url = url, requests = "$.shop[1].all" }).problem:find("nothing is there", 1, true))
    assert.truthy(read({ source = "http", url = url .. "x" }).problem:find("answers 404", 1, true))
  end)

  it("that cannot be read is said in words, and is no number", function()
    local dir = fixture.dir()
    local function problem_of(script)
      return read({ source = "command", command = { "sh", "-c", script }, timeout = 0.5 }, dir).problem
    end
    fixture.write(dir .. "/token", token)
    for script, wanted in pairs {
      ["echo '{\"requests\": 1, \"errors\": NaN}'"] = "errors (nan)", ["echo '{\"requests\": 1e999, \"errors\": 0}'"] = "",
      ["echo none"] = "no JSON object", ["echo '{\"requests\": 1}'"] = "no number at errors (nothing is there)", ["exit 3"] = "status 3",
      ["echo '{\"requests\": null, \"errors\": 0}'"] = "no number at requests", ["sleep 5"] = "", ["true"] = "no JSON object",
      ["cat token"] = "no JSON object: (secret)", ["cat token >&2; exit 3"] = "status 3: (secret)",
    } do
      local problem = problem_of(script)
      assert.is_string(problem, script)
      assert.truthy(problem:lower():find(wanted:lower(), 1, true), script .. ": " .. problem)
    end
    local nobody = ("http://127.0.0.1:%d"):format(fixture.free_port())
    assert.is_string(read({ source = "http", url = nobody }).problem)
    assert.is_string(read({ source = "prometheus", url = nobody, requests = "a", errors = "b" }).problem)
  end)

  it("is read from Prometheus: a number of one series or none, and nothing else", function()
    local server = prometheus { fixture.free_port() }
    local function ask(requests, errors)
      return read { source = "prometheus", url = server.url, requests = requests, errors = errors }
    end
    assert.same({ requests = 5, errors = 1 }, ask("vector(5)", "1").new)
    assert.same({ requests = 2, errors = 0 }, ask("vector(${release})", "sum(nosuch) or vector(0)").new)
    for query, wanted in pairs {
      ["sum(nosuch)"] = "gives no value", ["0/0"] = "gives NaN", ["1/0"] = "gives +Inf", ["sum("] = "Prometheus refuses",
      ['label_replace(vector(1), "a", "b", "", "") or vector(2)'] = "2 series", ["vector(1)[5m:1m]"] = "instant vector",
    } do
      local found = ask(query, "0")
      assert.truthy((found.problem or "none"):find(wanted, 1, true), query .. ": " .. tostring(found.problem))
    end
    local le = 'label_replace(vector(%d), "le", "%s", "", "")'
    local histogram = ("%s or %s"):format(le:format(3, "0.1"), le:format(8, "+Inf"))
    assert.same({ requests = 8, buckets = { { 0.1, 3 } } }, read({ source = "prometheus", url = server.url, buckets = histogram }).new)
    assert.truthy(read({ source = "prometheus", url = server.url, buckets = "vector(1)" }).problem:find("label le", 1, true))
    assert.truthy(read({ source = "prometheus", url = server.url, buckets = le:format(3, "0.1") }).problem:find("+Inf is missing", 1, true))
  end)
end)

describe("a canary that is judged by Prometheus", function()
  local app, load, server

  after_each(function()
    if load then load:stop() end
    app:stop()
    fixture.cleanup()
  end)

  local queries = {
    requests = [[sum(http_requests_total{instance=~"${instances}"})]], errors = [[sum(http_requests_total{instance=~"${instances}", code="500"})]],
    buckets = [[sum by (le) (http_request_duration_seconds_bucket{instance=~"${instances}"})]],
  }

  --- app.yml's strategy, as JSON, which is YAML too.
  local function judged_by(metrics, more)
    local strategy = { steps = { "50%" }, hold = "60s", inconclusive = "fail", metrics = metrics }
    for key, value in pairs(more or {}) do strategy[key] = value end
    return "strategy: " .. cjson.encode(strategy)
  end

  local function deploy(version, conf, metrics, more)
    app.opts.yaml = judged_by(metrics, more)
    return app:deploy("canary", version, { conf = conf }, { "--json" })
  end

  it("passes when it is well, is caught when it is slow, and is not judged when Prometheus is away", function()
    app = fixture.app { yaml = "strategy: {hold: 0}" }
    server = prometheus(app.ports)
    assert.equal(0, app:deploy("canary", "1.0", { conf = "delay=10ms" }).exit)
    load = app:load { rate = 400, connections = 32 }
    local failures = { name = "failures", source = "prometheus", url = server.url, requests = queries.requests, errors = queries.errors }
    local times = { name = "times", source = "prometheus", url = server.url, buckets = queries.buckets }

    local good = deploy("2.0", "delay=10ms", { failures })
    assert.equal(0, good.exit, good.stdout .. good.stderr)
    assert.truthy(good.stdout:find('"verdict":"pass"', 1, true))

    local slow = deploy("3.0", "delay=20ms", { failures, times })
    assert.equal(1, slow.exit, slow.stdout)
    assert.truthy(slow.stdout:find("times: the new release takes longer than", 1, true), slow.stdout)
    assert.same({ "2.0" }, app:serving())

    fixture.stop(server.pid)
    local unknown = deploy("4.0", "delay=10ms", { failures }, { hold = "1s" })
    assert.equal(1, unknown.exit, unknown.stdout)
    assert.truthy(unknown.stdout:find('"verdict":"inconclusive"', 1, true))
    assert.truthy(unknown.stdout:find("too little evidence[^\n]*" .. server.url:gsub("%p", "%%%0")), unknown.stdout)
  end)
end)
