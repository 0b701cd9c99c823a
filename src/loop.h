/* loop.h -- The one libuv loop of the process, its clock and its terminal-free odds and ends. */
#ifndef DEPLOYRT_LOOP_H
#define DEPLOYRT_LOOP_H

#include <uv.h>

/* The loop that every handle of the process belongs to. */
uv_loop_t *loop_get(void);

/* Runs the callbacks of what was closed, and frees the loop; loop_get() makes another. */
void loop_shutdown(void);

/* Monotonic seconds, as the loop last saw them; loop_update() reads the clock afresh. */
double loop_now(void);
void loop_update(void);

/* For a timer. More than can be counted never comes. */
uint64_t loop_milliseconds(double seconds);

/* Allocates and zeroes a handle; freed in its close callback by handle_close(). */
void *handle_new(size_t size);

/* Closes a malloc'ed handle and frees it once libuv lets go; a NULL or closing handle is ignored. */
void handle_close(void *handle);

#endif
