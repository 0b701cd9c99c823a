-- haproxy_workers.lua -- Workers of a reloaded HAProxy that finish what they began: their requests are in nobody's counters.
local haproxy_workers = {}

--- The processes beside the worker that answers; nothing where it has no master. Another pid namespace, or another machine
--- behind a forwarded socket, shows in the names.
local script = [[
parent=
{ while read -r key value; do [ "$key" != PPid: ] || parent=$value; done < "/proc/$1/status"; } 2>/dev/null
read -r children < "/proc/$parent/task/$parent/children" || [ "$children" ] || exit 0
for each in $1 $parent $children; do
  read -r name < "/proc/$each/comm" || continue
  echo "$each $name"
done
]]

--- How many workers of before a reload still run beside the one that answers.
---@async
---@param host deployrt.Connection  where HAProxy runs
---@param pid string                of the worker that answers
---@return integer
function haproxy_workers.old(host, pid)
  local found = host:execute({ "/bin/sh", "-c", script, "sh", pid }, { timeout = 10 }).stdout or ""
  local count, position = 0, 0
  for each, name in found:gmatch("(%d+) (%S+)\n") do
    position = position + 1
    if name ~= "haproxy" and position <= 2 then return 0 end
    if position > 2 and name == "haproxy" and each ~= pid then count = count + 1 end
  end
  return count
end

return haproxy_workers
