/* main.c -- The command: one lua_State that runs lua/deployrt/cli.lua, from disk or from the copy it carries.
 */
#include <fcntl.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "embedded.h"
#include "modules.h"
#include "pool.h"

/* embedded(name) -> text of a file that the binary carries | nil; embedded() -> all names */
static int l_embedded(lua_State *L) {
  const char *name = luaL_optstring(L, 1, NULL);
  lua_newtable(L);
  for (const Embedded *e = embedded_files; e->name; e++) {
    if (!name) {
      lua_pushstring(L, e->name);
      lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    } else if (strcmp(e->name, name) == 0) {
      lua_pushlstring(L, e->data, e->length);
      return 1;
    }
  }
  if (name) lua_pushnil(L);
  return 1;
}

/* Where editable copies lie: beside the build directory, or below share/ of the prefix. NULL: nowhere. */
static const char *push_share(lua_State *L) {
  static const char *const places[] = {"/..", "/../share/deployrt"};
  char self[PATH_MAX];
  ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length <= 0) return NULL;
  self[length] = '\0';
  char *slash = strrchr(self, '/');
  if (slash) *slash = '\0';
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    const char *share = lua_pushfstring(L, "%s%s", self, places[i]);
    if (access(lua_pushfstring(L, "%s/lua/deployrt/cli.lua", share), R_OK) == 0) {
      lua_pop(L, 1);
      return share;
    }
    lua_pop(L, 2);
  }
  return NULL;
}

/* Protected: runs cli.main(arguments, {embedded, share}) and returns its exit code. */
static int l_main(lua_State *L) {
  int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  luaL_openlibs(L);
  const char *share = push_share(L);
  push_modules(L, share);
  lua_getglobal(L, "require");
  lua_pushstring(L, "deployrt.cli");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "main");
  lua_createtable(L, argc, 0);
  for (int i = 1; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  lua_createtable(L, 0, 2);
  lua_pushcfunction(L, l_embedded);
  lua_setfield(L, -2, "embedded");
  lua_pushstring(L, share);
  lua_setfield(L, -2, "share");
  lua_call(L, 2, 1);
  return 1;
}

static int l_traceback(lua_State *L) {
  luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
  return 1;
}

/* Who looks for leaks, and for use of what was freed, wants to see each block. */
#if defined(__SANITIZE_ADDRESS__)
#define WATCHES_BLOCKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WATCHES_BLOCKS 1
#endif
#endif

static lua_State *new_state(void) {
#ifdef WATCHES_BLOCKS
  return luaL_newstate();
#else
  return lua_newstate(pool_allocate, NULL);
#endif
}

/* The process ends: to free a large heap piece by piece takes longer than some commands. */
static void end_state(lua_State *L) {
#ifdef WATCHES_BLOCKS
  lua_close(L);
#else
  (void)L;
#endif
}

/* A file that is opened must never be taken for a standard one, and libuv insists on having them. */
static void open_standard_descriptors(void) {
  for (int fd = 0; fd <= 2; fd++) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) _exit(2);
  }
}

int main(int argc, char **argv) {
  int code = 2;
  open_standard_descriptors();
  lua_State *L = new_state();
  if (!L) return 2;
  lua_pushcfunction(L, l_traceback);
  lua_pushcfunction(L, l_main);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  if (lua_pcall(L, 2, 1, 1) == LUA_OK) code = (int)lua_tointeger(L, -1);
  else fprintf(stderr, "deployrt: internal error: %s\n", lua_tostring(L, -1));
  end_state(L);
  return code;
}
