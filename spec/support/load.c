/* load.c -- Requests over a few connections until SIGTERM; what came back is printed as one JSON line. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX 256

typedef struct Client {
  int fd;
  bool waiting, fresh, retrying;
  char in[8192];
  size_t length;
  double sent_at;
} Client;

typedef struct Count {
  char name[64];
  long count;
} Count;

static Client clients[MAX];
static Count versions[64], failures[64];
static long requests, failed, retried;
static int port, keepalive = 1;
static const char *address = "127.0.0.1", *path = "/";
static volatile sig_atomic_t ending, asked;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void count(Count *list, const char *name) {
  for (int i = 0; i < 64; i++) {
    if (list[i].count && strcmp(list[i].name, name) != 0) continue;
    snprintf(list[i].name, sizeof list[i].name, "%s", name);
    list[i].count++;
    return;
  }
}

static void fail(const char *why) {
  failed++;
  requests++;
  count(failures, why);
}

static void print_counts(const char *name, const Count *list) {
  printf(",\"%s\":{", name);
  for (int i = 0; i < 64 && list[i].count; i++) printf("%s\"%s\":%ld", i ? "," : "", list[i].name, list[i].count);
  printf("}");
}

static void report(void) {
  printf("{\"requests\":%ld,\"failed\":%ld,\"retried\":%ld", requests, failed, retried);
  print_counts("versions", versions);
  print_counts("errors", failures);
  printf("}\n");
  fflush(stdout);
}

static void disconnect(Client *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  c->length = 0;
  c->waiting = false;
}

static bool connect_client(Client *c) {
  int one = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, address, &a.sin_addr);
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  c->fresh = true;
  if (connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0) {
    disconnect(c);
    fail("connect");
    return false;
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  return true;
}

static void send_request(Client *c) {
  char out[512];
  if (c->fd < 0 && !connect_client(c)) return;
  int length = snprintf(out, sizeof out, "GET %s HTTP/1.1\r\nHost: test\r\n%s\r\n", path, keepalive ? "" : "Connection: close\r\n");
  c->waiting = true;
  c->sent_at = now();
  c->length = 0;
  if (write(c->fd, out, (size_t)length) != length) c->sent_at = now();
}

/* As a browser does: a kept connection that the server closed before it answered is tried once more, on a new one. */
static void lost(Client *c, const char *why) {
  bool again = !c->fresh && c->length == 0 && !c->retrying;
  disconnect(c);
  if (!again) {
    c->retrying = false;
    fail(why);
    return;
  }
  retried++;
  c->retrying = true;
  send_request(c);
}

static void finish(Client *c, int status) {
  char name[64] = "none", why[16];
  char *found = strcasestr(c->in, "\r\nX-Version: ");
  if (found) sscanf(found + 13, "%63s", name);
  requests++;
  if (status >= 200 && status < 300) {
    count(versions, name);
  } else {
    failed++;
    snprintf(why, sizeof why, "%d", status);
    count(failures, why);
  }
  bool closing = strcasestr(c->in, "\r\nConnection: close") != NULL;
  c->waiting = c->retrying = false;
  c->fresh = false;
  if (closing || !keepalive) disconnect(c);
}

static void receive(Client *c) {
  ssize_t n = read(c->fd, c->in + c->length, sizeof c->in - 1 - c->length);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    if (c->waiting) lost(c, n == 0 ? "closed" : "reset");
    else disconnect(c);
    return;
  }
  c->length += (size_t)n;
  c->in[c->length] = '\0';
  char *body = strstr(c->in, "\r\n\r\n");
  char *length = strcasestr(c->in, "\r\nContent-Length: ");
  int status = 0;
  if (!body || sscanf(c->in, "HTTP/1.%*d %d", &status) != 1) return;
  if (length ? strlen(body + 4) >= (size_t)atol(length + 18) : false) finish(c, status);
}

static void on_signal(int number) {
  if (number == SIGUSR1) asked = 1;
  else ending = 1;
}

static void turn(int connections, double pause) {
  static struct pollfd fds[MAX];
  for (int i = 0; i < connections; i++) {
    Client *c = &clients[i];
    if (!c->waiting && !ending && now() - c->sent_at >= pause) send_request(c);
    if (c->waiting && now() - c->sent_at > 10) {
      disconnect(c);
      fail("timeout");
    }
    fds[i] = (struct pollfd){c->fd, POLLIN, 0};
  }
  poll(fds, (nfds_t)connections, 2);
  for (int i = 0; i < connections; i++) {
    if (fds[i].revents && clients[i].fd == fds[i].fd) receive(&clients[i]);
  }
}

static bool any_waiting(int connections) {
  for (int i = 0; i < connections; i++) {
    if (clients[i].waiting) return true;
  }
  return false;
}

int main(int argc, char **argv) {
  int connections = 8;
  double seconds = 0, rate = 0, started = now();
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(argv[i], "--no-keepalive") == 0) keepalive = 0;
    if (strcmp(argv[i], "--port") == 0) port = atoi(value);
    if (strcmp(argv[i], "--address") == 0) address = value;
    if (strcmp(argv[i], "--path") == 0) path = value;
    if (strcmp(argv[i], "--connections") == 0) connections = atoi(value) < MAX ? atoi(value) : MAX;
    if (strcmp(argv[i], "--seconds") == 0) seconds = atof(value);
    if (strcmp(argv[i], "--rate") == 0) rate = atof(value);
  }
  for (int i = 0; i < connections; i++) clients[i].fd = -1;
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, on_signal);
  signal(SIGINT, on_signal);
  signal(SIGUSR1, on_signal);
  while (!ending || any_waiting(connections)) {
    turn(connections, rate > 0 ? connections / rate : 0);
    if (seconds > 0 && now() - started > seconds) ending = 1;
    if (asked) report();
    asked = 0;
  }
  report();
  return 0;
}
