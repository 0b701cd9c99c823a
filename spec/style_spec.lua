-- style_spec.lua -- Files and functions stay small, boundaries show in names, and what is public says what it does.

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

local function files(pattern)
  local pipe <close> = io.popen("ls -d " .. pattern .. " 2>/dev/null")
  local found = {}
  for path in pipe:lines() do found[#found + 1] = path end
  assert.is_true(#found > 0, pattern)
  return found
end

local c_files = files("src/*.c src/*.h")
local lua_files = files("lua/deployrt/*.lua lua/deployrt/*/*.lua strategies/*.lua")

--- Text without comments and with empty strings and characters; lines stay where they are.
local function bare(text)
  text = text:gsub("\\.", "")
  text = text:gsub("/%*.-%*/", function(comment) return (comment:gsub("[^\n]", "")) end)
  return (text:gsub('"[^"\n]*"', '""'):gsub("'[^'\n]*'", "' '"))
end

--- The functions of a C file: {name, parameters, lines, at}. A function begins at the left edge and ends with "}" there.
local function functions(path)
  local found, line, head, first = {}, 0, "", nil
  for text in (bare(read(path)) .. "\n"):gmatch("([^\n]*)\n") do
    line = line + 1
    if not first then
      if text:match("^[%a_]") then head = text
      elseif text:match("^%s+[^%s]") and head ~= "" then head = head .. " " .. text:gsub("^%s+", "") end
      local name, parameters = head:match("([%w_]+)(%b())%s*{%s*$")
      if name and not head:match("^[%w_ ]*=") and not head:match("^typedef") then
        first = { name = name, parameters = parameters, at = line }
      elseif text:match("[;}]%s*$") then
        head = ""
      end
    elseif text:match("^}") then
      first.lines = line - first.at + 1
      found[#found + 1] = first
      first, head = nil, ""
    end
  end
  return found
end

local function each_function(visit)
  for _, path in ipairs(files("src/*.c")) do
    for _, f in ipairs(functions(path)) do visit(f, path) end
  end
end

describe("every file", function()
  it("has at most 500 lines", function()
    local all = files("src/*.[ch] src/*.sh src/*.lua lua/deployrt/*.lua lua/deployrt/*/*.lua strategies/*.lua spec/*.lua "
      .. "spec/*.mk spec/support/* examples/*/* Makefile")
    for _, path in ipairs(all) do
      local file = io.open(path)
      local text = file and file:read("a") -- nil for a directory
      if file then file:close() end
      local lines = select(2, (text or ""):gsub("\n", ""))
      assert.is_true(lines <= 500, ("%s has %d lines"):format(path, lines))
    end
  end)

  it("begins with a line that says what lives there", function()
    for _, path in ipairs(c_files) do
      local name = path:match("[^/]+$")
      assert.equal("/* " .. name .. " -- ", read(path):sub(1, #name + 7), path)
    end
    for _, path in ipairs(lua_files) do
      local first = read(path):match("^[^\n]*\n[^\n]*\n[^\n]*")
      assert.truthy(first:match("%-%-%-? ?[%w_/]+%.lua %-%- %S") or first:match("^%-%-%- %u"), path)
    end
  end)

  it("keeps its lines within the width", function()
    local limit = tonumber(read(".clang-format"):match("ColumnLimit: (%d+)"))
    local lua_limit = tonumber(read(".luacheckrc"):match("max_line_length = (%d+)")) or math.huge -- false: no limit
    local slack = 15 -- comments, which clang-format does not always break
    local function check(path, allowed)
      local number = 0
      for line in read(path):gmatch("[^\n]*") do
        number = number + 1
        local width = utf8.len(line) or #line
        assert.is_true(width <= allowed, ("%s:%d is %d wide"):format(path, number, width))
      end
    end
    for _, path in ipairs(c_files) do check(path, limit + slack) end
    for _, path in ipairs(lua_files) do check(path, lua_limit) end
  end)

  it("has no tabs, no blanks at the ends of lines, and no banners", function()
    for _, list in ipairs { c_files, lua_files } do
      for _, path in ipairs(list) do
        local text = read(path)
        assert.is_nil(text:find("\t", 1, true), path)
        assert.is_nil(text:find("[ ]\n"), path)
        assert.is_nil(text:find("[%-=*#][%-=*#][%-=*#][%-=*#][%-=*#][%-=*#]\n"), path)
      end
    end
  end)
end)

describe("C functions", function()
  it("have at most 60 lines", function()
    each_function(function(f, path)
      assert.is_true(f.lines <= 60, ("%s:%d %s has %d lines"):format(path, f.at, f.name, f.lines))
    end)
  end)

  it("are short: half of them under 12 lines, nine of ten at most 30", function()
    local sizes = {}
    each_function(function(f) sizes[#sizes + 1] = f.lines end)
    table.sort(sizes)
    assert.is_true(#sizes > 300, "the scanner found only " .. #sizes)
    assert.is_true(sizes[#sizes // 2] < 12, "median " .. sizes[#sizes // 2])
    assert.is_true(sizes[#sizes * 9 // 10] <= 30, "90th percentile " .. sizes[#sizes * 9 // 10])
  end)

  it("take a lua_State only where their names say so", function()
    local others = { -- hooks of Lua itself, the one resume and its bookkeeping, and the program's entry
      on_count = true, luaopen_deployrt_core = true, main = true, task_wait = true,
    }
    local wrong = {}
    each_function(function(f, path)
      local says_so = f.name:match("^l_") or f.name:match("^push_") or f.name:match("^check_") or f.name:match("_step$")
        or f.name:match("_wait$") or others[f.name]
      if f.parameters:match("lua_State") and not says_so and path ~= "src/main.c" and not path:match("fuzz_") then
        wrong[#wrong + 1] = path .. ":" .. f.at .. " " .. f.name
      end
    end)
    assert.equal("", table.concat(wrong, "\n"))
  end)

  it("that Lua calls are static, or declared in a header", function()
    local headers = ""
    for _, path in ipairs(files("src/*.h")) do headers = headers .. read(path) end
    for _, path in ipairs(files("src/*.c")) do
      for name in bare(read(path)):gmatch("\nint (l_[%w_]+)%(") do
        assert.truthy(headers:find(name, 1, true), path .. ": " .. name)
      end
    end
  end)
end)

describe("public Lua functions", function()
  it("say what they do or take", function()
    local silent = {}
    for _, path in ipairs(lua_files) do
      if not path:match("types%.lua$") then
        local before, number = "", 0
        local returned = read(path):match("\nreturn ([%w_]+)%s*$")
        for line in read(path):gmatch("([^\n]*)\n") do
          number = number + 1
          local owner, name = line:match("^function ([%w_]+)[.:]([%l_][%w_]*)%(")
          local takes = line:match("%((.-)%)") ~= ""
          local public = owner and (owner == returned or owner:match("^%u"))
          if public and not name:match("^_") and takes and not before:match("^%-%-") then
            silent[#silent + 1] = ("%s:%d %s.%s"):format(path, number, owner, name)
          end
          before = line
        end
      end
    end
    assert.equal("", table.concat(silent, "\n"))
  end)
end)
