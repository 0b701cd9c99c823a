/* editor.h -- Lines that a person types and edits on a terminal, while the loop goes on. */
#ifndef DEPLOYRT_EDITOR_H
#define DEPLOYRT_EDITOR_H

#include <lua.h>

/* Registers editor in the table on top of the stack. */
void push_editor_functions(lua_State *L);

#endif
