-- waiting.lua -- The step of a run that waits for a person, as hosts have it and others read it there.
local core = require "deployrt.core"

local waiting = {}

local mark = "waits for approval"
local between = "; " .. mark -- where a run waits at several places

--- Bars part the answers in a step, and a bracket ends them.
local function escape(answer)
  return (answer:gsub("[|)%%]", function(sign) return ("%%%02X"):format(sign:byte()) end))
end

local function unescape(answer)
  return (answer:gsub("%%(%x%x)", function(code) return string.char(tonumber(code, 16)) end))
end

--- The step of a run that waits.
---@param what string
---@param answers? string[]  one of them lets it through
---@return string
function waiting.step(what, answers)
  local choice = {}
  for i, each in ipairs(answers or {}) do choice[i] = escape(each) end
  return ("%s%s: %s"):format(mark, answers and (" (%s)"):format(table.concat(choice, "|")) or "", (what:gsub(between, ", " .. mark)))
end

--- The step of a run that waits at several places: what is the same is told once.
---@param steps string[]
---@return string? step  nil: it waits at none
function waiting.together(steps)
  local list, seen = {}, {}
  for _, step in ipairs(steps) do
    if not seen[step] then list[#list + 1] = step end
    seen[step] = true
  end
  return #list > 0 and table.concat(list, "; ") or nil
end

--- Whether a run that is at this step waits.
---@param step string
---@return boolean
function waiting.is_so(step)
  return step:sub(1, #mark) == mark
end

--- The places where it waits.
---@param step string
---@return {answers?: string[]}[]  each with the answers that it takes; none: any approval lets it through
function waiting.places(step)
  if not waiting.is_so(step) then return {} end
  local places = {}
  for text in (step:sub(#mark + 1) .. between):gmatch("(.-)" .. between) do
    local choice, place = text:match("^ %(([^)]*)%): "), {}
    for each in (choice or ""):gmatch("[^|]+") do
      place.answers = place.answers or {}
      table.insert(place.answers, unescape(each))
    end
    places[#places + 1] = place
  end
  return places
end

--- Whether a place has an answer among its own.
local function has(place, answer)
  for _, each in ipairs(place.answers or {}) do
    if each == answer then return true end
  end
  return false
end

--- Parts places where a run waits into those that an answer opens and the others. What any approval lets through is opened by one
--- without an answer, or by any where nobody asks for one: an answer is for the question that it answers.
---@generic T: {answers?: string[]}
---@param places T[]
---@param answer? string  nil or "": an approval without one
---@return T[] open
---@return T[] shut
function waiting.part(places, answer)
  local open, shut, asked = {}, {}, false
  for _, place in ipairs(places) do asked = asked or place.answers ~= nil end
  local is_plain = not asked or (answer or "") == ""
  for _, place in ipairs(places) do
    local opens = has(place, answer) or is_plain and place.answers == nil
    table.insert(opens and open or shut, place)
  end
  return open, shut
end

--- A word as a shell takes it.
local function word(text)
  return text:find("^[%w_./:@+=-]+$") and text or core.quote { text }
end

--- What a person types to let a run go on: a command for each answer.
---@param file string  app.yml as the user named it
---@param places {answers?: string[]}[]  where it waits
---@return string
function waiting.command(file, places)
  local commands, seen = {}, {}
  for _, place in ipairs(places) do
    for _, each in ipairs(place.answers or { "" }) do
      local typed = ("`deployrt approve %s%s`"):format(each ~= "" and word(each) .. " " or "", word(file))
      if not seen[typed] then commands[#commands + 1] = typed end
      seen[typed] = true
    end
  end
  return table.concat(commands, " or ")
end

return waiting
