/* fuzz_yaml.c -- libFuzzer target: any text gives a value with marks, or one error with its place. */
#include <lauxlib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "yaml.h"

static void check_result(lua_State *L) {
  if (!lua_isnil(L, -2)) {
    if (!lua_istable(L, -1)) abort();
    return;
  }
  if (lua_getfield(L, -1, "code") != LUA_TSTRING || strcmp(lua_tostring(L, -1), "yaml") != 0) abort();
  if (lua_getfield(L, -2, "message") != LUA_TSTRING) abort();
  if (strncmp(lua_tostring(L, -1), "fuzz.yml:", 9) != 0) abort();
}

/* A fresh state for each input, so that what the input leaked is found with the input. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  lua_State *L = luaL_newstate();
  if (!L) return 0;
  push_yaml_functions(L);
  lua_getfield(L, -1, "parse");
  lua_pushlstring(L, (const char *)data, size);
  lua_pushliteral(L, "fuzz.yml");
  if (lua_pcall(L, 2, 2, 0) != LUA_OK) abort();
  check_result(L);
  lua_close(L);
  return 0;
}
