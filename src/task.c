/* task.c -- Structured coroutines on the loop. The only lua_resume of the project is in resume_step(). */
#include "task.h"

#include <stdlib.h>
#include <string.h>

#include "class.h"
#include "error.h"
#include "limit.h"
#include "loop.h"
#include "memory.h"
#include "timeline.h"

#define TASK "deployrt.Task"
#define JOIN "deployrt.Join"

typedef enum { TASK_NEW, TASK_READY, TASK_RUNNING, TASK_WAITING, TASK_DONE } TaskState;

/*
 * A task is a userdata. `co` runs the body under pcall, so that an error never reaches lua_resume; the
 * registry holds the userdata while the task lives, and its user value holds {thread, locals, results}.
 */
struct Task {
  TaskState state; /* first resumed as TASK_NEW, with its arguments */
  lua_State *co;
  Task *parent;
  Task *first_child;     /* of the live ones; the task is not done before they are */
  Task *next, *previous; /* among its parent's children */
  Task *next_ready;
  Waiter *waiter;    /* what it sleeps on */
  Waiter joining;    /* its own wait for its children */
  uv_timer_t *timer; /* the deadline of the present wait */
  Deadline deadline; /* the same in virtual time */
  WakeReason reason;
  bool cancel_requested; /* delivered once, at the next wait */
  bool failed;
  int reference; /* registry slot while it lives */
  Allowance allowance;
  struct Join *joins; /* other tasks that wait for this one */
};

typedef struct Join {
  Waiter waiter;
  struct Join *next;
  Task *target;
} Join;

enum { SLOT_THREAD = 1, SLOT_LOCALS = 2, SLOT_RESULTS = 3 };

/* Seconds in which only tasks run: then it is the loop's turn, whoever is ready. */
#define LONGEST_TURN 0.02

static Task *running, *ready_first, *ready_last, *roots;
static int live_tasks;
static bool polling; /* inside uv_run() */

static void ready_add(Task *t) {
  t->next_ready = NULL;
  if (ready_last) ready_last->next_ready = t;
  else ready_first = t;
  ready_last = t;
  if (polling) uv_stop(loop_get()); /* timers run before the poll, which must not sleep then */
}

static Task *ready_take(void) {
  Task *t = ready_first;
  if (!t) return NULL;
  ready_first = t->next_ready;
  if (!ready_first) ready_last = NULL;
  return t;
}

static void wake(Task *t, WakeReason reason) {
  if (t->waiter) t->waiter->task = NULL;
  t->waiter = NULL;
  t->reason = reason;
  if (t->timer) uv_timer_stop(t->timer);
  timeline_remove(&t->deadline);
  t->state = TASK_READY;
  ready_add(t);
}

void task_wake(Waiter *w) {
  if (w->task) wake(w->task, WAKE_EVENT);
}

static void on_deadline(uv_timer_t *timer) {
  Task *t = timer->data;
  if (t->waiter) wake(t, WAKE_TIMEOUT);
}

WakeReason task_reason(void) {
  return running ? running->reason : WAKE_EVENT;
}

void check_can_wait(lua_State *L) {
  if (!running) luaL_error(L, "this call waits: make it inside core.run");
  if (L != running->co) luaL_error(L, "this call waits, and cannot do so inside a coroutine of your own");
  if (!lua_isyieldable(L)) {
    luaL_error(
        L, "this call waits, and cannot do so inside a callback of table.sort, string.gsub or a metamethod");
  }
}

static void start_deadline(Task *t, double timeout) {
  if (timeline_on()) {
    t->deadline.owner = t;
    timeline_add(&t->deadline, timeout);
    return;
  }
  if (!t->timer) {
    t->timer = handle_new(sizeof *t->timer);
    uv_timer_init(loop_get(), t->timer);
    t->timer->data = t;
  }
  loop_update();
  uv_timer_start(t->timer, on_deadline, loop_milliseconds(timeout), 0);
}

int task_wait(lua_State *L, Waiter *w, double timeout, lua_KContext ctx, lua_KFunction step) {
  check_can_wait(L);
  Task *t = running;
  t->waiter = w;
  w->task = t;
  t->state = TASK_WAITING;
  if (t->cancel_requested) {
    t->cancel_requested = false;
    wake(t, WAKE_CANCEL);
  } else if (timeout >= 0) {
    start_deadline(t, timeout);
  }
  return lua_yieldk(L, 0, ctx, step);
}

