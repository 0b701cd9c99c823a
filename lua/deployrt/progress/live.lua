-- progress/live.lua -- The live view: a frame on the terminal in which only changed lines are written again.
local lines = require "deployrt.progress.lines"
local text = require "deployrt.progress.text"

local live = {}

---@class deployrt.Live
local Live = {}
Live.__index = Live

local kept_entries, kept_warnings = 10, 20
local unicode = {
  arrow = "→", mark = "…", into = " › ", full = "█", empty = "░",
  new = "●", old = "○", draining = "◐", idle = "◇", starting = "↑", stopping = "↓", down = "·",
}
local plain = {
  arrow = "->", mark = "...", into = " > ", full = "#", empty = ".",
  new = "N", old = "o", draining = "~", idle = "-", starting = "^", stopping = "v", down = ".",
}
local styles = {
  new = "green", old = "cyan", draining = "yellow", idle = "magenta", starting = "bold", stopping = "yellow",
  down = "dim",
}
local order = { "new", "old", "draining", "idle", "starting", "stopping", "down" }

---@param options deployrt.ProgressOptions
function live.open(options)
  return setmetatable({
    options = options, symbols = options.ascii and plain or unicode, formatter = lines.new(options.verbose),
    steps = {}, instances = {}, entries = {}, warnings = {}, shown = {}, dirty = false,
  }, Live)
end

-- What the view remembers of events.

local remember = {}

remember["run.started"] = function(self, event) self.run, self.started = event, self.options.now() end
remember["run.finished"] = function(self, event)
  self.finished, self.waiting = event, nil
  self.seconds = event.seconds or (self.started and self.options.now() - self.started)
