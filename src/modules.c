/* modules.c -- Where the command finds its own Lua modules: compiled in the binary, unless somebody edited
 * the copy on the disk. */
#include "modules.h"

#include <dlfcn.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "embedded.h"
#include "memory.h"

int luaopen_cjson(lua_State *L);

/* Compiled code is only good for the release of Lua that compiled it; its own header tells no more than 5.4.
 */
static bool compiled_by_this_lua(void) {
  const char *ident = dlsym(RTLD_DEFAULT, "lua_ident");
  return ident && strstr(ident, embedded_release);
}

static const Embedded *find_embedded(const char *name) {
  for (const Embedded *e = embedded_files; e->name; e++) {
    if (strcmp(e->name, name) == 0) return e;
  }
  return NULL;
}

typedef enum Copy { COPY_MISSING, COPY_SAME, COPY_EDITED } Copy;

static Copy look_at_copy(const char *path, const Embedded *e) {
  FILE *file = fopen(path, "rb");
  if (!file) return COPY_MISSING;
  char *text = memory_new(e->length + 1); /* one more, to see a longer one */
  size_t length = fread(text, 1, e->length + 1, file);
  fclose(file);
  bool same = length == e->length && memcmp(text, e->data, length) == 0;
  free(text);
  return same ? COPY_SAME : COPY_EDITED;
}

static void push_embedded(lua_State *L, const Embedded *e) {
  if (compiled_by_this_lua() && luaL_loadbufferx(L, e->code, e->code_length, e->name, "b") == LUA_OK) return;
  if (luaL_loadbufferx(L, e->data, e->length, lua_pushfstring(L, "@%s", e->name), "t") != LUA_OK)
    lua_error(L);
}

/* A searcher for require: module a.b is lua/a/b.lua. */
static int l_search(lua_State *L) {
  const char *name = lua_pushfstring(L, "lua/%s.lua", luaL_gsub(L, luaL_checkstring(L, 1), ".", "/"));
  const char *share = lua_tostring(L, lua_upvalueindex(1));
  const Embedded *e = find_embedded(name);
  if (!e) {
    lua_pushfstring(L, "no module '%s' of the runtime", name);
    return 1;
  }
  const char *path = share ? lua_pushfstring(L, "%s/%s", share, name) : NULL;
  Copy copy = path ? look_at_copy(path, e) : COPY_MISSING;
  if (copy != COPY_EDITED) push_embedded(L, e);
  else if (luaL_loadfilex(L, path, "t") != LUA_OK) return lua_error(L);
  lua_pushstring(L, copy == COPY_MISSING ? name : path);
  return 2;
}

void push_modules(lua_State *L, const char *share) {
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_deployrt_core);
  lua_setfield(L, -2, "deployrt.core");
  lua_pushcfunction(L, luaopen_cjson);
  lua_setfield(L, -2, "cjson");
  lua_pop(L, 1);
  lua_getglobal(L, LUA_LOADLIBNAME);
  lua_pushfstring(L, share ? "%s/lua/?.lua" : "", share);
  lua_setfield(L, -2, "path");
  lua_pushliteral(L, "");
  lua_setfield(L, -2, "cpath");
  lua_getfield(L, -1, "searchers");
  for (lua_Integer i = (lua_Integer)lua_rawlen(L, -1); i >= 2; i--) { /* after what is preloaded */
    lua_rawgeti(L, -1, i);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushstring(L, share);
  lua_pushcclosure(L, l_search, 1);
  lua_rawseti(L, -2, 2);
  lua_pop(L, 2);
}
