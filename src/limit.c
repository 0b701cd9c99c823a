/* limit.c -- Holds scripts to instructions, processor time and memory, past whatever they catch. */
#include "limit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory.h"

#define HOOK_INTERVAL 250   /* instructions; also what a new coroutine costs */
#define BYTES_A_STEP 16     /* bytes allocated that cost as much as an instruction */
#define COLLECTION_COST 6   /* bytes allowed for which a forced collection costs as much as an instruction */
#define LEAST_ROOM 8        /* a part of so many is to be free after one, or the next follows at once */
#define RESERVE (256 << 10) /* for the error, once the memory is used up */
#define SMALL (4 << 10) /* bytes; a script that is condemned runs no more, and its tasks need such to end */

struct Limit {
  int references;
  double instructions, seconds; /* 0: no limit */
  size_t memory, text;
  int strings;                /* registry slot of what `("").name` finds meanwhile */
  unsigned long moment;       /* in which it counts */
  double spent;               /* instructions, since that moment */
  double busy, cpu;           /* seconds on the monotonic clock, and then of processor time */
  double busy_from, cpu_from; /* when the script began to run; 0: processor time is not asked for yet */
  size_t heap, top;           /* bytes now, and those not to be passed */
  size_t refused; /* the request before, if it was refused: the collector is asked, and then it comes again */
  lua_State *thread;  /* the script's thread that runs, for the hook */
  lua_Alloc allocate; /* the state's own allocator, while this one stands before it */
  void *allocate_data;
  int strings_before; /* registry slot */
  const char *reason; /* of the verdict, before a place was known */
  bool settled;       /* the verdict has its place */
  char verdict[400];
};

static Limit *current;
static unsigned long moment; /* one more whenever time passes */

void limit_time_passes(void) {
  moment++;
}

static double clock_seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void on_count(lua_State *L, lua_Debug *ar);

static void settle_verdict(Limit *limit, const char *file, int line) {
  int at = 0;
  if (limit->settled) return;
  if (file) at = snprintf(limit->verdict, sizeof limit->verdict, "%.200s:%d: ", file, line);
  char *text = limit->verdict + at;
  size_t room = sizeof limit->verdict - (size_t)at;
  if (strcmp(limit->reason, "instructions") == 0) {
    snprintf(text, room, "ran %d million instructions without waiting: is this an endless loop?",
             (int)(limit->instructions / 1e6));
  } else if (strcmp(limit->reason, "seconds") == 0) {
    snprintf(text, room, "ran for %g s without waiting: is this an endless loop?", limit->seconds);
  } else if (strcmp(limit->reason, "text") == 0) {
    snprintf(text, room, "made a text of more than %d MB, and may not", (int)(limit->text >> 20));
  } else {
    snprintf(text, room, "used more than %d MB of memory, and may not", (int)(limit->memory >> 20));
  }
  limit->settled = file != NULL;
}

/* Where the script is: the nearest function of its own. Allocates nothing. */
static void push_place_of_verdict(lua_State *L, Limit *limit) {
  lua_Debug ar;
  for (int level = 0; !limit->settled && level < 20 && lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0 && !strstr(ar.source, "lua/deployrt/"))
      settle_verdict(limit, ar.short_src, ar.currentline);
  }
}

/* From here on every instruction of the thread raises, and so does every one of its callers once it is back
 * there. */
static void condemn(Limit *limit, const char *reason) {
  if (limit->reason) return;
  limit->reason = reason;
  limit->top += RESERVE;
  if (!limit->thread) return;
  push_place_of_verdict(limit->thread, limit);
  lua_sethook(limit->thread, on_count, LUA_MASKCOUNT, 1);
}

static void spend(Limit *limit, double steps) {
  limit->spent += steps;
  if (limit->instructions > 0 && limit->spent > limit->instructions) condemn(limit, "instructions");
}

/* Lua repeats a request that was refused before it does anything else. What C asks for by itself, as
 * luaL_Buffer does, is not repeated but raised: once something else happens, that was its end, though
 * somebody caught it. */
static void judge_refusal(Limit *limit) {
  if (limit->refused) condemn(limit, "memory");
}

/* Asking for processor time is a call of the kernel: it is counted only once half of the time is over. */
static void look_at_clock(Limit *limit) {
  if (limit->seconds <= 0) return;
  double busy = limit->busy + clock_seconds(CLOCK_MONOTONIC) - limit->busy_from;
  if (busy < limit->seconds / 2) return;
  double now = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
  if (limit->cpu_from <= 0) limit->cpu_from = now;
  if (limit->cpu + now - limit->cpu_from >= limit->seconds / 2) condemn(limit, "seconds");
}

/* Sums up what was used since the script began to run. */
static void stop_clock(Limit *limit) {
  if (limit->seconds <= 0) return;
  limit->busy += clock_seconds(CLOCK_MONOTONIC) - limit->busy_from;
  if (limit->cpu_from > 0) limit->cpu += clock_seconds(CLOCK_THREAD_CPUTIME_ID) - limit->cpu_from;
  limit->cpu_from = 0;
}

