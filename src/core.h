/* core.h -- The primitives as a Lua module. */
#ifndef DEPLOYRT_CORE_H
#define DEPLOYRT_CORE_H

#include <lua.h>

int luaopen_deployrt_core(lua_State *L);

/* Frees what the libraries hold for the whole process; after lua_close(). */
void core_shutdown(void);

#endif
