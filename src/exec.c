/* exec.c -- One command, or one conversation over a socket, on a host. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "class.h"
#include "error.h"
#include "link.h"

#define EXEC "deployrt.Exec"
#define STREAM "deployrt.Stream"
#define MAX_OUTPUT (64 * 1024 * 1024)

/* What came of a channel so far. The task that waits is woken by its end, or by each read for a stream. */
typedef struct Exec {
  Waiter waiter;
  Channel *channel;
  Buffer outputs[2];
  size_t limit;
  int status, signal;
  bool open, ended, failed, too_much, streaming;
  char code[24];
  char message[512];
  LinkBox *box;
} Exec;

static void on_open(void *owner) {
  Exec *e = owner;
  e->open = true;
  task_wake(&e->waiter);
}

static void on_output(void *owner, int stream, const char *data, size_t length) {
  Exec *e = owner;
  if (e->too_much) return;
  buffer_append(&e->outputs[stream - 1], data, length);
  if (e->outputs[0].length + e->outputs[1].length > e->limit) e->too_much = true;
  if (e->streaming || e->too_much) task_wake(&e->waiter);
}

static void on_drain(void *owner) {
  (void)owner;
}

static void on_end(void *owner, int status, int signal) {
  Exec *e = owner;
  e->ended = true;
  e->status = status;
  e->signal = signal;
  task_wake(&e->waiter);
}

static void on_fail(void *owner, const char *code, const char *message) {
  Exec *e = owner;
  e->ended = e->failed = true;
  snprintf(e->code, sizeof e->code, "%s", code);
  snprintf(e->message, sizeof e->message, "%s", message);
  task_wake(&e->waiter);
}

static const ChannelEvents exec_events = {on_open, on_output, on_drain, on_end, on_fail};

static void exec_release(Exec *e) {
  if (e->channel) e->channel->class->close(e->channel);
  e->channel = NULL;
  buffer_free(&e->outputs[0]);
  buffer_free(&e->outputs[1]);
}

static int l_exec_gc(lua_State *L) {
  exec_release(lua_touserdata(L, 1));
  return 0;
}

/* The link userdata is its user value, so that it cannot be collected while a channel lives. */
static Exec *push_exec(lua_State *L, LinkBox *box, const char *class) {
  Exec *e = lua_newuserdatauv(L, sizeof *e, 1);
  memset(e, 0, sizeof *e);
  e->box = box;
  e->limit = MAX_OUTPUT;
  luaL_setmetatable(L, class);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  return e;
}

static const char *signal_label(int number) {
  static const char *const names[] = {"",    "HUP",  "INT",  "QUIT", "ILL",  "TRAP", "ABRT", "BUS",
                                      "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM"};
  return number > 0 && number < 16 ? names[number] : "other";
}

static int push_exec_result(lua_State *L, Exec *e) {
  lua_createtable(L, 0, 5);
  lua_pushinteger(L, e->status);
  lua_setfield(L, -2, "status");
  if (e->signal) {
    lua_pushstring(L, signal_label(e->signal));
    lua_setfield(L, -2, "signal");
    lua_pushinteger(L, e->signal);
    lua_setfield(L, -2, "signal_number");
  }
  lua_pushlstring(L, e->outputs[0].data ? e->outputs[0].data : "", e->outputs[0].length);
  lua_setfield(L, -2, "stdout");
  lua_pushlstring(L, e->outputs[1].data ? e->outputs[1].data : "", e->outputs[1].length);
  lua_setfield(L, -2, "stderr");
  exec_release(e);
  return 1;
}

static int push_exec_failure(lua_State *L, Exec *e, const char *what) {
  int count = e->failed     ? push_error(L, e->code, e->box->name, "%s: %s", what, e->message)
              : e->too_much ? push_error(L, "output", e->box->name, "%s: more output than %d bytes", what,
                                         (int)e->limit)
                            : push_interruption(L, e->box->name, what);
  exec_release(e);
  return count;
}

static int exec_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Exec *e = (Exec *)ctx;
  if (e->ended && !e->failed && !e->too_much) return push_exec_result(L, e);
  return push_exec_failure(L, e, "running a command");
}

/* Quoted words of these characters are the same to every log-in shell, csh and fish included. */
static bool is_for_any_shell(const Buffer *script) {
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '_./:@+,=%-";
  for (size_t i = 0; i < script->length; i++) {
    if (!memchr(plain, script->data[i], sizeof plain - 1)) return false;
  }
  return true;
}

