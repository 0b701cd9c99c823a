-- faults.lua -- What goes wrong while a deployment is under way. Each fault says whether requests may fail for it.
local fixture = require "spec.support.fixture"

---@class soak.Fault
---@field name string
---@field strike fun(world: table, host: integer)  what happens; world: bed, app, proxy, controller()
---@field mend? fun(world: table, host: integer)   what ends it
---@field lasts? number      seconds until it is mended; without: only after the run
---@field kills? boolean     it ends a serving process, so its requests may fail
---@field controller? boolean  it ends the controller

local function nothing() end

---@type soak.Fault[]
local faults = {
  { name = "nothing at all", strike = nothing },
  { name = "the controller is killed", controller = true, strike = function(world) world.kill() end },
  { name = "the controller is killed, and its state is lost", controller = true, strike = function(world)
    world.kill()
    os.execute("rm -rf " .. world.app.dir .. "/state/*")
  end },
  { name = "the controller is interrupted", strike = function(world) world.signal("INT") end },
  { name = "the controller loses its terminal", strike = function(world) world.signal("HUP") end },
  { name = "a host loses its power and comes back", kills = true, lasts = 3,
    strike = function(world, host) world.bed:off(host) end, mend = function(world, host) world.bed:on(host) end },
  { name = "a host loses its power", kills = true,
    strike = function(world, host) world.bed:off(host) end, mend = function(world, host) world.bed:on(host) end },
  { name = "a link is cut for 4 s", kills = true, lasts = 4,
    strike = function(world, host) world.bed:cut(host) end, mend = function(world, host) world.bed:mend(host) end },
  { name = "a link loses packets", lasts = 5, kills = true,
    strike = function(world, host) world.bed:lossy(host, 15) end, mend = function(world, host) world.bed:lossy(host, 0) end },
  { name = "sshd ends all sessions", strike = function(world, host) world.bed:exec(host, "pkill -KILL -u root -f 'sshd: deploy'; true") end },
  { name = "HAProxy is restarted", kills = true, strike = function(world) world.proxy:restart() end },
  -- It falls back to its configuration, where all servers are disabled, until the run sets it right again.
  { name = "HAProxy is reloaded", kills = true, strike = function(world) world.proxy:reload() end },
  { name = "a serving process is killed", kills = true,
    strike = function(world, host) world.bed:exec(host, "pkill -KILL -x server; true") end },
  { name = "a second controller comes", strike = function(world) world.second() end },
  -- Most of a host's files stay where they are; what a run writes there finds no room.
  { name = "a host's disk is full", strike = function(world, host)
    world.bed:exec(host, "d=/home/deploy/.deployrt/shop; for each in releases runs; do mkdir -p $d/$each.aside && cp -a $d/$each/. $d/$each.aside/ && "
      .. "mount -t tmpfs -o size=4m,mode=777 tmpfs $d/$each && cp -a $d/$each.aside/. $d/$each/; dd if=/dev/zero of=$d/$each/.filler bs=4096; done; true")
  end, mend = function(world, host)
    world.bed:exec(host, "d=/home/deploy/.deployrt/shop; for each in releases runs; do rm -f $d/$each/.filler; mountpoint -q $d/$each || continue; "
      .. "rm -rf $d/$each.aside && cp -a $d/$each $d/$each.aside && umount -l $d/$each && rm -rf $d/$each && mv $d/$each.aside $d/$each; done; true")
  end },
  { name = "the controller's disk is full", lasts = 3, strike = function(world)
    fixture.sh(("dd if=/dev/zero of=%s/state/filler bs=4096 2>/dev/null; true"):format(world.app.dir))
  end, mend = function(world) os.remove(world.app.dir .. "/state/filler") end },
  { name = "the controller's clock is set forward", strike = function(world) world.set_clock("+3h") end },
  { name = "the controller's clock is set back", strike = function(world) world.set_clock("-3h") end },
}

--- Gives up waiting for a process after so many seconds.
function faults.await(pid, seconds)
  return pcall(fixture.eventually, function() return not fixture.alive(pid) end, seconds)
end

return faults
