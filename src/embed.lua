-- embed.lua -- Writes files as C: `embed.lua table FILE...` for embedded.h, `embed.lua string NAME FILE` for one.
local function literal(text)
  local lines = {}
  for line in text:gmatch("[^\n]*\n?") do
    if line ~= "" then
      local escaped = line:gsub('[\\"]', "\\%0"):gsub("\n", "\\n"):gsub("[%z\1-\31\127-\255?]", function(c)
        return ("\\%03o"):format(c:byte())
      end)
      lines[#lines + 1] = '  "' .. escaped .. '"'
    end
  end
  return table.concat(lines, "\n")
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

--- A module of the runtime compiled, with what its errors need; anything else is NULL.
local function code_of(name, text)
  if not name:find("^lua/") then return "NULL, 0" end
  local code = string.dump(assert(load(text, "@" .. name, "t")))
  return ("\n%s, %d"):format(literal(code), #code)
end

local function release()
  local pipe <close> = assert(io.popen(arg[-1] .. " -v"))
  return assert(pipe:read("a"):match("^Lua [%d.]+ "))
end

if arg[1] == "string" then
  print(("static const char %s[] =\n%s;"):format(arg[2], literal(read(arg[3]))))
else
  print('#include "embedded.h"\n')
  print(('const char embedded_release[] = "%s";\n'):format(release()))
  print("const Embedded embedded_files[] = {")
  for i = 2, #arg do
    local text = read(arg[i])
    print(('{"%s",\n%s, %d, %s},'):format(arg[i], literal(text), #text, code_of(arg[i], text)))
  end
  print("{NULL, NULL, 0, NULL, 0}};")
end
