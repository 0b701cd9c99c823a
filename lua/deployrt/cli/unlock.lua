-- cli/unlock.lua -- deployrt unlock APP.yml: removes a dead run's lock.
local advice = require "deployrt.advice"
local common = require "deployrt.cli.common"
local errors = require "deployrt.errors"
local lock = require "deployrt.lock"

--- Refuses when somebody still works on what a lock is for.
local function refuse_live(command, held, file)
  if held.dead or command.flags.force then return end
  errors.raise("locked", lock.refusal(held, file), { host = held.host })
end

local function remove_from_hosts(command, opened)
  local removed, dead = 0, nil
  for _, host in ipairs(opened:lines()) do
    local held = lock.read(host)
    if held then
      refuse_live(command, held, opened.app.file)
      host:call("lock_release", { held.run })
      command.say("unlocked", ("%s: removed the lock of run %s"):format(host.name, held.run), { run = held.run, host = host.name })
      removed, dead = removed + 1, held.dead and held.run or dead
    end
  end
  return removed, dead
end

--- What a team's lock is; nothing where the state has none.
---@return deployrt.EtcdLockState? held
---@return deployrt.Error? problem  nobody could be asked
local function look_at_team(state)
  if not state.read_lock then return nil end
  local ok, held = pcall(state.read_lock, state)
  if ok then return held end
  return nil, held
end

return function(command)
  return common.survey(command, function(opened)
    local state = common.state(command, opened.app)
    local held, problem = look_at_team(state)
    if held then refuse_live(command, held, opened.app.file) end -- before anything is removed elsewhere
    local removed, dead = remove_from_hosts(command, opened)
    if held then
      state:break_lock(held)
      command.say("unlocked", ("etcd: removed the lock of run %s"):format(held.run), { run = held.run })
    elseif removed == 0 and not problem and #opened:lines() > 0 then
      local all = #common.missing(opened) == 0
      command.say("unlocked", "there is no lock" .. (all and "" or " on the hosts that could be asked"))
    end
    if dead and not state:is_over(dead) then
      command.say("log", ("run %s is unfinished: `%s` carries on, `%s` rolls back"):format(
        dead, advice.resume(opened.app.file, dead), advice.abort(opened.app.file, dead)), { run = dead })
    end
    return problem
  end)
end
