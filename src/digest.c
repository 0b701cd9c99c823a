/* digest.c -- SHA-256 of short texts; pipe.c hashes what streams by. */
#include "digest.h"

#include <lauxlib.h>
#include <openssl/sha.h>

static const char hex[] = "0123456789abcdef";

/* core.sha256(text) -> 64 hex digits */
static int l_sha256(lua_State *L) {
  size_t length;
  unsigned char raw[SHA256_DIGEST_LENGTH];
  char text[2 * SHA256_DIGEST_LENGTH];
  const char *data = luaL_checklstring(L, 1, &length);
  SHA256((const unsigned char *)data, length, raw);
  for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) {
    text[2 * i] = hex[raw[i] >> 4];
    text[2 * i + 1] = hex[raw[i] & 15];
  }
  lua_pushlstring(L, text, sizeof text);
  return 1;
}

void push_digest_functions(lua_State *L) {
  lua_pushcfunction(L, l_sha256);
  lua_setfield(L, -2, "sha256");
}