const char *limit_verdict(Limit *limit, bool failed) {
  if (limit && !limit->reason && failed && limit->refused) limit->reason = "memory";
  if (!limit || !limit->reason) return NULL;
  if (!limit->verdict[0]) settle_verdict(limit, NULL, 0);
  return limit->verdict;
}

void push_verdict_as_error(lua_State *L, const char *verdict) {
  lua_createtable(L, 0, 2);
  lua_pushliteral(L, "limit");
  lua_setfield(L, -2, "code");
  lua_pushstring(L, verdict);
  lua_setfield(L, -2, "message");
}

static int push_verdict(lua_State *L, Limit *limit) {
  if (lua_gethookcount(L) != 1)
    lua_sethook(L, on_count, LUA_MASKCOUNT, 1); /* so that a pcall cannot carry on */
  push_verdict_as_error(
      L, limit_verdict(limit, true)); /* no text: a traceback of each of its tasks takes long */
  return lua_error(L);
}

static void on_count(lua_State *L, lua_Debug *ar) {
  (void)ar;
  Limit *limit = current;
  if (!limit) return;
  if (!limit->reason) {
    limit->thread = L;
    judge_refusal(limit);
    spend(limit, lua_gethookcount(L));
    look_at_clock(limit);
  }
  if (limit->reason) push_verdict(L, limit);
}

static void push_limit_hook(lua_State *co, Limit *limit) {
  if (limit) lua_sethook(co, on_count, LUA_MASKCOUNT, HOOK_INTERVAL);
  else lua_sethook(co, NULL, 0, 0);
}

/* After a forced collection: what fills the memory is no garbage. */
static void judge_room(Limit *limit) {
  if (limit->heap + limit->memory / LEAST_ROOM > limit->top) condemn(limit, "memory");
}

/*
 * Whether a request for more may be granted. Lua asks again after a collection that a refusal makes it run;
 * one that is refused twice ends the script, and so does a text that is too long.
 */
static bool grants(Limit *limit, bool is_text, size_t size, size_t more) {
  if (is_text && limit->text && size > limit->text) {
    condemn(limit, "text");
    return false;
  }
  if (limit->refused != more) judge_refusal(limit);
  if (!limit->memory || limit->heap + more <= limit->top || (limit->reason && more <= SMALL)) {
    spend(limit, (double)more / BYTES_A_STEP);
    if (limit->refused == more) judge_room(limit);
    limit->refused = 0;
    return true;
  }
  if (limit->refused == more || more > limit->memory) condemn(limit, "memory");
  else spend(limit, (double)limit->memory / COLLECTION_COST);
  limit->refused = more;
  return false;
}

static void *allocate(void *data, void *block, size_t old_size, size_t size) {
  Limit *limit = data;
  size_t had = block ? old_size : 0;
  if (size > had && !grants(limit, !block && old_size == LUA_TSTRING, size, size - had)) return NULL;
  void *result = limit->allocate(limit->allocate_data, block, old_size, size);
  if (result || size == 0) limit->heap = limit->heap + size > had ? limit->heap + size - had : 0;
  return result;
}

/* Exchanges what methods of strings are found in. */
static void push_string_methods(lua_State *L, int slot) {
  lua_pushliteral(L, "");
  lua_getmetatable(L, -1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, slot);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 2);
}

/* Counting begins anew once time has passed: who waits for nothing has not waited. */
static void limit_refresh(Limit *limit) {
  if (!limit || limit->moment == moment) return;
  limit->moment = moment;
  limit->spent = limit->busy = limit->cpu = 0;
}

static size_t push_heap_size(lua_State *L) {
  return (size_t)lua_gc(L, LUA_GCCOUNT) * 1024 + (size_t)lua_gc(L, LUA_GCCOUNTB);
}

/* What the runtime keeps for the script counts, too, once it is no garbage. */
static void push_heap_check(lua_State *L, Limit *limit) {
  if (!limit->memory || limit->reason || limit->heap <= limit->top) return;
  lua_gc(L, LUA_GCCOLLECT);
  limit->heap = push_heap_size(L);
  judge_room(limit);
  spend(limit, (double)limit->memory / COLLECTION_COST);
}

static void push_limit_enter(lua_State *L, Limit *limit, lua_State *co) {
  if (!limit) return;
  if (limit->strings != LUA_NOREF) push_string_methods(L, limit->strings);
  limit->heap = push_heap_size(L);
  if (!limit->top) limit->top = limit->heap + limit->memory;
  limit->thread = co;
  push_heap_check(L, limit);
  limit->busy_from = limit->seconds > 0 ? clock_seconds(CLOCK_MONOTONIC) : 0;
  limit->allocate = lua_getallocf(L, &limit->allocate_data);
  current = limit;
  lua_setallocf(L, allocate, limit);
  if (limit->reason) lua_sethook(co, on_count, LUA_MASKCOUNT, 1);
}

