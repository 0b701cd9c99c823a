local yaml = require("deployrt.core").yaml

local function parse(text)
  local value, marks = yaml.parse(text, "app.yml")
  assert(value ~= nil, type(marks) == "table" and marks.message)
  return value, marks
end

local function failure(text)
  local value, err = yaml.parse(text, "app.yml")
  assert.is_nil(value)
  assert.equal("yaml", err.code)
  return err.message
end

--- Where a key or an item begins, and what it is written as.
local function place(mark)
  return { line = mark.line, column = mark.column, source = mark.source }
end

describe("yaml.parse", function()
  it("reads plain scalars by YAML 1.2's core schema", function()
    local cases = {
      ["~"] = yaml.null, null = yaml.null, [""] = yaml.null, ["true"] = true, ["FALSE"] = false,
      ["12"] = 12, ["-3"] = -3, ["+3"] = 3, ["007"] = 7, ["0x1F"] = 31, ["0o17"] = 15,
      ["0x7fffffffffffffff"] = math.maxinteger,
      ["1.5"] = 1.5, [".5"] = 0.5, ["1."] = 1.0, ["1e3"] = 1000.0,
      [".inf"] = math.huge, ["-.Inf"] = -math.huge,
      yes = "yes", on = "on", ["1.4.2"] = "1.4.2", ["30s"] = "30s", ["0x"] = "0x", ["0o8"] = "0o8",
      ["12_000"] = "12_000", ["1e"] = "1e", ["."] = ".", ["+"] = "+", nUll = "nUll", ["-0x1"] = "-0x1",
      ["9223372036854775808"] = 2.0 ^ 63, ["0x8000000000000000"] = 2.0 ^ 63,
    }
    for text, expected in pairs(cases) do
      local value = parse("key: " .. text).key
      assert.equal(expected, value)
      assert.equal(math.type(expected), math.type(value))
    end
    local nan = parse("key: .nan").key
    assert.is_true(nan ~= nan)
  end)

  it("takes quoted text and blocks as strings", function()
    local value = parse("a: '1'\nb: \"true\"\nc: |\n  12\nd: ''\ne: \"\\u00e9\\0\"\n")
    assert.same({ a = "1", b = "true", c = "12\n", d = "", e = "é\0" }, value)
  end)

  it("obeys tags, and refuses those it does not know", function()
    local value = parse("a: !!str 12\nb: !!float 3\nc: !!int '4'\nd: !!seq [1]\ne: !!map {x: 1}\nf: !!str\n")
    assert.same({ a = "12", b = 3.0, c = 4, d = { 1 }, e = { x = 1 }, f = "" }, value)
    assert.equal("float", math.type(value.b))
    assert.equal("app.yml:1:4: 'x' is not what its tag says", failure("a: !!int x"))
    assert.equal("app.yml:1:4: '1.5' is not what its tag says", failure("a: !!int 1.5"))
    assert.equal("app.yml:2:3: unknown tag '!secret'; quote the text if it is meant as text",
      failure("a:\n- !secret x"))
  end)

  it("has one null, which is no table and says what it is", function()
    local value = parse("- ~\n- \n- x")
    assert.equal(yaml.null, value[1])
    assert.equal(yaml.null, value[2])
    assert.equal("null", tostring(yaml.null))
    assert.equal("userdata", type(yaml.null))
    assert.equal(yaml.null, (parse("")))
    assert.equal(yaml.null, (parse("# only a comment\n")))
  end)

  it("makes strings of all keys", function()
    assert.same({ ["8080"] = 1, ["true"] = 2, ["1.10"] = 3 }, parse("8080: 1\ntrue: 2\n1.10: 3"))
  end)

  it("reads a file that begins with a byte order mark", function()
    local value, marks = parse("\xEF\xBB\xBFa: 1\nb: 2\n")
    assert.same({ a = 1, b = 2 }, value)
    assert.same({ line = 1, column = 1, source = "1" }, place(marks[value].a))
  end)

  it("refuses a second document, and keys that are no text", function()
    assert.equal("app.yml:2:1: a second document begins here; a file holds one", failure("a: 1\n---\nb: 2"))
    assert.equal("app.yml:1:3: a key must be text, not a list, a mapping or an alias", failure("? [a]\n: b"))
  end)

  it("refuses a key that is there twice, and names both places", function()
    assert.equal("app.yml:4:3: key 'port' is there twice, first at line 2, column 3",
      failure("a:\n  port: 1\n  name: x\n  port: 2\n"))
    assert.equal("app.yml:2:1: key '?[31m' is there twice, first at line 1, column 1",
      failure('"\\e[31m": 1\n"\\e[31m": 2'))
  end)
end)

