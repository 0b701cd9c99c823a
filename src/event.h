/* event.h -- Sleeping, conditions between tasks, and signals. */
#ifndef DEPLOYRT_EVENT_H
#define DEPLOYRT_EVENT_H

#include <lua.h>

/* Registers sleep, event and signals in the table on top of the stack. */
void push_event_functions(lua_State *L);

#endif