/* A log-in shell may be any; one that need not start another saves the host a process image. */
void shell_wrap(const LinkBox *box, const Buffer *script, Buffer *command) {
  if (box->is_local || is_for_any_shell(script)) {
    buffer_append(command, script->data, script->length);
  } else {
    buffer_text(command, "exec /bin/sh -c ");
    buffer_quote(command, script->data, script->length);
  }
  buffer_append(command, "", 1);
}

static void check_environment(lua_State *L, Buffer *script) {
  if (lua_getfield(L, 3, "env") == LUA_TTABLE) {
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
      size_t length;
      const char *value = lua_tolstring(L, -1, &length);
      buffer_format(script, "export %s=", lua_tostring(L, -2));
      buffer_quote(script, value, length);
      buffer_text(script, "\n");
    }
  }
  lua_pop(L, 1);
}

/* Its letters mean the same to every shell. */
static void check_mark_type(lua_State *L) {
  const char *mark = check_string_field(L, 3, "mark", "");
  luaL_argcheck(L, strspn(mark, "0123456789abcdef") == strlen(mark), 3, "mark: hexadecimal digits expected");
}

static void check_env_types(lua_State *L) {
  if (lua_getfield(L, 3, "env") == LUA_TTABLE) {
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
      luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TSTRING, 3,
                    "env: strings expected");
      luaL_argcheck(L, strlen(lua_tostring(L, -1)) == lua_rawlen(L, -1), 3,
                    "env: values without NUL expected");
      const char *name = lua_tostring(L, -2);
      luaL_argcheck(L,
                    strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") ==
                            lua_rawlen(L, -2) &&
                        (*name < '0' || *name > '9'),
                    3, "env: not a name of a variable");
    }
  }
  lua_pop(L, 1);
}

/* Turns the arguments (link, words, options) into the command line for the link. */
static void check_command(lua_State *L, LinkBox *box, Buffer *command) {
  Buffer script = {0};
  luaL_checktype(L, 2, LUA_TTABLE);
  luaL_argcheck(L, luaL_len(L, 2) > 0, 2, "an empty command");
  check_env_types(L);
  check_mark_type(L);
  const char *directory = check_string_field(L, 3, "cwd", NULL);
  const char *mark = check_string_field(L, 3, "mark", NULL);
  int library = check_boolean_field(L, 3, "library", 0);
  if (library) shell_library(box, &script);
  check_environment(L, &script);
  if (directory) {
    buffer_text(&script, "cd ");
    buffer_quote(&script, directory, strlen(directory));
    buffer_text(&script, " || exit 126\n");
  }
  if (!library) buffer_text(&script, "exec");
  check_words(L, 2, &script);
  if (mark) buffer_format(command, "echo '%s'; ", mark); /* by the log-in shell itself, whichever it is */
  shell_wrap(box, &script, command);
  buffer_free(&script);
}

static void check_options(lua_State *L, const char *what) {
  static const char *const known[] = {"timeout", "stdin",   "open_stdin", "env", "cwd",
                                      "mark",    "library", "max_output", NULL};
  lua_settop(L, 3);
  check_known_fields(L, 3, what, known);
  if (!lua_isnil(L, 3)) return;
  lua_newtable(L);
  lua_replace(L, 3);
}

static Exec *push_running_exec(lua_State *L, const char *class, const char *what) {
  LinkBox *box = check_link(L, 1);
  Buffer command = {0};
  check_options(L, what);
  lua_getfield(L, 3, "stdin");
  size_t length = 0;
  const char *input = lua_tolstring(L, -1, &length);
  int limit = check_integer_field(L, 3, "max_output", 0, INT_MAX, MAX_OUTPUT);
  check_can_wait(L);
  check_command(L, box, &command);
  Exec *e = push_exec(L, box, class);
  e->limit = (size_t)limit;
  e->channel = box->link->class->exec(box->link, command.data, &exec_events, e);
  buffer_free(&command);
  if (input) e->channel->class->write(e->channel, input, length);
  if (!check_boolean_field(L, 3, "open_stdin", 0)) e->channel->class->end(e->channel);
  return e;
}

/* link:exec(words, options?) -> {status, signal, stdout, stderr} | nil, err */
int l_link_exec(lua_State *L) {
  double timeout = check_timeout_field(L, 3, "timeout", -1);
  Exec *e = push_running_exec(L, EXEC, "link:exec");
  return task_wait(L, &e->waiter, timeout, (lua_KContext)e, exec_step);
}

