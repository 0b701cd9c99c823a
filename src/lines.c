/* lines.c -- Reads lines from a descriptor without blocking the loop: a terminal, a pipe or a file. */
#include "lines.h"

#include <errno.h>
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
#include "memory.h"
#include "task.h"

#define LINES "deployrt.Lines"
#define CHUNK 4096

/* The poll handle is NULL for a file on a disk, which can be read at any time. */
typedef struct Lines {
  int fd;
  uv_poll_t *poll;
  Buffer text;
  bool ended;
  Waiter waiter;
} Lines;

static void on_readable(uv_poll_t *poll, int status, int events) {
  Lines *s = poll->data;
  (void)status;
  (void)events;
  uv_poll_stop(poll);
  task_wake(&s->waiter);
}

/* core.lines(fd): its lines, one after the other */
static int l_lines(lua_State *L) {
  int fd = (int)luaL_checkinteger(L, 1);
  Lines *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (Lines){.fd = fd};
  luaL_setmetatable(L, LINES);
  int flags = fcntl(fd, F_GETFL);
  uv_poll_t *poll = handle_new(sizeof *poll);
  if (uv_poll_init(loop_get(), poll, fd) == 0) s->poll = poll;
  else free(poll);
  if (s->poll) s->poll->data = s;
  if (flags != -1)
    fcntl(fd, F_SETFL, flags); /* libuv made it one that does not block, for all who share it */
  return 1;
}

/* Reads what is there. The descriptor is known to be readable, so this does not block. */
static void lines_read(Lines *s) {
  ssize_t count = read(s->fd, buffer_reserve(&s->text, CHUNK), CHUNK);
  if (count > 0) s->text.length += (size_t)count;
  else if (count == 0 || (errno != EINTR && errno != EAGAIN)) s->ended = true;
}

/* Pushes the next line without its end; the last one may lack it. */
static bool push_line(lua_State *L, Lines *s) {
  char *end = s->text.length ? memchr(s->text.data, '\n', s->text.length) : NULL;
  if (!end && !(s->ended && s->text.length)) return false;
  size_t length = end ? (size_t)(end - s->text.data) : s->text.length;
  lua_pushlstring(L, s->text.data, length);
  buffer_consume(&s->text, length + (end ? 1 : 0));
  return true;
}

static int lines_next_step(lua_State *L, int status, lua_KContext ctx) {
  Lines *s = (Lines *)ctx;
  if (status == LUA_YIELD && task_reason() != WAKE_EVENT) {
    if (s->poll) uv_poll_stop(s->poll);
    return push_interruption(L, NULL, "waiting for a line");
  }
  if (status == LUA_YIELD) lines_read(s);
  for (; !push_line(L, s); lines_read(s)) {
    if (s->ended) return 0;
    if (!s->poll) continue;
    uv_poll_start(s->poll, UV_READABLE | UV_DISCONNECT, on_readable);
    return task_wait(L, &s->waiter, -1, ctx, lines_next_step);
  }
  return 1;
}

static int l_lines_next(lua_State *L) {
  Lines *s = luaL_checkudata(L, 1, LINES);
  check_can_wait(L);
  luaL_argcheck(L, !s->waiter.task, 1, "another task waits for these lines already");
  return lines_next_step(L, LUA_OK, (lua_KContext)s);
}

static int l_lines_close(lua_State *L) {
  Lines *s = luaL_checkudata(L, 1, LINES);
  handle_close(s->poll);
  s->poll = NULL;
  s->ended = true;
  buffer_free(&s->text);
  return 0;
}

void push_lines_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"lines", l_lines}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"next", l_lines_next}, {"close", l_lines_close}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  push_class(L, LINES, methods, l_lines_close);
}
