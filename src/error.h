/* error.h -- The one shape of an error: a table {code, message, host, detail}. */
#ifndef DEPLOYRT_ERROR_H
#define DEPLOYRT_ERROR_H

#include <lauxlib.h>
#include <lua.h>

/* Pushes nil and an error table, and returns 2: `return push_error(L, "timeout", host, "...", ...)`. */
int push_error(lua_State *L, const char *code, const char *host, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Adds `detail` to the error table on top of the stack. */
void push_error_detail(lua_State *L, const char *detail, size_t length);

/* The same for a libuv error code. */
int push_uv_error(lua_State *L, int code, const char *host, const char *what);

/* A message handler: what core.set_traceback's function makes of an error where it was raised. */
int l_on_error(lua_State *L);
int l_set_traceback(lua_State *L);

#endif
