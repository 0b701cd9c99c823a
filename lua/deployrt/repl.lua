-- repl.lua -- Verbs by hand: one run, with its lock and its journal, whose script somebody types line by line.
local adoption = require "deployrt.adoption"
local errors = require "deployrt.errors"
local operation = require "deployrt.operation"
local rollout = require "deployrt.rollout"
local sandbox = require "deployrt.sandbox"
local script = require "deployrt.script"
local show = require "deployrt.repl.show"
local trace = require "deployrt.trace"
local verbs = require "deployrt.verbs"

local repl = {
  name = "repl", api = 1, options = {}, values = { timeout = 24 * 3600 }, by_hand = true, deploy = function() end,
  body = setmetatable({}, { __index = verbs, __metatable = "deployrt.Strategy" }),
}

local help = [[
A line is Lua, as it stands in a strategy: self, fleet, balancer and hosts are there, and an expression is printed. Names without
`local` are kept from line to line. For example:

  fleet:old()                                  what serves, and is to be replaced
  old = fleet:old()[1]; new = self:successor(old)
  new:start(); new:await_healthy()
  balancer:swap(old, new)
  hosts[1]:run({"df", "-h"}).stdout

A line that fails is taken back at once. Commands on hosts cannot be taken back, unless self:undo(function() ... end) says how.

  :commit   leave, and keep what was done
  :undo     leave, and take everything back
  :quit     leave, when nothing was changed
  :help     this

Ctrl-C stops a line; once more, it leaves and takes everything back, and so does the end of the input.
]]

---@class deployrt.Console  where the lines come from
---@field interactive boolean
---@field ask? fun(prompt: string)  has a person asked for a line; without it the prompt is written
---@field write fun(text: string)
---@field lines string[]       typed, and not read yet; `ended`: no more will come
---@field arrived deployrt.Event  set when lines come, or a signal

---@class deployrt.Repl
---@field run table
---@field console deployrt.Console
---@field changed boolean     by a line
---@field running boolean     whether a line is being executed
---@field halted? deployrt.Error  why the line is being stopped
---@field interrupts integer  since the last line
---@field known table<deployrt.Instance, boolean>  all that were ever running
local Repl = {}
Repl.__index = Repl

local function environment(self)
  local me = self.run.script_self
  local env = sandbox.environment(function() end, function(line) self.console.write(line .. "\n") end)
  env.self, env.fleet, env.balancer, env.hosts = me, me.fleet, me.balancer, me.fleet.hosts
  return env
end

--- Says what awaits input, to a person.
function Repl:prompt()
  local console, prompt = self.console, self.pending and ">> " or "> "
  if console.ask then console.ask(prompt) elseif console.interactive then console.write(prompt) end
end

--- The next line; nil when there is none any more. Raises when the run is stopped.
function Repl:read()
  local console = self.console
  self:prompt()
  while true do
    operation.checkpoint()
    if console.lines[1] then return table.remove(console.lines, 1) end
    if console.lines.ended then return nil end
    console.arrived:clear()
    console.arrived:wait(0.25)
  end
end

--- A chunk of what was typed so far: an expression, or a statement; nil, and why not.
---@return function? chunk
---@return string? problem
---@return boolean? incomplete
function Repl:compile(text)
  local name = "line " .. self.count
  trace.know(name, text)
  local chunk, as_expression = load("return " .. text, "@" .. name, "t", self.env)
  if chunk then return chunk end
  local problem
  chunk, problem = load(text, "@" .. name, "t", self.env)
  return chunk, problem, not chunk and (problem:find("<eof>$") or as_expression:find("<eof>$")) ~= nil
end

--- Instances that names may stand for. What runs now is looked up again, and told to those.
function Repl:remember()
  for _, member in ipairs(self.run.fleet.members) do self.known[member] = true end
end

function Repl:look_again()
  local fleet = self.run.fleet
  fleet:discover()
  for member in pairs(self.known) do
    member.pid, member.state = nil, "down"
    fleet.reserved[member.host.name .. member.port] = nil
    local found = fleet:at(member.host, member.port)
    if found and found.release == member.release and found.launch.settings == member.launch.settings then
      member.pid, member.state = found.pid, found.state
      fleet:exchange(found, member)
    end
  end
end

--- What a line did before it failed. What cannot be taken back stays in the tree, and is told at the end once more.
function Repl:take_back(scope)
  if #scope.entries == 0 then return end
  self:remember()
  local failures = operation.unwind(scope)
  self.stale = true
  for _, failure in ipairs(failures) do
    self.console.write(("left as it is: %s: %s\n"):format(failure.label, errors.text(failure.error)))
    scope:push { label = failure.label, host = failure.host, run = function() error(failure.error, 0) end }
  end
  if #failures == 0 then self.console.write("what the line had done was taken back\n") end
end

