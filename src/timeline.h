/* timeline.h -- Virtual time: the deadlines of tasks in a heap, for a simulator in which nobody really waits.
 */
#ifndef DEPLOYRT_TIMELINE_H
#define DEPLOYRT_TIMELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One wait with an end. Lives in whatever waits; zeroed means that it does not. */
typedef struct Deadline {
  double at;       /* virtual seconds */
  uint64_t number; /* the first to come goes first when two are due at the same moment */
  size_t place;    /* in the heap, from 1; 0: not there */
  void *owner;
} Deadline;

/* Begins virtual time at 0, with the wall clock at `wall`; while it is on, only sets the wall clock. */
void timeline_begin(double wall);
/* Ends it; false when somebody still waits. */
bool timeline_end(void);
bool timeline_on(void);

/* Seconds since it began, and since the epoch. */
double timeline_now(void);
double timeline_wall(void);

/* Adds a deadline `timeout` seconds from now; removing one that is not there does nothing. */
void timeline_add(Deadline *d, double timeout);
void timeline_remove(Deadline *d);

/* Moves the time on to the next deadline and takes it out; NULL when nobody waits. */
Deadline *timeline_next(void);

#endif
