/* yaml.h -- YAML text to Lua tables that remember where each key stands. */
#ifndef DEPLOYRT_YAML_H
#define DEPLOYRT_YAML_H

#include <lua.h>

/* Pushes a table with parse(text, name) and null. */
void push_yaml_functions(lua_State *L);

#endif
