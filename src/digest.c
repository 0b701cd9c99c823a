/* digest.c -- SHA-256 of short texts; pipe.c hashes what streams by. */
#include "digest.h"

#include <lauxlib.h>
#include <openssl/sha.h>
#include <stdio.h>

/* core.sha256(text) -> 64 hex digits */
static int l_sha256(lua_State *L) {
  size_t length;
  unsigned char raw[SHA256_DIGEST_LENGTH];
  char text[2 * SHA256_DIGEST_LENGTH + 1];
  const char *data = luaL_checklstring(L, 1, &length);
  SHA256((const unsigned char *)data, length, raw);
  for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) snprintf(text + 2 * i, 3, "%02x", raw[i]);
  lua_pushstring(L, text);
  return 1;
}

void push_digest_functions(lua_State *L) {
  lua_pushcfunction(L, l_sha256);
  lua_setfield(L, -2, "sha256");
}
