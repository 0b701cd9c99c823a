/* local.c -- Links made of child processes: this machine's shell, or the ssh command. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <uv.h>

#include "channel.h"
#include "loop.h"
#include "memory.h"

/* A child with three pipes, or a socket to a local address. Freed when libuv has let go of all handles. */
typedef struct Child {
  Channel channel;
  uv_process_t process;
  uv_pipe_t pipes[3];
  union {
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
  } socket;
  uv_connect_t connect;
  uv_getaddrinfo_t resolving;
  struct addrinfo *addresses, *next_address; /* of a name; they are tried in turn */
  uv_shutdown_t shutdown;
  struct Write *early; /* what was written before the connection stood */
  bool is_socket, open;
  bool spawned, closed, told, ssh;
  int holders; /* open handles, and the owner until it closes the channel */
  int open_outputs;
  bool exited;
  int status, signal;
  size_t pending;
  char error[512]; /* the end of what the ssh command said */
  size_t error_length;
} Child;

typedef struct LocalLink {
  Link link;
  char **ssh; /* NULL: a shell of this machine */
} LocalLink;

typedef struct Write {
  uv_write_t request;
  Child *child;
  struct Write *next;
  size_t length;
  char data[];
} Write;

static Write *take_early(Child *c) {
  Write *w = c->early;
  c->early = w->next;
  return w;
}

static void child_drop(Child *c) {
  if (--c->holders > 0) return;
  while (c->early) free(take_early(c));
  uv_freeaddrinfo(c->addresses);
  free(c);
}

static void on_child_closed(uv_handle_t *handle) {
  child_drop(handle->data);
}

static void close_one(uv_handle_t *handle) {
  if (!uv_is_closing(handle)) uv_close(handle, on_child_closed);
}

static void child_fail(Child *c, const char *code, const char *message) {
  if (c->told) return;
  c->told = true;
  if (!c->closed) c->channel.events->on_fail(c->channel.owner, code, message);
}

/* ssh ends with 255 both when it fails itself and when the command does; its own messages are known. */
static bool is_ssh_failure(const char *error) {
  static const char *const known[] = {"ssh: ",
                                      "Permission denied",
                                      "Host key verification",
                                      "kex_exchange",
                                      "Connection ",
                                      "client_loop: ",
                                      "Could not resolve",
                                      "Load key",
                                      "Bad configuration",
                                      "mux_client",
                                      "No ED25519",
                                      "Timeout, server"};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if (strstr(error, known[i])) return true;
  }
  return error[0] == '\0';
}

static void child_report(Child *c) {
  if (c->told || !c->exited || c->open_outputs > 0) return;
  while (c->error_length && c->error[c->error_length - 1] == '\n') c->error[--c->error_length] = '\0';
  if (c->ssh && c->status == 255 && is_ssh_failure(c->error)) {
    child_fail(c, "unreachable", c->error);
    return;
  }
  c->told = true;
  if (!c->closed) c->channel.events->on_exit(c->channel.owner, c->status, c->signal);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  static char shared[262144]; /* consumed before the next read */
  (void)handle;
  (void)suggested;
  *buf = uv_buf_init(shared, sizeof shared);
}

static void keep_ssh_error(Child *c, const char *data, size_t length) {
  for (size_t i = 0; i < length && c->error_length < sizeof c->error - 1; i++) {
    if (data[i] != '\r') c->error[c->error_length++] = data[i];
  }
}

static void child_take(Child *c, int number, const char *data, size_t length) {
  if (c->ssh && number == 2) keep_ssh_error(c, data, length);
  if (!c->closed) c->channel.events->on_output(c->channel.owner, number, data, length);
}

/* Of an output that others may hold open still, only what is there already is the command's. */
static void take_rest(Child *c, int number) {
  uv_stream_t *output = (uv_stream_t *)&c->pipes[number];
  uv_os_fd_t fd;
  uv_buf_t buf;
  int left = 0;
  if (!uv_is_active((uv_handle_t *)output) || uv_fileno((uv_handle_t *)output, &fd) != 0) return;
  ioctl(fd, FIONREAD, &left);
  on_alloc((uv_handle_t *)output, 0, &buf);
  for (ssize_t n; left > 0 && !c->closed; left -= (int)n) {
    n = read(fd, buf.base, (size_t)left < buf.len ? (size_t)left : buf.len);
    if (n <= 0) break;
    child_take(c, number, buf.base, (size_t)n);
  }
  if (c->closed) return;
  close_one((uv_handle_t *)output);
  c->open_outputs--;
}

