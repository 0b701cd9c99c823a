-- support/screen.lua -- A terminal: interprets what the live view writes, and refuses what it doesn't know.
local screen = {}

local Screen = {}
Screen.__index = Screen

local function blank(columns)
  local row = {}
  for i = 1, columns do row[i] = " " end
  return row
end

--- An empty screen with the cursor in its first row, or in `row`.
---@param columns integer
---@param rows integer
---@param row? integer  from 1
function screen.new(columns, rows, row)
  local self = setmetatable({
    columns = columns, rows = rows, row = row or 1, column = 1, cells = {},
    wraps = true, cursor = true, scrolled = 0, wrapped = 0, bytes = 0, writes = 0, history = {}, touched = {},
  }, Screen)
  for i = 1, rows do self.cells[i] = blank(columns) end
  return self
end

--- Another size: long rows are wrapped, as modern terminals do; what is in the way goes to the history at the top.
function Screen:resize(columns, rows)
  local cells, cursor = {}, 1
  for i, row in ipairs(self.cells) do
    if i == self.row then cursor = #cells + 1 end
    local last = #row
    while last > 1 and row[last] == " " do last = last - 1 end
    for from = 1, last, columns do
      local part = table.move(row, from, math.min(from + columns - 1, last), 1, {})
      for c = #part + 1, columns do part[c] = " " end
      cells[#cells + 1] = part
    end
  end
  while cursor > rows do
    self.history[#self.history + 1] = table.remove(cells, 1)
    cursor = cursor - 1
  end
  for i = #cells + 1, rows do cells[i] = blank(columns) end
  for i = rows + 1, #cells do cells[i] = nil end
  self.cells, self.row, self.columns, self.rows = cells, cursor, columns, rows
  self.column = math.min(self.column, columns)
end

function Screen:scroll()
  self.history[#self.history + 1] = table.remove(self.cells, 1)
  self.cells[#self.cells + 1] = blank(self.columns)
  self.scrolled = self.scrolled + 1
end

function Screen:feed_line()
  if self.row == self.rows then self:scroll() else self.row = self.row + 1 end
end

function Screen:put(char)
  if self.column > self.columns then
    if not self.wraps then
      self.cells[self.row][self.columns] = char
      return
    end
    self.wrapped = self.wrapped + 1
    self.column = 1
    self:feed_line()
  end
  self.cells[self.row][self.column] = char
  self.touched[self.row] = true
  self.column = self.column + 1
end

function Screen:erase(from, to)
  for row = from, to do
    for column = row == self.row and self.column or 1, self.columns do self.cells[row][column] = " " end
  end
end

local controls = {
  A = function(self, n) self.row = math.max(1, self.row - n) end,
  B = function(self, n) self.row = math.min(self.rows, self.row + n) end,
  C = function(self, n) self.column = math.min(self.columns, self.column + n) end,
  D = function(self, n) self.column = math.max(1, self.column - n) end,
  P = function(self, n)
    for _ = 1, n do
      table.remove(self.cells[self.row], self.column)
      table.insert(self.cells[self.row], " ")
    end
  end,
  ["@"] = function(self, n)
    for _ = 1, n do
      table.insert(self.cells[self.row], self.column, " ")
      table.remove(self.cells[self.row])
    end
  end,
  H = function(self) self.row, self.column = 1, 1 end,
  J = function(self) self:erase(self.row, self.rows) end,
  K = function(self) self:erase(self.row, self.row) end,
  m = function() end,
}
local modes = {
  ["?7h"] = { "wraps", true }, ["?7l"] = { "wraps", false },
  ["?25h"] = { "cursor", true }, ["?25l"] = { "cursor", false },
}

function Screen:control(parameters, final)
  local mode = modes[parameters .. final]
  if mode then
    self[mode[1]] = mode[2]
    return
  end
  local act = controls[final]
  assert(act and parameters:find("^[%d;]*$"), "the screen does not know ESC[" .. parameters .. final)
  act(self, tonumber(parameters) or 1)
end

--- Takes in what a program writes.
---@param data string
function Screen:write(data)
  self.bytes, self.writes = self.bytes + #data, self.writes + 1
  local at = 1
  while at <= #data do
    local parameters, final, after = data:match("^\27%[([%d;?]*)([%a@])()", at)
    if parameters then
      self:control(parameters, final)
      at = after
    else
      local char = data:match("^[\0-\127\194-\244][\128-\191]*", at)
      assert(char, "the screen got a broken character")
      at = at + #char
      if char == "\r" then self.column = 1
      elseif char == "\b" then self.column = math.max(1, self.column - 1)
      elseif char == "\n" then self:feed_line() self.column = 1
      else
        assert(not char:find("%c"), "the screen got a control character")
        self:put(char)
      end
    end
  end
end

--- The rows as text, without blanks at their ends and blank rows at the end.
---@return string[]
function Screen:lines()
  local out, last = {}, 0
  for i, row in ipairs(self.cells) do
    out[i] = table.concat(row):gsub("%s+$", "")
    if out[i] ~= "" then last = i end
  end
  return table.move(out, 1, last, 1, {})
end

--- All of it as one text.
function Screen:text()
  return table.concat(self:lines(), "\n")
end

return screen
