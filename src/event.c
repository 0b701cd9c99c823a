/* event.c -- Waiting for the clock, for a condition, and for the signals of the operating system. */
#include "event.h"

#include <signal.h>
#include <stdbool.h>
#include <string.h>

#include "class.h"
#include "error.h"
#include "loop.h"
#include "memory.h"
#include "task.h"

#define EVENT "deployrt.Event"
#define LISTENER "deployrt.Listener"
#define SIGNALS "deployrt.Signals"

static int sleep_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  (void)ctx;
  if (task_reason() == WAKE_CANCEL) return push_error(L, "canceled", NULL, "sleep: canceled");
  lua_pushboolean(L, 1);
  return 1;
}

static int l_sleep(lua_State *L) {
  luaL_checknumber(L, 1);
  double seconds = check_timeout(L, 1, 0);
  Waiter *w = lua_newuserdatauv(L, sizeof *w, 0);
  w->task = NULL;
  return task_wait(L, w, seconds, 0, sleep_step);
}

/* An event is a list of waiters; set() wakes all of them and stays set until clear(). There may be many, and
 * each leaves when its time is over. */
typedef struct Listener {
  Waiter waiter;
  struct Listener *next, **link; /* where the list points to it */
  struct Event *event;
} Listener;

typedef struct Event {
  bool set;
  Listener *listeners;
} Event;

static int l_event(lua_State *L) {
  Event *e = lua_newuserdatauv(L, sizeof *e, 0);
  *e = (Event){0};
  luaL_setmetatable(L, EVENT);
  return 1;
}

static void listener_remove(Listener *l) {
  if (!l->event) return;
  *l->link = l->next;
  if (l->next) l->next->link = l->link;
  l->event = NULL;
}

static void listener_add(Event *e, Listener *l) {
  *l = (Listener){.event = e, .next = e->listeners, .link = &e->listeners};
  if (l->next) l->next->link = &l->next;
  e->listeners = l;
}

static int l_event_set(lua_State *L) {
  Event *e = luaL_checkudata(L, 1, EVENT);
  e->set = true;
  while (e->listeners) {
    Listener *l = e->listeners;
    listener_remove(l);
    task_wake(&l->waiter);
  }
  return 0;
}

static int l_event_clear(lua_State *L) {
  Event *e = luaL_checkudata(L, 1, EVENT);
  e->set = false;
  return 0;
}

static int l_event_is_set(lua_State *L) {
  Event *e = luaL_checkudata(L, 1, EVENT);
  lua_pushboolean(L, e->set);
  return 1;
}

static int event_wait_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  listener_remove((Listener *)ctx);
  if (task_reason() != WAKE_EVENT) return push_interruption(L, NULL, "waiting for an event");
  lua_pushboolean(L, 1);
  return 1;
}

static int l_event_wait(lua_State *L) {
  Event *e = luaL_checkudata(L, 1, EVENT);
  double timeout = check_timeout(L, 2, -1);
  lua_settop(L, 1);
  check_can_wait(L);
  if (e->set) {
    lua_pushboolean(L, 1);
    return 1;
  }
  Listener *l = lua_newuserdatauv(L, sizeof *l, 0);
  listener_add(e, l);
  luaL_setmetatable(L, LISTENER);
  return task_wait(L, &l->waiter, timeout, (lua_KContext)l, event_wait_step);
}

static int l_listener_gc(lua_State *L) {
  listener_remove(lua_touserdata(L, 1));
  return 0;
}

static int l_event_gc(lua_State *L) {
  Event *e = lua_touserdata(L, 1);
  while (e->listeners) listener_remove(e->listeners);
  return 0;
}

/* Signals that arrived and were not asked for yet, in order; `waiter` is the one task that asks. */
typedef struct Signals {
  uv_signal_t *handles[4];
  int pending[16];
  int count;
  Waiter waiter;
} Signals;

static void on_signal(uv_signal_t *handle, int number) {
  Signals *s = handle->data;
  if (s->count < (int)(sizeof s->pending / sizeof *s->pending)) s->pending[s->count++] = number;
  task_wake(&s->waiter);
}

static int signal_number(const char *name) {
  static const struct {
    const char *name;
    int number;
  } known[] = {{"INT", SIGINT}, {"TERM", SIGTERM}, {"HUP", SIGHUP}, {"WINCH", SIGWINCH}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if (strcmp(known[i].name, name) == 0) return known[i].number;
  }
  return 0;
}

static const char *signal_name(int number) {
  return number == SIGINT ? "INT" : number == SIGTERM ? "TERM" : number == SIGHUP ? "HUP" : "WINCH";
}

static void signals_listen(Signals *s, int index, int number) {
  s->handles[index] = handle_new(sizeof *s->handles[index]);
  s->handles[index]->data = s;
  uv_signal_init(loop_get(), s->handles[index]);
  uv_signal_start(s->handles[index], on_signal, number);
  uv_unref((uv_handle_t *)s->handles[index]);
}

/* core.signals("INT", "TERM"): takes these signals over until it is closed. */
static int l_signals(lua_State *L) {
  int count = lua_gettop(L);
  luaL_argcheck(L, count >= 1 && count <= 4, 1, "one to four names of signals expected");
  for (int i = 1; i <= count; i++) {
    luaL_argcheck(L, signal_number(luaL_checkstring(L, i)) != 0, i, "INT, TERM, HUP or WINCH expected");
  }
  Signals *s = lua_newuserdatauv(L, sizeof *s, 0);
  memset(s, 0, sizeof *s);
  luaL_setmetatable(L, SIGNALS);
  for (int i = 1; i <= count; i++) signals_listen(s, i - 1, signal_number(lua_tostring(L, i)));
  return 1;
}

static int signals_next_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Signals *s = (Signals *)ctx;
  s->waiter.task = NULL;
  if (s->count == 0) return push_interruption(L, NULL, "waiting for a signal");
  lua_pushstring(L, signal_name(s->pending[0]));
  memmove(s->pending, s->pending + 1, (size_t)--s->count * sizeof *s->pending);
  return 1;
}

static int l_signals_next(lua_State *L) {
  Signals *s = luaL_checkudata(L, 1, SIGNALS);
  double timeout = check_timeout(L, 2, -1);
  check_can_wait(L);
  luaL_argcheck(L, !s->waiter.task, 1, "another task waits for these signals already");
  if (s->count > 0) return signals_next_step(L, LUA_OK, (lua_KContext)s);
  return task_wait(L, &s->waiter, timeout, (lua_KContext)s, signals_next_step);
}

static int l_signals_close(lua_State *L) {
  Signals *s = luaL_checkudata(L, 1, SIGNALS);
  for (int i = 0; i < 4; i++) {
    handle_close(s->handles[i]);
    s->handles[i] = NULL;
  }
  return 0;
}

void push_event_functions(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"sleep", l_sleep}, {"event", l_event}, {"signals", l_signals}, {NULL, NULL}};
  static const luaL_Reg events[] = {{"set", l_event_set},
                                    {"clear", l_event_clear},
                                    {"is_set", l_event_is_set},
                                    {"wait", l_event_wait},
                                    {NULL, NULL}};
  static const luaL_Reg signals[] = {{"next", l_signals_next}, {"close", l_signals_close}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  push_class(L, EVENT, events, l_event_gc);
  push_class(L, LISTENER, NULL, l_listener_gc);
  push_class(L, SIGNALS, signals, l_signals_close);
}
