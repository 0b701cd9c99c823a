-- cli/approve.lua -- deployrt approve [ANSWER] APP.yml: lets a run go on that waits for a person.
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local request = require "deployrt.request"
local waiting = require "deployrt.waiting"

--- The places where a run waits on after an answer. One that none of them takes would be heard, and refused where nobody looks.
local function left_by(held, answer, file)
  local places = waiting.places(held.step)
  local open, shut = waiting.part(places, answer)
  if #open > 0 or #shut == 0 then return shut end
  errors.raise("usage", ("run %s asks for an answer%s: %s"):format(held.run,
    answer and (", and '%s' is none"):format(answer) or "", waiting.command(file, places)))
end

return function(command)
  local answer = #command.operands > 1 and table.remove(command.operands, 1) or nil
  return common.look(command, function(opened)
    local run = request.check_live(opened, true)
    local held = run.held
    local left = left_by(held, answer, opened.app.file)
    request.send(run, "approve", answer)
    local waits = waiting.is_so(held.step)
    command.say("approved", waits and ("run %s goes on%s"):format(held.run, #left > 0 and (", and waits elsewhere: %s"):format(waiting.command(opened.app.file, left)) or "")
      or ("run %s does not wait for anybody now; a pause that it has not come to is called off"):format(held.run),
      { run = held.run, waited = waits, answer = answer })
    return 0
  end, nil, { partial = true })
end
