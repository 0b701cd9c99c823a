-- progress/lines.lua -- A line an event, for logs and for people who read them at night; a run's summary.
local text = require "deployrt.progress.text"

local lines = {}

--- What is said about an event: one line, and more lines below it.
---@class deployrt.Entry
---@field spans deployrt.Span[]  the line, without the time
---@field more string[]          lines below, to be indented
---@field style? string          of the lines below

---@class deployrt.Lines
---@field run table  run.started, and `left` of rollback.finished
local Lines = {}
Lines.__index = Lines

local names = {
  ["instance.await_healthy"] = "healthy", ["release.activate"] = "current",
  ["balancer.apply"] = "balance", ["balancer.await_drained"] = "drained",
}
local subject_width, release_width = 24, 16 -- columns at most; what is longer is written in full, out of line
local indent = (" "):rep(14)                -- below the time

---@param verbose? boolean  observations too
---@return deployrt.Lines
function lines.new(verbose)
  local widths = { subject = 0, release = 0 }
  return setmetatable({ run = {}, verbose = verbose, widths = widths, explained = {}, failed = {} }, Lines)
end

local function word(verb, style)
  return { text.pad(verb, 8) .. "  ", style }
end

local function entry(spans, more, style)
  return { spans = spans, more = more or {}, style = style }
end

-- An error in full the first time, its first line later.
local function explain(self, message)
  local all = text.lines(message or "")
  if self.explained[message or ""] then return { all[1] } end
  self.explained[message or ""] = true
  return all
end

