-- errors.lua -- The one shape of an error, as C returns it and verbs raise it.
local errors = {}

---@class deployrt.Error
---@field code string      what kind of failure: "timeout", "unreachable", "exit", "health", "config", ...
---@field message string   what, where, why and what to do next
---@field host? string     name of the host it is about
---@field detail? string   more lines, such as the end of a log, or where a script was
---@field traceback? string  of a script's error, with the runtime's own frames
---@field errors? deployrt.Error[]  when several tasks failed

local Error = {}
Error.__index = Error
Error.__metatable = "deployrt.Error"
Error.__tostring = function(self)
  return self.message
end

--- Makes an error; raise it with error(err, 0).
---@param code string
---@param message string
---@param fields? {host?: string, detail?: string, errors?: deployrt.Error[]}
---@return deployrt.Error
function errors.new(code, message, fields)
  local err = setmetatable({ code = code, message = message }, Error)
  for key, value in pairs(fields or {}) do err[key] = value end
  return err
end

--- Makes and raises an error.
function errors.raise(code, message, fields)
  error(errors.new(code, message, fields), 0)
end

local longest = 4000 -- bytes of a message that a script made

--- A text as long as a message may be; nil for what is none.
---@param value any
---@param most? integer  bytes
---@return string?
function errors.clip(value, most)
  if type(value) ~= "string" then return nil end
  most = most or longest
  return #value > most and value:sub(1, most) .. "..." or value
end

--- The text of an error as a script has made it: no longer than a message may be, and its further lines look like none of ours.
---@param text string
---@return string
function errors.of_script(text)
  return (errors.clip(text):gsub("\n[ |]*", "\n  | "))
end

local own = { interrupted = true, withdrawn = true, superseded = true, abandoned = true, given_up = true, unwinding = true } -- codes that decide how a run ends

--- The code of an error table, unless it was made by hand and claims what only the runtime says.
local function code_of(raised)
  local code = errors.clip(rawget(raised, "code"))
  return not (own[code] and debug.getmetatable(raised) ~= Error) and code or "script"
end

--- A new error of what was raised, which may be anything that a script could make: nothing of it is called or trusted.
---@return any  other values than error tables come back as they are
function errors.copy(raised)
  if type(raised) ~= "table" or type(rawget(raised, "message")) ~= "string" then return raised end
  return errors.new(code_of(raised), errors.clip(rawget(raised, "message")), {
    host = errors.clip(rawget(raised, "host")), detail = errors.clip(rawget(raised, "detail")),
  })
end

local texts = { "code", "host", "detail", "traceback" }

--- Whether an error table has the shape of one: scripts make theirs by hand, and change those that they caught.
local function is_sound(raised)
  local meta = debug.getmetatable(raised)
  if (meta ~= nil and meta ~= Error) or type(rawget(raised, "message")) ~= "string" then return false end
  for _, field in ipairs(texts) do
    local value = rawget(raised, field)
    if value ~= nil and type(value) ~= "string" then return false end
  end
  if meta == nil then return rawget(raised, "errors") == nil and code_of(raised) == rawget(raised, "code") end
  return rawget(raised, "errors") == nil or type(raised.errors) == "table"
end

--- Turns whatever was raised into an error table; a string is a programming error in a script or in us.
---@return deployrt.Error
function errors.wrap(raised)
  if type(raised) == "table" and rawget(raised, "message") then
    if is_sound(raised) then return raised end
    return errors.copy(raised) ~= raised and errors.copy(raised) or errors.new("script", "a script raised an error without a text")
  end
  if type(raised) == "string" then return errors.new("script", raised) end
  return errors.new("script", ("a script raised a %s, and no text or error: raise a text, or call self:fail"):format(type(raised)))
end

--- What a script raised, as its error. A table that it made by hand is held to what its texts are; the runtime's own stays as it is.
---@return deployrt.Error
function errors.raised_by_script(raised)
  local err = errors.wrap(raised)
  if type(raised) ~= "table" or debug.getmetatable(raised) == Error then return err end
  local copy = errors.copy(err)
  copy.message = errors.of_script(copy.message)
  return copy
end

--- Passes results on; raises when the first one is nil (what C returns on failure).
function errors.check(first, second, ...)
  if first == nil and second ~= nil then error(second, 0) end
  return first, second, ...
end

--- Whose error it is, when the message does not say so.
local function unnamed_host(err)
  return err.host and not err.message:find(err.host, 1, true) and err.host or nil
end

--- The messages of several errors, each once, with the hosts in front that it is about.
local function lines_of(list)
  local lines, hosts = {}, {}
  for _, err in ipairs(list) do
    local text, name = err.message, unnamed_host(err)
    if not hosts[text] then lines[#lines + 1], hosts[text] = text, {} end
    if name and not hosts[text][name] then
      table.insert(hosts[text], name)
      hosts[text][name] = true
    end
  end
  for i, text in ipairs(lines) do
    if #hosts[text] > 0 then lines[i] = table.concat(hosts[text], ", ") .. ": " .. text end
  end
  return lines
end

--- One error for several: itself when there is one; of the code that all of them have, else "several".
---@param list deployrt.Error[]
function errors.several(list)
  if #list == 1 then return list[1] end
  local code = list[1].code
  for _, err in ipairs(list) do
    if err.code ~= code then code = "several" end
  end
  return errors.new(code, table.concat(lines_of(list), "\n"), { errors = list, detail = list[1].detail, traceback = list[1].traceback })
end

local gone = { lost = true, unreachable = true }
local away = { lost = true, unreachable = true, refused = true, missing = true, timeout = true }

--- Whether an error says that a host cannot be reached any more.
---@param err any
---@return boolean
function errors.is_gone(err)
  return type(err) == "table" and gone[err.code] == true
end

--- Whether it says that something does not answer, and not that it refuses: it may come back.
---@param err any
---@return boolean
function errors.is_away(err)
  return type(err) == "table" and away[err.code] == true
end

--- The message with its host in front and its detail indented below.
---@param err deployrt.Error
---@param named? string  the host that stands in front of it already
---@return string
function errors.text(err, named)
  local name = unnamed_host(err)
  local text = name and name ~= named and name .. ": " .. err.message or err.message
  if err.detail and err.detail ~= "" then text = text .. "\n  | " .. err.detail:gsub("%s+$", ""):gsub("\n", "\n  | ") end
  return text
end

return errors