/* Output that is held back comes to its end by itself: who holds it back reads all of it. */
static void on_process_exit(uv_process_t *process, int64_t status, int signal) {
  Child *c = process->data;
  c->exited = true;
  c->status = (int)status;
  c->signal = signal;
  close_one((uv_handle_t *)process);
  for (int i = 1; i < 3 && !c->closed; i++) take_rest(c, i);
  child_report(c);
}

static void on_output(uv_stream_t *stream, ssize_t length, const uv_buf_t *buf) {
  Child *c = stream->data;
  if (length > 0) {
    child_take(c, stream == (uv_stream_t *)&c->pipes[2] ? 2 : 1, buf->base, (size_t)length);
    return;
  }
  if (length == 0) return;
  uv_read_stop(stream);
  if (c->is_socket && length != UV_EOF) {
    child_fail(c, "lost", uv_strerror((int)length));
    return;
  }
  c->open_outputs--;
  if (c->is_socket) c->exited = true;
  else close_one((uv_handle_t *)stream);
  child_report(c);
}

static uv_stream_t *child_input(Child *c) {
  return c->is_socket ? &c->socket.stream : (uv_stream_t *)&c->pipes[0];
}

static void on_written(uv_write_t *request, int status) {
  Write *w = (Write *)request;
  Child *c = w->child;
  (void)status; /* a reader that left shows in its exit, or as end of file */
  c->pending -= w->length;
  free(w);
  if (c->pending == 0 && !c->closed && !c->told) c->channel.events->on_drain(c->channel.owner);
}

static void write_now(Child *c, Write *w) {
  uv_buf_t buf = uv_buf_init(w->data, (unsigned)w->length);
  if (uv_write(&w->request, child_input(c), &buf, 1, on_written) == 0) return;
  c->pending -= w->length;
  free(w);
}

static void child_write(Channel *channel, const char *data, size_t length) {
  Child *c = (Child *)channel;
  if (c->told || c->exited) return;
  Write *w = memory_new(sizeof *w + length), **last = &c->early;
  w->child = c;
  w->length = length;
  memcpy(w->data, data, length);
  c->pending += length;
  if (!c->is_socket || c->open) {
    write_now(c, w);
    return;
  }
  while (*last) last = &(*last)->next;
  *last = w;
}

static void on_shutdown(uv_shutdown_t *request, int status) {
  Child *c = request->data;
  (void)status;
  if (!c->is_socket) close_one((uv_handle_t *)&c->pipes[0]);
}

static void child_end(Channel *channel) {
  Child *c = (Child *)channel;
  c->shutdown.data = c;
  if (uv_is_closing((uv_handle_t *)child_input(c))) return;
  if (uv_shutdown(&c->shutdown, child_input(c), on_shutdown) != 0 && !c->is_socket) {
    close_one((uv_handle_t *)&c->pipes[0]);
  }
}

static size_t child_pending(const Channel *channel) {
  return ((const Child *)channel)->pending;
}

static void child_pause(Channel *channel, bool paused) {
  Child *c = (Child *)channel;
  uv_stream_t *output = c->is_socket ? &c->socket.stream : (uv_stream_t *)&c->pipes[1];
  if (uv_is_closing((uv_handle_t *)output)) return;
  if (paused) uv_read_stop(output);
  else uv_read_start(output, on_alloc, on_output);
}

static void child_close(Channel *channel) {
  Child *c = (Child *)channel;
  c->closed = true;
  if (c->is_socket) {
    uv_cancel((uv_req_t *)&c->resolving);
    close_one((uv_handle_t *)&c->socket.stream);
  } else {
    if (c->spawned && !c->exited) kill(-c->process.pid, SIGHUP);
    for (int i = 0; i < 3; i++) close_one((uv_handle_t *)&c->pipes[i]);
  }
  child_drop(c);
}

static const ChannelClass child_class = {child_write, child_end, child_pending, child_pause, child_close};

static Child *child_new(const ChannelEvents *events, void *owner) {
  Child *c = memory_new(sizeof *c);
  c->channel = (Channel){&child_class, events, owner};
  c->holders = 1;
  return c;
}

