/* fs.h -- The controller's own files: what Lua's io cannot do durably. */
#ifndef DEPLOYRT_FS_H
#define DEPLOYRT_FS_H

#include <lua.h>

/* Pushes a table of functions; http and yaml do the same. */
void push_fs_functions(lua_State *L);

#endif
