-- nginx_syntax.lua -- The syntax of nginx's configuration: a text as statements and blocks, told apart as nginx itself does.
local nginx_syntax = {}

---@class deployrt.NginxNode
---@field first integer   where it begins in the text
---@field last integer
---@field words string[]  as nginx understands them; empty: a comment
---@field raw string[]    the same as they are written
---@field nodes? deployrt.NginxNode[]  of a block
---@field body? integer   where the inside of a block begins
---@field stop? integer   where its `}` is

local escapes = { t = "\t", r = "\r", n = "\n", ['"'] = '"', ["'"] = "'", ["\\"] = "\\" }

--- What a word means: its quotes off, and what is escaped in it.
local function meaning(raw)
  local inside = raw:match('^"(.*)"$') or raw:match("^'(.*)'$") or raw
  return (inside:gsub("\\(.)", function(sign) return escapes[sign] or "\\" .. sign end))
end

--- Where a quoted word ends that begins at `at`; one that never ends takes all the rest.
local function quote_end(text, at)
  local sign = text:sub(at, at)
  repeat
    at = text:find("[\\" .. sign .. "]", at + 1)
    local is_escaped = at and text:sub(at, at) == "\\"
    if is_escaped then at = at + 1 end
  until not is_escaped
  return at or #text
end

--- Where a word without quotes ends: these count only at its beginning, as do `#` and `}`; the brace of ${name} belongs to it.
local function plain_end(text, at)
  while at <= #text do
    local sign, after = text:sub(at, at), text:sub(at + 1, at + 1)
    if sign:find("[%s;{]") then return at - 1 end
    at = at + ((sign == "\\" or sign == "$" and after == "{") and 2 or 1)
  end
  return #text
end

local function comment_end(text, at)
  return (text:find("\n", at, true) or #text + 1) - 1
end

--- Reads the words of a statement from its first one on.
---@return deployrt.NginxNode node
---@return string sign  what ended it: ";", "{"; "}" or "" where its end is missing
local function read_statement(text, first)
  local node, at = { first = first, last = #text, words = {}, raw = {} }, first
  while at do
    local sign = text:sub(at, at)
    if sign == "}" then node.last = at - 1 elseif sign:find("[;{]") then node.last = at end
    if sign:find("[;{}]") then return node, sign end
    local stop
    if sign == "#" then
      stop = comment_end(text, at)
    else
      stop = sign:find("[\"']") and quote_end(text, at) or plain_end(text, at)
      node.raw[#node.raw + 1] = text:sub(at, stop)
      node.words[#node.words + 1] = meaning(text:sub(at, stop))
    end
    at = text:find("%S", stop + 1)
  end
  return node, ""
end

--- The statements and comments of a text from a place on, up to the end of the block.
---@param text string
---@param at? integer
---@return deployrt.NginxNode[]
---@return integer stop
function nginx_syntax.parse(text, at)
  local nodes = {}
  at = text:find("%S", at or 1)
  while at and text:sub(at, at) ~= "}" do
    local node, sign
    if text:sub(at, at) == "#" then
      node = { first = at, last = comment_end(text, at), words = {}, raw = {} }
    else
      node, sign = read_statement(text, at)
    end
    if sign == "{" then
      node.body = node.last + 1
      node.nodes, node.stop = nginx_syntax.parse(text, node.body)
      node.last = node.stop
    end
    nodes[#nodes + 1] = node
    at = text:find("%S", node.last + 1)
  end
  return nodes, at or #text
end

--- Has each statement visited, however deep; comments are left out.
---@param nodes deployrt.NginxNode[]
---@param visit fun(node: deployrt.NginxNode)
function nginx_syntax.each(nodes, visit)
  for _, node in ipairs(nodes) do
    if #node.words > 0 then visit(node) end
    if node.nodes then nginx_syntax.each(node.nodes, visit) end
  end
end

--- All statements, however deep, that begin with two such words.
---@param nodes deployrt.NginxNode[]
---@param first string
---@param second string
---@return deployrt.NginxNode[]
function nginx_syntax.find(nodes, first, second)
  local found = {}
  nginx_syntax.each(nodes, function(node)
    if node.words[1] == first and node.words[2] == second then found[#found + 1] = node end
  end)
  return found
end

--- The files of a dump, as `nginx -T` prints it: a comment that names each one stands before it. The main one comes first.
---@param dump string
---@return {path: string, nodes: deployrt.NginxNode[]}[]
function nginx_syntax.files(dump)
  local files = { { path = "", nodes = {} } }
  for _, node in ipairs((nginx_syntax.parse(dump))) do
    local path = #node.words == 0 and dump:sub(node.first, node.last):match("^# configuration file (.+):$")
    if path then
      files[#files + 1] = { path = path, nodes = {} }
    else
      table.insert(files[#files].nodes, node)
    end
  end
  if #files > 1 then table.remove(files, 1) end
  return files
end

local function escaped(text)
  return (text:gsub("%W", "%%%0"))
end

--- The pattern of a path that `include` is given: `*` and `?` stand for no slash.
local function pattern_of(path)
  return "^" .. escaped(path):gsub("%%%*", "[^/]*"):gsub("%%%?", "[^/]") .. "$"
end

local function add_outer(files, file, directory, name, found)
  for _, node in ipairs(file.nodes) do
    if node.words[1] == name then found[#found + 1] = node end
    local path = node.words[1] == "include" and node.words[2]
    local pattern = path and pattern_of(path:find("^/") and path or directory .. path)
    for _, each in ipairs(pattern and files or {}) do
      if each.path:find(pattern) then add_outer(files, each, directory, name, found) end
    end
  end
end

--- The statements of a name that stand outside of all blocks: in the main file, or in one that is included there.
---@param dump string       as `nginx -T` prints it
---@param directory string  where relative paths of `include` begin, with a slash
---@param name string
---@return deployrt.NginxNode[]
function nginx_syntax.outermost(dump, directory, name)
  local files, found = nginx_syntax.files(dump), {}
  add_outer(files, files[1], directory, name, found)
  return found
end

return nginx_syntax