static void push_limit_leave(lua_State *L, Limit *limit) {
  if (!limit || current != limit) return;
  lua_setallocf(L, limit->allocate, limit->allocate_data);
  stop_clock(limit);
  current = NULL;
  limit->thread = NULL;
  if (limit->strings != LUA_NOREF) push_string_methods(L, limit->strings_before);
}

static double check_amount(lua_State *L, int index, const char *name) {
  lua_getfield(L, index, name);
  double amount = luaL_optnumber(L, -1, 0);
  lua_pop(L, 1);
  return amount > 0 ? amount : 0;
}

static Limit *check_limit(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  double instructions = check_amount(L, index, "instructions"), seconds = check_amount(L, index, "seconds");
  double memory = check_amount(L, index, "memory"), text = check_amount(L, index, "text");
  Limit *limit = memory_new(sizeof *limit);
  *limit = (Limit){.references = 1,
                   .instructions = instructions,
                   .seconds = seconds,
                   .memory = (size_t)memory,
                   .text = (size_t)text,
                   .moment = moment,
                   .strings = LUA_NOREF,
                   .strings_before = LUA_NOREF};
  if (lua_getfield(L, index, "strings") == LUA_TTABLE) {
    limit->strings = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_getfield(L, -1, "__index");
    limit->strings_before = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pop(L, 2);
  } else {
    lua_pop(L, 1);
  }
  return limit;
}

static Limit *limit_hold(Limit *limit) {
  if (limit) limit->references++;
  return limit;
}

static void push_limit_release(lua_State *L, Limit *limit) {
  if (!limit || --limit->references > 0) return;
  luaL_unref(L, LUA_REGISTRYINDEX, limit->strings);
  luaL_unref(L, LUA_REGISTRYINDEX, limit->strings_before);
  free(limit);
}

void push_allowance_enter(lua_State *L, Allowance *allowance, lua_State *co) {
  limit_refresh(allowance->limit);
  if (!allowance->exempt) push_limit_enter(L, allowance->limit, co);
}

void push_allowance_leave(lua_State *L, Allowance *allowance) {
  push_limit_leave(L, allowance->limit);
}

void push_allowance_rest(lua_State *L, Allowance *allowance) {
  push_limit_leave(L, allowance->limit);
  push_limit_hook(L, NULL);
}

void push_allowance_release(lua_State *L, Allowance *allowance) {
  push_limit_release(L, allowance->limit);
  allowance->limit = NULL;
}

Allowance push_allowance_inherit(lua_State *co, const Allowance *parent) {
  Allowance child = {.limit = parent->exempt ? NULL : limit_hold(parent->limit)};
  push_limit_hook(co, child.limit);
  return child;
}

bool push_allowance_exempt(lua_State *L, Allowance *allowance, bool exempt) {
  bool before = allowance->exempt;
  if (exempt && !before) push_allowance_rest(L, allowance);
  allowance->exempt = exempt;
  if (before && !exempt) {
    push_limit_hook(L, allowance->limit);
    push_limit_enter(L, allowance->limit, L);
  }
  return before;
}

void check_allowance_confine(lua_State *L, Allowance *allowance, lua_State *co) {
  Limit *limit = check_limit(L, 1), *before = allowance->limit;
  push_limit_leave(L, before);
  allowance->limit = limit;
  push_limit_hook(co, limit);
  push_limit_enter(L, limit, co);
  push_limit_release(L, before);
}

/* confined(limits, function, ...): true and the function's results, or false and why. It cannot wait. */
static int l_confined(lua_State *L) {
  luaL_checktype(L, 2, LUA_TFUNCTION);
  Limit *limit = check_limit(L, 1), *before = current;
  push_limit_leave(L, before);
  push_limit_hook(L, limit);
  push_limit_enter(L, limit, L);
  bool failed = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 0) != LUA_OK;
  push_limit_leave(L, limit);
  push_limit_hook(L, before);
  push_limit_enter(L, before, L);
  const char *verdict = limit_verdict(limit, failed);
  if (verdict) lua_settop(L, 1);
  if (verdict) push_verdict_as_error(L, verdict);
  push_limit_release(L, limit);
  lua_pushboolean(L, !failed && !verdict);
  lua_replace(L, 1);
  return lua_gettop(L);
}

/* charge(steps, thread): counts work that C does for the script; with a coroutine that is about to run, notes
 * it. */
static int l_charge(lua_State *L) {
  lua_Number steps = luaL_optnumber(L, 1, 0);
  luaL_argcheck(L, steps >= 0, 1, "an amount of work is at least 0");
  Limit *limit = current;
  if (!limit) return 0;
  lua_State *next = lua_tothread(L, 2);
  limit->thread = L;
  judge_refusal(limit);
  spend(limit, steps);
  look_at_clock(limit);
  if (limit->reason) return push_verdict(L, limit);
  if (next) {
    limit->thread = next;
    push_limit_hook(next, limit);
  }
  return 0;
}

void push_limit_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"charge", l_charge}, {"confined", l_confined}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