end
remember["step.started"] = function(self, event) self.steps[#self.steps + 1], self.waiting = event, nil end
remember["step.finished"] = function(self, event)
  for i = #self.steps, 1, -1 do
    if self.steps[i].path == event.path then table.remove(self.steps, i) end
  end
end
remember["rollback.started"] = function(self, event) self.rollback, self.waiting = event, nil end
remember["rollback.finished"] = function(self, event) self.rolled_back = event end
function remember.op(self) self.waiting = nil end
function remember.waiting(self, event) self.waiting = event.reason end
--- A change of shares says nothing of rates: the last ones stay.
function remember.traffic(self, event)
  local before = self.traffic or {}
  self.traffic = { share = event.share, requests = event.requests or before.requests, errors = event.errors or before.errors }
end
function remember.analysis(self, event) self.analysis = event end
function remember.warning(self, event)
  if #self.warnings < kept_warnings then self.warnings[#self.warnings + 1] = event end
end

-- The class of an instance decides its symbol and colour.
local function class_of(self, instance)
  if instance.state ~= "serving" then return styles[instance.state] and instance.state or "down" end
  return self.run and instance.release == self.run.release and "new" or "old"
end

function remember.state(self, event) self.snapshot = event.instances end

-- The last snapshot as the frame needs it; many may come between two frames.
local function take_snapshot(self)
  if not self.snapshot then return end
  local list = {}
  for i, given in ipairs(self.snapshot) do
    local host = text.line(given.host)
    local label = ("%s:%s"):format(host, given.port or "")
    list[i] = {
      host = host, label = label, key = text.natural(label), class = class_of(self, given),
      release = text.line(given.release or ""), state = given.state or "down", weight = given.weight, share = given.share,
    }
  end
  table.sort(list, function(a, b) return a.key < b.key end)
  self.instances, self.snapshot = list, nil
end

--- Takes an event in; it is drawn at the next tick.
---@param event table  with its time
function Live:event(event)
  local item = self.formatter:entry(event)
  if self.closed then
    if item then self.options.write(lines.format(item, nil, self.options.color)) end
    return
  end
  local note = remember[event.event]
  if note then note(self, event) end
  if item and event.event ~= "run.started" then
    item.time = event.time
    self.entries[#self.entries + 1] = item
    if #self.entries > kept_entries then table.remove(self.entries, 1) end
  end
  self.dirty = true
end

-- The frame: lists of lines, each a list of spans.

local function spread(left, right, width)
  local gap = width - text.spans_width(left) - text.spans_width({ right })
  if gap < 1 then return left end
  left[#left + 1] = { (" "):rep(gap) }
  left[#left + 1] = right
  return left
end

local function count_class(self, class)
  local count = 0
  for _, instance in ipairs(self.instances) do
    if instance.class == class then count = count + 1 end
  end
  return count
end

local function activity(self)
  if self.finished then return "finished" end
  if self.rollback then return "rolling back" end
  local labels = {}
  for i, step in ipairs(self.steps) do labels[i] = text.line(step.step) end
  return #labels > 0 and table.concat(labels, self.symbols.into) or "getting ready"
end

local function elapsed(self)
  if not self.started then return 0 end
  return self.seconds or self.options.now() - self.started
end

local function banner(self)
  local done = self.rolled_back
  if not self.rollback then return nil end
  local words = not done and "ROLLING BACK" or done.ok and "ROLLED BACK" or "ROLLBACK INCOMPLETE"
  local reason = text.lines(self.rollback.reason or "the run failed")[1]
  return { { (" %s: %s "):format(words, reason), done and done.ok and "calm" or "banner" } }
end

local function head(self, width)
  local run = self.run or {}
  local title = { { text.line(run.app or "deployrt"), "title" } }
  if run.strategy then title[2] = { "  " .. text.line(run.strategy) } end
  if run.release then title[3] = { "  " .. self.formatter:change(self.symbols.arrow), "bold" } end
  local doing = { { activity(self), not self.finished and "bold" or nil } }
  if self.waiting then doing[2] = { "  waiting: " .. text.lines(self.waiting)[1], "yellow" } end
  if #self.instances > 0 and run.release then
    local goal = run.instances and (" of %d"):format(run.instances) or ""
    local count = (" %d%s serve %s"):format(count_class(self, "new"), goal, text.line(run.release))
    doing = spread(doing, { count }, width)
  end
  return { spread(title, { " " .. text.elapsed(elapsed(self)), "dim" }, width), doing, banner(self) }
end

local function bar(self, part, width, style)
  local filled = math.max(0, math.min(width, math.floor(part * width + 0.5)))
  if part > 0 and filled == 0 then filled = 1 end
  return { self.symbols.full:rep(filled), style }, { self.symbols.empty:rep(width - filled), "dim" }
end

local function percent(share)
  return share > 0 and share < 1 and "<1%" or ("%.0f%%"):format(share)
end

local function widest(list, key, limit)
  local width = 0
  for _, item in ipairs(list) do width = math.max(width, text.width(item[key])) end
  return math.min(width, limit)
end

local function heaviest(self)
  local most = 1
  for _, instance in ipairs(self.instances) do
    most = math.max(most, instance.state == "serving" and instance.weight or 0)
  end
  return most
end

local function fitted(self, value, width)
  return text.pad(text.cut(value, width, self.symbols.mark), width)
end

local function table_view(self, width)
  local out = {}
  local names, releases = widest(self.instances, "label", width // 3), widest(self.instances, "release", 14)
  local most = heaviest(self)
  local bars = math.max(0, math.min(30, width - names - releases - 22))
  for i, instance in ipairs(self.instances) do
    local class = instance.class
    local line = {
      { " " .. self.symbols[class] .. " ", styles[class] },
      { fitted(self, instance.label, names) .. "  " },
      { fitted(self, instance.release, releases) .. "  ", class == "new" and "bold" or nil },
      { text.pad(text.line(instance.state), 8) .. "  ", styles[class] },
    }
    if instance.state == "serving" then
      local weight = instance.weight or 1
      line[5], line[6] = bar(self, weight / most, bars, styles[class])
      line[7] = instance.share and { ("%5s"):format(percent(100 * instance.share)) }
    end
    out[i] = line
  end
  return out
end

local function class_name(self, class)
  local run = self.run or {}
  if class == "new" then return "serving " .. text.line(run.release or "") end
  if class == "old" then return "serving " .. text.line(run.previous or "another release") end
  return class
end

local function legend(self, width)
  local out, line = {}, {}
  for _, class in ipairs(order) do
    local count = count_class(self, class)
    local words = (" %d %s  "):format(count, class_name(self, class))
    if count > 0 then
      if #line > 0 and text.spans_width(line) + text.width(words) > width then
        out[#out + 1] = line
        line = {}
      end
      line[#line + 1] = { " " .. self.symbols[class], styles[class] }
      line[#line + 1] = { words }
    end
  end
  out[#out + 1] = #line > 0 and line or nil
  return out
end

-- The instances host by host: {host =, cells = spans}.
local function by_host(self)
  local hosts = {}
  for _, instance in ipairs(self.instances) do
    local host = hosts[#hosts]
    if not host or host.host ~= instance.host then
      host = { host = instance.host, cells = {} }
      hosts[#hosts + 1] = host
    end
    host.cells[#host.cells + 1] = { self.symbols[instance.class], styles[instance.class] }
  end
  return hosts
end

-- Each host by its name, several in a line; nil when it does not fit.
local function named_grid(self, hosts, width, room)
  local names, slots = widest(hosts, "host", 30), 0
  for _, host in ipairs(hosts) do slots = math.max(slots, #host.cells) end
  local per_line = (width + 2) // (names + slots + 4)
  if per_line < 1 or math.ceil(#hosts / per_line) > room then return nil end
  local out = {}
  for i, host in ipairs(hosts) do
    local line = out[(i - 1) // per_line + 1] or {}
    out[(i - 1) // per_line + 1] = line
    line[#line + 1] = { (#line > 0 and "   " or " ") .. fitted(self, host.host, names) .. " " }
    for _, cell in ipairs(host.cells) do line[#line + 1] = cell end
    line[#line + 1] = { (" "):rep(slots - #host.cells) }
  end
  return out
end

-- One symbol an instance, in lines that begin with the name of their first host; `gap` stands between hosts.
local function dense_grid(self, hosts, width, room, gap)
  local names = widest(hosts, "host", 20)
  local per_line = math.max(1, width - names - 2)
  local out, left, shown = {}, 0, 0
  for _, host in ipairs(hosts) do
    if left < #host.cells and #host.cells <= per_line then left = 0 end
    for _, cell in ipairs(host.cells) do
      if left <= 0 then
        if #out == room then return out, shown end
        out[#out + 1], left = { { " " .. fitted(self, host.host, names) .. " " } }, per_line
      end
      table.insert(out[#out], cell)
      left, shown = left - 1, shown + 1
    end
    if #host.cells > 1 and left > 0 then
      table.insert(out[#out], { gap })
      left = left - #gap
    end
  end
  return out, shown
end

local function grid_view(self, width, room)
  local out, hosts = legend(self, width), by_host(self)
  room = room - #out
  if room < 1 then return out end
  local all, grid, shown = #self.instances, named_grid(self, hosts, width, room), #self.instances
  if not grid then grid, shown = dense_grid(self, hosts, width, room, " ") end
  if shown < all then grid, shown = dense_grid(self, hosts, width, room, "") end
  if shown < all then
    grid, shown = dense_grid(self, hosts, width, room - 1, "")
    grid[#grid + 1] = { { (" and %d more"):format(all - shown), "dim" } }
  end
  return table.move(grid, 1, #grid, #out + 1, out)
end

local function instances_view(self, width, room)
  if #self.instances == 0 or room < 1 then return {} end
  if #self.instances <= room then return table_view(self, width) end
  return grid_view(self, width, room)
end

local function traffic_line(self, release, names, width)
  local traffic, run = self.traffic, self.run or {}
  local share = traffic.share and traffic.share[release] or 0
  local requests, failing = (traffic.requests or {})[release], (traffic.errors or {})[release]
  local right = ("%5s"):format(percent(share))
  if requests then right = right .. ("%7s requests/s"):format(text.number(requests)) end
  local wrong = failing and ("%6s errors/s"):format(text.number(failing)) or ""
  local bars = math.max(0, math.min(30, width - names - #right - #wrong - 3))
  local filled, rest = bar(self, share / 100, bars, styles[release == run.release and "new" or "old"])
  local name, style = fitted(self, text.line(release), names), (failing or 0) > 0 and "failure" or "dim"
  return { { " " .. name .. "  " }, filled, rest, { right }, { wrong, style } }
end

local function traffic_view(self, width, roomy)
  if not self.traffic then return {} end
  local run, named, out = self.run or {}, {}, {}
  for _, map in ipairs { self.traffic.share or {}, self.traffic.requests or {} } do
    for release in pairs(map) do named[release] = true end
  end
  local keys, names = text.keys(named, { run.previous, run.release }), 0
  for _, release in ipairs(keys) do names = math.max(names, math.min(14, text.width(text.line(release)))) end
  for i = 1, math.min(4, #keys) do out[i] = traffic_line(self, keys[i], names, width) end
  local analysis = roomy and self.analysis
  if analysis then
    local style = lines.verdicts[analysis.verdict] or "dim"
    local sides = "  " .. self.formatter:sides(analysis)
    out[#out + 1] = { { " analysis: " }, { text.line(analysis.verdict), style }, { sides } }
  end
  return out
end

local function entry_lines(item)
  local first = table.move(item.spans, 1, #item.spans, 2, { { " " .. item.time:sub(12, 19) .. "  ", "dim" } })
  local out = { first }
  for i = 1, math.min(2, #item.more) do out[i + 1] = { { (" "):rep(11) .. item.more[i], item.style } } end
  return out
end

-- The newest entries that fit; an error keeps the first two of its lines.
local function entries_view(self, room)
  local out = {}
  for i = #self.entries, 1, -1 do
    local block = entry_lines(self.entries[i])
    if #out + #block > room then
      if #out == 0 and room > 0 then return table.move(block, 1, room, 1, {}) end
      break
    end
    table.move(out, 1, #out, #block + 1)
    table.move(block, 1, #block, 1, out)
  end
  return out
end

local function append(out, part, blank)
  if #part == 0 then return end
  if blank and #out > 0 then out[#out + 1] = {} end
  table.move(part, 1, #part, #out + 1, out)
end

--- The lines to be seen, ready to be written.
---@param columns integer
---@param rows integer
---@return string[]
function Live:frame(columns, rows)
  local width, height = math.max(columns - 1, 1), math.max(rows - 1, 0)
  take_snapshot(self)
  local roomy = height >= 14
  local top, traffic = head(self, width), traffic_view(self, width, roomy)
  local blanks = roomy and (#traffic > 0 and 3 or 2) or 0
  local reserved = height >= 20 and 4 or height >= 9 and 2 or 1
  local body = instances_view(self, width, height - #top - #traffic - blanks - reserved)
  local out = {}
  append(out, top)
  append(out, body, roomy)
  append(out, traffic, roomy)
  append(out, entries_view(self, math.min(8, height - #out - (roomy and 1 or 0))), roomy)
  local rendered = {}
  for i = 1, math.min(#out, height) do
    rendered[i] = text.render(out[i], { color = self.options.color, width = width, mark = self.symbols.mark })
  end
  return rendered
end

-- Painting: the cursor rests at the margin of the line below the frame.

local function move(out, from, to)
  if to ~= from then out[#out + 1] = ("\27[%d%s"):format(math.abs(to - from), to < from and "A" or "B") end
end

local function changes(old, new)
  local out, at = {}, #old
  for i, line in ipairs(new) do
    if line ~= old[i] then
      move(out, at, i - 1)
      out[#out + 1] = "\r" .. line .. "\27[K"
      at = i - 1
      if i > #old then
        out[#out + 1] = "\r\n"
        at = i
      end
    end
  end
  if #out == 0 and #new == #old then return nil end
  move(out, at, #new)
  return table.concat(out) .. "\r\27[J"
end

local function size(self)
  local options = self.options
  local columns, rows
  if options.size then columns, rows = options.size() end
  return columns or options.columns or 80, rows or options.rows or 24
end

-- After a resize nobody knows where the terminal has put the old lines: the screen is cleared. Lines are written
-- with wrapping off, for a symbol may be wider than it should be.
local function paint(self, columns, rows)
  local resized = #self.shown > 0 and (columns ~= self.columns or rows ~= self.rows)
  local prefix = resized and "\27[H\27[J" or self.columns and "" or "\27[?25l"
  if resized then self.shown = {} end
  local frame = self:frame(columns, rows)
  local output = changes(self.shown, frame)
  self.shown, self.columns, self.rows = frame, columns, rows
  if output then self.options.write(prefix .. "\27[?7l" .. output .. "\27[?7h") end
end

--- Draws what has changed since the last time.
function Live:tick()
  local columns, rows = size(self)
  local second = math.floor(elapsed(self))
  local same = not self.dirty and second == self.second and columns == self.columns and rows == self.rows
  if same or (#self.entries == 0 and not self.run) then return end
  self.dirty, self.second = false, second
  paint(self, columns, rows)
end

--- Draws the last frame, shows the cursor again, and says how the run ended.
function Live:close()
  self.closed = true
  local function print_entry(item) self.options.write(lines.format(item, nil, self.options.color)) end
  if self.run then
    self.dirty = true
    self:tick()
  end
  if self.columns then self.options.write("\27[?25h") end
  for _, event in ipairs(self.warnings) do print_entry(self.formatter:entry(event)) end
  if not self.finished then return end
  self.formatter.explained = {}
  for _, item in ipairs(self.formatter:summary(self.finished)) do print_entry(item) end
end

return live