describe("marks of yaml.parse", function()
  it("tell where keys and items stand", function()
    local value, marks = parse("a: x\nhosts:\n  - local\n  - {name: web}\n")
    assert.same({ line = 1, column = 1 }, place(marks[value].a))
    assert.same({ line = 2, column = 1 }, place(marks[value].hosts))
    assert.same({ line = 3, column = 5 }, place(marks[value.hosts][1]))
    assert.same({ line = 4, column = 5 }, place(marks[value.hosts][2]))
    assert.same({ line = 4, column = 6 }, place(marks[value.hosts[2]].name))
  end)

  it("count characters, not bytes", function()
    local value, marks = parse("{é: 1, b: 2}")
    assert.equal(8, marks[value].b.column)
  end)

  it("tell which characters each scalar is, however it is written, with its tag and its anchor", function()
    local text = "\xEF\xBB\xBFé: {a: ä b, \"c\": 'd''', e: &f !!str 1.0, g: *f}\r\nh: |\r\n  x\r\n  y\r\n\r\ni:\nj: k\n  l # m\nn: [~, o]"
    local value, marks = parse(text)
    local outer, inner, list = marks[value], marks[value["é"]], marks[value.n]
    local function written(mark)
      return text:sub(utf8.offset(text, mark.from), utf8.offset(text, mark.to + 1) - 1)
    end
    assert.same({ "ä b", "'d'''", "&f !!str 1.0", "&f !!str 1.0" }, { written(inner.a), written(inner.c), written(inner.e), written(inner.g) })
    assert.same({ "f", "f" }, { inner.e.anchor, inner.g.anchor })
    assert.same({ "|\r\n  x\r\n  y\r\n\r\n", "", "k\n  l", "~", "o" }, { written(outer.h), written(outer.i), written(outer.j), written(list[1]), written(list[2]) })
    assert.same({}, { outer["é"].from, inner.a.anchor })
  end)

  it("keep the text of what is no string, so that 1.10 is not lost", function()
    local value, marks = parse("version: 1.10\nlist: [007, 'x', ~]\nempty:\nflag: True\nname: '1.10'")
    assert.equal(1.1, value.version)
    assert.equal("1.10", marks[value].version.source)
    assert.equal("007", marks[value.list][1].source)
    assert.is_nil(marks[value.list][2].source)
    assert.equal("~", marks[value.list][3].source)
    assert.equal("", marks[value].empty.source)
    assert.equal("True", marks[value].flag.source)
    assert.is_nil(marks[value].name.source)
  end)
end)

