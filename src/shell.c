/* shell.c -- Calls of the host library's functions through shells that stay open: one round trip each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "adopt_library.h"
#include "class.h"
#include "error.h"
#include "host_library.h"
#include "link.h"

#define CALL "deployrt.Call"
#define MAX_ASIDE 400
#define MAX_SHELLS 6 /* sshd allows 10 sessions a connection; the rest is for streams and uploads */

/* A call waits in the link's queue, then runs in a shell. It is a userdata of the waiting task. */
typedef struct Call {
  Waiter waiter;
  LinkBox *box;
  Shell *shell;
  Buffer text, reply;
  bool queued, done, failed;
  int status;
  char code[24];
  char message[512];
  struct Call *next;
} Call;

struct Shell {
  LinkBox *box;
  Channel *channel;
  Call *call; /* the one that runs */
  Buffer out;
  Buffer aside;   /* what came on standard error: calls write to standard output only, so it is no answer */
  size_t scanned; /* of out, for the marker */
  char marker[48];
  bool answered; /* a call, before now */
  Shell *next;
};

static void shells_serve(LinkBox *box);

void shell_library(const LinkBox *box, Buffer *text) {
  buffer_append(text, host_library, sizeof host_library - 1);
  buffer_text(text, "deployrt_root ");
  buffer_quote(text, box->root, strlen(box->root));
  buffer_text(text, "\n");
}

static void call_settle(Call *c) {
  if (c->shell) c->shell->call = NULL;
  c->shell = NULL;
  c->done = true;
  task_wake(&c->waiter);
}

static void call_fail(Call *c, const char *code, const char *message) {
  c->failed = true;
  snprintf(c->code, sizeof c->code, "%s", code);
  snprintf(c->message, sizeof c->message, "%s", message);
  call_settle(c);
}

static void shell_free(Shell *s) {
  for (Shell **p = &s->box->shells; *p; p = &(*p)->next) {
    if (*p == s) {
      *p = s->next;
      break;
    }
  }
  s->box->shell_count--;
  s->channel->class->close(s->channel);
  buffer_free(&s->out);
  buffer_free(&s->aside);
  free(s);
}

/* A reply is everything up to a line with the marker, which also bears the status. */
static void shell_scan(Shell *s) {
  size_t length = strlen(s->marker);
  if (!s->call || s->out.length < length) return;
  char *found = memmem(s->out.data + s->scanned, s->out.length - s->scanned, s->marker, length);
  if (!found) {
    s->scanned = s->out.length > length ? s->out.length - length : 0;
    return;
  }
  char *end = memchr(found + length, '\n', s->out.length - (size_t)(found + length - s->out.data));
  if (!end) return;
  Call *c = s->call;
  buffer_append(&c->reply, s->out.data, (size_t)(found - s->out.data));
  c->status = atoi(found + length);
  s->answered = true;
  buffer_consume(&s->out, (size_t)(end + 1 - s->out.data));
  s->scanned = 0;
  call_settle(c);
  shells_serve(s->box);
}

static void on_shell_output(void *owner, int stream, const char *data, size_t length) {
  Shell *s = owner;
  if (stream == 2) {
    buffer_append(&s->aside, data, length);
    if (s->aside.length > MAX_ASIDE) buffer_consume(&s->aside, s->aside.length - MAX_ASIDE);
    return;
  }
  buffer_append(&s->out, data, length);
  shell_scan(s);
}

static void shell_broke(Shell *s, const char *code, const char *message) {
  LinkBox *box = s->box;
  Call *c = s->call;
  if (c) call_fail(c, code, message);
  shell_free(s);
  shells_serve(box);
}

static void on_shell_end(void *owner, int status, int signal) {
  Shell *s = owner;
  Buffer text = {0};
  const Buffer *said = s->aside.length > 0 ? &s->aside : &s->out;
  int shown = said->length > 200 ? 200 : (int)said->length;
  while (shown > 0 && said->data[shown - 1] == '\n') shown--;
  bool is_by_files = !signal && !s->answered && (status == 0 || shown == 0);
  buffer_format(&text, "the host's shell %s %d", signal ? "was ended by signal" : "ended with status",
                signal ? signal : status);
  if (is_by_files) buffer_text(&text, " before it did anything");
  if (shown > 0) buffer_format(&text, ": %.*s", shown, said->data);
  if (is_by_files) buffer_text(&text, "; have ~/.bashrc and its like not exit for commands");
  buffer_append(&text, "", 1);
  shell_broke(s, "lost", text.data);
  buffer_free(&text);
}

static void on_shell_fail(void *owner, const char *code, const char *message) {
  shell_broke(owner, code, message);
}

static void on_shell_drain(void *owner) {
  (void)owner;
}

static const ChannelEvents shell_events = {NULL, on_shell_output, on_shell_drain, on_shell_end,
                                           on_shell_fail};