--- Waits end, what is in flight finishes, and the line goes no further: as if the run were stopped, for this line alone.
function Repl:halt()
  self.halted = errors.new("interrupted", "the line was stopped")
  self.run.stopping = self.halted
  self.run.stop_event:set()
end

--- The line is over; if it was halted, others may follow. Raises when the whole run is to end.
function Repl:go_on()
  local run = self.run
  self.running, self.interrupts = false, 0
  if run.stopping and run.stopping ~= self.halted then error(run.stopping, 0) end
  if self.halted then
    run.stopping, self.halted = nil, nil
    run.stop_event:clear()
  end
  if self.leaving then errors.raise("interrupted", "interrupted by SIGINT") end
  if self.stale then self:look_again() end
  self.stale = false
  self:remember()
end

--- Executes a line as a part of the run.
function Repl:execute(chunk)
  local _, scope = operation.current()
  local line = scope:child(false, "line " .. self.count)
  self.running, self.interrupts = true, 0
  local ok, result = pcall(operation.within, line, sandbox.call, function()
    local values = table.pack(chunk())
    return show.values(values) or false
  end)
  if ok then
    if result then self.console.write(result .. "\n") end
  else
    local err = self.run.mask(errors.wrap(result))
    local alone = not (err.detail or ""):find("\n") and err.detail and err.detail:find("main chunk$")
    self.console.write(("error: %s\n"):format(alone and err.message or errors.text(err)))
    if not self.run.stopping or self.run.stopping == self.halted then self:take_back(line) end
  end
  self:go_on()
end

--- A signal that the session sees to itself.
---@param name string
---@return boolean handled  false: the run is to end
function Repl:hear(name)
  if name == "INT" then self.interrupts = self.interrupts + 1 end
  self.console.arrived:set()
  if name == "TERM" and self.halted or name == "INT" and self.running and self.interrupts == 2 then
    self.leaving = true
    return true
  end
  if name ~= "INT" or self.interrupts > 1 then return false end
  if self.running then
    self:halt()
  else
    self.pending = nil
    self.console.write("\nonce more, and everything is taken back; :commit keeps it\n")
    self:prompt()
  end
  return true
end

local commands = {}

function commands.help(self) self.console.write(help) end
function commands.commit() return true end
function commands.undo() errors.raise("withdrawn", "taken back, as :undo says") end

function commands.quit(self)
  if not self.changed then errors.raise("withdrawn", "nothing was changed") end
  self.console.write("something was changed: :commit keeps it, :undo takes it back\n")
end

local function ended(self)
  if self.changed then errors.raise("uncommitted", "the input ended without :commit, so what was done is taken back") end
  errors.raise("withdrawn", "nothing was changed")
end

--- Takes one line in; true when what was done is to be kept.
function Repl:take(line)
  local command = not self.pending and line:match("^%s*:(%l*)%s*$")
  if command then
    if commands[command] then return commands[command](self) end
    self.console.write(("there is no :%s; there are :commit, :undo, :quit and :help\n"):format(command))
    return
  end
  local text = self.pending and self.pending .. "\n" .. line or line
  self.pending = nil
  if not text:find("%S") then return end
  self.count = self.count + 1
  local chunk, problem, incomplete = self:compile(text)
  if chunk then return self:execute(chunk) end
  if incomplete and (self.console.lines[1] or not self.console.lines.ended) then
    self.pending, self.count = text, self.count - 1
  else
    self.console.write(("error: %s\n"):format(problem))
  end
end

local function banner(self)
  local run = self.run
  return ("%s: %d instances run; release %s is there to be started. Nobody else can deploy meanwhile.\n"
    .. ":commit keeps what was done; :undo, Ctrl-D or Ctrl-C twice takes it back; :help says more.\n"):format(
    run.app.app, #run.fleet:instances(), run.target.release)
end

local function converse(self)
  if self.console.interactive then self.console.write(banner(self)) end
  repeat
    local line = self:read()
    if not line then return ended(self) end
  until self:take(line)
end

--- Nobody is paged for what is tried by hand.
---@param run table
function repl.hush(run)
  run.script.hook = function() end
end

--- A conversation: what run.execute is to do, and who hears signals first.
---@param console deployrt.Console
---@return fun(run: table) proceed
---@return fun(name: string): boolean hear  true: the run does not learn of the signal
function repl.open(console)
  local self = setmetatable({ console = console, changed = false, running = false, interrupts = 0, count = 0, known = {} }, Repl)
  local function proceed(run)
    local emit = run.emit
    self.run = run
    repl.hush(run)
    adoption.take(run.script, run)
    run.balancer:adopt()
    rollout.upload(run.script, run)
    adoption.attach(run.script, run)
    script.call(run, "deploy") -- makes the `self` of scripts
    self.env = environment(self)
    self:remember()
    run.emit = function(event)
      self.changed = self.changed or event.event == "op" and event.effect == true
      emit(event)
    end
    converse(self)
    rollout.examine(run)
  end
  return proceed, function(name) return self.env ~= nil and self:hear(name) end
end

return repl
