/* core.c -- luaopen_deployrt_core: the table of primitives. */
#include "core.h"

#include <lauxlib.h>

#include "digest.h"
#include "event.h"
#include "fs.h"
#include "http.h"
#include "link.h"
#include "loop.h"
#include "ssh.h"
#include "system.h"
#include "task.h"
#include "yaml.h"

int luaopen_deployrt_core(lua_State *L) {
  lua_newtable(L);
  push_task_functions(L);
  push_event_functions(L);
  push_system_functions(L);
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

void core_shutdown(void) {
  http_shutdown();
  for (int i = 0; i < 100 && uv_run(loop_get(), UV_RUN_NOWAIT); i++) continue;
  ssh_shutdown();
}
