-- nginx_file.lua -- The file of nginx's configuration that says where traffic goes: read and written, the rest of it kept.
-- What nginx cannot say, such as the weight of a server that is down, stands in comments that begin with "# deployrt ".
local syntax = require "deployrt.balancer.nginx_syntax"

local nginx_file = {}

--- The part of the file that deployrt writes.
---@param entry table  of app.yml
---@param text string
---@return deployrt.NginxNode?
---@return string? problem
local function own_part(entry, text)
  local first, second = "upstream", entry.upstream
  if entry.style == "variable" then first, second = "set", "$" .. entry.variable end
  local found = syntax.find(syntax.parse(text), first, second)
  if #found == 1 then return found[1] end
  return nil, #found == 0 and "has no" or "has more than one"
end

--- An address as nginx writes it in front of a port: IPv6 in brackets.
---@param slot deployrt.Slot
---@return string
function nginx_file.endpoint(slot)
  return (slot.address:find(":", 1, true) and "[%s]:%d" or "%s:%d"):format(slot.address, slot.port)
end

--- The slot at such an address; a person's `localhost` is this machine too.
local function slot_at(slots, endpoint)
  endpoint = endpoint:gsub("^localhost:", "127.0.0.1:")
  for _, slot in ipairs(slots) do
    if nginx_file.endpoint(slot) == endpoint then return slot.name, slot end
  end
end

--- What a comment of ours says: the slot, its state and weight, and what follows.
local function note_of(comment)
  local name, state, weight, rest = comment:match("^# deployrt (%S+) (%l+) (%d+)([^\n]*)")
  return name and { name = name, state = state, weight = math.tointeger(weight), rest = rest }
end

local function note(name, slot)
  return ("# deployrt %s %s %d"):format(name, slot.state, slot.weight)
end

local function serves(slot)
  return slot.state == "ready" and slot.weight > 0
end

--- What a `server` line does: whether it is down, its weight, and the parameters that are none of ours.
local function server_of(node)
  local server = { endpoint = node.words[2], weight = 1, more = "" }
  for i = 3, #node.words do
    local weight = node.words[i]:match("^weight=(%d+)$")
    if weight then
      server.weight = math.tointeger(weight)
    elseif node.words[i] == "down" then
      server.down = true
    else
      server.more = server.more .. " " .. node.raw[i]
    end
  end
  return server
end

--- The state of a slot from its line, and from the comment beside it where that agrees with the line.
local function state_of(server, said)
  local agrees = said and serves(said) == not server.down and (server.down or said.weight == server.weight)
  if agrees then return { state = said.state, weight = said.weight, more = server.more } end
  return { state = server.down and "maint" or "ready", weight = server.down and (said and said.weight or 100) or server.weight,
    more = server.more }
end

--- The comment that stands in the same line behind a node.
local function beside(text, node, next_node)
  if not next_node or #next_node.words > 0 or text:sub(node.last + 1, next_node.first - 1):find("\n", 1, true) then return nil end
  return text:sub(next_node.first, next_node.last)
end

--- One statement, or comment, of an upstream block, as upstream_lines returns it.
local function line_of(text, node, comment, slots)
  local said = comment and note_of(comment)
  local server = node.words[1] == "server" and server_of(node)
  local name = server and slot_at(slots, server.endpoint)
  if name then return { slot = name, state = state_of(server, said) } end
  if server and said then return { gone = said.name, server = server, state = state_of(server, said) } end
  return { keep = text:sub(node.first, node.last) .. (comment and not said and " " .. comment or ""), server = server }
end

