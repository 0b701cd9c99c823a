/* task.h -- Coroutines on the loop: the only place that resumes Lua. */
#ifndef DEPLOYRT_TASK_H
#define DEPLOYRT_TASK_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>

typedef struct Task Task;

/* Why a task that waited goes on. */
typedef enum { WAKE_EVENT, WAKE_TIMEOUT, WAKE_CANCEL } WakeReason;

/* One wait. Lives in whatever the waiting call owns; zeroed means that nobody waits. */
typedef struct Waiter {
  Task *task;
  bool for_tasks; /* it is for the end of other tasks, which comes in any case */
} Waiter;

/*
 * Yields the running task until task_wake(w), the timeout or a cancellation; then `step` goes on with `ctx`.
 * A negative timeout means none. Raises a Lua error outside a task, in a bare coroutine, and below a C call
 * such as table.sort. Nothing may follow it: `return task_wait(...)`.
 */
int task_wait(lua_State *L, Waiter *w, double timeout, lua_KContext ctx, lua_KFunction step);

/* Makes the waiting task ready; a second wake, or one of nobody, does nothing. */
void task_wake(Waiter *w);

/* Why the running task was last woken. */
WakeReason task_reason(void);

/* For a step: pushes nil and the error of a timeout or cancellation. `what` names what was waited for. */
int push_interruption(lua_State *L, const char *host, const char *what);

/* Fails, before anything is allocated, when the caller could not wait here. */
void check_can_wait(lua_State *L);

/* Forgets the tasks of a Lua state that has closed in the middle of them. */
void task_shutdown(void);

/* Registers the Lua functions of tasks in the table on top of the stack. */
void push_task_functions(lua_State *L);

#endif
