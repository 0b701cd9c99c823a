/* modules.h -- Where the command finds its own Lua modules. */
#ifndef DEPLOYRT_MODULES_H
#define DEPLOYRT_MODULES_H

#include <lua.h>

/* Sets what `require` finds: core and cjson, then the runtime's modules below the directory `share` (NULL:
 * nowhere), or those that the binary carries. */
void push_modules(lua_State *L, const char *share);

#endif
