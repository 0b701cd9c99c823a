/* link.c -- Opens links to hosts, for Lua. */
#include "link.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "class.h"
#include "error.h"
#include "ssh.h"

LinkBox *check_link(lua_State *L, int index) {
  LinkBox *box = luaL_checkudata(L, index, LINK);
  if (!box->link) luaL_argerror(L, index, "this link was closed");
  return box;
}

void check_words(lua_State *L, int index, Buffer *text) {
  lua_Integer count = luaL_len(L, index);
  for (lua_Integer i = 1; i <= count; i++) {
    size_t length;
    lua_geti(L, index, i);
    const char *word = lua_tolstring(L, -1, &length);
    if (!word || strlen(word) != length) {
      buffer_free(text);
      luaL_error(L, "word %d: a string without NUL expected, got %s", (int)i, luaL_typename(L, -1));
    }
    buffer_text(text, " ");
    buffer_quote(text, word, length);
    lua_pop(L, 1);
  }
}

static void on_link_change(void *owner) {
  task_wake(&((LinkBox *)owner)->opening);
}

static int connect_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  LinkBox *box = (LinkBox *)ctx;
  switch (box->link->state) {
    case LINK_OPEN: lua_settop(L, 2); return 1;
    case LINK_LOST: return push_error(L, box->link->code, box->name, "%s", box->link->message);
    default:
      if (task_reason() == WAKE_CANCEL) return push_interruption(L, box->name, "connecting");
      return task_wait(L, &box->opening, -1, ctx, connect_step);
  }
}

/* A list of strings in a field, as a NULL-ended array in a userdata that the stack keeps. */
static char **check_list_field(lua_State *L, int index, const char *name) {
  lua_getfield(L, index, name);
  lua_Integer count = lua_istable(L, -1) ? luaL_len(L, -1) : 0;
  int list = lua_gettop(L);
  char **words = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *words, 0);
  for (lua_Integer i = 0; i < count; i++) {
    size_t length = 0;
    bool is_string = lua_geti(L, list, i + 1) == LUA_TSTRING;
    words[i] = is_string ? (char *)lua_tolstring(L, -1, &length) : ""; /* the options table keeps it alive */
    if (!is_string || strlen(words[i]) != length)
      luaL_error(L, "option '%s': a list of strings without NUL expected", name);
    lua_pop(L, 1);
  }
  words[count] = NULL;
  return words;
}

static int count_words(char **words) {
  int count = 0;
  while (words[count]) count++;
  return count;
}

static Link *check_ssh(lua_State *L, const char *name) {
  SshOptions o = {.name = name};
  o.address = check_string_field(L, 1, "address", NULL);
  luaL_argcheck(L, o.address, 1, "option 'address' is missing");
  o.port = check_integer_field(L, 1, "port", 1, 65535, 22);
  o.known_as = check_string_field(L, 1, "known_as", NULL);
  o.user = check_string_field(L, 1, "user", NULL);
  luaL_argcheck(L, o.user, 1, "option 'user' is missing");
  o.accept_new = check_boolean_field(L, 1, "accept_new", 0);
  o.agent = check_boolean_field(L, 1, "agent", 1);
  o.timeout = check_timeout_field(L, 1, "timeout", 10);
  o.keepalive = check_timeout_field(L, 1, "keepalive", 5);
  luaL_argcheck(L, o.keepalive > 0, 1, "option 'keepalive': more than no seconds expected");
  o.fd = check_socket_field(L, 1, "fd");
  o.identities = check_list_field(L, 1, "identities");
  o.passphrases = check_list_field(L, 1, "passphrases");
  o.agent_keys = check_list_field(L, 1, "agent_keys");
  int files = count_words(o.identities), phrases = count_words(o.passphrases);
  luaL_argcheck(L, phrases == 0 || phrases == files, 1,
                "option 'passphrases': one for each identity expected");
  o.known_hosts = check_list_field(L, 1, "known_hosts");
  return ssh_open(&o);
}

