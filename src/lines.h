/* lines.h -- Lines of text from a descriptor, while the loop goes on. */
#ifndef DEPLOYRT_LINES_H
#define DEPLOYRT_LINES_H

#include <lua.h>

/* Registers lines in the table on top of the stack. */
void push_lines_functions(lua_State *L);

#endif
