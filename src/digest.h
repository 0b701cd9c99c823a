/* digest.h -- SHA-256 of short texts. */
#ifndef DEPLOYRT_DIGEST_H
#define DEPLOYRT_DIGEST_H

#include <lua.h>

/* Registers sha256 in the table on top of the stack. */
void push_digest_functions(lua_State *L);

#endif