static Link *check_openssh(lua_State *L, const char *name) {
  char **words = check_list_field(L, 1, "command");
  int count = count_words(words);
  luaL_argcheck(L, count > 1, 1, "option 'command' is missing");
  char **copy = memory_new((size_t)(count + 1) * sizeof *copy);
  for (int i = 0; i < count; i++) copy[i] = memory_copy(words[i]);
  return openssh_open(name, copy);
}

/* The texts lie behind the box: what waits when the link is closed still names its host. */
static LinkBox *push_link_box(lua_State *L, const char *name, const char *root) {
  size_t name_size = strlen(name) + 1, root_size = strlen(root) + 1;
  LinkBox *box = lua_newuserdatauv(L, sizeof *box + name_size + root_size, 0);
  memset(box, 0, sizeof *box);
  luaL_setmetatable(L, LINK);
  box->name = memcpy(box + 1, name, name_size);
  box->root = memcpy(box->name + name_size, root, root_size);
  return box;
}

/* core.connect(options) -> link | nil, err */
static int l_connect(lua_State *L) {
  static const char *const transports[] = {"local", "ssh", "openssh", NULL};
  static const char *const known[] = {"transport",  "name",        "root",     "command",     "address",
                                      "port",       "user",        "known_as", "known_hosts", "accept_new",
                                      "identities", "passphrases", "agent",    "agent_keys",  "timeout",
                                      "keepalive",  "fd",          NULL};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  check_known_fields(L, 1, "core.connect", known);
  const char *name = check_string_field(L, 1, "name", "local");
  const char *root = check_string_field(L, 1, "root", ".deployrt");
  int transport = luaL_checkoption(L, (lua_getfield(L, 1, "transport"), -1), "local", transports);
  lua_settop(L, 1);
  check_can_wait(L);
  LinkBox *box = push_link_box(L, name, root);
  box->is_local = transport == 0;
  box->link = transport == 0   ? local_open(name)
              : transport == 1 ? check_ssh(L, name)
                               : check_openssh(L, name);
  box->link->on_change = on_link_change;
  box->link->owner = box;
  lua_settop(L, 2);
  return connect_step(L, LUA_OK, (lua_KContext)box);
}

static int l_link_close(lua_State *L) {
  LinkBox *box = luaL_checkudata(L, 1, LINK);
  if (!box->link) return 0;
  shells_close(box);
  box->link->class->close(box->link);
  box->link = NULL;
  return 0;
}

/* link:state() -> "open" | "lost" | "closed", and why it was lost */
static int l_link_state(lua_State *L) {
  LinkBox *box = luaL_checkudata(L, 1, LINK);
  if (!box->link) {
    lua_pushstring(L, "closed");
    return 1;
  }
  lua_pushstring(L, box->link->state == LINK_OPEN   ? "open"
                    : box->link->state == LINK_LOST ? "lost"
                                                    : "opening");
  if (box->link->state != LINK_LOST) return 1;
  lua_pushstring(L, box->link->message);
  return 2;
}

/* core.ssh_concurrency(n): how many SSH links may be opening at once. */
static int l_ssh_concurrency(lua_State *L) {
  ssh_set_concurrency((int)luaL_checkinteger(L, 1));
  return 0;
}

/* core.quote(list) -> the words as shell text, for messages that tell the user a command */
static int l_quote(lua_State *L) {
  Buffer text = {0};
  luaL_checktype(L, 1, LUA_TTABLE);
  check_words(L, 1, &text);
  lua_pushlstring(L, text.length ? text.data + 1 : "", text.length ? text.length - 1 : 0);
  buffer_free(&text);
  return 1;
}

void push_link_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"adopt_library", l_adopt_library},
                                       {"connect", l_connect},
                                       {"pipe", l_pipe},
                                       {"quote", l_quote},
                                       {"ssh_concurrency", l_ssh_concurrency},
                                       {NULL, NULL}};
  static const luaL_Reg methods[] = {
      {"call", l_link_call},   {"exec", l_link_exec},   {"stream", l_link_stream},
      {"talk", l_link_talk},   {"dial", l_link_dial},   {"forward", l_link_forward},
      {"state", l_link_state}, {"close", l_link_close}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  push_class(L, LINK, methods, l_link_close);
  push_exec_classes(L);
  push_shell_classes(L);
  push_pipe_classes(L);
}
