/* loop.c -- The one libuv loop of the process. */
#include "loop.h"

#include <signal.h>
#include <stdlib.h>

#include "memory.h"

static uv_loop_t *the_loop;

uv_loop_t *loop_get(void) {
  if (!the_loop) {
    the_loop = memory_new(sizeof *the_loop);
    if (uv_loop_init(the_loop) != 0) abort();
    signal(SIGPIPE, SIG_IGN); /* a peer that left is an error of a write, not our end */
  }
  return the_loop;
}

/* What a thread still works on, such as a name being resolved, is waited for only so long. */
void loop_shutdown(void) {
  if (!the_loop) return;
  for (int i = 0; i < 100 && uv_run(the_loop, UV_RUN_NOWAIT); i++) uv_sleep(1);
  uv_run(the_loop, UV_RUN_NOWAIT);
  if (uv_loop_close(the_loop) != 0) return; /* in use: a later state goes on with it */
  free(the_loop);
  the_loop = NULL;
}

double loop_now(void) {
  return (double)uv_hrtime() / 1e9;
}

void loop_update(void) {
  uv_update_time(loop_get());
}

uint64_t loop_milliseconds(double seconds) {
  double milliseconds = seconds * 1000 + 0.999;
  return milliseconds < (double)INT64_MAX ? (uint64_t)milliseconds : UINT64_MAX;
}

void *handle_new(size_t size) {
  return memory_new(size);
}

static void on_handle_closed(uv_handle_t *handle) {
  free(handle);
}

void handle_close(void *handle) {
  if (handle && !uv_is_closing(handle)) uv_close(handle, on_handle_closed);
}
