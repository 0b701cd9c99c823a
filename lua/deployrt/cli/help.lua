-- cli/help.lua -- deployrt help [STRATEGY|COMMAND|BALANCER]
local arguments = require "deployrt.arguments"
local driver = require "deployrt.balancer.driver"
local text = require "deployrt.progress.text"

--- What flags do: those of a command, or all.
local function flags_text(command)
  local names, lines = {}, {}
  for name, flag in pairs(arguments.flags) do
    if not command or arguments.is_known(flag, command) then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local flag = arguments.flags[name]
    local only = not command and flag.of and table.concat(flag.of, ", ") .. ": " or ""
    lines[#lines + 1] = ("  --%-20s %s%s%s"):format(name .. (flag.value and " " .. flag.value or ""), only, flag.doc, flag.list and " (repeatable)" or "")
  end
  return table.concat(lines, "\n")
end

local function overview()
  local cli = require "deployrt.cli"
  local strategies = table.concat(require("deployrt.strategy").names(), ", ")
  local lines = { ("deployrt STRATEGY APP.yml      deploy: %s, or a script of your own"):format(strategies), "" }
  for _, command in ipairs(cli.commands) do
    lines[#lines + 1] = ("deployrt %-22s %s"):format(command[1] .. " " .. command[2], command[3])
  end
  lines[#lines + 1] = ("\nHelp on a strategy, and on its options: help STRATEGY; on what your balancer must have: help %s"):format(
    table.concat(driver.names(), "|"))
  lines[#lines + 1] = "\nOptions, anywhere on the line:\n" .. flags_text()
  lines[#lines + 1] = "\nExit: 0 done; 1 failed, and rolled back; 2 wrong usage, file or host: nothing changed; 3 rollback incomplete;\n"
    .. "4 another run holds the lock; 130 interrupted, and rolled back."
  return table.concat(lines, "\n") .. "\n"
end

local function sorted(map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- What a script says, on one line, whatever it has laid it out on.
local function said(words)
  return text.line((words:gsub("%s+", " ")))
end

--- A default as app.yml would have it.
local function shown(value)
  if value == nil then return "none" end
  if type(value) ~= "table" then return text.line(value) end
  local parts = {}
  if #value > 0 or next(value) == nil then
    for i, each in ipairs(value) do parts[i] = shown(each) end
    return "[" .. table.concat(parts, ", ") .. "]"
  end
  for i, key in ipairs(sorted(value)) do parts[i] = ("%s: %s"):format(text.line(key), shown(value[key])) end
  return "{" .. table.concat(parts, ", ") .. "}"
end

local function described(option)
  return said((option.doc or "") .. (option.values and (" (%s)"):format(table.concat(option.values, ", ")) or ""))
end

local function strategy_text(loaded)
  local lines, widest = { ("%s: %s\n\nOptions (strategy: in app.yml):"):format(said(loaded.name), said(loaded.summary or "")) }, 10
  for name in pairs(loaded.options) do widest = math.max(widest, #name) end
  for _, name in ipairs(sorted(loaded.options)) do
    local option = loaded.options[name]
    lines[#lines + 1] = ("  %-" .. widest .. "s %-9s default %-26s %s"):format(name, option.type or "any", shown(option.default), described(option))
    for _, key in ipairs(sorted(type(option.of) == "table" and option.of.keys or {})) do
      lines[#lines + 1] = ("    %-10s %-9s %s"):format(text.line(key), option.of.keys[key].type or "any", described(option.of.keys[key]))
    end
  end
  return table.concat(lines, "\n") .. "\n"
end

return function(command)
  local name = command.operands[1]
  if not name then
    command.write(overview())
    return 0
  end
  for _, each in ipairs(require("deployrt.cli").commands) do
    if each[1] == name then
      command.write(("deployrt %s %s\n  %s\n\n%s\n"):format(each[1], each[2], each[3], flags_text(each[1])))
      return 0
    end
  end
  if driver.help(name) then
    command.write(driver.help(name))
    return 0
  end
  command.write(strategy_text(require("deployrt.cli.common").strategy(command, name)))
  return 0
end
