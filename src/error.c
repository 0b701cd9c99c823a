/* error.c -- Makes error tables; what raises them is Lua's business. */
#include "error.h"

#include <stdarg.h>
#include <uv.h>

int push_error(lua_State *L, const char *code, const char *host, const char *format, ...) {
  va_list args;
  lua_pushnil(L);
  luaL_newmetatable(L, "deployrt.Error");
  lua_createtable(L, 0, 4);
  lua_insert(L, -2);
  lua_setmetatable(L, -2);
  lua_pushstring(L, code);
  lua_setfield(L, -2, "code");
  va_start(args, format);
  lua_pushvfstring(L, format, args);
  va_end(args);
  lua_setfield(L, -2, "message");
  if (host) {
    lua_pushstring(L, host);
    lua_setfield(L, -2, "host");
  }
  return 2;
}

void push_error_detail(lua_State *L, const char *detail, size_t length) {
  lua_pushlstring(L, detail, length);
  lua_setfield(L, -2, "detail");
}

int push_uv_error(lua_State *L, int code, const char *host, const char *what) {
  const char *name = code == UV_ENOENT ? "missing" : code == UV_EEXIST ? "exists" : "system";
  return push_error(L, name, host, "%s: %s", what, uv_strerror(code));
}

/* Lets the runtime add to an error where it was raised. */
int l_on_error(lua_State *L) {
  lua_settop(L, 1);
  if (lua_getfield(L, LUA_REGISTRYINDEX, "deployrt.traceback") == LUA_TFUNCTION) {
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
  } else {
    lua_settop(L, 1);
  }
  return 1;
}

int l_set_traceback(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, "deployrt.traceback");
  return 0;
}