int push_interruption(lua_State *L, const char *host, const char *what) {
  if (task_reason() == WAKE_CANCEL) return push_error(L, "canceled", host, "%s: canceled", what);
  return push_error(L, "timeout", host, "%s: no answer within the time allowed", what);
}

static void push_slot(lua_State *L, Task *t, int slot) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, t->reference);
  lua_getiuservalue(L, -1, slot);
  lua_remove(L, -2);
}

static Task **siblings_of(Task *t) {
  return t->parent ? &t->parent->first_child : &roots;
}

static void live_add(Task *t, Task *parent) {
  t->parent = parent;
  Task **first = siblings_of(t);
  t->next = *first;
  if (*first) (*first)->previous = t;
  *first = t;
  live_tasks++;
}

static void live_remove(Task *t) {
  if (t->previous) t->previous->next = t->next;
  else *siblings_of(t) = t->next;
  if (t->next) t->next->previous = t->previous;
  t->next = t->previous = t->parent = NULL;
  live_tasks--;
}

static void task_finish(Task *t) {
  t->state = TASK_DONE;
  handle_close(t->timer);
  t->timer = NULL;
  for (Join *j = t->joins; j;) {
    Join *next = j->next;
    j->target = NULL;
    task_wake(&j->waiter);
    j = next;
  }
  t->joins = NULL;
  Task *parent = t->parent;
  live_remove(t);
  if (parent && !parent->first_child) task_wake(&parent->joining);
  push_allowance_release(t->co, &t->allowance);
  luaL_unref(t->co, LUA_REGISTRYINDEX, t->reference);
  t->reference = LUA_NOREF;
}

/* Its registry slot keeps a live task from the collector: one that comes here alive is in a state that
 * closes. Without a slot it was never made to the end. */
static int l_task_gc(lua_State *L) {
  Task *t = lua_touserdata(L, 1);
  handle_close(t->timer);
  t->timer = NULL;
  timeline_remove(&t->deadline);
  if (t->waiter) t->waiter->task = NULL;
  t->waiter = NULL;
  if (t->state != TASK_DONE && t->reference != LUA_NOREF) live_remove(t);
  t->state = TASK_DONE;
  push_allowance_release(L, &t->allowance);
  return 0;
}

/* Its results lie on its stack after `true` or `false`; keeps them where task:wait finds them. */
static void keep_results(Task *t, int count) {
  lua_State *co = t->co;
  lua_createtable(co, count, 1);
  lua_insert(co, -count - 1);
  for (int i = count; i >= 1; i--) lua_rawseti(co, -i - 1, i);
  lua_pushinteger(co, count);
  lua_setfield(co, -2, "n");
  lua_rawgeti(co, LUA_REGISTRYINDEX, t->reference);
  lua_insert(co, -2);
  lua_setiuservalue(co, -2, SLOT_RESULTS);
  lua_pop(co, 1);
}

static int join_children_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Task *t = (Task *)ctx;
  if (t->first_child) return task_wait(L, &t->joining, -1, ctx, join_children_step);
  return 0;
}

static void cancel_children(Task *parent);

/* A task that only waits for its children passes the cancellation on; any other gets it at its wait. */
static void cancel(Task *t) {
  if (t->waiter == &t->joining) cancel_children(t);
  else if (t->state == TASK_WAITING) wake(t, WAKE_CANCEL);
  else if (t->state != TASK_DONE) t->cancel_requested = true;
}

static void cancel_children(Task *parent) {
  for (Task *t = parent->first_child; t; t = t->next) cancel(t);
}

static void ready_remove(Task *t) {
  Task **p = &ready_first, *before = NULL;
  for (; *p && *p != t; p = &(*p)->next_ready) before = *p;
  if (!*p) return;
  *p = t->next_ready;
  if (ready_last == t) ready_last = before;
}

/* Ends a task and all below it as a process dies: nothing of them runs, no handler and no __close. */
static void abandon(Task *t) {
  if (t->waiter) t->waiter->task = NULL;
  t->waiter = NULL;
  timeline_remove(&t->deadline);
  while (t->first_child) abandon(t->first_child);
  if (t->state == TASK_READY || t->state == TASK_NEW) ready_remove(t);
  t->failed = true;
  task_finish(t);
}

