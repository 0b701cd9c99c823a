/* lua_host.c -- A Lua interpreter that is built with sanitizers: lua_host SCRIPT ARGUMENT... */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>

static int l_traceback(lua_State *L) {
  luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
  return 1;
}

int main(int argc, char **argv) {
  lua_State *L = luaL_newstate();
  if (!L || argc < 2) return 2;
  luaL_openlibs(L);
  lua_createtable(L, argc, 0);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - 1);
  }
  lua_setglobal(L, "arg");
  lua_pushcfunction(L, l_traceback);
  int failed = luaL_loadfile(L, argv[1]);
  for (int i = 2; !failed && i < argc; i++) lua_pushstring(L, argv[i]);
  if (!failed) failed = lua_pcall(L, argc - 2, 0, 1);
  if (failed) fprintf(stderr, "%s\n", lua_tostring(L, -1));
  lua_close(L);
  return failed ? 1 : 0;
}
