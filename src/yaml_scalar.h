/* yaml_scalar.h -- YAML 1.2's core schema: what plain text means. */
#ifndef DEPLOYRT_YAML_SCALAR_H
#define DEPLOYRT_YAML_SCALAR_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

/* The registry holds yaml.null under this name. */
#define YAML_NULL "deployrt.yaml.null"
#define YAML_TAG "tag:yaml.org,2002:"

/* Whether `text` is one of `words`, which end with NULL. */
bool text_among(const char *text, const char *const *words);

/* Pushes null, a boolean or a number; pushes nothing and returns false where the text is a string. */
bool push_yaml_plain(lua_State *L, const char *text, size_t length);

/* Whether the value on top is what its tag says; !!float makes a float of an integer. */
bool check_yaml_type(lua_State *L, const char *tag);

#endif
