/* http_relay.c -- Lets libcurl use a connection that exists already. */
#include "http_relay.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "loop.h"
#include "memory.h"

struct Relay {
  uv_pipe_t *listener;
  uv_pipe_t *given;
  uv_pipe_t *taken; /* curl's connection to the listener */
  char name[sizeof((struct sockaddr_un *)0)->sun_path];
};

typedef struct RelayWrite {
  uv_write_t request;
  char data[];
} RelayWrite;

static uv_pipe_t *pipe_new(Relay *r) {
  uv_pipe_t *pipe = handle_new(sizeof *pipe);
  uv_pipe_init(loop_get(), pipe, 0);
  pipe->data = r;
  return pipe;
}

static void on_written(uv_write_t *request, int status) {
  (void)status;
  free(request);
}

static void on_shut(uv_shutdown_t *request, int status) {
  (void)status;
  free(request);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  static char shared[65536];
  (void)handle;
  (void)suggested;
  *buf = uv_buf_init(shared, sizeof shared);
}

static void relay_pass(uv_pipe_t *to, const char *data, size_t length) {
  RelayWrite *w = memory_new(sizeof *w + length);
  memcpy(w->data, data, length);
  uv_buf_t buf = uv_buf_init(w->data, (unsigned)length);
  if (uv_write(&w->request, (uv_stream_t *)to, &buf, 1, on_written) != 0) free(w);
}

/* The other side learns of the end once all that came before it has left. */
static void relay_end(uv_pipe_t *to) {
  uv_shutdown_t *request = memory_new(sizeof *request);
  if (uv_shutdown(request, (uv_stream_t *)to, on_shut) != 0) free(request);
}

static void on_read(uv_stream_t *from, ssize_t length, const uv_buf_t *buf) {
  Relay *r = from->data;
  uv_pipe_t *to = from == (uv_stream_t *)r->given ? r->taken : r->given;
  if (length > 0) relay_pass(to, buf->base, (size_t)length);
  if (length >= 0) return;
  uv_read_stop(from);
  relay_end(to);
}

static bool is_own(uv_pipe_t *pipe) {
  uv_os_fd_t fd;
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (uv_fileno((uv_handle_t *)pipe, &fd) != 0) return false;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == getpid();
}

static void on_connection(uv_stream_t *listener, int status) {
  Relay *r = listener->data;
  uv_pipe_t *pipe = pipe_new(r);
  if (status != 0 || uv_accept(listener, (uv_stream_t *)pipe) != 0 || r->taken || !is_own(pipe)) {
    handle_close(pipe);
    return;
  }
  r->taken = pipe;
  uv_read_start((uv_stream_t *)r->given, on_alloc, on_read);
  uv_read_start((uv_stream_t *)r->taken, on_alloc, on_read);
}

/* An address of no length has the kernel choose a free abstract name. */
static int listener_bind(char *name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  socklen_t length = sizeof address;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address.sun_family) == 0 &&
      getsockname(fd, (struct sockaddr *)&address, &length) == 0) {
    memcpy(name, address.sun_path + 1, length - offsetof(struct sockaddr_un, sun_path) - 1);
    return fd;
  }
  if (fd >= 0) close(fd);
  return -1;
}

/* A pipe owns its descriptor once it is open. */
static bool pipe_open(uv_pipe_t *pipe, int fd) {
  if (fd >= 0 && uv_pipe_open(pipe, fd) == 0) return true;
  if (fd >= 0) close(fd);
  return false;
}

Relay *relay_open(int fd) {
  Relay *r = memory_new(sizeof *r);
  r->given = pipe_new(r);
  r->listener = pipe_new(r);
  bool given = pipe_open(r->given, fd);
  if (given && pipe_open(r->listener, listener_bind(r->name)) &&
      uv_listen((uv_stream_t *)r->listener, 4, on_connection) == 0) {
    return r;
  }
  relay_close(r);
  return NULL;
}

const char *relay_name(const Relay *r) {
  return r->name;
}

void relay_close(Relay *r) {
  if (!r) return;
  handle_close(r->listener);
  handle_close(r->given);
  handle_close(r->taken);
  free(r);
}
