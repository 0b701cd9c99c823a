-- cli.lua -- From an argument vector to an exit code. Each command is a file below cli/.
local core = require "deployrt.core"
local arguments = require "deployrt.arguments"
local errors = require "deployrt.errors"
local suggest = require "deployrt.suggest"
local text = require "deployrt.progress.text"
local trace = require "deployrt.trace"

local cli = {}

cli.version = "0.1.0"

--- In the order in which help lists them: name, operands, what it does, how many operands it takes where it is not one.
cli.commands = {
  { "run", "STRATEGY APP.yml", "deploy (the word `run` may be left out)", 2 },
  { "plan", "STRATEGY APP.yml", "what run would do; changes nothing anywhere", 2 },
  { "test", "STRATEGY [APP.yml]", "simulate with faults and check the invariants", 2 },
  { "check", "APP.yml", "validate the file (with STRATEGY before it: what that needs, too); --connect also tries hosts and balancer", 2 },
  { "status", "APP.yml", "what runs where, and what takes traffic" },
  { "rollback", "APP.yml [--to V]", "back to what served before the last successful run" },
  { "resume", "APP.yml", "carry on with a run that was interrupted" },
  { "abort", "APP.yml", "roll back a run that was interrupted, or is under way" },
  { "pause", "APP.yml", "hold a run at its next step" },
  { "approve", "APP.yml", "let a run go on that waits for a person (with ANSWER before it, where it asks for one)", 2 },
  { "stop", "APP.yml", "take the application out of service and stop it" },
  { "logs", "APP.yml", "output of the instances; --follow" },
  { "exec", "APP.yml -- COMMAND", "a command on all hosts, answers labelled by host" },
  { "history", "APP.yml", "runs, their outcome and who started them" },
  { "unlock", "APP.yml", "remove a dead run's lock; refuses a live one" },
  { "lib", "install|update|list|verify [APP.yml]", "the shared libraries of strategies that app.yml requires", math.huge },
  { "repl", "APP.yml", "try verbs by hand, line by line; kept or taken back at the end" },
  { "new", "strategy NAME", "a commented starting point in strategies/, with a spec", 2 },
  { "schema", "", "the JSON Schema of app.yml, for editors", 0 },
  { "help", "[STRATEGY|COMMAND]", "options and their defaults" },
  { "version", "", "print the version", 0 },
}

--- Commands of the design that this version does not have.
cli.planned = { report = true }

local exits = { locked = 4, superseded = 4, unfinished = 3, interrupted = 130 }

local function known(name)
  for _, command in ipairs(cli.commands) do
    if command[1] == name then return command end
  end
end

--- What a command gets: operands, flags, where to write, and where the program's own files are.
---@class deployrt.Command
---@field operands string[]
---@field flags table<string, any>
---@field rest? string[]
---@field typed string  the words in front of the operands, for hints
---@field write fun(text: string)
---@field write_error fun(text: string)  cleaned
---@field say fun(event: string, text: string, fields?: table)  a line for people; with --json an object, `text` is its message
---@field complain fun(err: deployrt.Error, exit: integer)  what went wrong, though the command goes on

--- What --json writes where there is no run to show.
local function object_of(event, message, fields)
  local object = { message = text.clean(message) }
  for key, value in pairs(fields or {}) do object[key] = value end
  return require("deployrt.progress.json").now(event, object) -- only where it is asked for: help is to start fast
end

--- The object of a problem: where it is stands in front of its text.
local function problem_of(err, problem, exit)
  local file, line, column, message = problem:match("^(.-):(%d+):(%d+): (.*)$")
  return object_of("error", message or problem, { code = err.code, host = err.host, detail = err.detail, exit = exit,
    file = file, line = math.tointeger(line), column = math.tointeger(column) })
end

--- Writes to standard error, which a terminal may show whatever standard output is: nobody's text does anything to that.
local function write_error(said)
  io.stdout:flush()
  io.stderr:write(text.clean(said))
end

