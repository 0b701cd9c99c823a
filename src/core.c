/* core.c -- luaopen_deployrt_core: the table of primitives. */
#include "core.h"

#include <lauxlib.h>

#include "channel.h"
#include "digest.h"
#include "editor.h"
#include "event.h"
#include "fs.h"
#include "http.h"
#include "limit.h"
#include "lines.h"
#include "link.h"
#include "loop.h"
#include "ssh.h"
#include "system.h"
#include "task.h"
#include "yaml.h"

static int open_states;

/* The C side when a state closes: its timers and sockets first, then the loop, then what libraries hold. */
static void core_shutdown(void) {
  http_shutdown();
  task_shutdown();
  local_shutdown();
  loop_shutdown();
  ssh_shutdown();
}

static int l_core_gc(lua_State *L) {
  (void)L;
  if (--open_states == 0) core_shutdown();
  return 0;
}

/* Finalizers run in the reverse order of creation: this userdata, the first of the core's, is the last to go.
 */
static void push_sentinel(lua_State *L) {
  lua_newuserdatauv(L, 0, 0);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, l_core_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_setfield(L, LUA_REGISTRYINDEX, "deployrt.core.sentinel");
  open_states++;
}

int luaopen_deployrt_core(lua_State *L) {
  push_sentinel(L);
  lua_newtable(L);
  push_task_functions(L);
  push_limit_functions(L);
  push_event_functions(L);
  push_system_functions(L);
  push_editor_functions(L);
  push_lines_functions(L);
  push_link_functions(L);
  push_digest_functions(L);
  push_fs_functions(L);
  lua_setfield(L, -2, "fs");
  push_yaml_functions(L);
  lua_setfield(L, -2, "yaml");
  push_http_functions(L);
  lua_setfield(L, -2, "http");
  return 1;
}
