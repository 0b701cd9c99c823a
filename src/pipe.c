/* pipe.c -- Streams bytes from a file or command to a file or command, on any hosts, counting and hashing
 * them. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "class.h"
#include "error.h"
#include "link.h"
#include "loop.h"

#define PIPE "deployrt.Pipe"
#define CHUNK (256 * 1024)
#define HIGH_WATER (256 * 1024)

typedef struct Pipe Pipe;

/* One side: a command on a link, or a file of this machine. */
typedef struct Side {
  Pipe *pipe;
  LinkBox *box;
  Channel *channel;
  int fd; /* of a file, or -1 */
  bool ended, failed;
  int status, signal;
  Buffer output; /* what a command says: standard error of the source, both of the sink */
  char code[24];
  char message[512];
} Side;

struct Pipe {
  Waiter waiter;
  Side from, to;
  EVP_MD_CTX *digest;
  double bytes;
  uv_idle_t *pump; /* active while a file can be read and the sink has room */
};

static void pipe_settle(Pipe *p) {
  bool broken = p->from.failed || p->to.failed || (p->to.ended && !p->from.ended);
  if (broken || (p->from.ended && p->to.ended)) task_wake(&p->waiter);
}

static void side_fail(Side *s, const char *code, const char *message) {
  s->ended = s->failed = true;
  snprintf(s->code, sizeof s->code, "%s", code);
  snprintf(s->message, sizeof s->message, "%s", message);
  pipe_settle(s->pipe);
}

static void sink_end(Side *s) {
  if (s->channel) {
    s->channel->class->end(s->channel);
    return;
  }
  if (fsync(s->fd) != 0 && errno != EINVAL) side_fail(s, "system", strerror(errno)); /* EINVAL: not a file */
  else s->ended = true;
}

static void sink_write(Pipe *p, const char *data, size_t length) {
  if (p->digest) EVP_DigestUpdate(p->digest, data, length);
  p->bytes += (double)length;
  if (p->to.channel) {
    Channel *sink = p->to.channel, *source = p->from.channel;
    sink->class->write(sink, data, length);
    if (source && sink->class->pending(sink) >= HIGH_WATER) source->class->pause(source, true);
    return;
  }
  while (length > 0 && !p->to.failed) {
    ssize_t n = write(p->to.fd, data, length);
    if (n < 0 && errno != EINTR) side_fail(&p->to, "system", strerror(errno));
    if (n > 0) {
      data += n;
      length -= (size_t)n;
    }
  }
}

static void keep_output(Side *s, const char *data, size_t length) {
  if (s->output.length + length <= 65536) buffer_append(&s->output, data, length);
}

static void on_side_output(void *owner, int stream, const char *data, size_t length) {
  Side *s = owner;
  if (s == &s->pipe->from && stream == 1) sink_write(s->pipe, data, length);
  else keep_output(s, data, length);
}

static void on_side_end(void *owner, int status, int signal) {
  Side *s = owner;
  s->ended = true;
  s->status = status;
  s->signal = signal;
  if (s == &s->pipe->from) sink_end(&s->pipe->to);
  pipe_settle(s->pipe);
}

static void on_side_fail(void *owner, const char *code, const char *message) {
  side_fail(owner, code, message);
}

/* Reads the file as long as the sink keeps up; on_side_drain() starts it again. */
static void on_pump(uv_idle_t *idle) {
  static char shared[CHUNK];
  Pipe *p = idle->data;
  ssize_t n = read(p->from.fd, shared, sizeof shared);
  if (n > 0) {
    sink_write(p, shared, (size_t)n);
    if (!p->to.channel || p->to.channel->class->pending(p->to.channel) < HIGH_WATER) return;
  } else if (n < 0) {
    side_fail(&p->from, "system", strerror(errno));
  } else {
    p->from.ended = true;
    sink_end(&p->to);
    pipe_settle(p);
  }
  uv_idle_stop(idle);
}

static void on_side_drain(void *owner) {
  Side *s = owner;
  Pipe *p = s->pipe;
  if (s == &p->to && p->from.channel && !p->from.ended) p->from.channel->class->pause(p->from.channel, false);
  if (s == &p->to && p->from.fd >= 0 && !p->from.ended && p->pump) uv_idle_start(p->pump, on_pump);
}

static const ChannelEvents side_events = {NULL, on_side_output, on_side_drain, on_side_end, on_side_fail};

static void side_release(Side *s) {
  if (s->channel) s->channel->class->close(s->channel);
  s->channel = NULL;
  if (s->fd >= 0) close(s->fd);
  s->fd = -1;
  buffer_free(&s->output);
}

static void pipe_release(Pipe *p) {
  handle_close(p->pump);
  p->pump = NULL;
  side_release(&p->from);
  side_release(&p->to);
  EVP_MD_CTX_free(p->digest);
  p->digest = NULL;
}

static int l_pipe_gc(lua_State *L) {
  pipe_release(lua_touserdata(L, 1));
  return 0;
}

static void push_side_result(lua_State *L, Side *s, const char *name) {
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, s->status);
  lua_setfield(L, -2, "status");
  if (s->signal) {
    lua_pushinteger(L, s->signal);
    lua_setfield(L, -2, "signal");
  }
  lua_pushlstring(L, s->output.data ? s->output.data : "", s->output.length);
  lua_setfield(L, -2, "output");
  lua_setfield(L, -2, name);
}