--- The lines of an upstream block: {slot=, state=} for servers that are slots, {gone=, server=, state=} for those that deployrt
--- wrote for slots that are gone, {keep = text} for all others.
local function upstream_lines(text, block, slots)
  local lines, i = {}, 1
  while i <= #block.nodes do
    local node = block.nodes[i]
    local comment = #node.words > 0 and beside(text, node, block.nodes[i + 1])
    lines[#lines + 1] = line_of(text, node, comment, slots)
    i = i + (comment and 2 or 1)
  end
  return lines
end

local function absent()
  return { state = "maint", weight = 100, more = "" }
end

local styles = { upstream = {}, variable = {} }

function styles.upstream.others(entry, text, block, slots)
  local gone, besides = {}, {}
  for _, line in ipairs(upstream_lines(text, block, slots)) do
    local server = line.server
    if line.gone then
      gone[#gone + 1] = { name = line.gone, endpoint = server.endpoint, state = line.state }
    elseif server and not server.down and not server.more:find(" backup", 1, true) then
      besides[#besides + 1] = { name = server.endpoint, address = server.endpoint, weight = server.weight, via = ("upstream '%s'"):format(entry.upstream) }
    end
  end
  return gone, besides
end

function styles.upstream.read(_, text, block, slots)
  local states = {}
  for _, line in ipairs(upstream_lines(text, block, slots)) do
    if line.slot then states[line.slot] = line.state end
  end
  for _, slot in ipairs(slots) do states[slot.name] = states[slot.name] or absent() end
  return states
end

local function server_line(slot, state)
  local does = serves(state) and " weight=" .. state.weight or " down"
  return ("    server %s%s%s; %s"):format(nginx_file.endpoint(slot), does, state.more or "", note(slot.name, state))
end

function styles.upstream.write(entry, text, block, slots, states)
  local out, placed = { ("upstream %s {"):format(entry.upstream) }, false
  local function place()
    for _, slot in ipairs(placed and {} or slots) do out[#out + 1] = server_line(slot, states[slot.name]) end
    placed = true
  end
  for _, line in ipairs(upstream_lines(text, block, slots)) do
    if line.slot then place() elseif line.keep then out[#out + 1] = "    " .. line.keep end
  end
  place()
  out[#out + 1] = "}"
  local part = table.concat(out, "\n")
  return text:sub(1, block.first - 1) .. part .. text:sub(block.last + 1), part
end

--- The value of the variable in its parts: "http://", "127.0.0.1:8080", "/path".
local function value_of(text, statement)
  local value = text:sub(statement.first, statement.last - 1):match("^set%s+%S+%s+(.-)%s*$"):gsub("^([\"'])(.*)%1$", "%2")
  local scheme, rest = value:match("^(%a[%w+.-]*://)(.*)$")
  local endpoint, path = (rest or value):match("^([^/]+)(.*)$")
  return scheme or (rest and "" or endpoint and endpoint:find(":") and "" or "http://"), endpoint or "", path or ""
end

--- What the comments say, in their order; each tells where its slot is, but for those of old.
local function notes_in(text)
  local notes = {}
  for line in text:gmatch("[^\n]+") do
    local said = note_of((line:gsub("^%s+", "")))
    if said then
      said.endpoint, said.served = said.rest:match("^ ([^ (]+)"), said.rest:find("(served)", 1, true) ~= nil
      notes[#notes + 1] = said
    end
  end
  return notes
end

--- What they say of a slot.
local function said_of(notes, slot)
  for _, said in ipairs(notes) do
    if said.endpoint == nginx_file.endpoint(slot) or not said.endpoint and said.name == slot.name then return said end
  end
end

--- The slot that the variable points to, and whether deployrt made it so.
local function target_of(text, statement, slots)
  local _, endpoint = value_of(text, statement)
  local name, slot = slot_at(slots, endpoint)
  local said = slot and said_of(notes_in(text), slot)
  return name, said ~= nil and said.served
end

--- One that others pointed somewhere else serves there, whatever the comments say.
function styles.variable.read(_, text, statement, slots)
  local target, is_ours = target_of(text, statement, slots)
  local notes, states = notes_in(text), {}
  for _, slot in ipairs(slots) do
    local said = said_of(notes, slot) or absent()
    states[slot.name] = { state = said.state, weight = said.weight }
    if not is_ours and serves(said) then states[slot.name].state = "maint" end
  end
  if target and not is_ours then
    states[target] = { state = "ready", weight = states[target].weight > 0 and states[target].weight or 100 }
  end
  return states
end

--- What a variable points to that is no slot's is replaced by the next switch, whoever wrote it.
function styles.variable.others(_, text, statement, slots)
  local _, target = value_of(text, statement)
  local gone = {}
  for _, said in ipairs(notes_in(text)) do
    local endpoint = said.endpoint or said.served and target
    if endpoint and not slot_at(slots, endpoint) then gone[#gone + 1] = { name = said.name, endpoint = endpoint, state = said } end
  end
  return gone, {}
end

--- Who is to serve: a slot that has just become ready, else the one that does, else another ready one. When none is
--- ready, the last one stays.
local function choose(text, statement, slots, states)
  local before, entering, any = styles.variable.read(nil, text, statement, slots), nil, nil
  local target = target_of(text, statement, slots)
  for _, slot in ipairs(slots) do
    if serves(states[slot.name]) then
      any = any or slot.name
      if not serves(before[slot.name]) then entering = slot.name end
    end
  end
  return entering or (target and serves(states[target]) and target) or any or target
end

function styles.variable.write(entry, text, statement, slots, states)
  local target, endpoint, out = choose(text, statement, slots, states), nil, {}
  for _, slot in ipairs(slots) do
    local at = nginx_file.endpoint(slot)
    if slot.name == target then endpoint = at end
    out[#out + 1] = ("%s %s%s"):format(note(slot.name, states[slot.name]), at, slot.name == target and " (served)" or "")
  end
  local scheme, known, path = value_of(text, statement)
  local part = ("set $%s %s%s%s;"):format(entry.variable, scheme, endpoint or known, path)
  local before = text:sub(1, statement.first - 1):gsub("[ \t]*# deployrt %S+ %l+ %d+[^\n]*\n", "")
  local indent = before:match("[ \t]*$")
  return before .. table.concat(out, "\n" .. indent) .. "\n" .. indent .. part .. text:sub(statement.last + 1), part
end

--- States and weights of all slots as the file says them; a slot that it does not know is out of service.
---@param entry table  of app.yml: style, upstream, variable
---@param text string
---@param slots deployrt.Slot[]
---@return table<string, {state: deployrt.SlotState, weight: integer}>?
---@return string? problem  "has no", "has more than one": part of the file that is ours
function nginx_file.read(entry, text, slots)
  local part, problem = own_part(entry, text)
  if not part then return nil, problem end
  return styles[entry.style].read(entry, text, part, slots)
end

--- Who stands in the file and is no slot's: whom deployrt wrote there for slots that are gone, and who else gets traffic.
---@param entry table
---@param text string
---@param slots deployrt.Slot[]
---@return {name: string, endpoint: string, state: table}[] gone
---@return deployrt.OtherServer[] besides
function nginx_file.others(entry, text, slots)
  local part = own_part(entry, text)
  if not part then return {}, {} end
  return styles[entry.style].others(entry, text, part, slots)
end

--- The text with such states, and the part of it that deployrt writes.
---@param entry table
---@param text string
---@param slots deployrt.Slot[]
---@param states table<string, {state: deployrt.SlotState, weight: integer}>  of all slots
---@return string text
---@return string part
function nginx_file.write(entry, text, slots, states)
  return styles[entry.style].write(entry, text, assert(own_part(entry, text)), slots, states)
end

--- Whether a slot gets requests.
---@param slot {state: deployrt.SlotState, weight: integer}
---@return boolean
nginx_file.serves = serves

--- Statements of the upstream that keep connections open.
---@param entry table
---@param text string
---@return string[]
function nginx_file.keepalive(entry, text)
  local list = {}
  for _, node in ipairs(assert(own_part(entry, text)).nodes or {}) do
    if (node.words[1] or ""):find("^keepalive") then list[#list + 1] = text:sub(node.first, node.last) end
  end
  return list
end

--- Whether two texts are the same to nginx.
---@return boolean
function nginx_file.same(one, other)
  local function bare(text) return (text:gsub("[ \t]*# deployrt [^\n]*\n?", "")) end
  return bare(one) == bare(other)
end

--- What a file must hold to begin with.
---@param entry table
---@param slot deployrt.Slot
---@return string
function nginx_file.beginning(entry, slot)
  if entry.style == "variable" then return ("set $%s http://%s;"):format(entry.variable, nginx_file.endpoint(slot)) end
  return ("upstream %s { server %s; }"):format(entry.upstream, nginx_file.endpoint(slot))
end

return nginx_file
