/* yaml_scalar.c -- YAML 1.2's core schema: what plain text means. */
#include "yaml_scalar.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

bool text_among(const char *text, const char *const *words) {
  for (; *words; words++) {
    if (strcmp(text, *words) == 0) return true;
  }
  return false;
}

static size_t digits_at(const char *text) {
  return strspn(text, "0123456789");
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool text_is_decimal(const char *s) {
  s += *s == '-' || *s == '+';
  size_t whole = digits_at(s), fraction = 0;
  s += whole;
  if (*s == '.') {
    fraction = digits_at(++s);
    s += fraction;
  }
  if (whole + fraction == 0) return false;
  if (*s != 'e' && *s != 'E') return *s == '\0';
  s++;
  s += *s == '-' || *s == '+';
  size_t exponent = digits_at(s);
  return exponent > 0 && s[exponent] == '\0';
}

/* Hexadecimal and octal integers; what does not fit becomes a float, as a long decimal does. */
static bool push_radix(lua_State *L, const char *text) {
  static const char digits[] = "0123456789abcdef";
  unsigned base = strncmp(text, "0x", 2) == 0 ? 16 : strncmp(text, "0o", 2) == 0 ? 8 : 0;
  if (base == 0 || text[2] == '\0') return false;
  int64_t whole = 0;
  double inexact = 0;
  bool fits = true;
  for (const char *p = text + 2; *p; p++) {
    const char *found = strchr(digits, *p >= 'A' && *p <= 'F' ? *p + ('a' - 'A') : *p);
    unsigned digit = found ? (unsigned)(found - digits) : base;
    if (digit >= base) return false;
    fits = fits && whole <= (INT64_MAX - (int64_t)digit) / (int64_t)base;
    if (fits) whole = whole * (int64_t)base + (int64_t)digit;
    inexact = inexact * base + digit;
  }
  if (fits) lua_pushinteger(L, whole);
  else lua_pushnumber(L, inexact);
  return true;
}

static bool push_number(lua_State *L, const char *text) {
  static const char *const infinite[] = {".inf", ".Inf", ".INF", NULL};
  static const char *const nan[] = {".nan", ".NaN", ".NAN", NULL};
  const char *unsigned_text = text + (*text == '-' || *text == '+');
  if (text_among(unsigned_text, infinite)) {
    lua_pushnumber(L, *text == '-' ? -(lua_Number)INFINITY : (lua_Number)INFINITY);
    return true;
  }
  if (text_among(text, nan)) {
    lua_pushnumber(L, (lua_Number)NAN);
    return true;
  }
  if (push_radix(L, text)) return true;
  return text_is_decimal(text) && lua_stringtonumber(L, text) != 0;
}

bool push_yaml_plain(lua_State *L, const char *text, size_t length) {
  static const char *const null[] = {"", "~", "null", "Null", "NULL", NULL};
  static const char *const truth[] = {"true", "True", "TRUE", NULL};
  static const char *const untruth[] = {"false", "False", "FALSE", NULL};
  if (strlen(text) != length) return false;
  if (text_among(text, null)) return lua_getfield(L, LUA_REGISTRYINDEX, YAML_NULL), true;
  if (text_among(text, truth)) return lua_pushboolean(L, 1), true;
  if (text_among(text, untruth)) return lua_pushboolean(L, 0), true;
  return push_number(L, text);
}

bool check_yaml_type(lua_State *L, const char *tag) {
  if (strcmp(tag, YAML_TAG "null") == 0) return lua_isuserdata(L, -1);
  if (strcmp(tag, YAML_TAG "bool") == 0) return lua_isboolean(L, -1);
  if (strcmp(tag, YAML_TAG "int") == 0) return lua_isinteger(L, -1);
  if (strcmp(tag, YAML_TAG "float") != 0 || lua_type(L, -1) != LUA_TNUMBER) return false;
  lua_pushnumber(L, lua_tonumber(L, -1));
  lua_replace(L, -2);
  return true;
}
