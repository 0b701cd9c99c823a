/* yaml.c -- libyaml's events to Lua tables that remember where each key stands. */
#include "yaml.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <yaml.h>

#include "class.h"
#include "error.h"
#include "yaml_scalar.h"

#define READER "deployrt.YamlReader"

enum { DEPTH_LIMIT = 64, VALUE_LIMIT = 100000, TEXT_LIMIT = 1024 * 1024, SHOWN_LIMIT = 60 };

/* What lies at the bottom of l_parse_document's stack: the marks that it returns, values by anchor, which
   tables are sequences. */
enum { AT_READER = 1, AT_MARKS, AT_ANCHORS, AT_SEQUENCES };

/*
 * libyaml's state is in a userdata, so that an error raised anywhere below l_parse_document cannot leak it.
 * `event` is the one being looked at; its strings die with the next check_event().
 */
typedef struct Reader {
  bool open;
  yaml_parser_t parser;
  yaml_event_t event;
  const char *name;
  const char *text;
  size_t length;
  size_t skipped; /* characters before `text` that are no part of it */
  int depth;
  int values;
} Reader;

static void push_value(lua_State *L, Reader *r, int mark);

static void reader_close(Reader *r) {
  if (!r->open) return;
  r->open = false;
  yaml_event_delete(&r->event);
  yaml_parser_delete(&r->parser);
}

static int l_reader_gc(lua_State *L) {
  reader_close(lua_touserdata(L, 1));
  return 0;
}

/* Raises the error table that l_parse returns after nil. */
static int check_fail(lua_State *L, const Reader *r, yaml_mark_t place, const char *format, ...) {
  va_list args;
  va_start(args, format);
  const char *problem = lua_pushvfstring(L, format, args);
  va_end(args);
  push_error(L, "yaml", NULL, "%s:%d:%d: %s", r->name, (int)place.line + 1, (int)place.column + 1, problem);
  return lua_error(L);
}

/* Text of the file for an error message: no longer than a line, and without control characters. */
static const char *push_shown(lua_State *L, const char *text) {
  char shown[SHOWN_LIMIT + 1];
  size_t length = strnlen(text, SHOWN_LIMIT);
  while (text[length] && length > 0 && ((unsigned char)text[length] & 0xC0) == 0x80) length--;
  for (size_t i = 0; i < length; i++)
    shown[i] = (unsigned char)text[i] < ' ' || text[i] == 127 ? '?' : text[i];
  return lua_pushlstring(L, shown, length);
}

/* libyaml gives the place of an unreadable byte as an offset. */
static yaml_mark_t text_place(const Reader *r, size_t offset) {
  yaml_mark_t place = {.index = offset};
  for (size_t i = 0; i < offset && i < r->length; i++) {
    if (r->text[i] == '\n') {
      place.line++;
      place.column = 0;
    } else if (((unsigned char)r->text[i] & 0xC0) != 0x80) {
      place.column++;
    }
  }
  return place;
}

static bool text_has_tab(const Reader *r, yaml_mark_t place) {
  const char *p = r->text, *end = r->text + r->length;
  for (size_t line = 0; line < place.line; line++) {
    p = memchr(p, '\n', (size_t)(end - p));
    if (!p) return false;
    p++;
  }
  return (size_t)(end - p) > place.column && p[place.column] == '\t';
}

static int check_syntax(lua_State *L, const Reader *r) {
  const yaml_parser_t *p = &r->parser;
  const char *problem = p->problem ? p->problem : "not YAML";
  if (p->error == YAML_MEMORY_ERROR) return luaL_error(L, "not enough memory");
  if (p->error == YAML_READER_ERROR) return check_fail(L, r, text_place(r, p->problem_offset), "%s", problem);
  const char *hint = text_has_tab(r, p->problem_mark) ? ": a tab; indent with spaces" : "";
  if (!p->context) return check_fail(L, r, p->problem_mark, "%s%s", problem, hint);
  return check_fail(L, r, p->problem_mark, "%s %s that begins at line %d, column %d%s", problem, p->context,
                    (int)p->context_mark.line + 1, (int)p->context_mark.column + 1, hint);
}

