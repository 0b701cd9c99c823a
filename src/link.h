/* link.h -- What Lua holds of a host: a link, its pool of shells, and the operations on them. */
#ifndef DEPLOYRT_LINK_H
#define DEPLOYRT_LINK_H

#include <lauxlib.h>
#include <lua.h>

#include "channel.h"
#include "memory.h"
#include "task.h"

#define LINK "deployrt.Link"

typedef struct Shell Shell;

/* The userdata behind a link in Lua. */
typedef struct LinkBox {
  Link *link;
  char *name; /* of the host; lives as long as this userdata */
  char *root; /* where the application lives on the host; the host's library expands it */
  bool is_local;
  Waiter opening;
  Shell *shells;
  int shell_count;
  struct Call *first, *last; /* calls that wait for a shell */
} LinkBox;

/* The link at `index`; raises when it was closed. */
LinkBox *check_link(lua_State *L, int index);

/* Appends the words of the list at `index` of the stack, quoted, with a space before each. */
void check_words(lua_State *L, int index, Buffer *text);

/* Appends the shell library that every host's shell starts with (src/host.sh). */
void shell_library(const LinkBox *box, Buffer *text);

/* Wraps a script for a login shell that need not be POSIX. */
void shell_wrap(const LinkBox *box, const Buffer *script, Buffer *command);

/* Closes all shells and fails their calls. */
void shells_close(LinkBox *box);

int l_adopt_library(lua_State *L);
int l_link_call(lua_State *L);
int l_link_exec(lua_State *L);
int l_link_stream(lua_State *L);
int l_link_talk(lua_State *L);
int l_link_dial(lua_State *L);
int l_link_forward(lua_State *L);
int l_pipe(lua_State *L);

void push_link_functions(lua_State *L);
void push_exec_classes(lua_State *L);
void push_shell_classes(lua_State *L);
void push_pipe_classes(lua_State *L);

#endif
