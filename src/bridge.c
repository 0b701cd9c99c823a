/* bridge.c -- Joins a channel to a socket, for libraries that insist on a file descriptor. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "channel.h"
#include "loop.h"
#include "memory.h"

/* Lives until both sides are gone. */
typedef struct Bridge {
  uv_pipe_t *pipe; /* our end of the socket pair */
  Channel *channel;
} Bridge;

typedef struct BridgeWrite {
  uv_write_t request;
  char data[];
} BridgeWrite;

static void bridge_close(Bridge *b) {
  if (b->channel) b->channel->class->close(b->channel);
  b->pipe->data = NULL;
  handle_close(b->pipe);
  free(b);
}

static void on_bridge_written(uv_write_t *request, int status) {
  (void)status;
  free(request);
}

static void on_channel_output(void *owner, int stream, const char *data, size_t length) {
  Bridge *b = owner;
  (void)stream;
  BridgeWrite *w = memory_new(sizeof *w + length);
  memcpy(w->data, data, length);
  uv_buf_t buf = uv_buf_init(w->data, (unsigned)length);
  if (uv_write(&w->request, (uv_stream_t *)b->pipe, &buf, 1, on_bridge_written) != 0) free(w);
}

static void on_channel_end(void *owner, int status, int signal) {
  (void)status;
  (void)signal;
  bridge_close(owner);
}

static void on_channel_fail(void *owner, const char *code, const char *message) {
  (void)code;
  (void)message;
  bridge_close(owner);
}

static void on_channel_drain(void *owner) {
  (void)owner;
}

static const ChannelEvents bridge_events = {NULL, on_channel_output, on_channel_drain, on_channel_end,
                                            on_channel_fail};

static void on_pipe_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  static char shared[65536];
  (void)handle;
  (void)suggested;
  *buf = uv_buf_init(shared, sizeof shared);
}

static void on_pipe_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buf) {
  Bridge *b = stream->data;
  if (!b || length == 0) return;
  if (length < 0) bridge_close(b);
  else b->channel->class->write(b->channel, buf->base, (size_t)length);
}

int channel_bridge(Link *l, const char *address, int port) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  Bridge *b = memory_new(sizeof *b);
  b->pipe = handle_new(sizeof *b->pipe);
  uv_pipe_init(loop_get(), b->pipe, 0);
  uv_pipe_open(b->pipe, ends[0]);
  uv_unref((uv_handle_t *)b->pipe);
  b->pipe->data = b;
  b->channel = l->class->dial(l, address, port, &bridge_events, b);
  uv_read_start((uv_stream_t *)b->pipe, on_pipe_alloc, on_pipe_read);
  return ends[1];
}