describe("aliases in yaml.parse", function()
  it("give copies with marks of their own", function()
    local value, marks = parse("a: &x {l: [1.10], k: v}\nb: *x\nv: &v 2.10\nw: *v\n")
    assert.same(value.a, value.b)
    assert.are_not.equal(value.a, value.b)
    assert.are_not.equal(value.a.l, value.b.l)
    assert.are_not.equal(marks[value.a], marks[value.b])
    assert.same({ line = 1, column = 12, source = "1.10" }, place(marks[value.b.l][1]))
    assert.same({ line = 4, column = 1, source = "2.10" }, place(marks[value].w))
  end)

  it("merge with <<, where explicit keys win and then the earlier merge", function()
    local value, marks = parse([[
base: &base {image: a, port: 1, env: {LOG: info}}
more: &more {image: b, extra: true}
one: {<<: *base, port: 2}
two:
  port: 3
  <<: [*more, *base, {last: 1}]
three: {<<: {x: 1}}
quoted: {"<<": 1}
]])
    assert.same({ image = "a", port = 2, env = { LOG = "info" } }, value.one)
    assert.same({ image = "b", port = 3, extra = true, env = { LOG = "info" }, last = 1 }, value.two)
    assert.same({ x = 1 }, value.three)
    assert.same({ ["<<"] = 1 }, value.quoted)
    assert.are_not.equal(value.one.env, value.two.env)
    assert.same({ line = 1, column = 14 }, place(marks[value.one].image))
    assert.equal(3, marks[value.one].port.line)
    assert.equal(1, marks[value.two.env].LOG.line)
  end)

  it("merge nothing but mappings", function()
    local message = "'<<' merges a mapping, an alias of one, or a list of these"
    assert.equal("app.yml:1:9: " .. message, failure("a: {<<: 3}"))
    assert.equal("app.yml:1:9: " .. message, failure("a: {<<: [{b: 1}, 3]}"))
    assert.equal("app.yml:1:9: " .. message, failure("a: {<<: [[{b: 1}]]}"))
    assert.equal("app.yml:1:17: key '<<' is there twice, first at line 1, column 5",
      failure("a: {<<: {b: 1}, <<: {c: 1}}"))
  end)

  it("are refused when unknown or inside what they name", function()
    assert.equal("app.yml:1:4: no anchor '&b' above this alias", failure("a: *b"))
    assert.equal("app.yml:1:8: alias '*a' stands inside the value that it names", failure("a: &a [*a]"))
    assert.equal("app.yml:1:12: alias '*a' stands inside the value that it names",
      failure("a: &a {<<: *a}"))
  end)

  it("cannot expand without bounds", function()
    local lines, last = { "a: &a [x, x, x, x, x, x, x, x, x]" }, "a"
    for name in ("bcdefghi"):gmatch(".") do
      lines[#lines + 1] = ("%s: &%s [%s]"):format(name, name, ("*" .. last .. ", "):rep(9))
      last = name
    end
    assert.matches("^app.yml:6:%d+: aliases expand to more than 100000 values$",
      failure(table.concat(lines, "\n")))
  end)

  it("cannot nest deeper than the text could", function()
    local lines = { "a: &a " .. ("["):rep(30) .. ("]"):rep(30) }
    lines[2] = "b: &b " .. ("["):rep(30) .. "*a" .. ("]"):rep(30)
    assert.is_table(parse(table.concat(lines, "\n")))
    lines[3] = "c: " .. ("["):rep(30) .. "*b" .. ("]"):rep(30)
    assert.equal("app.yml:3:34: nested more than 64 levels deep", failure(table.concat(lines, "\n")))
  end)
end)

describe("limits of yaml.parse", function()
  it("are 64 levels, 100000 values and 1 MiB", function()
    assert.is_table(parse(("["):rep(64) .. ("]"):rep(64)))
    assert.equal("app.yml:1:65: nested more than 64 levels deep", failure(("["):rep(65)))
    assert.equal(99999, #parse(("- a\n"):rep(99999)))
    assert.equal("app.yml:100000:3: the file holds more than 100000 values", failure(("- a\n"):rep(100000)))
    assert.equal("app.yml:1:1: larger than 1024 KiB", failure((" "):rep(1024 * 1024 + 1)))
    assert.equal(yaml.null, (parse((" "):rep(1024 * 1024))))
  end)
end)

describe("errors of yaml.parse", function()
  it("have the place and libyaml's reason", function()
    assert.equal("app.yml:2:2: did not find expected ',' or ']' while parsing a flow sequence"
      .. " that begins at line 1, column 4", failure("a: [1, 2\nb: 3"))
    assert.equal("app.yml:1:5: mapping values are not allowed in this context", failure("a: b: c"))
    assert.matches("^app.yml:2:1: found character that cannot start any token .*: a tab; indent with spaces$",
      failure("a:\n\tb: 1"))
  end)

  it("name the byte that is no text", function()
    assert.equal("app.yml:2:7: invalid leading UTF-8 octet", failure("a: é\n  b: [\xff]"))
    assert.equal("app.yml:2:5: control characters are not allowed", failure("a: é\nb: é\0"))
    assert.equal("app.yml:1:4: incomplete UTF-8 octet sequence", failure("a: \xc3"))
    assert.matches("^app.yml:1:1: ", failure("\xff\xfea\0:\0 \0b\0"))
  end)

  it("raise for what is no text at all", function()
    assert.has_error(function() yaml.parse({}) end)
    assert.has_error(function() yaml.parse() end)
  end)
end)