/* Past a limit none held to it runs on: who waits above, but for tasks, may wait for what never comes. */
static void wake_confined(Task *t) {
  for (Task *up = t->parent; up && up->allowance.limit == t->allowance.limit; up = up->parent) {
    if (up->state == TASK_WAITING && !up->waiter->for_tasks) wake(up, WAKE_CANCEL);
  }
}

static int task_body_step(lua_State *L, int status, lua_KContext ctx) {
  Task *t = (Task *)ctx;
  push_allowance_rest(L, &t->allowance);
  t->failed = status != LUA_OK && status != LUA_YIELD;
  const char *verdict = limit_verdict(t->allowance.limit, t->failed);
  if (verdict) t->failed = true;
  if (verdict) lua_settop(L, 1);
  if (verdict) push_verdict_as_error(L, verdict);
  if (verdict) wake_confined(t);
  keep_results(t, t->failed ? 1 : lua_gettop(L) - 1); /* the handler lies below them */
  if (t->failed) cancel_children(t);
  return join_children_step(L, 0, ctx);
}

static int l_task_body(lua_State *L) {
  Task *t = running;
  int arguments = lua_gettop(L) - 1;
  lua_pushcfunction(L, l_on_error);
  lua_insert(L, 1);
  int status = lua_pcallk(L, arguments, LUA_MULTRET, 1, (lua_KContext)t, task_body_step);
  return task_body_step(L, status, (lua_KContext)t);
}

static void resume_step(lua_State *L, Task *t) {
  int count;
  Task *before = running;
  running = t;
  int arguments = t->state == TASK_NEW ? lua_gettop(t->co) - 1 : 0;
  t->state = TASK_RUNNING;
  push_allowance_enter(L, &t->allowance, t->co);
  int status = lua_resume(t->co, L, arguments, &count);
  push_allowance_leave(L, &t->allowance);
  running = before;
  if (status == LUA_YIELD) {
    lua_pop(t->co, count);
    return;
  }
  if (status != LUA_OK) t->failed = true;
  task_finish(t);
}

/* Its slot in the registry keeps the userdata from the collector while the task lives. */
static Task *push_task(lua_State *L, int arguments) {
  Task *t = lua_newuserdatauv(L, sizeof *t, 3);
  *t = (Task){.reference = LUA_NOREF, .joining.for_tasks = true};
  luaL_setmetatable(L, TASK);
  t->co = lua_newthread(L);
  lua_setiuservalue(L, -2, SLOT_THREAD);
  lua_createtable(L, 0, 2);
  if (running) {
    lua_createtable(L, 0, 1);
    push_slot(L, running, SLOT_LOCALS);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
  }
  lua_setiuservalue(L, -2, SLOT_LOCALS);
  if (!lua_checkstack(t->co, arguments + LUA_MINSTACK)) luaL_error(L, "too many arguments of a task");
  lua_pushvalue(L, -1);
  t->reference = luaL_ref(L, LUA_REGISTRYINDEX);
  live_add(t, running); /* it lives once nothing more can fail */
  lua_pushcfunction(t->co, l_task_body);
  lua_insert(L, -arguments - 1); /* the task below the function and its arguments */
  lua_xmove(L, t->co, arguments);
  return t;
}

static int l_spawn(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  Task *t = push_task(L, lua_gettop(L));
  if (running) t->allowance = push_allowance_inherit(t->co, &running->allowance);
  ready_add(t);
  return 1;
}

static void ready_step(lua_State *L) {
  double began = loop_now();
  for (Task *t; (t = ready_take());) {
    resume_step(L, t);
    if (loop_now() - began > LONGEST_TURN) return;
  }
}

/* In virtual time nothing real is looked at while somebody waits for a moment: it is that moment at once. */
static bool move_on(void) {
  double before = timeline_now();
  Deadline *next = timeline_on() ? timeline_next() : NULL;
  if (!next) return false;
  if (timeline_now() > before) limit_time_passes();
  wake(next->owner, WAKE_TIMEOUT);
  return true;
}

/* Time passes when everybody waits. Else the loop only has a look. */
static void poll_once(void) {
  bool rests = !ready_first;
  if (rests && move_on()) return;
  if (rests) limit_time_passes();
  polling = true;
  uv_run(loop_get(), rests ? UV_RUN_ONCE : UV_RUN_NOWAIT);
  polling = false;
}

