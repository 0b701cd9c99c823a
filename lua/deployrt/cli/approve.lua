-- cli/approve.lua -- deployrt approve [ANSWER] APP.yml: lets a run go on that waits for a person.
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local request = require "deployrt.request"
local waiting = require "deployrt.waiting"

--- An answer that a gate does not take would be heard, and refused where nobody looks.
local function check_answer(held, answer, file)
  local choice = waiting.choice(held.step)
  if not choice then return end
  for each in choice:gmatch("[^|]+") do
    if each == answer then return end
  end
  errors.raise("usage", ("run %s asks for an answer%s: `deployrt approve %s %s`"):format(held.run,
    answer and (", and '%s' is none"):format(answer) or "", choice, file))
end

return function(command)
  local answer = #command.operands > 1 and table.remove(command.operands, 1) or nil
  return common.look(command, function(opened)
    local held, line = request.check_live(opened, true)
    check_answer(held, answer, opened.app.file)
    request.send(line, held, "approve", answer)
    local waits = waiting.is_so(held.step)
    command.say("approved", waits and ("run %s goes on"):format(held.run)
      or ("run %s does not wait for anybody now; a pause that it has not come to is called off"):format(held.run),
      { run = held.run, waited = waits, answer = answer })
    return 0
  end, nil, { partial = true })
end
