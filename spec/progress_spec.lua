local cjson = require "cjson"
local progress = require "deployrt.progress"
local text = require "deployrt.progress.text"

local error_text = "web2:8081 exited with status 1 before it was healthy\n  | panic: no database\n  | at main.go:12"

-- A view whose clock goes on by 0.1 s with each event; gives all that it wrote, and what of it went to standard error.
local function show(options, events)
  local out, err, now = {}, {}, 0
  local settings = {
    write = function(data) out[#out + 1] = data end, write_error = function(data)
      err[#err + 1] = data
      if options.mode == "lines" then out[#out + 1] = data end
    end,
    now = function() return now end, clock = function() return 1767355384.123 + now end,
  }
  for key, value in pairs(options) do settings[key] = value end
  local view = progress.open(settings)
  for _, event in ipairs(events) do
    view:emit(event)
    now = now + 0.1
  end
  view:close()
  return table.concat(out), table.concat(err)
end

local function started(fields)
  local event = {
    event = "run.started", run = "r1", app = "shop", strategy = "rolling", release = "2.0", previous = "1.0",
    hosts = 2, instances = 4,
  }
  for key, value in pairs(fields or {}) do event[key] = value end
  return event
end

local function last_line(events)
  return show({ mode = "lines" }, events):match("([^\n]*)\n$")
end

describe("progress, a line an event", function()
  it("says a failure on standard error", function()
    local _, err = show({ mode = "lines" }, { started(), { event = "run.finished", outcome = "rolled_back", exit = 1, message = "no luck" } })
    assert.truthy(err:find("error: no luck", 1, true))
  end)

  it("tells a whole deployment", function()
    local out, err = show({ mode = "lines" }, {
      started(),
      { event = "op", op = "release.upload", host = "web1", release = "2.0", ok = true, seconds = 0.31, effect = true },
      { event = "step.started", step = "batch 1 of 4", path = "/1" },
      { event = "op", op = "instance.start", host = "web1", instance = "web1:8081", release = "2.0", ok = true,
        seconds = 0.52, effect = true },
      { event = "op", op = "balancer.apply", note = "from web1:8080 to web1:8081", ok = true, seconds = 0.012, effect = true },
      { event = "traffic", share = { ["1.0"] = 75, ["2.0"] = 25 }, requests = { ["1.0"] = 90.4, ["2.0"] = 30 },
        errors = { ["1.0"] = 0, ["2.0"] = 0 } },
      { event = "op", op = "instance.stop", host = "web1", instance = "web1:8080", release = "1.0", ok = true,
        seconds = 62, effect = true },
      { event = "analysis", verdict = "pass", new = { requests = 100, errors = 0, latency = 0.012 },
        old = { requests = 300, errors = 1, latency = 0.011 } },
      { event = "step.finished", step = "batch 1 of 4", path = "/1", ok = true, seconds = 2.345 },
      { event = "log", message = "hello" },
      { event = "warning", message = "web1-8080 still has 3 sessions\nthey will be cut" },
      { event = "waiting", reason = "a person must approve" },
      { event = "run.finished", outcome = "succeeded", exit = 0, seconds = 12.34 },
    })
    assert.equal([[
12:03:04.123  deploy    shop  1.0 -> 2.0  rolling, 4 instances on 2 hosts  (run r1, 2026-01-02 UTC)
12:03:04.223  upload    web1  2.0  0.31s
12:03:04.323  == batch 1 of 4
12:03:04.423  start     web1:8081  2.0  0.52s
12:03:04.523  balance   from web1:8080 to web1:8081       0.01s
12:03:04.623  traffic   1.0 75%, 2.0 25%  120 requests/s
12:03:04.723  stop      web1:8080  1.0  1m 02s
12:03:04.823  analysis  pass     2.0: 100 requests, 0 errors, 12 ms; 1.0: 300 requests, 1 error, 11 ms
12:03:04.923  == batch 1 of 4: done in 2.35s
12:03:05.023  log       hello
12:03:05.123  warning   web1-8080 still has 3 sessions
              they will be cut
12:03:05.223  waiting   a person must approve
12:03:05.323  deployed 2.0 in 12.3s: 4 instances
]], out)
    assert.equal("", err)
  end)

  it("says an error in full where it happens and on standard error, and what is left with the command that mends it", function()
    local left = {
      { host = "web1", message = "release 1.0 does not run on port 8080\nits directory is gone",
        command = "ssh web1 ./mend" },
      { host = "web2", message = "port 8081 still answers" },
    }
    local out = show({ mode = "lines" }, {
      started(),
      { event = "op", op = "instance.await_healthy", host = "web2", instance = "web2:8081", release = "2.0", ok = false,
        seconds = 0.2, effect = false, error = error_text },
      { event = "step.finished", step = "batch 2 of 4", path = "/2", ok = false, seconds = 0.4 },
      { event = "rollback.started", reason = error_text, host = "web2", step = "batch 2 of 4" },
      { event = "rollback.finished", ok = false, left = left },
      { event = "run.finished", outcome = "needs_attention", exit = 3, seconds = 3, message = error_text },
    })
    assert.equal([[
12:03:04.123  deploy    shop  1.0 -> 2.0  rolling, 4 instances on 2 hosts  (run r1, 2026-01-02 UTC)
12:03:04.223  healthy   web2:8081  2.0  0.20s  FAILED
              web2:8081 exited with status 1 before it was healthy
                | panic: no database
                | at main.go:12
12:03:04.323  == batch 2 of 4: failed after 0.40s
12:03:04.423  == rolling back, after 'batch 2 of 4' failed on web2
              web2:8081 exited with status 1 before it was healthy
12:03:04.523  == the rollback is incomplete: 2 things left
12:03:04.623  error: web2:8081 exited with status 1 before it was healthy
                | panic: no database
                | at main.go:12
12:03:04.623  needs attention: the rollback is incomplete, 2 things left
                web1: release 1.0 does not run on port 8080
                  its directory is gone
                  to mend it: ssh web1 ./mend
                web2: port 8081 still answers
]], out)
  end)

  it("states each outcome in its last line", function()
    local function ending(fields, first)
      local event = { event = "run.finished", seconds = 61.2 }
      for key, value in pairs(fields) do event[key] = value end
      return last_line({ started(first), event }):sub(15)
    end
    assert.equal("failed and rolled back: 1.0 serves as before",
      ending { outcome = "rolled_back", exit = 1, message = "boom" })
    local first_run = started()
    first_run.previous = nil
    assert.equal("failed and rolled back: nothing serves, as before",
      last_line({ first_run, { event = "run.finished", outcome = "rolled_back", exit = 1 } }):sub(15))
    assert.equal("interrupted and rolled back: 1.0 serves as before", ending { outcome = "interrupted", exit = 130 })
    assert.equal("interrupted in the middle: `deployrt resume` carries on, `deployrt abort` rolls back",
      ending { outcome = "interrupted", exit = 3 })
    assert.equal("deployed 2.0 in 1m 01s: 1 instance, 1204 requests, 2 failed",
      ending({ outcome = "succeeded", requests = { ["1.0"] = 800, ["2.0"] = 404 }, failed = 2 }, { instances = 1 }))
    assert.equal("nothing to do: 2.0 serves already",
      ending { outcome = "succeeded", message = "nothing to do: 2.0 serves already" })
  end)

  local function probe(err)
    return { event = "op", op = "instance.probe", instance = "web1:8080", ok = not err, seconds = 1, effect = false,
      error = err }
  end
  local looking = {
    probe(nil), probe("refused"), probe("refused"), probe("gone"),
    { event = "analysis", verdict = "waiting", new = { requests = 1 } },
    { event = "traffic", share = { a = 100 } },
    { event = "traffic", share = { a = 100 } },
    { event = "state", instances = { { host = "web1", port = 8080, release = "1.0", state = "serving" } } },
  }

  it("leaves out observations, and polls that fail again in the same way", function()
    assert.equal([[
12:03:04.223  probe     web1:8080  1.00s  FAILED
              refused
12:03:04.423  probe     web1:8080  1.00s  FAILED
              gone
12:03:04.623  traffic   a 100%
]], (show({ mode = "lines" }, looking)))
  end)

  it("tells the verdict of each step once, and why there is none", function()
    local function step(name) return { event = "step.started", step = name, path = "/1" } end
    local function verdict(word, reason) return { event = "analysis", verdict = word, reason = reason, new = { requests = 9 } } end
    assert.equal([[
12:03:04.123  == 1%
12:03:04.323  analysis  pass     new: 9 requests, 0 errors, 0 ms
12:03:04.523  == 2%
12:03:04.623  analysis  pass     new: 9 requests, 0 errors, 0 ms
12:03:04.723  == 3%
12:03:04.923  analysis  inconclusive  new: 9 requests, 0 errors, 0 ms
              too few
]], (show({ mode = "lines" }, { step "1%", verdict "waiting", verdict "pass", verdict "pass", step "2%", verdict "pass", step "3%", verdict "waiting",
      verdict("inconclusive", "too few") })))
  end)

  it("shows all of them when it is to be verbose", function()
    local out = show({ mode = "lines", verbose = true }, looking)
    local _, count = out:gsub("\n%d", "")
    assert.equal(6, count)
    assert.truthy(out:find("analysis  waiting  new: 1 request, 0 errors, 0 ms", 1, true))
  end)

  it("never passes on escape sequences, control characters or broken UTF-8", function()
    local out = show({ mode = "lines" }, {
      { event = "log", message = "a\27[2Jb\27]0;title\7c\r\nd\te\0f\194\155g\255h\27(Bi" },
      started { app = "sh\27[31mop", run = "r\n1" },
    })
    assert.truthy(utf8.len(out))
    assert.is_nil(out:find("[\0-\9\11-\31\127]"))
    assert.truthy(out:find("log       abc\n              d e fg\u{FFFD}h", 1, true))
  end)

  it("takes nobody's words for a line of its own", function()
    local forged = "x\n18:00:00.000  deployed 9.9 in 0.01s"
    local out = show({ mode = "lines" }, {
      started { strategy = forged }, { event = "step.started", step = forged, path = "/1" },
      { event = "op", op = "instance.start", host = "web1", instance = forged, release = forged, ok = true, seconds = 1, effect = true },
      { event = "step.finished", step = forged, path = "/1", ok = false, seconds = 1 }, { event = "rollback.started", step = forged, host = forged },
    })
    for line in out:gmatch("[^\n]+") do assert.is_nil(line:find("^%S+ +deployed"), out) end
    assert.equal(5, select(2, out:gsub("\n", "")))
    assert.truthy(out:find("== x?18:00:00.000  deployed 9.9", 1, true), out)
  end)

  it("colours only when it may", function()
    local plain = show({ mode = "lines" }, { started() })
    local coloured = show({ mode = "lines", color = true }, { started() })
    assert.is_nil(plain:find("\27", 1, true))
    assert.truthy(coloured:find("\27[1;36m", 1, true))
    assert.equal(plain, (coloured:gsub("\27%[[%d;]*m", "")))
  end)

  it("takes events that it doesn't know, and leaves the caller's tables alone", function()
    local event = { event = "something.new", value = 1 }
    assert.equal("", (show({ mode = "lines" }, { event })))
    assert.same({ event = "something.new", value = 1 }, event)
  end)
end)

describe("progress, quiet", function()
  it("says nothing when all goes well", function()
    local out, err = show({ mode = "quiet" }, {
      started(), { event = "log", message = "hello" },
      { event = "run.finished", outcome = "succeeded", exit = 0, seconds = 1 },
    })
    assert.same({ "", "" }, { out, err })
  end)

  it("writes warnings and failures to standard error", function()
    local out, err = show({ mode = "quiet" }, {
      started(), { event = "warning", message = "slow" },
      { event = "rollback.finished", ok = false,
        left = { { host = "web1", message = "still down", command = "mend" } } },
      { event = "run.finished", outcome = "needs_attention", exit = 3, seconds = 1, message = error_text },
    })
    assert.equal("", out)
    assert.equal([[
warning: slow
error: web2:8081 exited with status 1 before it was healthy
  | panic: no database
  | at main.go:12
needs attention: the rollback is incomplete, 1 thing left
  web1: still down
    to mend it: mend
]], err)
  end)
end)

describe("progress in JSON", function()
  it("writes an object a line, keys in a fixed order", function()
    local out = show({ mode = "json" }, {
      { event = "waiting", reason = "a lock" },
      started(),
      { event = "op", op = "instance.start", host = "web1", instance = "web1:8081", ok = true, seconds = 0.5200000001,
        effect = true, release = "2.0" },
      { event = "op", op = "balancer.read", ok = false, seconds = 0, effect = false, error = "a/b \"c\"\\/\n\255" },
      { event = "traffic", share = { ["2.0"] = 5, ["1.0"] = 95.0 } },
      { event = "state", instances = {} },
      { event = "rollback.finished", ok = true, left = {} },
      { event = "run.finished", outcome = "rolled_back", exit = 1, seconds = 1.5, requests = { ["1.0"] = 12 }, zeta = 1,
        alpha = { 1, 0 / 0, { x = {} } } },
    })
    assert.equal(table.concat({
      [[{"time":"2026-01-02T12:03:04.123Z","run":null,"event":"waiting","reason":"a lock"}]],
      [[{"time":"2026-01-02T12:03:04.223Z","run":"r1","event":"run.started","app":"shop","strategy":"rolling",]] ..
        [["release":"2.0","previous":"1.0","hosts":2,"instances":4}]],
      [[{"time":"2026-01-02T12:03:04.323Z","run":"r1","event":"op","op":"instance.start","host":"web1",]] ..
        [["instance":"web1:8081","release":"2.0","ok":true,"seconds":0.52,"effect":true}]],
      [[{"time":"2026-01-02T12:03:04.423Z","run":"r1","event":"op","op":"balancer.read","ok":false,"seconds":0,]] ..
        [["effect":false,"error":"a/b \"c\"\\/\n]] .. "\u{FFFD}" .. [["}]],
      [[{"time":"2026-01-02T12:03:04.523Z","run":"r1","event":"traffic","share":{"1.0":95,"2.0":5}}]],
      [[{"time":"2026-01-02T12:03:04.723Z","run":"r1","event":"rollback.finished","ok":true,"left":[]}]],
      [[{"time":"2026-01-02T12:03:04.823Z","run":"r1","event":"run.finished","outcome":"rolled_back","exit":1,]] ..
        [["seconds":1.5,"requests":{"1.0":12},"alpha":[1,null,{"x":{}}],"zeta":1}]],
    }, "\n") .. "\n", out)
    for line in out:gmatch("[^\n]+") do assert.equal("table", type(cjson.decode(line))) end
  end)
end)

describe("the time of an event", function()
  it("is right around leap days and the turn of a year", function()
    local cases = {
      [0] = "1970-01-01T00:00:00.000Z", [951782399.9996] = "2000-02-29T00:00:00.000Z",
      [1709164799] = "2024-02-28T23:59:59.000Z", [1735689599.999] = "2024-12-31T23:59:59.999Z",
      [4107542400] = "2100-03-01T00:00:00.000Z",
    }
    for epoch, expected in pairs(cases) do assert.equal(expected, text.iso(epoch)) end
  end)
end)

describe("text that must fit", function()
  it("is cut by columns, not by bytes", function()
    assert.equal("naï…", text.cut("naïve café", 4))
    assert.equal("日…", text.cut("日本語", 4))
    assert.equal("日本", text.cut("日本", 4))
    assert.equal("", text.cut("abc", 0))
    assert.equal("ab...", text.cut("abcdefg", 5, "..."))
    assert.equal("..", text.cut("abcdefg", 2, "..."))
    assert.equal(5, text.width("e\u{301}日本"))
  end)

  it("sorts numbers inside names as numbers", function()
    local names = { "web10", "web2", "web1", "v99999999999999999999999" }
    table.sort(names, function(a, b) return text.natural(a) < text.natural(b) end)
    assert.same({ "v99999999999999999999999", "web1", "web2", "web10" }, names)
  end)
end)