static yaml_event_type_t check_event(lua_State *L, Reader *r) {
  yaml_event_delete(&r->event);
  if (!yaml_parser_parse(&r->parser, &r->event)) check_syntax(L, r);
  return r->event.type;
}

static void check_tag_known(lua_State *L, const Reader *r, const char *tag, const char *const *known) {
  if (!tag || text_among(tag, known)) return;
  check_fail(L, r, r->event.start_mark, "unknown tag '%s'; quote the text if it is meant as text",
             push_shown(L, tag));
}

/* Which characters of the text the scalar is, with its anchor, so that somebody can put another one in its
 * place. */
static void push_extent(lua_State *L, const Reader *r, int mark) {
  lua_pushinteger(L, (lua_Integer)(r->skipped + r->event.start_mark.index) + 1);
  lua_setfield(L, mark, "from");
  lua_pushinteger(L, (lua_Integer)r->skipped + (lua_Integer)r->event.end_mark.index);
  lua_setfield(L, mark, "to");
  lua_pushstring(L, (const char *)r->event.data.scalar.anchor);
  lua_setfield(L, mark, "anchor");
}

/* Pushes the value; its mark learns where it is and, for what is no string, its text in the file. */
static void push_scalar(lua_State *L, const Reader *r, int mark) {
  static const char *const known[] = {YAML_TAG "str", YAML_TAG "null",  YAML_TAG "bool",
                                      YAML_TAG "int", YAML_TAG "float", NULL};
  const char *text = (const char *)r->event.data.scalar.value, *tag = (const char *)r->event.data.scalar.tag;
  size_t length = r->event.data.scalar.length;
  check_tag_known(L, r, tag, known);
  push_extent(L, r, mark);
  bool quoted = r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
  bool string = tag ? strcmp(tag, YAML_TAG "str") == 0 : quoted;
  if (string || !push_yaml_plain(L, text, length)) {
    if (tag && !string)
      check_fail(L, r, r->event.start_mark, "'%s' is not what its tag says", push_shown(L, text));
    lua_pushlstring(L, text, length);
    return;
  }
  if (tag && !check_yaml_type(L, tag)) {
    check_fail(L, r, r->event.start_mark, "'%s' is not what its tag says", push_shown(L, text));
  }
  lua_pushlstring(L, text, length);
  lua_setfield(L, mark, "source");
}

/* Every value counts, copies too: what a few aliases of aliases can name has no end. */
static void check_value_count(lua_State *L, Reader *r) {
  if (++r->values <= VALUE_LIMIT) return;
  check_fail(L, r, r->event.start_mark, "%s more than %d values",
             r->event.type == YAML_ALIAS_EVENT ? "aliases expand to" : "the file holds", VALUE_LIMIT);
}

/* Pushes a new table and the table of its marks. */
static void push_collection(lua_State *L, Reader *r, bool sequence) {
  if (++r->depth > DEPTH_LIMIT) {
    check_fail(L, r, r->event.start_mark, "nested more than %d levels deep", DEPTH_LIMIT);
  }
  lua_newtable(L);
  lua_newtable(L);
  lua_pushvalue(L, -2);
  lua_pushvalue(L, -2);
  lua_rawset(L, AT_MARKS);
  if (!sequence) return;
  lua_pushvalue(L, -2);
  lua_pushboolean(L, 1);
  lua_rawset(L, AT_SEQUENCES);
}

static bool check_is_sequence(lua_State *L, int index) {
  lua_pushvalue(L, index);
  bool sequence = lua_rawget(L, AT_SEQUENCES) != LUA_TNIL;
  lua_pop(L, 1);
  return sequence;
}

static void push_marks_of(lua_State *L, int index) {
  lua_pushvalue(L, index);
  lua_rawget(L, AT_MARKS);
}

static void push_mark(lua_State *L, yaml_mark_t place) {
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, (lua_Integer)place.line + 1);
  lua_setfield(L, -2, "line");
  lua_pushinteger(L, (lua_Integer)place.column + 1);
  lua_setfield(L, -2, "column");
}

/* With key and value on top: into[key] = value, and the mark that goes with it; pops the value. */
static void push_entry(lua_State *L, int into, int into_marks, int from_marks) {
  lua_pushvalue(L, -2);
  lua_insert(L, -2);
  lua_rawset(L, into);
  lua_pushvalue(L, -1);
  lua_pushvalue(L, -1);
  lua_rawget(L, from_marks);
  lua_rawset(L, into_marks);
}

