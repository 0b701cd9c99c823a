-- session_command.lua -- A command that is ended when nobody waits for it any more, with all that it started in its session.
local core = require "deployrt.core"
local errors = require "deployrt.errors"
local ssh = require "deployrt.ssh"

local session_command = {}

local grace = 10 -- seconds from TERM to KILL
local most = 64 * 1024 * 1024 -- bytes of output

--- A process is of a session, or of a group, whatever its environment and whoever started it.
local library = [=[
session_signal() { # session signal -- to all that is of it; prints how many there are, and how many could be told
  seen=0 told=0
  for member in $(cat /proc/[0-9]*/stat 2>/dev/null | awk -v session="$1" '{
    pid = $1
    sub(/^.*\) /, "")
    if ($1 !~ /[ZX]/ && (pid == session || $3 == session || $4 == session)) print pid
  }'); do
    seen=$((seen + 1))
    kill -s "$2" "$member" 2>/dev/null && told=$((told + 1))
  done
  printf '%s %s\n' "$seen" "$told"
}

session_list() { # -- those that the process of sshd has begun which began ours
  cat /proc/[0-9]*/stat 2>/dev/null | awk -v ours="$$" '{
    pid = $1
    name = $0
    sub(/^[0-9]+ \(/, "", name)
    sub(/^.*\) /, "")
    up[pid] = $2
    is_server[pid] = name ~ /^sshd/
    is_over[pid] = $1 ~ /[ZX]/
  } END {
    while (up[ours] > 1 && !is_server[up[ours]]) ours = up[ours]
    for (pid in up) if (up[ours] > 1 && up[pid] == up[ours] && pid != ours && !is_over[pid]) print pid
  }'
}]=]

--- Sends a signal; nothing when the host cannot be asked at once.
local function signal(line, session, name)
  local link = line:link()
  local answer = link and link:call("with", { library, "session_signal", tostring(session), name }, 5)
  if not answer then return nil end
  local seen, told = answer:match("(%d+) (%d+)")
  return math.tointeger(seen), math.tointeger(told)
end

--- Ends a session: politely, and by force what is there still after a while.
---@async
---@param line deployrt.Connection
---@param session integer  the pid of the command that it began with
---@return "ended"|"left"|nil cut  left: some of it cannot be told; nil: nothing of it runs
function session_command.finish(line, session)
  local seen, told = signal(line, session, "TERM")
  if seen == 0 then return nil end
  local deadline, pause, name = core.now() + grace, 0.02, "0"
  while seen and seen > 0 and told > 0 and core.now() < deadline + 2 do
    core.sleep(pause)
    pause = math.min(2 * pause, 0.5)
    if core.now() > deadline then name = "KILL" end
    seen, told = signal(line, session, name)
  end
  return seen == 0 and "ended" or "left"
end

--- Ends all that was begun over a connection besides what asks for it.
---@return "ended"|"left"|nil cut  as finish() tells
local function finish_all(line)
  local link, cut = line:link(), nil
  local list = link and link:call("with", { library, "session_list" }, 5)
  for pid in (list or ""):gmatch("%d+") do
    local one = session_command.finish(line, math.tointeger(pid))
    cut = one == "left" and one or cut or one
  end
  return list and (cut or "ended") or "left" -- what is not there any more has ended
end

--- It tells its pid before it becomes the command; where the process that began it tells it from all others, it need not.
local announced = 'printf "%s %s\\n" "$1" "$$" >&2; shift; exec "$@"'

--- A log-in shell that exits before the command, of an account that is closed or by its own files, may claim success.
local function never_ran(result)
  return nil, errors.new("shell", ("its shell ends with %s before it runs the command: have ~/.bashrc and its like not exit for commands"):format(
    result.signal and "signal " .. result.signal or "status " .. result.status), { detail = result.stdout .. result.stderr })
end

--- Reads what a command writes, until it ends.
---@param mark string   what stands in a line of its own before all that the command writes
---@param from integer  the output that has this line
---@param begun fun(pid?: integer)  called once the line is there; pid: the number behind the mark
---@param pass? fun(which: integer, text: string): boolean  takes what comes, which is not kept then; false: no more of it
local function read_all(stream, mark, from, begun, pass)
  local parts, size, is_begun = { {}, {} }, 0, false
  local function result(status, name, number)
    return { status = status, signal = name, signal_number = number, stdout = table.concat(parts[1]), stderr = table.concat(parts[2]) }
  end
  while true do
    local text, which, name, number = stream:read()
    if text == nil then return nil, which end
    if not text then
      local whole = result(which, name, number)
      if is_begun then return whole end
      return never_ran(whole)
    end
    table.insert(parts[which], text)
    size = size + #text
    if size > most then return nil, errors.new("output", ("the command wrote more than %d bytes"):format(most)) end
    if not is_begun and which == from then
      local said = table.concat(parts[from])
      local first, last, pid = said:find(mark .. " ?(%d*)\n")
      if first then
        is_begun, parts[from] = true, { said:sub(1, first - 1) .. said:sub(last + 1) }
        begun(math.tointeger(pid))
      end
    end
    if is_begun and pass then
      for each = 1, 2 do
        if parts[each][1] and not pass(each, table.concat(parts[each])) then return nil, errors.new("output", "nobody reads what the command writes any more") end
      end
      parts, size = { {}, {} }, 0
    end
  end
end

--- Runs a command and waits for its end.
---@async
---@param line deployrt.Connection
---@param link deployrt.Link  of that connection, open
---@param argv string[]
---@param opts {timeout?: number, stdin?: string, env?: table<string,string>, cwd?: string, begun?: fun(pid: integer), output?: fun(which: 1|2, text: string): boolean}
---@return deployrt.ExecResult? result
---@return deployrt.Error? err
---@return "ended"|"left"|nil cut
function session_command.run(line, link, argv, opts)
  local mark, pid = core.sha256(("%s %s %s"):format(core.time(), core.whoami().pid, tostring(argv))):sub(1, 32), nil
  local is_told = not ssh.has_one_server(link)
  local words = is_told and table.move(argv, 1, #argv, 6, { "/bin/sh", "-c", announced, "sh", mark }) or argv
  local stream <close> = setmetatable({
    on = link:stream(words, { cwd = opts.cwd, env = opts.env, stdin = opts.stdin, mark = not is_told and mark or nil }),
  }, { __close = function(self) self.on:close() end })
  local reading = core.spawn(read_all, stream.on, mark, is_told and 2 or 1, function(found)
    pid = found
    if found and opts.begun then opts.begun(found) end
  end, opts.output)
  local ok, result, err = reading:wait(opts.timeout)
  if ok and (result or err.code ~= "output") then return result, err end
  local cut = "left" -- it is not known to have begun, and may do so
  if pid then cut = session_command.finish(line, pid) elseif not is_told then cut = finish_all(line) end
  if ok == false then error(result, 0) end
  if reading:wait(1) == nil then
    reading:cancel() -- what is of another session may have its output
    reading:wait()
  end
  return nil, ok and err or result, cut
end

return session_command
