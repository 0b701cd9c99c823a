-- cli/help.lua -- deployrt help [STRATEGY|COMMAND|BALANCER]
local arguments = require "deployrt.arguments"
local driver = require "deployrt.balancer.driver"
local text = require "deployrt.progress.text"

--- The flags of a command, or all, by name.
local function flags_of(command)
  local names = {}
  for name, flag in pairs(arguments.flags) do
    if not command or arguments.is_known(flag, command) then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

--- What flags do: those of a command, or all.
local function flags_text(command)
  local lines = {}
  for _, name in ipairs(flags_of(command)) do
    local flag = arguments.flags[name]
    local only = not command and flag.of and table.concat(flag.of, ", ") .. ": " or ""
    local values = command and flag.values and (" (%s)"):format(table.concat(flag.values(), ", ")) or ""
    lines[#lines + 1] = ("  --%-20s %s%s%s%s"):format(name .. (flag.value and " " .. flag.value or ""), only, flag.doc, values, flag.list and " (repeatable)" or "")
  end
  return table.concat(lines, "\n")
end

--- The same for machines.
local function flags_data(command)
  local map = {}
  for _, name in ipairs(flags_of(command)) do
    local flag = arguments.flags[name]
    map[name] = { doc = flag.doc, value = flag.value, list = flag.list, commands = not command and flag.of or nil,
      values = command and flag.values and flag.values() or nil }
  end
  return map
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
  return table.concat(lines, "\n")
end

local function overview_data()
  local commands = {}
  for i, each in ipairs(require("deployrt.cli").commands) do commands[i] = { name = each[1], operands = each[2], doc = each[3] } end
  return { commands = commands, options = flags_data(), strategies = require("deployrt.strategy").names(), balancers = driver.names() }
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

--- What limits a value, in words: "from 1 to 5".
local function limits(option)
  local words = {}
  if option.values then words[1] = table.concat(option.values, ", ") end
  if option.min then words[#words + 1] = ("from %g"):format(option.min) end
  if option.max then words[#words + 1] = ("to %g"):format(option.max) end
  return #words > 0 and (" (%s)"):format(table.concat(words, " ")) or ""
end

local function described(option)
  return said((option.doc or "") .. limits(option))
end

local function given(option)
  return option.required and option.default == nil and "required" or "default " .. shown(option.default)
end

local function strategy_text(loaded)
  local lines, widest = { ("%s: %s\n\nOptions (strategy: in app.yml):"):format(said(loaded.name), said(loaded.summary or "")) }, 10
  for name in pairs(loaded.options) do widest = math.max(widest, #name) end
  for _, name in ipairs(sorted(loaded.options)) do
    local option = loaded.options[name]
    lines[#lines + 1] = ("  %-" .. widest .. "s %-9s %-34s %s"):format(name, option.type or "any", given(option), described(option))
    for _, key in ipairs(sorted(type(option.of) == "table" and option.of.keys or {})) do
      local spec = option.of.keys[key]
      lines[#lines + 1] = ("    %-10s %-9s %s%s"):format(text.line(key), spec.type or "any", described(spec), spec.required and " (required)" or "")
    end
  end
  return table.concat(lines, "\n")
end

local function strategy_data(loaded)
  local map = {}
  for name, option in pairs(loaded.options) do
    map[name] = { type = option.type or "any", default = option.default, doc = option.doc, values = option.values, required = option.required,
      min = option.min, max = option.max }
  end
  return { name = loaded.name, doc = loaded.summary, options = map }
end

return function(command)
  local name = command.operands[1]
  if not name then
    command.say("help", overview(), command.flags.json and overview_data() or nil) -- help is to start fast
    return 0
  end
  for _, each in ipairs(require("deployrt.cli").commands) do
    if each[1] == name then
      command.say("help", ("deployrt %s %s\n  %s\n\n%s"):format(each[1], each[2], each[3], flags_text(each[1])),
        { name = name, operands = each[2], doc = each[3], options = flags_data(name) })
      return 0
    end
  end
  if driver.help(name) then
    command.say("help", driver.help(name):gsub("\n$", ""), { name = name })
    return 0
  end
  local loaded = require("deployrt.cli.common").strategy(command, name)
  command.say("help", strategy_text(loaded), strategy_data(loaded))
  return 0
end