/* A failure to start is told from the loop, as every other, so that the caller has its channel by then. */
typedef struct Late {
  uv_idle_t idle;
  Child *child;
  char message[256];
} Late;

static void on_late(uv_idle_t *idle) {
  Late *late = (Late *)idle;
  Child *c = late->child;
  uv_idle_stop(idle);
  child_fail(c, c->is_socket ? "refused" : "spawn", late->message);
  handle_close(idle);
  child_drop(c);
}

static void fail_late(Child *c, const char *what, int code) {
  Late *late = handle_new(sizeof *late);
  late->child = c;
  c->holders++;
  snprintf(late->message, sizeof late->message, "%s: %s", what, uv_strerror(code));
  uv_idle_init(loop_get(), &late->idle);
  uv_idle_start(&late->idle, on_late);
}

/* What our caller left open, such as the lock of flock(1), is not for children: some outlive us. */
static void keep_descriptors(void) {
#ifdef SYS_close_range
  const unsigned cloexec = 1U << 2; /* CLOSE_RANGE_CLOEXEC, which older headers lack; Linux 5.11 */
  if (syscall(SYS_close_range, 3U, ~0U, cloexec) == 0) return;
#endif
  DIR *directory = opendir("/proc/self/fd");
  if (!directory) return;
  for (const struct dirent *each; (each = readdir(directory));) {
    int fd = atoi(each->d_name);
    if (fd > 2) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  closedir(directory);
}

static void child_spawn(Child *c, char **argv) {
  uv_stdio_container_t stdio[3];
  for (int i = 0; i < 3; i++) {
    uv_pipe_init(loop_get(), &c->pipes[i], 0);
    c->pipes[i].data = c;
    c->holders++;
    stdio[i].flags = UV_CREATE_PIPE | (i == 0 ? UV_READABLE_PIPE : UV_WRITABLE_PIPE);
    stdio[i].data.stream = (uv_stream_t *)&c->pipes[i];
  }
  uv_process_options_t options = {.exit_cb = on_process_exit,
                                  .file = argv[0],
                                  .args = argv,
                                  .stdio = stdio,
                                  .stdio_count = 3,
                                  .flags =
                                      UV_PROCESS_DETACHED}; /* a terminal's ^C is the controller's business */
  c->process.data = c;
  c->holders++;
  keep_descriptors();
  int code = uv_spawn(loop_get(), &c->process, &options);
  if (code != 0) {
    close_one((uv_handle_t *)&c->process);
    fail_late(c, argv[0], code);
    return;
  }
  c->spawned = true;
  c->open_outputs = 2;
  for (int i = 1; i < 3; i++) uv_read_start((uv_stream_t *)&c->pipes[i], on_alloc, on_output);
}

static void open_tcp(Child *c) {
  uv_tcp_init(loop_get(), &c->socket.tcp);
  c->socket.stream.data = c;
  uv_tcp_nodelay(&c->socket.tcp, 1);
}

static void connect_failed(Child *c, int status);

static void on_connected(uv_connect_t *request, int status) {
  Child *c = request->data;
  if (c->closed) return;
  if (status != 0) {
    connect_failed(c, status);
    return;
  }
  c->open = true;
  c->open_outputs = 1;
  while (c->early) write_now(c, take_early(c));
  if (c->channel.events->on_open) c->channel.events->on_open(c->channel.owner);
  if (!c->closed) uv_read_start(&c->socket.stream, on_alloc, on_output);
}

static void connect_next(Child *c) {
  const struct sockaddr *where = c->next_address->ai_addr;
  c->next_address = c->next_address->ai_next;
  int code = uv_tcp_connect(&c->connect, &c->socket.tcp, where, on_connected);
  if (code != 0) connect_failed(c, code);
}

/* A socket that failed to connect is of no use for another address. */
static void on_given_up(uv_handle_t *handle) {
  Child *c = handle->data;
  if (c->closed) child_drop(c);
  else open_tcp(c), connect_next(c);
}

static void connect_failed(Child *c, int status) {
  const char *code = status == UV_ENOENT ? "missing" : status == UV_EACCES ? "denied" : "refused";
  if (c->next_address) uv_close((uv_handle_t *)&c->socket.stream, on_given_up);
  else child_fail(c, code, uv_strerror(status));
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *found) {
  Child *c = request->data;
  c->addresses = c->next_address = found;
  if (status != 0) child_fail(c, "unresolved", uv_strerror(status));
  else if (!c->closed) connect_next(c);
  child_drop(c);
}

/* Only names are looked up, for that takes a thread. Returns 0, or the error. */
static int dial_tcp(Child *c, const char *address, int port) {
  struct sockaddr_storage known;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  char service[16];
  open_tcp(c);
  if (uv_ip4_addr(address, port, (struct sockaddr_in *)&known) == 0 ||
      uv_ip6_addr(address, port, (struct sockaddr_in6 *)&known) == 0)
    return uv_tcp_connect(&c->connect, &c->socket.tcp, (struct sockaddr *)&known, on_connected);
  snprintf(service, sizeof service, "%d", port);
  c->resolving.data = c;
  int code = uv_getaddrinfo(loop_get(), &c->resolving, on_resolved, address, service, &hints);
  if (code == 0) c->holders++;
  return code;
}

static Channel *local_dial(Link *l, const char *address, int port, const ChannelEvents *events, void *owner) {
  (void)l;
  Child *c = child_new(events, owner);
  c->is_socket = true;
  c->holders++;
  c->connect.data = c;
  if (is_path(address)) {
    uv_pipe_init(loop_get(), &c->socket.pipe, 0);
    c->socket.stream.data = c;
    uv_pipe_connect(&c->connect, &c->socket.pipe, address, on_connected);
    return &c->channel;
  }
  int code = dial_tcp(c, address, port);
  if (code != 0) fail_late(c, address, code);
  return &c->channel;
}

static Channel *local_exec(Link *l, const char *command, const ChannelEvents *events, void *owner) {
  (void)l;
  Child *c = child_new(events, owner);
  char *argv[] = {"/bin/sh", "-c", (char *)command, NULL};
  child_spawn(c, argv);
  return &c->channel;
}

static void local_close(Link *l) {
  LocalLink *local = (LocalLink *)l;
  for (char **word = local->ssh; word && *word; word++) free(*word);
  free(local->ssh);
  free(l->name);
  free(l);
}

static const LinkClass local_class = {local_exec, local_dial, local_close};

Link *local_open(const char *name) {
  LocalLink *l = memory_new(sizeof *l);
  l->link.class = &local_class;
  l->link.state = LINK_OPEN;
  l->link.name = memory_copy(name);
  return &l->link;
}

static void close_process(uv_handle_t *handle, void *unused) {
  (void)unused;
  if (handle->type == UV_PROCESS) close_one(handle); /* all processes of the loop are children of this file */
}

void local_shutdown(void) {
  uv_walk(loop_get(), close_process, NULL);
}

static Channel *openssh_spawn(LocalLink *l, char **extra, const ChannelEvents *events, void *owner) {
  Child *c = child_new(events, owner);
  int count = 0, more = 0;
  while (l->ssh[count]) count++;
  while (extra[more]) more++;
  char **argv = memory_new((size_t)(count + more + 1) * sizeof *argv);
  memcpy(argv, l->ssh,
         (size_t)(count - 1) * sizeof *argv); /* the destination goes last, or before a command */
  bool is_command = extra[0][0] != '-';
  int at = count - 1;
  if (is_command) argv[at++] = l->ssh[count - 1];
  for (int i = 0; i < more; i++) argv[at++] = extra[i];
  if (!is_command) argv[at++] = l->ssh[count - 1];
  c->ssh = true;
  child_spawn(c, argv);
  free(argv);
  return &c->channel;
}

static Channel *openssh_exec(Link *l, const char *command, const ChannelEvents *events, void *owner) {
  char *extra[] = {(char *)command, NULL};
  return openssh_spawn((LocalLink *)l, extra, events, owner);
}

static Channel *openssh_dial(Link *l, const char *address, int port, const ChannelEvents *events,
                             void *owner) {
  char where[320];
  snprintf(where, sizeof where, strchr(address, ':') ? "[%s]:%d" : "%s:%d", address, port);
  char *extra[] = {"-W", where, NULL};
  return openssh_spawn((LocalLink *)l, extra, events, owner);
}

static const LinkClass openssh_class = {openssh_exec, openssh_dial, local_close};

Link *openssh_open(const char *name, char **options) {
  LocalLink *l = memory_new(sizeof *l);
  l->link.class = &openssh_class;
  l->link.state = LINK_OPEN;
  l->link.name = memory_copy(name);
  l->ssh = options;
  return &l->link;
}