/* Pushes a copy of the value at `index`, with marks of its own that tell where the original stands. */
static void push_copy(lua_State *L, Reader *r, int index) {
  luaL_checkstack(L, 16, "nested YAML");
  check_value_count(L, r);
  if (!lua_istable(L, index)) {
    lua_pushvalue(L, index);
    return;
  }
  push_collection(L, r, check_is_sequence(L, index));
  int copy = lua_gettop(L) - 1;
  push_marks_of(L, index);
  for (lua_pushnil(L); lua_next(L, index);) {
    push_copy(L, r, lua_gettop(L));
    lua_remove(L, -2);
    push_entry(L, copy, copy + 1, copy + 2);
  }
  r->depth--;
  lua_settop(L, copy);
}

/* What a mark tells of a scalar, for an alias of it. */
static void push_same_extent(lua_State *L, int from, int mark) {
  static const char *const fields[] = {"source", "from", "to", "anchor", NULL};
  for (const char *const *field = fields; *field; field++) {
    lua_getfield(L, from, *field);
    lua_setfield(L, mark, *field);
  }
}

/* An anchor is known as `false` while its value is being read, then as {value, mark}. */
static void push_alias(lua_State *L, Reader *r, int mark) {
  const char *name = (const char *)r->event.data.alias.anchor;
  int known = lua_getfield(L, AT_ANCHORS, name);
  if (known == LUA_TNIL) {
    check_fail(L, r, r->event.start_mark, "no anchor '&%s' above this alias", push_shown(L, name));
  }
  if (known != LUA_TTABLE) {
    check_fail(L, r, r->event.start_mark, "alias '*%s' stands inside the value that it names",
               push_shown(L, name));
  }
  int anchor = lua_gettop(L);
  lua_rawgeti(L, anchor, 2);
  push_same_extent(L, anchor + 1, mark);
  lua_rawgeti(L, anchor, 1);
  push_copy(L, r, anchor + 2);
  lua_replace(L, anchor);
  lua_settop(L, anchor);
}

/* Copies into the mapping at `into` what it lacks of the mapping at `from`. */
static void push_missing(lua_State *L, int into, int from) {
  int top = lua_gettop(L);
  luaL_checkstack(L, 16, "nested YAML");
  push_marks_of(L, into);
  push_marks_of(L, from);
  for (lua_pushnil(L); lua_next(L, from);) {
    lua_pushvalue(L, -2);
    bool present = lua_rawget(L, into) != LUA_TNIL;
    lua_pop(L, 1);
    if (present) lua_pop(L, 1);
    else push_entry(L, into, top + 1, top + 2);
  }
  lua_settop(L, top);
}

/* Explicit keys win over merged ones, and of merged ones the earlier: all merging is done when a mapping
 * ends. */
static void push_merged(lua_State *L, int into, int merged) {
  if (!check_is_sequence(L, merged)) {
    push_missing(L, into, merged);
    return;
  }
  lua_Integer count = (lua_Integer)lua_rawlen(L, merged);
  for (lua_Integer i = 1; i <= count; i++) {
    lua_rawgeti(L, merged, i);
    push_missing(L, into, lua_gettop(L));
    lua_pop(L, 1);
  }
}

static bool check_is_mapping(lua_State *L, int index) {
  return lua_istable(L, index) && !check_is_sequence(L, index);
}

static void check_mergeable(lua_State *L, const Reader *r, int index, yaml_mark_t place) {
  bool good = lua_istable(L, index);
  if (good && check_is_sequence(L, index)) {
    lua_Integer count = (lua_Integer)lua_rawlen(L, index);
    for (lua_Integer i = 1; good && i <= count; i++) {
      lua_rawgeti(L, index, i);
      good = check_is_mapping(L, lua_gettop(L));
      lua_pop(L, 1);
    }
  }
  if (!good) check_fail(L, r, place, "'<<' merges a mapping, an alias of one, or a list of these");
}

