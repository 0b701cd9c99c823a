/* editor.c -- Lines that a person types on a terminal, with GNU readline's editing and history where it is
 * installed. */
#include "editor.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "class.h"
#include "error.h"
#include "loop.h"
#include "task.h"

#define EDITOR "deployrt.Editor"

typedef void LineHandler(char *line);

/* Few commands converse, so it is loaded and not linked. */
static struct {
  void (*install)(const char *prompt, LineHandler *handler);
  void (*read_char)(void);
  void (*remove)(void);
  void (*remember)(const char *line);
  int (*bind)(const char *variable, const char *value);
  int *catch_signals;
} readline;

typedef struct Editor {
  uv_poll_t *poll;
  Waiter waiter;
  char *line; /* of readline's malloc; NULL: the input has ended */
  bool done;
} Editor;

static Editor *editing; /* readline knows one line at a time */

static bool find_symbol(void *library, const char *name, void *place) {
  void *symbol = dlsym(library, name);
  memcpy(place, &symbol, sizeof symbol);
  return symbol != NULL;
}

static bool readline_load(void) {
  if (readline.install) return true;
  void *library = dlopen("libreadline.so.8", RTLD_NOW | RTLD_LOCAL);
  if (!library) return false;
  bool found = find_symbol(library, "rl_callback_read_char", &readline.read_char) &&
               find_symbol(library, "rl_callback_handler_remove", &readline.remove) &&
               find_symbol(library, "add_history", &readline.remember) &&
               find_symbol(library, "rl_variable_bind", &readline.bind) &&
               find_symbol(library, "rl_catch_signals", &readline.catch_signals) &&
               find_symbol(library, "rl_callback_handler_install", &readline.install);
  if (!found) {
    readline.install = NULL;
    return false;
  }
  *readline.catch_signals = 0; /* they are for core.signals */
  readline.bind("enable-bracketed-paste", "off");
  return true;
}

/* Gives the terminal back. */
static void stop_editing(Editor *e) {
  if (e->poll) uv_poll_stop(e->poll);
  if (editing != e) return;
  readline.remove();
  editing = NULL;
}

static void on_line(char *line) {
  Editor *e = editing;
  e->line = line;
  e->done = true;
  stop_editing(e);
  task_wake(&e->waiter);
}

static void on_typed(uv_poll_t *poll, int status, int events) {
  (void)poll;
  (void)status;
  (void)events;
  readline.read_char();
}

/* core.editor(): for a person at a terminal; nil where nobody can edit */
static int l_editor(lua_State *L) {
  if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) || !readline_load()) return 0;
  Editor *e = lua_newuserdatauv(L, sizeof *e, 0);
  *e = (Editor){0};
  luaL_setmetatable(L, EDITOR);
  int flags = fcntl(STDIN_FILENO, F_GETFL);
  e->poll = handle_new(sizeof *e->poll);
  e->poll->data = e;
  uv_poll_init(loop_get(), e->poll, STDIN_FILENO);
  if (flags != -1) fcntl(STDIN_FILENO, F_SETFL, flags); /* libuv made it one that does not block */
  return 1;
}

static int editor_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Editor *e = (Editor *)ctx;
  if (!e->done) {
    stop_editing(e);
    return push_interruption(L, NULL, "waiting for a line");
  }
  if (!e->line) return 0;
  lua_pushstring(L, e->line);
  if (*e->line) readline.remember(e->line);
  free(e->line);
  e->line = NULL;
  return 1;
}

static int l_editor_next(lua_State *L) {
  Editor *e = luaL_checkudata(L, 1, EDITOR);
  const char *prompt = luaL_checkstring(L, 2);
  check_can_wait(L);
  luaL_argcheck(L, !editing, 1, "another task waits for a line already");
  e->done = false;
  editing = e;
  readline.install(prompt, on_line);
  uv_poll_start(e->poll, UV_READABLE | UV_DISCONNECT, on_typed);
  return task_wait(L, &e->waiter, -1, (lua_KContext)e, editor_step);
}

static int l_editor_close(lua_State *L) {
  Editor *e = luaL_checkudata(L, 1, EDITOR);
  stop_editing(e);
  handle_close(e->poll);
  e->poll = NULL;
  free(e->line);
  e->line = NULL;
  return 0;
}

void push_editor_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"editor", l_editor}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"next", l_editor_next}, {"close", l_editor_close}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  push_class(L, EDITOR, methods, l_editor_close);
}