static int stream_read_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Exec *e = (Exec *)ctx;
  Buffer *out = &e->outputs[0];
  if (out->length == 0) out = &e->outputs[1];
  if (out->length > 0) {
    lua_pushlstring(L, out->data, out->length);
    lua_pushinteger(L, out == &e->outputs[0] ? 1 : 2);
    buffer_consume(out, out->length);
    return 2;
  }
  if (!e->ended || e->failed) return push_exec_failure(L, e, "reading output");
  lua_pushboolean(L, 0);
  lua_pushinteger(L, e->status);
  if (!e->signal) return 2;
  lua_pushstring(L, signal_label(e->signal));
  lua_pushinteger(L, e->signal);
  return 4;
}

/* stream:read(timeout?) -> text, 1|2 | false, status, signal?, its number? at the end | nil, err */
static int l_stream_read(lua_State *L) {
  Exec *e = luaL_checkudata(L, 1, STREAM);
  double timeout = check_timeout(L, 2, -1);
  luaL_argcheck(L, e->channel, 1, "this stream was closed");
  if (e->ended || e->outputs[0].length || e->outputs[1].length)
    return stream_read_step(L, LUA_OK, (lua_KContext)e);
  return task_wait(L, &e->waiter, timeout, (lua_KContext)e, stream_read_step);
}

/* link:stream(words, options?) -> stream */
int l_link_stream(lua_State *L) {
  Exec *e = push_running_exec(L, STREAM, "link:stream");
  e->streaming = true;
  return 1;
}

static int talk_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Exec *e = (Exec *)ctx;
  if (!e->ended && task_reason() == WAKE_EVENT && !e->too_much) {
    return task_wait(L, &e->waiter, check_timeout_field(L, 5, "timeout", 10), ctx, talk_step);
  }
  if (!e->ended || e->failed || e->too_much) return push_exec_failure(L, e, lua_tostring(L, 2));
  lua_pushlstring(L, e->outputs[0].data ? e->outputs[0].data : "", e->outputs[0].length);
  exec_release(e);
  return 1;
}

/* A path, or a name with a port in the argument behind it. One that is too long for any host would end an SSH
 * link. */
static const char *check_address(lua_State *L, int index) {
  const char *address = check_text(L, index, "an address");
  lua_Integer port = luaL_optinteger(L, index + 1, 0);
  luaL_argcheck(L, strlen(address) < 256, index, "an address of less than 256 bytes expected");
  luaL_argcheck(L, is_path(address) || (port > 0 && port < 65536), index + 1,
                "a port from 1 to 65535 expected");
  return address;
}

static Exec *push_dialing_exec(lua_State *L) {
  LinkBox *box = check_link(L, 1);
  const char *address = check_address(L, 2);
  int port = (int)luaL_optinteger(L, 3, 0);
  check_can_wait(L);
  Exec *e = push_exec(L, box, EXEC);
  e->channel = box->link->class->dial(box->link, address, port, &exec_events, e);
  return e;
}

/* link:talk(address, port, request, options?) -> all that the peer answers until it closes | nil, err */
int l_link_talk(lua_State *L) {
  size_t length;
  const char *request = luaL_checklstring(L, 4, &length);
  double timeout = check_timeout_field(L, 5, "timeout", 10);
  lua_settop(L, 5);
  Exec *e = push_dialing_exec(L);
  e->channel->class->write(e->channel, request, length);
  return task_wait(L, &e->waiter, timeout, (lua_KContext)e, talk_step);
}

static int dial_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Exec *e = (Exec *)ctx;
  if (!e->open) return push_exec_failure(L, e, "connecting");
  exec_release(e);
  lua_pushboolean(L, 1);
  return 1;
}

/* link:dial(address, port, timeout?) -> true as soon as the address accepts | nil, err */
int l_link_dial(lua_State *L) {
  double timeout = check_timeout(L, 4, 10);
  Exec *e = push_dialing_exec(L);
  return task_wait(L, &e->waiter, timeout, (lua_KContext)e, dial_step);
}

/* link:forward(address, port) -> the descriptor of a socket whose other end is there | nil, err */
int l_link_forward(lua_State *L) {
  LinkBox *box = check_link(L, 1);
  const char *address = check_address(L, 2);
  int fd = channel_bridge(box->link, address, (int)luaL_optinteger(L, 3, 0));
  if (fd < 0) return push_error(L, "system", box->name, "no socket pair: too many open files?");
  lua_pushinteger(L, fd);
  return 1;
}

void push_exec_classes(lua_State *L) {
  static const luaL_Reg methods[] = {{"read", l_stream_read}, {"close", l_exec_gc}, {NULL, NULL}};
  push_class(L, EXEC, NULL, l_exec_gc);
  push_class(L, STREAM, methods, l_exec_gc);
}
