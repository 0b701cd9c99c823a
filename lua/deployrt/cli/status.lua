-- cli/status.lua -- deployrt status APP.yml
local advice = require "deployrt.advice"
local cjson = require "cjson"
local common = require "deployrt.cli.common"
local driver = require "deployrt.balancer.driver"
local elsewhere = require "deployrt.elsewhere"
local errors = require "deployrt.errors"
local fleet = require "deployrt.fleet"
local health = require "deployrt.health"
local history = require "deployrt.history"
local json = require "deployrt.progress.json"
local launch = require "deployrt.launch"
local leftover = require "deployrt.leftover"
local life = require "deployrt.life"
local lock = require "deployrt.lock"
local monitor = require "deployrt.monitor"
local operation = require "deployrt.operation"
local text = require "deployrt.progress.text"

--- What an instance that runs gets of the traffic: no share is known where no balancer tells it, and no state where one does not answer.
local function traffic_of(balancer, member, shares)
  if balancer.unknown then return nil, nil, nil end
  if not balancer:exists() then return member.state, nil, nil end
  local slot = balancer.slots[member.slot]
  local state = balancer.down and member.state == "serving" and "idle" or member.state
  return state, slot and slot.state == "ready" and slot.weight or 0, not balancer.down and shares[member.slot] or 0
end

