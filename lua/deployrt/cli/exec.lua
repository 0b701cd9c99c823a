-- cli/exec.lua -- deployrt exec APP.yml -- COMMAND
local common = require "deployrt.cli.common"
local connection = require "deployrt.connection"
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local json = require "deployrt.progress.json"
local line_printer = require "deployrt.cli.lines"
local stopping = require "deployrt.stopping"

local patience = 1 -- seconds in which each answer is kept in one piece; afterwards all is shown as it comes
local most_kept = 64 * 1024 -- bytes of it, of one host

---@class deployrt.Board   what hosts say, for people
---@field command deployrt.Command
---@field width integer             columns of the longest name
---@field answers table<string, table>  by host: those that are under way
---@field live boolean              nothing is kept back any more
local Board = {}
Board.__index = Board

local function new_board(command, width)
  return setmetatable({ command = command, width = width, answers = {}, live = false }, Board)
end

--- Prints what was kept of an answer. From then on it is not kept any more.
function Board:release(answer)
  local kept = answer.kept
  answer.kept = nil
  for _, lines in ipairs(kept or {}) do self.command.write(table.concat(lines)) end
end

--- Begins an answer: takes what the command of a host writes.
---@return fun(which: integer, text: string): boolean take  false when nobody reads it any more
function Board:open(name)
  local answer, label = { kept = { {}, {} }, size = 0, outputs = {} }, line_printer.label(name, self.width)
  local function format(line) return ("%s | %s\n"):format(label, line) end
  for which = 1, 2 do
    answer.outputs[which] = line_printer.new(function(text)
      if not answer.kept then return self.command.write(text) end
      table.insert(answer.kept[which], text)
      answer.size = answer.size + #text
      if self.live or answer.size > most_kept then self:release(answer) end
    end, format)
  end
  self.answers[name] = answer
  return function(which, text)
    answer.outputs[which]:add(text)
    return not self.command.unwritten
  end
end

--- Ends an answer.
---@param problem? string  what came of the command, where it did not succeed
function Board:close(name, problem)
  local answer = self.answers[name]
  if answer then
    for _, output in ipairs(answer.outputs) do output:finish() end
    self:release(answer)
    self.answers[name] = nil
  end
  if problem then self.command.write_error(("%s ! %s\n"):format(line_printer.label(name, self.width), problem)) end
end

--- Shows everything as it comes, once the answers that come at once are there.
function Board:go_live()
  core.sleep(patience)
  self.live = true
  for _, answer in pairs(self.answers) do self:release(answer) end
end

--- The status as a shell has it: 128 and more for what a signal ended.
local function status_of(result)
  return result.signal and 128 + result.signal_number or result.status
end

local function object_of(name, result, err)
  if err then return { host = name, error = errors.text(err, name) } end
  return { host = name, status = status_of(result), signal = result.signal, stdout = result.stdout, stderr = result.stderr }
end

--- What came of the command, where it did not succeed.
local function problem_of(name, result, err)
  if err then return errors.text(err, name) end
  if result.signal then return "signal " .. result.signal end
  return result.status ~= 0 and "status " .. result.status or nil
end

--- Runs the command on a host. When it is canceled, what runs there is ended: sshd does not say that its channel is closed.
---@return table? result
---@return deployrt.Error? err
---@return "ended"|"left"|"unusable"|nil cut  whether it could be told, where it began; unusable: it did not
local function ask(app, entry, argv, stopped, output)
  local each <close> = setmetatable({ line = connection.new(entry, app.app) }, { __close = function(self) self.line:close() end })
  local link, err = each.line:link()
  if not link then return nil, err, "unusable" end
  if stopped:is_set() then return nil end
  local result, problem, state = each.line:attend(argv, { output = output })
  return result, problem, problem and problem.code == "shell" and "unusable" or state
end

--- Waits until all hosts have answered; raises when we were interrupted, and says what became of the command where it ran still.
local function await(tasks, stopped, cut)
  local signal = stopping.until_signal(tasks, stopped, "HUP")
  for _, task in ipairs(tasks) do
    local ok, err = task:wait()
    if not ok then error(err, 0) end
  end
  if not signal then return end
  local parts = {}
  for _, each in ipairs { { cut.ended, "the command was ended on " }, { cut.left, "it may run still on " } } do
    table.sort(each[1])
    if #each[1] > 0 then parts[#parts + 1] = each[2] .. table.concat(each[1], ", ") end
  end
  errors.raise("interrupted", ("interrupted by SIG%s: %s"):format(signal, #parts > 0 and table.concat(parts, "; ") or "the command runs nowhere"))
end

--- Runs the command on one host, and reports.
---@param board? deployrt.Board  nil: as JSON
---@return boolean ok
local function run(command, app, entry, board, stopped, cut)
  local result, err, state = ask(app, entry, command.rest, stopped, board and board:open(entry.name))
  if state then table.insert(cut[state], entry.name) end
  local given_up = not result and (stopped:is_set() or command.unwritten ~= nil)
  if board then
    board:close(entry.name, not given_up and problem_of(entry.name, result, err) or nil)
  elseif not given_up then
    command.write(json.now("exec", object_of(entry.name, result, err)))
  end
  return given_up or problem_of(entry.name, result, err) == nil
end

return function(command)
  local app = common.app(command)
  if not command.rest or #command.rest == 0 then errors.raise("usage", "which command? deployrt exec APP.yml -- COMMAND") end
  if #app.hosts == 0 then command.write_error(("deployrt: %s has no hosts now: nothing was run\n"):format(app.file)) end
  local width, failed, tasks, stopped, cut = 0, 0, {}, core.event(), { ended = {}, left = {}, unusable = {} }
  for _, entry in ipairs(app.hosts) do width = math.max(width, #entry.name) end
  local board = not command.flags.json and new_board(command, width) or nil
  local live = board and core.spawn(board.go_live, board)
  for i, entry in ipairs(app.hosts) do
    tasks[i] = core.spawn(function()
      if not run(command, app, entry, board, stopped, cut) then failed = failed + 1 end
    end)
  end
  await(tasks, stopped, cut)
  if live then live:cancel() end
  if failed == 0 then return 0 end
  return #cut.unusable == #app.hosts and 2 or 1
end