--- Says on standard error what went wrong, and as objects too where those were asked for.
local function complain(err, exit, as_json)
  write_error(("deployrt: %s\n"):format(errors.text(err)))
  for _, problem in ipairs(as_json and (err.problems or { err.message }) or {}) do io.stdout:write(problem_of(err, problem, exit)) end
  io.stdout:flush()
end

local function new_context(operands, flags, rest, place)
  local context = { operands = operands, flags = flags, rest = rest, place = place, write_error = write_error }
  function context.write(said)
    local ok, problem = io.stdout:write(said)
    if ok then ok, problem = io.stdout:flush() end
    context.unwritten = context.unwritten or not ok and problem or nil
  end
  function context.say(event, said, fields)
    if not flags.json then return context.write(said .. "\n") end
    context.write(object_of(event, said, fields))
  end
  function context.complain(err, exit) complain(err, exit, flags.json) end
  return context
end

local does = { run = true, resume = true, abort = true, rollback = true, stop = true } -- and says so besides

--- What a command was asked for is what it writes; a reader that has seen enough is content.
local function check_written(name, context)
  if not context.unwritten or does[name] or context.unwritten:find("Broken pipe", 1, true) then return end
  errors.raise("output", "cannot write to standard output: " .. context.unwritten)
end

local function choose(operands, flags)
  if flags.version then return "version" end
  if flags.help then return "help" end
  local first = operands[1]
  if not first then return "help" end
  if cli.planned[first] then
    errors.raise("usage", ("`deployrt %s` is not supported by this version"):format(first))
  end
  if known(first) then
    table.remove(operands, 1)
    return first
  end
  return "run", first
end

--- Runs a command whose name was taken for a strategy's: what fails may be a command that was mistyped.
local function guess(word, command, context)
  local names = {}
  for i, each in ipairs(cli.commands) do names[i] = each[1] end
  local close, alone = suggest.closest(word, names), #context.operands < 2
  local ok, exit = pcall(command, context)
  if ok then return exit end
  local err = errors.wrap(exit)
  if close and (alone or err.code == "strategy" and err.message:find(("no strategy is named '%s'"):format(word), 1, true)) then
    err.message = ("%s; or did you mean the command '%s'?"):format(err.message, close)
  end
  error(err, 0)
end

local function perform(argv, place)
  local operands, flags, rest = arguments.parse(argv)
  core.locals().verbose = flags.verbose
  local name, taken = choose(operands, flags)
  if not (flags.help or flags.version) then arguments.check(name, known(name)[4] or 1, operands, flags, rest) end
  if place and (place.share or place.embedded) then
    require("deployrt.strategy").locate(place.share, place.embedded)
  end
  local context = new_context(operands, flags, rest, place)
  context.typed = taken and "deployrt" or "deployrt " .. name
  local command = require("deployrt.cli." .. name)
  local exit
  if taken then exit = guess(taken, command, context) else exit = command(context) end
  check_written(name, context)
  return exit
end

local function wants_json(argv)
  for _, word in ipairs(argv) do
    if word == "--" then return false end
    if word == "--json" then return true end
  end
  return false
end

--- Says why a command failed, on standard error; with --json also as objects, one for each thing that is wrong.
---@return integer exit
local function fail(err, argv)
  local exit = exits[err.code] or 2
  complain(err, exit, wants_json(argv))
  local traceback = core.locals() and core.locals().verbose and err.traceback
  if traceback then write_error(traceback .. "\n") end
  return exit
end

--- Runs a command; returns its exit code.
---@param argv string[]
---@param place? {embedded?: fun(name?: string): any, share?: string}
---@return integer
function cli.main(argv, place)
  core.set_traceback(trace.handler)
  local ok, result = core.run(function()
    local done, exit = pcall(perform, argv, place)
    if done then return exit end
    return fail(errors.wrap(exit), argv)
  end)
  if ok then return result or 0 end
  fail(errors.wrap(result), argv)
  return 2
end

return cli