local function rows_of(opened)
  local rows, shares = {}, monitor.slot_shares(opened.balancer)
  for _, member in ipairs(opened.fleet:instances()) do
    local row = { host = member.host.name, port = member.port, release = member.release, pid = member.pid, member = member }
    row.state, row.weight, row.share = traffic_of(opened.balancer, member, shares)
    rows[#rows + 1] = row
  end
  local share = opened.balancer:exists() and 0 or nil
  for _, member in ipairs(opened.fleet.exited) do
    rows[#rows + 1] = { host = member.host.name, port = member.port, release = member.release, state = "down", weight = share, share = share, healthy = false }
  end
  table.sort(rows, function(a, b)
    if a.host ~= b.host then return a.host < b.host end
    return a.port < b.port
  end)
  return rows
end

local function probe(opened, rows)
  fleet.together(rows, function(row)
    if not row.member then return end
    local host = opened.connections[row.host]
    local directory = row.member.launch.packed and ("%s/releases/%s"):format(host.root, row.release) or host.root
    row.healthy = health.probe(host, row.port, launch.health(opened.app, row.member.launch),
      { port = row.port, host = host.name, release = row.release, dir = directory }, opened.secrets)
    row.member = nil
  end)
end

--- The release that serves most, and whether there is more than one.
local function summary(rows)
  local count, best, kinds = {}, nil, 0
  for _, row in ipairs(rows) do
    if row.state == "serving" then
      if not count[row.release] then kinds = kinds + 1 end
      count[row.release] = (count[row.release] or 0) + 1
      if not best or count[row.release] > count[best] then best = row.release end
    end
  end
  return best, kinds > 1
end

--- Whether somebody works on a run: its lock says so, or its controller, which runs here. It may be at work on other hosts.
local function is_under_way(run, locks)
  for _, held in ipairs(locks) do
    if held.run == run.id then return not held.dead end
  end
  return run.life ~= nil and life.is_here(run.life) and not life.is_gone(run.life)
end

--- The outcome of the last run; one whose controller is gone is unfinished.
local function outcome_of(last, locks)
  if last.outcome == "running" and not is_under_way(last, locks) then return "unfinished" end
  return last.outcome
end

--- Slots on which something listens that deployrt did not start, in words.
local function strangers(opened)
  local lines = {}
  for i, slot in ipairs(opened.fleet:strangers()) do
    local owner = operation.observe { name = "instance.owner", host = slot.host, args = { port = slot.port } }
    lines[i] = ("  %s: %s, which deployrt did not start"):format(slot.host.name, owner or "port " .. slot.port .. " was taken a moment ago")
  end
  return lines
end

--- What is wrong with the balancers: what one that does not run means for the traffic, which of several is not as the others, and
--- whether one is set up otherwise than app.yml says.
---@param idleness? string  that nothing gets traffic
---@return {state: "unknown"|"down"|"idle"|"differs"|"outdated", message: string}?
local function trouble_of(opened, problem, rows, idleness)
  if problem then return { state = "unknown", message = errors.text(problem) } end
  local balancer, running = opened.balancer, false
  for _, row in ipairs(rows) do running = running or row.state ~= "down" end
  if balancer.down and running then
    return { state = "down", message = "the balancer does not answer: if it does not run, no request gets through, and the next deployment starts it" }
  end
  if idleness then return { state = "idle", message = idleness } end
  if balancer.differ then return { state = "differs", message = balancer.differ .. ": the next deployment sets it right" } end
  pcall(driver.check_all, opened.drivers)
  local renewal = driver.renewal(opened.drivers)
  return renewal and { state = "outdated", message = renewal }
end

--- Of a run that stops an application there is no release.
local function run_of(last, locks)
  return { id = last.id, strategy = last.strategy, outcome = outcome_of(last, locks), release = last.strategy ~= "stop" and last.release or nil }
end

--- A lock that a run has left, and how far that run is by what the history has of it.
local function lock_of(held, state)
  local shown = { run = held.run, owner = held.owner, since = held.since, age = held.age, host = held.host, dead = held.dead, step = held.step }
  if not held.dead then return shown end
  local run = history.find(state, held.run)
  shown.needs_attention = run and leftover.is_open(run) or nil
  shown.over = not shown.needs_attention and state:is_over(held.run) or nil
  shown.away = shown.over and history.ended_without(run, held.host) or nil
  return shown
end

--- The locks of hosts, one of each run, or else that of a team.
local function locks_of(lines, state)
  local locks = {}
  for i, each in ipairs(lock.holders(lines)) do locks[i] = lock_of(each.held, state) end
  local team = #locks == 0 and state.read_lock and state:read_lock()
  return team and { lock_of(team, state) } or locks
end

local function gather(command, app, opened, problem)
  local lines, state, away = opened:lines(), common.state(command, app):at_hand()
  history.learn(state, lines)
  local rows = rows_of(opened)
  probe(opened, rows)
  local release, mixed = summary(rows)
  local locks, runs, unread = locks_of(lines, state), state:runs()
  local held = locks[1]
  local last = runs[#runs]
  return {
    app = app.app, file = app.file, release = release, mixed = mixed, instances = rows, missing = common.missing(opened), unknown = opened.balancer.unknown,
    unasked = #app.hosts > 0 and #opened.hosts == 0, locks = locks, lock = held, unread = away or unread, away = away,
    run = last and run_of(last, locks) or nil, settled = last and last.settled and leftover.remedy(last.kind, app.file) or nil,
    strangers = strangers(opened), elsewhere = elsewhere.rows(opened.balancer), balancer = trouble_of(opened, problem, rows, not problem and common.idleness(opened, runs, held)),
  }
end

local function value_of(value)
  return json.encode(value == nil and cjson.null or value)
end

--- Who gets traffic besides the instances.
local function encode_elsewhere(found)
  local rows = {}
  for i, row in ipairs(found.elsewhere) do
    rows[i] = ('{"server":%s,"address":%s,"share":%s,"left":%s}'):format(json.encode(row.server), value_of(row.address), json.encode(row.share), tostring(row.left))
  end
  return #rows > 0 and (',"elsewhere":[%s]'):format(table.concat(rows, ",")) or ""
end

--- What is not as always stands behind the rest: locks of several runs, hosts that cannot be asked, and the balancer.
local function encode_trouble(found)
  local hosts, out = {}, #found.locks > 1 and (',"locks":%s'):format(json.encode(found.locks)) or ""
  for i, err in ipairs(found.missing) do hosts[i] = json.encode { host = err.host, code = err.code, error = err.message } end
  if #hosts > 0 then out = ('%s,"unreachable":[%s]'):format(out, table.concat(hosts, ",")) end
  return found.balancer and ('%s,"balancer":%s'):format(out, json.encode(found.balancer)) or out
end

local function encode(found)
  local rows = {}
  for i, row in ipairs(found.instances) do
    rows[i] = ('{"host":%s,"port":%d,"release":%s,"pid":%s,"state":%s,"healthy":%s,"weight":%s,"share":%s}'):format(
      json.encode(row.host), row.port, json.encode(row.release), value_of(row.pid), value_of(row.state),
      tostring(row.healthy == true), value_of(row.weight), value_of(row.share))
  end
  local mixed
  if not (found.unknown or found.unasked) then mixed = found.mixed end
  return ('{"app":%s,"release":%s,"mixed":%s,"run":%s,"lock":%s,"instances":[%s]%s}\n'):format(json.encode(found.app),
    value_of(found.release), value_of(mixed), value_of(found.run), value_of(found.lock), table.concat(rows, ","), encode_elsewhere(found) .. encode_trouble(found))
end

--- Lines in columns as wide as they need to be, the last one free.
local function table_of(rows)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, #cell) end
  end
  for i, row in ipairs(rows) do
    local cells = {}
    for k, cell in ipairs(row) do cells[k] = cell .. (" "):rep(k < #row and widths[k] - #cell or 0) end
    lines[i] = "  " .. table.concat(cells, "  ")
  end
  return lines
end

local outcomes = {
  running = "under way", unfinished = "UNFINISHED: its controller died", needs_attention = "needs attention: `%s` goes on with its rollback",
}

--- What serves, as far as it could be seen.
local function serves(found)
  if found.unknown or found.unasked then return "nobody knows what serves" end
  if found.release then return "release " .. found.release end
  for _, row in ipairs(found.elsewhere) do
    if row.share > 0 then return "nothing that app.yml names serves" end
  end
  return #found.missing > 0 and "nothing serves on the hosts that could be asked" or "nothing serves"
end

local function show(found)
  local lines = { ("%s: %s%s"):format(found.app, serves(found), found.mixed and " (MIXED)" or "") }
  local rows = {}
  for i, row in ipairs(found.instances) do
    rows[i] = {
      ("%s:%d"):format(row.host, row.port), row.release, row.state or "unknown", row.healthy and "healthy" or "unhealthy",
      row.share and ("%5.1f%%"):format(100 * row.share) or "", row.pid and "pid " .. row.pid or "",
    }
  end
  table.move(table_of(rows), 1, #rows, #lines + 1, lines)
  if found.balancer and not found.unknown then lines[#lines + 1] = "  " .. found.balancer.message end
  table.move(found.strangers, 1, #found.strangers, #lines + 1, lines)
  for _, row in ipairs(found.elsewhere) do lines[#lines + 1] = "  " .. row.text end
  if found.run then
    lines[#lines + 1] = ("last run: %s, %s%s: %s"):format(found.run.id, found.run.strategy, found.run.release and " of " .. found.run.release or "",
      found.settled and "all that is left of it was committed: " .. found.settled or (outcomes[found.run.outcome] or found.run.outcome):format(advice.abort(found.file, found.run.id)))
  end
  for _, each in ipairs(found.locks) do lines[#lines + 1] = lock.describe(each, found.file) end
  for i, line in ipairs(lines) do lines[i] = text.line(line) end
  return table.concat(lines, "\n") .. "\n"
end

local harmless = { differs = true, outdated = true }

--- A host, a balancer or a team's state that is unusable is told by the exit code too, whatever else could be read.
local function exit_of(found)
  local balancer = found.balancer
  return (#found.missing > 0 or found.away or balancer and (harmless[balancer.state] == nil or balancer.message:find(" is away: ", 1, true))) and 2 or 0
end

return function(command)
  local app = common.app(command)
  return common.look(command, function(opened)
    local ok, err = pcall(opened.balancer.refresh, opened.balancer)
    opened.balancer.unknown = not ok
    opened.fleet:discover_hosts()
    pcall(common.await_check, opened) -- a balancer that goes away meanwhile is as it was seen
    local found = gather(command, app, opened, not ok and errors.wrap(err) or nil)
    command.write(command.flags.json and encode(found) or show(found))
    if found.unknown then command.write_error(("deployrt: %s\n"):format(found.balancer.message)) end
    if found.unread then command.write_error(("deployrt: warning: %s\n"):format(found.unread.message)) end
    for _, missing in ipairs(found.missing) do command.write_error(("deployrt: %s\n"):format(missing.message)) end
    return exit_of(found)
  end, app, { partial = true })
end
