/* http.h -- HTTP requests of tasks. */
#ifndef DEPLOYRT_HTTP_H
#define DEPLOYRT_HTTP_H

#include <lua.h>

/* Pushes a table with request(opts). */
void push_http_functions(lua_State *L);

/* Ends all requests and closes all connections; run the loop once more so that its handles go. */
void http_shutdown(void);

#endif