static void push_digest(lua_State *L, EVP_MD_CTX *context) {
  unsigned char raw[EVP_MAX_MD_SIZE];
  char text[2 * EVP_MAX_MD_SIZE + 1] = "";
  unsigned length = 0;
  EVP_DigestFinal_ex(context, raw, &length);
  for (unsigned i = 0; i < length; i++) snprintf(text + 2 * i, 3, "%02x", raw[i]);
  lua_pushstring(L, text);
}

static int push_pipe_result(lua_State *L, Pipe *p) {
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, (lua_Integer)p->bytes);
  lua_setfield(L, -2, "bytes");
  if (p->digest) {
    push_digest(L, p->digest);
    lua_setfield(L, -2, "sha256");
  }
  push_side_result(L, &p->from, "from");
  push_side_result(L, &p->to, "to");
  pipe_release(p);
  return 1;
}

static int pipe_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Pipe *p = (Pipe *)ctx;
  Side *bad = p->from.failed ? &p->from : p->to.failed ? &p->to : NULL;
  if (bad) {
    int count = push_error(L, bad->code, bad->box ? bad->box->name : NULL, "%s", bad->message);
    pipe_release(p);
    return count;
  }
  if (p->to.ended) return push_pipe_result(L, p); /* a sink that ended early shows in its status */
  int count = push_interruption(L, p->to.box ? p->to.box->name : NULL, "transfer");
  pipe_release(p);
  return count;
}

static void check_side_command(lua_State *L, int side, LinkBox *box, Buffer *command) {
  Buffer script = {0};
  luaL_argcheck(L, lua_getfield(L, side, "command") == LUA_TTABLE, 1, "'command': a list of words expected");
  int library = check_boolean_field(L, side, "library", 0);
  if (library) shell_library(box, &script);
  else buffer_text(&script, "exec");
  check_words(L, lua_gettop(L), &script);
  shell_wrap(box, &script, command);
  buffer_free(&script);
  lua_pop(L, 1);
}

static void open_file(Side *s, const char *path, bool reading) {
  int flags = reading ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC;
  s->fd = open(path, flags | O_CLOEXEC, 0600);
  if (s->fd >= 0) return;
  char message[400];
  snprintf(message, sizeof message, "%s: %s", path, strerror(errno));
  side_fail(s, errno == ENOENT ? "missing" : "system", message);
}

/* Opens the side described by the table in field `name` of the options; check_side() has looked at it. */
static void check_side_start(lua_State *L, Side *s, const char *name) {
  lua_getfield(L, 1, name);
  int side = lua_gettop(L);
  const char *file = check_string_field(L, side, "file", NULL);
  if (file) {
    open_file(s, file, s == &s->pipe->from);
  } else {
    Buffer command = {0};
    lua_getfield(L, side, "link");
    s->box = check_link(L, lua_gettop(L));
    check_side_command(L, side, s->box, &command);
    s->channel = s->box->link->class->exec(s->box->link, command.data, &side_events, s);
    buffer_free(&command);
    if (s == &s->pipe->from) s->channel->class->end(s->channel);
  }
  lua_settop(L, side - 1);
}

static void check_side(lua_State *L, const char *name) {
  luaL_argcheck(L, lua_getfield(L, 1, name) == LUA_TTABLE, 1, "'from' and 'to' expected");
  int side = lua_gettop(L);
  if (!check_string_field(L, side, "file", NULL)) {
    lua_getfield(L, side, "link");
    check_link(L, lua_gettop(L));
    luaL_argcheck(L, lua_getfield(L, side, "command") == LUA_TTABLE, 1,
                  "'file', or 'link' and 'command', expected");
  }
  lua_settop(L, side - 1);
}

/* core.pipe{from = {file=} | {link=, command=}, to = the same, timeout?, hash?} -> {bytes, sha256, from, to}
 * | nil, err */
int l_pipe(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  check_side(L, "from");
  check_side(L, "to");
  double timeout = check_timeout_field(L, 1, "timeout", -1);
  check_can_wait(L);
  Pipe *p = lua_newuserdatauv(L, sizeof *p, 0);
  memset(p, 0, sizeof *p);
  p->from = (Side){.pipe = p, .fd = -1};
  p->to = (Side){.pipe = p, .fd = -1};
  luaL_setmetatable(L, PIPE);
  if (check_boolean_field(L, 1, "hash", 1)) {
    p->digest = EVP_MD_CTX_new();
    EVP_DigestInit_ex(p->digest, EVP_sha256(), NULL);
  }
  check_side_start(L, &p->to, "to");
  if (!p->to.failed) check_side_start(L, &p->from, "from");
  if (p->from.failed || p->to.failed) return pipe_step(L, LUA_OK, (lua_KContext)p);
  if (p->from.fd >= 0) {
    p->pump = handle_new(sizeof *p->pump);
    p->pump->data = p;
    uv_idle_init(loop_get(), p->pump);
    uv_idle_start(p->pump, on_pump);
  }
  return task_wait(L, &p->waiter, timeout, (lua_KContext)p, pipe_step);
}

void push_pipe_classes(lua_State *L) {
  push_class(L, PIPE, NULL, l_pipe_gc);
}