static int push_results(lua_State *L, int index, Task *t) {
  lua_pushboolean(L, !t->failed);
  lua_getiuservalue(L, index, SLOT_RESULTS);
  if (!lua_istable(L, -1)) return 1;
  lua_getfield(L, -1, "n");
  int count = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  luaL_checkstack(L, count, "too many results of a task");
  int results = lua_gettop(L);
  for (int i = 1; i <= count; i++) lua_rawgeti(L, results, i);
  lua_remove(L, results);
  return count + 1;
}

static int l_run(lua_State *L) {
  if (running) return luaL_error(L, "core.run is for the outermost call; use core.spawn inside a task");
  l_spawn(L);
  Task *t = lua_touserdata(L, -1);
  int index = lua_gettop(L);
  for (ready_step(L); t->state != TASK_DONE; ready_step(L)) poll_once();
  uv_run(loop_get(), UV_RUN_NOWAIT); /* lets closing handles go */
  return push_results(L, index, t);
}

static Task *check_task(lua_State *L) {
  return luaL_checkudata(L, 1, TASK);
}

static void join_remove(Join *j) {
  if (!j->target) return;
  for (Join **p = &j->target->joins; *p; p = &(*p)->next) {
    if (*p == j) {
      *p = j->next;
      break;
    }
  }
  j->target = NULL;
}

static int l_join_gc(lua_State *L) {
  join_remove(lua_touserdata(L, 1));
  return 0;
}

static int task_wait_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Join *j = (Join *)ctx;
  Task *t = lua_touserdata(L, 1);
  if (t->state == TASK_DONE) return push_results(L, 1, t);
  join_remove(j);
  return push_interruption(L, NULL, "waiting for a task");
}

static int l_task_wait(lua_State *L) {
  Task *t = check_task(L);
  double timeout = check_timeout(L, 2, -1);
  lua_settop(L, 1);
  if (t->state == TASK_DONE) return push_results(L, 1, t);
  check_can_wait(L);
  if (t == running) return luaL_error(L, "a task cannot wait for itself");
  Join *j = lua_newuserdatauv(L, sizeof *j, 0);
  *j = (Join){.waiter.for_tasks = true, .target = t, .next = t->joins};
  luaL_setmetatable(L, JOIN);
  t->joins = j;
  return task_wait(L, &j->waiter, timeout, (lua_KContext)j, task_wait_step);
}

static int l_task_cancel(lua_State *L) {
  cancel(check_task(L));
  return 0;
}

/* task:abandon() -- from outside of what it ends */
static int l_task_abandon(lua_State *L) {
  Task *t = check_task(L);
  for (Task *each = running; each; each = each->parent) {
    if (each == t) return luaL_error(L, "a task cannot abandon itself");
  }
  if (t->state != TASK_DONE) abandon(t);
  return 0;
}

static int l_task_status(lua_State *L) {
  Task *t = check_task(L);
  lua_pushstring(L, t->state != TASK_DONE ? "running" : t->failed ? "failed" : "done");
  return 1;
}

static int l_locals(lua_State *L) {
  if (running) push_slot(L, running, SLOT_LOCALS);
  else lua_pushnil(L);
  return 1;
}

static int l_confine(lua_State *L) {
  if (!running) return luaL_error(L, "core.confine is for a task");
  check_allowance_confine(L, &running->allowance, running->co);
  return 0;
}

static int l_exempt(lua_State *L) {
  bool exempt = lua_toboolean(L, 1);
  lua_pushboolean(L, running && push_allowance_exempt(L, &running->allowance, exempt));
  return 1;
}

static int l_live_tasks(lua_State *L) {
  lua_pushinteger(L, live_tasks);
  return 1;
}

void push_task_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"run", l_run},
                                       {"spawn", l_spawn},
                                       {"locals", l_locals},
                                       {"confine", l_confine},
                                       {"exempt", l_exempt},
                                       {"set_traceback", l_set_traceback},
                                       {"live_tasks", l_live_tasks},
                                       {NULL, NULL}};
  static const luaL_Reg methods[] = {{"wait", l_task_wait},
                                     {"cancel", l_task_cancel},
                                     {"abandon", l_task_abandon},
                                     {"status", l_task_status},
                                     {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  push_class(L, TASK, methods, l_task_gc);
  luaL_getmetatable(L, TASK);
  lua_pushnil(L); /* `local t <close> = core.spawn(f)` is a mistake: a task ends by itself */
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
  push_class(L, JOIN, NULL, l_join_gc);
}

void task_shutdown(void) {
  running = ready_first = ready_last = roots = NULL;
}
