/* timeline.c -- Virtual time: a heap of deadlines; time goes on only when everybody waits. */
#include "timeline.h"

#include "memory.h"

static bool on;
static double now, wall_offset;
static uint64_t numbers;
static Deadline **heap; /* from 1 */
static size_t count, capacity;

void timeline_begin(double wall) {
  if (!on) {
    now = 0;
    numbers = 0;
  }
  on = true;
  wall_offset = wall - now;
}

bool timeline_end(void) {
  if (count > 0) return false;
  on = false;
  return true;
}

bool timeline_on(void) {
  return on;
}

double timeline_now(void) {
  return now;
}

double timeline_wall(void) {
  return now + wall_offset;
}

static bool is_earlier(const Deadline *a, const Deadline *b) {
  return a->at < b->at || (a->at == b->at && a->number < b->number);
}

static void put(Deadline *d, size_t place) {
  heap[place] = d;
  d->place = place;
}

static void rise(Deadline *d, size_t place) {
  for (; place > 1 && is_earlier(d, heap[place / 2]); place /= 2) put(heap[place / 2], place);
  put(d, place);
}

static void sink(Deadline *d, size_t place) {
  for (size_t child; (child = 2 * place) <= count; place = child) {
    if (child < count && is_earlier(heap[child + 1], heap[child])) child++;
    if (!is_earlier(heap[child], d)) break;
    put(heap[child], place);
  }
  put(d, place);
}

void timeline_add(Deadline *d, double timeout) {
  if (count + 1 >= capacity) {
    capacity = capacity ? capacity * 2 : 64;
    heap = memory_resize(heap, capacity * sizeof *heap); /* of pointers. NOLINT(bugprone-sizeof-expression) */
  }
  d->at = now + (timeout > 0 ? timeout : 0);
  d->number = ++numbers;
  rise(d, ++count);
}

void timeline_remove(Deadline *d) {
  size_t place = d->place;
  if (place == 0) return;
  d->place = 0;
  Deadline *last = heap[count--];
  if (last == d) return;
  if (place > 1 && is_earlier(last, heap[place / 2])) rise(last, place);
  else sink(last, place);
}

Deadline *timeline_next(void) {
  if (count == 0) return NULL;
  Deadline *first = heap[1];
  timeline_remove(first);
  if (first->at > now) now = first->at;
  return first;
}
