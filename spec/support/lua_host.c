/* lua_host.c -- lua5.4, built with sanitizers, as far as specs use it: SCRIPT ARGUMENT..., -e CODE, or - for
 * standard input. Anything else is for the real one. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int l_traceback(lua_State *L) {
  luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
  return 1;
}

#define REAL "/usr/bin/lua5.4"

int main(int argc, char **argv) {
  bool is_code = argc == 3 && strcmp(argv[1], "-e") == 0;
  bool is_input = argc == 2 && strcmp(argv[1], "-") == 0;
  if (argc < 2 || (argv[1][0] == '-' && !is_code && !is_input)) {
    execv(REAL, argv);
    return 2;
  }
  lua_State *L = luaL_newstate();
  if (!L) return 2;
  luaL_openlibs(L);
  lua_createtable(L, argc, 0);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - 1);
  }
  lua_setglobal(L, "arg");
  lua_pushcfunction(L, l_traceback);
  int failed = is_code ? luaL_loadbuffer(L, argv[2], strlen(argv[2]), "=-e")
                       : luaL_loadfile(L, is_input ? NULL : argv[1]);
  for (int i = 2; !failed && i < argc; i++) lua_pushstring(L, argv[i]);
  if (!failed) failed = lua_pcall(L, argc - 2, 0, 1);
  if (failed) fprintf(stderr, "%s\n", lua_tostring(L, -1));
  lua_close(L);
  return failed ? 1 : 0;
}