local function said(verb, style, message)
  local all = text.lines(message or "")
  local more = table.move(all, 2, #all, 1, {})
  return entry({ word(verb, style), { all[1] } }, more, style ~= "dim" and style or nil)
end

local function column(self, name, value, limit)
  self.widths[name] = math.max(self.widths[name], math.min(text.width(value), limit))
  return text.pad(value, self.widths[name])
end

-- An observation is no news unless it fails, and a poll that goes on failing the same way is said once.
local function is_news(self, event)
  if event.effect ~= false or self.verbose then return true end
  local key = ("%s %s %s"):format(event.op, event.host or "", event.instance or "")
  local failure = event.ok == false and (event.error or "") or nil
  local news = failure ~= nil and failure ~= self.failed[key]
  self.failed[key] = failure
  return news
end

local described = {}

function described.op(self, event)
  if not is_news(self, event) then return nil end
  local failed = event.ok == false
  local verb = names[event.op] or (event.op:match("[^.]+$") or event.op):gsub("_", " ")
  local subject, note = event.instance or event.host, event.note
  if note == subject then note = nil end
  local spans = {
    word(verb, failed and "red" or event.effect == false and "dim" or nil),
    { subject and column(self, "subject", text.line(subject), subject_width) or text.pad(text.line(note or ""), self.widths.subject) }, -- a note widens no column
  }
  if not subject then note = nil end
  if event.release then
    spans[#spans + 1] = { "  " .. column(self, "release", text.line(event.release), release_width) }
  elseif self.widths.release > 0 then
    spans[#spans + 1] = { (" "):rep(2 + self.widths.release) }
  end
  if event.seconds then spans[#spans + 1] = { "  " .. text.duration(event.seconds), "dim" } end
  if note then spans[#spans + 1] = { "  " .. text.lines(note)[1] } end
  if failed then spans[#spans + 1] = { "  FAILED", "failure" } end
  return entry(spans, failed and explain(self, event.error or "no reason was given") or nil, "red")
end

--- What is deployed in place of what: "1.0 -> 2.0"; where nothing is, what served.
function Lines:change(arrow)
  local run = self.run
  if not (run.previous and run.release) then return text.line(run.previous or run.release or "") end
  return ("%s %s %s"):format(text.line(run.previous), arrow or "->", text.line(run.release))
end

described["run.started"] = function(self, event)
  self.run = event
  local about = { event.release and text.line(event.strategy or "") }
  if event.instances then about[#about + 1] = text.count(event.instances, "instance") end
  local size = table.concat(about, ", ") .. (event.hosts and " on " .. text.count(event.hosts, "host") or "")
  return entry {
    word(event.release and "deploy" or "stop", "title"), { ("%s  %s"):format(text.line(event.app or ""), self:change()), "bold" },
    { "  " .. size },
    { ("  (run %s, %s UTC)"):format(text.line(event.run or "?"), event.time:sub(1, 10)), "dim" },
  }
end

described["step.started"] = function(self, event)
  self.verdict = nil
  return entry { { "== " .. text.line(event.step), "title" } }
end

described["step.finished"] = function(_, event)
  local failed = event.ok == false
  local words = ("== %s: %s %s"):format(text.line(event.step), failed and "failed after" or "done in",
    text.duration(event.seconds or 0))
  return entry { { words, failed and "failure" or "title" } }
end

local function sum(map)
  local total = 0
  for _, value in pairs(map or {}) do total = total + value end
  return total
end

function described.traffic(self, event)
  local parts = {}
  for i, release in ipairs(text.keys(event.share or {}, { self.run.previous, self.run.release })) do
    parts[i] = ("%s %s%%"):format(text.line(release), text.number(event.share[release]))
  end
  local shares, failing = table.concat(parts, ", "), sum(event.errors) > 0
  local news = shares ~= self.shares or failing ~= (self.failing or false)
  self.shares, self.failing = shares, failing
  if shares == "" and not failing then return nil end
  if not news and not self.verbose then return nil end
  local spans = { word("traffic"), { shares } }
  local function rate(map, words, style)
    spans[#spans + 1] = { ("  %s %s"):format(text.number(sum(map)), words), style }
  end
  if event.requests then rate(event.requests, "requests/s", "dim") end
  if failing then rate(event.errors, "errors/s", "failure") end
  return entry(spans)
end

local function side(name, numbers)
  return ("%s: %s, %s, %.0f ms"):format(name, text.count(numbers.requests or 0, "request"),
    text.count(numbers.errors or 0, "error"), 1000 * (numbers.latency or 0))
end

--- Both sides of an analysis, with their numbers.
function Lines:sides(event)
  local parts, run = {}, self.run
  if event.new then parts[1] = side(text.line(run.release or "new"), event.new) end
  if event.old then parts[#parts + 1] = side(text.line(run.previous or "old"), event.old) end
  return table.concat(parts, "; ")
end

lines.verdicts = { fail = "failure", pass = "green", inconclusive = "yellow" } -- how each is shown; others are dim

function described.analysis(self, event)
  local news = event.verdict ~= self.verdict and event.verdict ~= "waiting"
  self.verdict = event.verdict
  if not news and not self.verbose then return nil end
  local style = lines.verdicts[event.verdict] or "dim"
  local spans = { word("analysis"), { text.pad(event.verdict, 7) .. "  ", style }, { self:sides(event) } }
  return entry(spans, event.reason and text.lines(event.reason), event.verdict == "fail" and "red" or nil)
end

function described.log(_, event) return said("log", "dim", event.message) end
function described.warning(_, event) return said("warning", "yellow", event.message) end

function described.waiting(self, event)
  if event.reason == self.waiting and not self.verbose then return nil end
  self.waiting = event.reason
  return said("waiting", "yellow", event.reason)
end

described["rollback.started"] = function(self, event)
  local where = event.step and (", after '%s' failed"):format(text.line(event.step)) or ""
  if event.host then where = where .. " on " .. text.line(event.host) end
  local spans = { { "== rolling back" .. where, "failure" } }
  return entry(spans, event.reason and explain(self, event.reason), "red")
end

described["rollback.finished"] = function(self, event)
  self.run.left = event.left
  if event.ok then return entry { { "== rolled back", "title" } } end
  local left = text.count(#(event.left or {}), "thing")
  return entry { { ("== the rollback is incomplete: %s left"):format(left), "failure" } }
end

--- What to say about an event; nil where it is no news.
---@param event table  with its time
---@return deployrt.Entry?
function Lines:entry(event)
  local describe = described[event.event]
  return describe and describe(self, event)
end

local function served(event)
  if not event.requests then return "" end
  return (", %s, %d failed"):format(text.count(math.floor(sum(event.requests)), "request"), event.failed or 0)
end

local function restored(run, event)
  local previous = event.previous or run.previous
  local serving = previous and { previous } or event.elsewhere
  if not serving then return "nothing serves, as before" end
  return ("%s %s as before"):format(text.line(table.concat(serving, ", ")), #serving == 1 and "serves" or "serve")
end

--- Hosts that a run went on without, and how it left them.
local function left_out(event)
  local before, stranded, parts, is_stranded = {}, event.stranded or {}, {}, {}
  for _, name in ipairs(stranded) do is_stranded[name] = true end
  for _, name in ipairs(event.without or {}) do before[#before + 1] = not is_stranded[name] and name or nil end
  for _, each in ipairs { { before, "left as before" }, { stranded, "left as it was when that failed, where the new release may run without traffic" } } do
    if #each[1] > 0 then parts[#parts + 1] = ("%s %s"):format(text.line(table.concat(each[1], ", ")), each[2]) end
  end
  return #parts > 0 and ("; %s: --failed brings them along"):format(table.concat(parts, "; ")) or ""
end

local headlines = {}

function headlines.succeeded(self, event)
  if event.message then return "success", table.concat(text.lines(event.message), "\n") .. served(event) end
  local count = self.run.instances and (": " .. text.count(self.run.instances, "instance")) or ""
  local release, seconds = text.line(self.run.release or "?"), text.duration(event.seconds or 0)
  return event.without and "failure" or "success", ("deployed %s in %s%s%s%s"):format(release, seconds, count, served(event), left_out(event))
end

function headlines.rolled_back(self, event)
  local how = event.exit == 0 and "rolled back, as was asked" or "failed and rolled back"
  return event.exit == 0 and "success" or "failure", ("%s: %s%s"):format(how, restored(self.run, event), served(event))
end

function headlines.interrupted(self, event)
  local restoring = (event.exit or 130) == 130
  if restoring then return "failure", "interrupted and rolled back: " .. restored(self.run, event) end
  return "failure", "interrupted in the middle: `deployrt resume` carries on, `deployrt abort` rolls back"
end

function headlines.needs_attention(_, event, left)
  local rest = "; `deployrt status` shows what runs"
  if #left > 0 then rest = (", %s left"):format(text.count(#left, "thing")) end
  return "failure", "needs attention: " .. (event.settled and "what was committed stays" or "the rollback is incomplete") .. rest
end

-- What is left, host by host, each with the command that mends it.
local function left_behind(left)
  local out = {}
  for _, item in ipairs(left) do
    local all = text.lines(item.message or "")
    out[#out + 1] = ("  %s: %s"):format(text.line(item.host or "here"), all[1])
    for i = 2, #all do out[#out + 1] = "    " .. all[i] end
    if item.command then out[#out + 1] = "    to mend it: " .. text.line(item.command) end
  end
  return out
end

--- The last words about a run: why it failed, the outcome, and what is left to do.
---@param event table  run.finished
---@return deployrt.Entry[]
function Lines:summary(event)
  local entries, left = {}, event.left or self.run.left or {}
  if event.outcome ~= "succeeded" and event.message then
    local all = explain(self, event.message)
    entries[1] = entry({ { (event.exit == 0 and "" or "error: ") .. all[1], "red" } }, table.move(all, 2, #all, 1, {}), "red")
    if self.verbose and event.traceback then entries[2] = entry({ { "all frames:" } }, text.lines(event.traceback), "dim") end
  end
  local headline = headlines[event.outcome] or headlines.needs_attention
  local style, words = headline(self, event, left)
  entries[#entries + 1] = entry({ { words, style } }, left_behind(left))
  return entries
end

--- An entry as text, ending in a line end.
---@param item deployrt.Entry
---@param time? string      ISO time of the event; without it the lines begin at the margin
---@param color? boolean
---@return string
function lines.format(item, time, color)
  local first = { table.unpack(item.spans) }
  if time then table.insert(first, 1, { time:sub(12, 23) .. "  ", "dim" }) end
  local out = { text.render(first, { color = color }) }
  for i, line in ipairs(item.more) do
    out[i + 1] = text.render({ { (time and indent or "") .. line, item.style } }, { color = color })
  end
  return (table.concat(out, "\n"):gsub("[ \t]+\n", "\n"):gsub("[ \t]+$", "")) .. "\n"
end

local function open_lines(options)
  local formatter, view = lines.new(options.verbose), {}
  function view.event(_, event)
    if event.event == "run.finished" then
      local write = event.outcome == "succeeded" and options.write or options.write_error
      if event.outcome ~= "succeeded" then formatter.explained = {} end -- standard error may be all that somebody sees
      for _, item in ipairs(formatter:summary(event)) do write(lines.format(item, event.time, options.color)) end
      return
    end
    local item = formatter:entry(event)
    if item then options.write(lines.format(item, event.time, options.color)) end
  end
  return view
end

local function open_quiet(options)
  local formatter, view = lines.new(false), {}
  local function print_entry(item) options.write_error(lines.format(item, nil, options.color)) end
  function view.event(_, event)
    if event.event == "warning" then
      print_entry(entry { { "warning: " .. table.concat(text.lines(event.message), "\n"), "yellow" } })
    elseif event.event == "run.finished" then
      if event.outcome == "succeeded" then return end
      for _, item in ipairs(formatter:summary(event)) do print_entry(item) end
    elseif event.event == "run.started" or event.event == "rollback.finished" then
      formatter:entry(event)
    end
  end
  return view
end

--- The view of --quiet, and the one without a terminal.
---@param options deployrt.ProgressOptions
function lines.open(options)
  local view = (options.mode == "quiet" and open_quiet or open_lines)(options)
  function view.tick() end
  function view.close() end
  return view
end

return lines