static void check_not_twice(lua_State *L, const Reader *r, int marks, const char *key) {
  lua_pushvalue(L, -1);
  if (lua_rawget(L, marks) != LUA_TNIL) {
    lua_getfield(L, -1, "line");
    lua_getfield(L, -2, "column");
    int line = (int)lua_tointeger(L, -2), column = (int)lua_tointeger(L, -1);
    check_fail(L, r, r->event.start_mark, "key '%s' is there twice, first at line %d, column %d",
               push_shown(L, key), line, column);
  }
  lua_pop(L, 1);
}

/* Pushes a key, always a string, and its mark; returns whether it is the merge key. */
static bool push_key(lua_State *L, const Reader *r, int marks) {
  if (r->event.type != YAML_SCALAR_EVENT) {
    check_fail(L, r, r->event.start_mark, "a key must be text, not a list, a mapping or an alias");
  }
  const char *text = (const char *)r->event.data.scalar.value;
  size_t length = r->event.data.scalar.length;
  lua_pushlstring(L, text, length);
  check_not_twice(L, r, marks, text);
  push_mark(L, r->event.start_mark);
  return r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE && length == 2 && memcmp(text, "<<", 2) == 0;
}

/* The marks of a mapping hold the merge key until the end, so that a second one is seen. */
static void push_mapping(lua_State *L, Reader *r) {
  static const char *const known[] = {YAML_TAG "map", NULL};
  check_tag_known(L, r, (const char *)r->event.data.mapping_start.tag, known);
  push_collection(L, r, false);
  int marks = lua_gettop(L), value = marks - 1, merged = marks + 1;
  lua_pushnil(L);
  while (check_event(L, r) != YAML_MAPPING_END_EVENT) {
    bool merge = push_key(L, r, marks);
    check_event(L, r);
    yaml_mark_t place = r->event.start_mark;
    push_value(L, r, lua_gettop(L));
    if (merge) check_mergeable(L, r, lua_gettop(L), place);
    if (merge) lua_copy(L, -1, merged);
    lua_pushvalue(L, -3);
    lua_insert(L, -2);
    if (merge) lua_pop(L, 2);
    else lua_rawset(L, value);
    lua_rawset(L, marks);
  }
  if (!lua_isnil(L, merged)) {
    lua_pushnil(L);
    lua_setfield(L, marks, "<<");
    push_merged(L, value, merged);
  }
  r->depth--;
  lua_settop(L, value);
}

static void push_sequence(lua_State *L, Reader *r) {
  static const char *const known[] = {YAML_TAG "seq", NULL};
  check_tag_known(L, r, (const char *)r->event.data.sequence_start.tag, known);
  push_collection(L, r, true);
  int marks = lua_gettop(L), value = marks - 1;
  for (lua_Integer i = 1; check_event(L, r) != YAML_SEQUENCE_END_EVENT; i++) {
    push_mark(L, r->event.start_mark);
    push_value(L, r, lua_gettop(L));
    lua_rawseti(L, value, i);
    lua_rawseti(L, marks, i);
  }
  r->depth--;
  lua_settop(L, value);
}

/* Pushes a value that is no alias. */
static void push_node(lua_State *L, Reader *r, int mark) {
  check_value_count(L, r);
  if (r->event.type == YAML_SCALAR_EVENT) push_scalar(L, r, mark);
  else if (r->event.type == YAML_MAPPING_START_EVENT) push_mapping(L, r);
  else push_sequence(L, r);
}

static const char *event_anchor(const yaml_event_t *event) {
  if (event->type == YAML_SCALAR_EVENT) return (const char *)event->data.scalar.anchor;
  if (event->type == YAML_MAPPING_START_EVENT) return (const char *)event->data.mapping_start.anchor;
  return (const char *)event->data.sequence_start.anchor;
}

static void push_anchored(lua_State *L, Reader *r, const char *anchor, int mark) {
  lua_pushstring(L, anchor);
  int name = lua_gettop(L);
  lua_pushvalue(L, name);
  lua_pushboolean(L, 0);
  lua_rawset(L, AT_ANCHORS);
  push_node(L, r, mark);
  lua_pushvalue(L, name);
  lua_createtable(L, 2, 0);
  lua_pushvalue(L, name + 1);
  lua_rawseti(L, -2, 1);
  lua_pushvalue(L, mark);
  lua_rawseti(L, -2, 2);
  lua_rawset(L, AT_ANCHORS);
  lua_remove(L, name);
}

