/* core.h -- The primitives as a Lua module. */
#ifndef DEPLOYRT_CORE_H
#define DEPLOYRT_CORE_H

#include <lua.h>

/* Closing the state closes everything that the core holds for it, down to the libraries. */
int luaopen_deployrt_core(lua_State *L);

#endif
