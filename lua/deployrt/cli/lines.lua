-- cli/lines.lua -- What comes in pieces, printed line by line.

---@class deployrt.Lines
---@field format fun(line: string): string  a line as it is printed
---@field write fun(text: string)
local Lines = {}
Lines.__index = Lines

local lines = {}

---@param write fun(text: string)
---@param format fun(line: string): string
---@return deployrt.Lines
function lines.new(write, format)
  return setmetatable({ write = write, format = format, rest = {} }, Lines)
end

--- A name as it stands in front of lines, as wide as the longest of all.
---@param name string
---@param width integer
---@return string
function lines.label(name, width)
  return ("%-" .. width .. "s"):format(name)
end

--- Prints the lines that are complete. The pieces of one that is not are kept as they came: a line may be of any length.
---@param text string
function Lines:add(text)
  local out, from, rest = {}, 1, self.rest
  for at in text:gmatch "()\n" do
    rest[#rest + 1] = text:sub(from, at - 1)
    out[#out + 1] = self.format(table.concat(rest))
    from, rest = at + 1, {}
  end
  if from <= #text then rest[#rest + 1] = text:sub(from) end
  self.rest = rest
  if #out > 0 then self.write(table.concat(out)) end
end

--- Prints what has no end of a line: who died in the middle of one says no more.
function Lines:finish()
  if #self.rest > 0 then self:add "\n" end
end

return lines
