/* ssh_connect.c -- Looks a name up, and tries the addresses that it stands for in turn. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"
#include "ssh_session.h"

static void disconnect(SshLink *s) {
  handle_close(s->poll);
  s->poll = NULL;
  if (s->fd >= 0) close(s->fd);
  s->fd = -1;
}

/* Returns 0, or the error. */
static int begin_connect(SshLink *s, const struct sockaddr *address) {
  socklen_t length = address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
  disconnect(s);
  s->fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (s->fd < 0) return errno;
  if (connect(s->fd, address, length) != 0 && errno != EINPROGRESS) return errno;
  ssh_watch(s, SSH_CONNECT);
  return 0;
}

/* One that is silent has its share of the time that is left, so that the others have theirs. */
static void share_time(SshLink *s) {
  int count = 1;
  for (struct addrinfo *a = s->next_address; a; a = a->ai_next) count++;
  ssh_limit(s, (s->deadline - loop_now()) / count);
}

void ssh_connect_next(SshLink *s, const char *why) {
  while (s->next_address) {
    const struct sockaddr *address = s->next_address->ai_addr;
    s->next_address = s->next_address->ai_next;
    int error = begin_connect(s, address);
    if (error == 0) {
      share_time(s);
      return;
    }
    why = strerror(error);
  }
  bool several = s->addresses && s->addresses->ai_next;
  ssh_fail(s, "unreachable", "%s:%d: %s%s", s->address, s->port, why,
           several ? " (the last of its addresses)" : "");
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *found) {
  SshLink *s = request->data;
  free(request);
  if (!s) {
    uv_freeaddrinfo(found);
    return;
  }
  s->resolving = NULL;
  s->addresses = s->next_address = found;
  if (status != 0) ssh_fail(s, "unreachable", "%s: %s", s->address, uv_strerror(status));
  else ssh_connect_next(s, "it has no address");
  ssh_advance(s);
}

void ssh_connect_begin(SshLink *s) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  char port[16];
  struct sockaddr_in known;
  s->state = SSH_RESOLVE;
  if (uv_ip4_addr(s->address, s->port, &known) == 0) { /* saves a thread for the usual numeric address */
    int error = begin_connect(s, (struct sockaddr *)&known);
    if (error != 0) ssh_connect_next(s, strerror(error));
    return;
  }
  snprintf(port, sizeof port, "%d", s->port);
  s->resolving = memory_new(sizeof *s->resolving);
  s->resolving->data = s;
  int code = uv_getaddrinfo(loop_get(), s->resolving, on_resolved, s->address, port, &hints);
  if (code == 0) return;
  free(s->resolving); /* there will be no callback */
  s->resolving = NULL;
  ssh_fail(s, "unreachable", "%s: %s", s->address, uv_strerror(code));
}

int ssh_connect_advance(SshLink *s) {
  struct sockaddr_storage peer;
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) {
    ssh_connect_next(s, strerror(error));
    return LIBSSH2_ERROR_EAGAIN;
  }
  length = sizeof peer;
  return getpeername(s->fd, (struct sockaddr *)&peer, &length) == 0 ? 0 : LIBSSH2_ERROR_EAGAIN;
}

void ssh_connect_release(SshLink *s) {
  if (s->resolving) {
    s->resolving->data = NULL; /* its callback frees it */
    uv_cancel((uv_req_t *)s->resolving);
    s->resolving = NULL;
  }
  uv_freeaddrinfo(s->addresses);
  s->addresses = s->next_address = NULL;
}
