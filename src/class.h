/* class.h -- Metatables of the core's userdata. */
#ifndef DEPLOYRT_CLASS_H
#define DEPLOYRT_CLASS_H

#include <lauxlib.h>
#include <lua.h>

/* Registers the metatable `name`; `gc` also serves as __close. Leaves nothing on the stack. */
void push_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc);

/* A string argument that C can read to its end; `what` names it, as "a path". */
const char *check_text(lua_State *L, int index, const char *what);

/* Fields of an options table at `index`, which may be absent; wrong types raise. */
const char *check_string_field(lua_State *L, int index, const char *name, const char *fallback);
/* Refuses other keys of such a table than `known`, which ends with NULL; `what` is who takes them. */
void check_known_fields(lua_State *L, int index, const char *what, const char *const *known);

/* Seconds to wait, however many. Only the fallback may be negative, which means for ever. */
double check_timeout(lua_State *L, int index, double fallback);
double check_timeout_field(lua_State *L, int index, const char *name, double fallback);

/* Any bytes; NULL where there are none. */
const char *check_bytes_field(lua_State *L, int index, const char *name, size_t *length);
double check_number_field(lua_State *L, int index, const char *name, double fallback);
/* A whole number within bounds; the fallback may lie outside of them. */
int check_integer_field(lua_State *L, int index, const char *name, int low, int high, int fallback);
/* The descriptor of a connected socket, or -1 where there is none. */
int check_socket_field(lua_State *L, int index, const char *name);
int check_boolean_field(lua_State *L, int index, const char *name, int fallback);

#endif
