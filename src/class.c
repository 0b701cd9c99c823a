/* class.c -- Metatables of the core's userdata, and fields of options tables. */
#include "class.h"

#include <limits.h>
#include <string.h>
#include <sys/socket.h>

void push_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
  luaL_newmetatable(L, name);
  if (gc) {
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__close");
  }
  if (methods) {
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
  }
  lua_pushboolean(L, 0); /* scripts cannot reach the metatable */
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
}

static int check_field(lua_State *L, int index, const char *name, int type) {
  if (lua_isnoneornil(L, index)) return 0;
  luaL_checktype(L, index, LUA_TTABLE);
  int found = lua_getfield(L, index, name);
  if (found == LUA_TNIL) {
    lua_pop(L, 1);
    return 0;
  }
  if (found == type) return 1;
  return luaL_error(L, "option '%s': %s expected, got %s", name, lua_typename(L, type), luaL_typename(L, -1));
}

void check_known_fields(lua_State *L, int index, const char *what, const char *const *known) {
  if (lua_isnoneornil(L, index)) return;
  luaL_checktype(L, index, LUA_TTABLE);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    int i = 0;
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
    while (known[i] && strcmp(known[i], key) != 0) i++;
    if (!known[i]) luaL_error(L, "%s: unknown option '%s'", what, key);
  }
}

const char *check_text(lua_State *L, int index, const char *what) {
  size_t length;
  const char *text = luaL_checklstring(L, index, &length);
  if (strlen(text) != length) luaL_argerror(L, index, lua_pushfstring(L, "%s without NUL expected", what));
  return text;
}

const char *check_bytes_field(lua_State *L, int index, const char *name, size_t *length) {
  if (!check_field(L, index, name, LUA_TSTRING)) return NULL;
  const char *bytes = lua_tolstring(L, -1, length);
  lua_pop(L, 1);
  return bytes;
}

/* The string stays alive as long as the options table does. */
const char *check_string_field(lua_State *L, int index, const char *name, const char *fallback) {
  size_t length;
  const char *text = check_bytes_field(L, index, name, &length);
  if (!text) return fallback;
  if (strlen(text) != length) luaL_error(L, "option '%s': a string without NUL expected", name);
  return text;
}

double check_number_field(lua_State *L, int index, const char *name, double fallback) {
  if (!check_field(L, index, name, LUA_TNUMBER)) return fallback;
  double number = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return number;
}

/* NaN is refused with what is negative. */
double check_timeout(lua_State *L, int index, double fallback) {
  double seconds = luaL_optnumber(L, index, fallback);
  luaL_argcheck(L, lua_isnoneornil(L, index) || seconds >= 0, index, "seconds must not be negative");
  return seconds;
}

double check_timeout_field(lua_State *L, int index, const char *name, double fallback) {
  if (!check_field(L, index, name, LUA_TNUMBER)) return fallback;
  double seconds = lua_tonumber(L, -1);
  lua_pop(L, 1);
  if (!(seconds >= 0)) luaL_error(L, "option '%s': seconds must not be negative", name);
  return seconds;
}

int check_integer_field(lua_State *L, int index, const char *name, int low, int high, int fallback) {
  double number = check_number_field(L, index, name, fallback);
  if (number == fallback) return fallback;
  if (!(number >= low && number <= high) || number != (double)(int)number)
    luaL_error(L, "option '%s': a whole number from %d to %d expected", name, low, high);
  return (int)number;
}

int check_socket_field(lua_State *L, int index, const char *name) {
  int type = 0, fd = check_integer_field(L, index, name, 0, INT_MAX, -1);
  socklen_t size = sizeof type;
  if (fd >= 0 && (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM))
    luaL_error(L, "option '%s': %d is no connected socket", name, fd);
  return fd;
}

int check_boolean_field(lua_State *L, int index, const char *name, int fallback) {
  if (!check_field(L, index, name, LUA_TBOOLEAN)) return fallback;
  int value = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return value;
}
