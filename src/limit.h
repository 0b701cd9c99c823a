/* limit.h -- What a script may use until it waits: instructions, processor time, memory. */
#ifndef DEPLOYRT_LIMIT_H
#define DEPLOYRT_LIMIT_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>

/* One limit, shared by a task and all that it spawns; past it none of them runs another instruction. */
typedef struct Limit Limit;

/* What one task has of it. */
typedef struct {
  Limit *limit; /* NULL: it may use anything */
  bool exempt;  /* the runtime itself is at work in the task: the limit rests, and is not inherited */
} Allowance;

/* Everybody waits, and time passes: counting begins anew. */
void limit_time_passes(void);

/* Around each resume of `co`: what it uses is counted, and allocations are watched. */
void push_allowance_enter(lua_State *L, Allowance *allowance, lua_State *co);
void push_allowance_leave(lua_State *L, Allowance *allowance);

/* Before the end of what the script does in this thread. */
void push_allowance_rest(lua_State *L, Allowance *allowance);
void push_allowance_release(lua_State *L, Allowance *allowance);

/* For a task with the thread `co` that another one spawns. */
Allowance push_allowance_inherit(lua_State *co, const Allowance *parent);

/* Holds the running task to the table at index 1: instructions, seconds, memory, text (bytes), strings (a
 * table); each may be absent. */
void check_allowance_confine(lua_State *L, Allowance *allowance, lua_State *co);

/* Has the limit rest, or not any more; returns what was before. What was used is not forgotten, unless the
 * task waits. */
bool push_allowance_exempt(lua_State *L, Allowance *allowance, bool exempt);

/* Why the limit was passed, with the place; NULL when it was not. A task that failed for want of memory
 * passed it. */
const char *limit_verdict(Limit *limit, bool failed);

/* Whatever a script made of it: that it passed its limit is why it failed. Pushes the error. */
void push_verdict_as_error(lua_State *L, const char *verdict);

/* Registers the Lua functions of limits in the table on top of the stack. */
void push_limit_functions(lua_State *L);

#endif