static Shell *shell_new(LinkBox *box) {
  unsigned char random[12];
  Buffer text = {0};
  Shell *s = memory_new(sizeof *s);
  if (getrandom(random, sizeof random, 0) != sizeof random) abort();
  size_t at = (size_t)snprintf(s->marker, sizeof s->marker, "\n@");
  for (size_t i = 0; i < sizeof random; i++) at += (size_t)snprintf(s->marker + at, 3, "%02x", random[i]);
  snprintf(s->marker + at, 2, " ");
  s->box = box;
  s->next = box->shells;
  box->shells = s;
  box->shell_count++;
  s->channel = box->link->class->exec(box->link, "exec /bin/sh", &shell_events, s);
  shell_library(box, &text);
  s->channel->class->write(s->channel, text.data, text.length);
  buffer_free(&text);
  return s;
}

static void shell_send(Shell *s, Call *c) {
  s->call = c;
  c->shell = s;
  buffer_text(&c->text, " </dev/null 2>&1; printf '\\n@%s %s\\n' ");
  buffer_append(&c->text, s->marker + 2, strlen(s->marker) - 3);
  buffer_text(&c->text, " \"$?\"\n");
  s->channel->class->write(s->channel, c->text.data, c->text.length);
}

static Call *queue_take(LinkBox *box) {
  Call *c = box->first;
  if (!c) return NULL;
  box->first = c->next;
  if (!box->first) box->last = NULL;
  c->next = NULL;
  c->queued = false;
  return c;
}

static Shell *idle_shell(LinkBox *box) {
  for (Shell *s = box->shells; s; s = s->next) {
    if (!s->call) return s;
  }
  return box->shell_count < MAX_SHELLS ? shell_new(box) : NULL;
}

static void shells_serve(LinkBox *box) {
  while (box->first && box->link) {
    if (box->link->state == LINK_LOST) {
      call_fail(queue_take(box), "lost", box->link->message);
      continue;
    }
    Shell *s = idle_shell(box);
    if (!s) return;
    shell_send(s, queue_take(box));
  }
}

void shells_close(LinkBox *box) {
  for (Call *c; (c = queue_take(box));) call_fail(c, "closed", "the link was closed");
  while (box->shells) {
    if (box->shells->call) call_fail(box->shells->call, "closed", "the link was closed");
    shell_free(box->shells);
  }
}

static void queue_remove(Call *c) {
  LinkBox *box = c->box;
  Call *last = NULL;
  for (Call **p = &box->first; *p;) {
    if (*p == c) *p = c->next;
    else {
      last = *p;
      p = &(*p)->next;
    }
  }
  box->last = last;
  c->queued = false;
}

/* A call that nobody waits for any more leaves its shell in the middle of it: that shell goes too. */
static void call_release(Call *c) {
  if (c->queued) queue_remove(c);
  if (c->shell) {
    Shell *s = c->shell;
    s->call = NULL;
    c->shell = NULL;
    shell_free(s);
  }
  buffer_free(&c->text);
  buffer_free(&c->reply);
}

static int l_call_gc(lua_State *L) {
  call_release(lua_touserdata(L, 1));
  return 0;
}

static int call_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Call *c = (Call *)ctx;
  int count = 2;
  if (!c->done) {
    count = push_interruption(L, c->box->name, lua_tostring(L, 2));
  } else if (c->failed) {
    count = push_error(L, c->code, c->box->name, "%s", c->message);
  } else {
    lua_pushlstring(L, c->reply.data ? c->reply.data : "", c->reply.length);
    lua_pushinteger(L, c->status);
  }
  call_release(c);
  return count;
}

/* link:call(function, arguments?, timeout?) -> output, status | nil, err */
int l_link_call(lua_State *L) {
  LinkBox *box = check_link(L, 1);
  const char *function = luaL_checkstring(L, 2);
  double timeout = check_timeout(L, 4, -1);
  lua_settop(L, 3);
  if (!lua_isnil(L, 3)) luaL_checktype(L, 3, LUA_TTABLE);
  check_can_wait(L);
  Call *c = lua_newuserdatauv(L, sizeof *c, 1);
  memset(c, 0, sizeof *c);
  c->box = box;
  luaL_setmetatable(L, CALL);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  buffer_text(&c->text, function);
  if (!lua_isnil(L, 3)) check_words(L, 3, &c->text);
  if (box->last) box->last->next = c;
  else box->first = c;
  box->last = c;
  c->queued = true;
  shells_serve(box);
  if (c->done) return call_step(L, LUA_OK, (lua_KContext)c);
  return task_wait(L, &c->waiter, timeout, (lua_KContext)c, call_step);
}

/* core.adopt_library() -> text: what host.sh lacks for a service that was started by hand; see its with() */
int l_adopt_library(lua_State *L) {
  lua_pushlstring(L, adopt_library, sizeof adopt_library - 1);
  return 1;
}

void push_shell_classes(lua_State *L) {
  push_class(L, CALL, NULL, l_call_gc);
}
