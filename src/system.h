/* system.h -- Clocks, the terminal, and who runs this process. */
#ifndef DEPLOYRT_SYSTEM_H
#define DEPLOYRT_SYSTEM_H

#include <lua.h>

/* Registers now, time, terminal, echo, whoami and ask_secret in the table on top of the stack. */
void push_system_functions(lua_State *L);

#endif