/* Pushes the value that begins with the present event; `mark` is of the key or item whose value it is. */
static void push_value(lua_State *L, Reader *r, int mark) {
  luaL_checkstack(L, 32, "nested YAML");
  const char *anchor = r->event.type == YAML_ALIAS_EVENT ? NULL : event_anchor(&r->event);
  if (r->event.type == YAML_ALIAS_EVENT) push_alias(L, r, mark);
  else if (anchor) push_anchored(L, r, anchor, mark);
  else push_node(L, r, mark);
}

/* Runs under lua_pcall with the reader as its argument; returns the value and the marks. */
static int l_parse_document(lua_State *L) {
  Reader *r = lua_touserdata(L, AT_READER);
  for (int i = AT_MARKS; i <= AT_SEQUENCES; i++) lua_newtable(L);
  check_event(L, r);
  if (check_event(L, r) == YAML_STREAM_END_EVENT) {
    lua_getfield(L, LUA_REGISTRYINDEX, YAML_NULL);
  } else {
    check_event(L, r);
    push_mark(L, r->event.start_mark);
    push_value(L, r, lua_gettop(L));
    check_event(L, r);
    if (check_event(L, r) != YAML_STREAM_END_EVENT) {
      return check_fail(L, r, r->event.start_mark, "a second document begins here; a file holds one");
    }
  }
  lua_pushvalue(L, AT_MARKS);
  return 2;
}

/* libyaml would read UTF-16 as well, and counts a byte order mark as a column. */
static Reader *push_reader(lua_State *L, const char *text, size_t length, const char *name) {
  size_t skipped = length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
  Reader *r = lua_newuserdatauv(L, sizeof *r, 0);
  memset(r, 0, sizeof *r);
  luaL_setmetatable(L, READER);
  r->name = name;
  r->text = text + skipped;
  r->length = length - skipped;
  r->skipped = skipped > 0;
  if (!yaml_parser_initialize(&r->parser)) luaL_error(L, "not enough memory");
  r->open = true;
  yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
  yaml_parser_set_input_string(&r->parser, (const unsigned char *)r->text, r->length);
  return r;
}

/* yaml.parse(text, name) -> value, marks | nil, err. Only errors of the text are returned; others go on. */
static int l_parse(lua_State *L) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  const char *name = luaL_optstring(L, 2, "yaml");
  lua_settop(L, 2);
  if (length > TEXT_LIMIT) {
    return push_error(L, "yaml", NULL, "%s:1:1: larger than %d KiB", name, TEXT_LIMIT / 1024);
  }
  lua_pushcfunction(L, l_parse_document);
  Reader *r = push_reader(L, text, length, name);
  int status = lua_pcall(L, 1, 2, 0);
  reader_close(r);
  if (status == LUA_OK) return 2;
  if (!lua_istable(L, -1)) return lua_error(L);
  lua_pushnil(L);
  lua_insert(L, -2);
  return 2;
}

static int l_null_tostring(lua_State *L) {
  lua_pushliteral(L, "null");
  return 1;
}

/* Pushes the one null, a userdata: it is no table that a reader could mistake for a value. */
static void push_null(lua_State *L) {
  if (lua_getfield(L, LUA_REGISTRYINDEX, YAML_NULL) != LUA_TNIL) return;
  lua_pop(L, 1);
  lua_newuserdatauv(L, 0, 0);
  lua_createtable(L, 0, 3);
  lua_pushcfunction(L, l_null_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pushliteral(L, "yaml.null");
  lua_setfield(L, -2, "__name");
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_setmetatable(L, -2);
  lua_pushvalue(L, -1);
  lua_setfield(L, LUA_REGISTRYINDEX, YAML_NULL);
}

void push_yaml_functions(lua_State *L) {
  push_class(L, READER, NULL, l_reader_gc);
  lua_createtable(L, 0, 2);
  lua_pushcfunction(L, l_parse);
  lua_setfield(L, -2, "parse");
  push_null(L);
  lua_setfield(L, -2, "null");
}
