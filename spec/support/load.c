/* load.c -- Requests over a few connections until SIGTERM; what came back is printed as one JSON line. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 1024
#define MAX_NAMES 64
#define TIMEOUT 10.0
#define PAUSE_AFTER_FAILURE 0.01

typedef enum State { IDLE, CONNECTING, WAITING } State;

typedef struct Client {
  int fd; /* -1: none */
  State state;
  bool reused, retrying;
  char in[8192]; /* the head of the answer; what follows is only counted */
  size_t length, body;
  double began_at, next_at;
} Client;

typedef struct Count {
  char name[64];
  long count;
} Count;

static Client clients[MAX_CLIENTS];
static int client_count = 8;
static Count versions[MAX_NAMES], errors[MAX_NAMES];
static long requests, failed, retried;
static float *latencies;
static size_t latency_count, latency_room;
static int port;
static bool keepalive = true;
static const char *address = "127.0.0.1", *path = "/";
static double pause_between;
static bool ending;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void count(Count *list, const char *name) {
  for (int i = 0; i < MAX_NAMES; i++) {
    if (list[i].count && strcmp(list[i].name, name) != 0) continue;
    snprintf(list[i].name, sizeof list[i].name, "%s", name);
    list[i].count++;
    return;
  }
}

static void keep_latency(double seconds) {
  if (latency_count == latency_room) {
    latency_room = latency_room ? 2 * latency_room : 4096;
    latencies = realloc(latencies, latency_room * sizeof *latencies);
    if (!latencies) abort();
  }
  latencies[latency_count++] = (float)(seconds * 1000);
}

static int compare_floats(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double percentile(double part) {
  return latency_count ? (double)latencies[(size_t)(part * (double)(latency_count - 1))] : 0;
}

static void print_counts(const char *name, const Count *list) {
  printf(",\"%s\":{", name);
  for (int i = 0; i < MAX_NAMES && list[i].count; i++) {
    printf("%s\"%s\":%ld", i ? "," : "", list[i].name, list[i].count);
  }
  printf("}");
}

static void report(void) {
  qsort(latencies, latency_count, sizeof *latencies, compare_floats);
  printf("{\"requests\":%ld,\"failed\":%ld,\"retried\":%ld", requests, failed, retried);
  print_counts("versions", versions);
  print_counts("errors", errors);
  printf(",\"p50_ms\":%.2f,\"p99_ms\":%.2f}\n", percentile(0.5), percentile(0.99));
  fflush(stdout);
}

static void disconnect(Client *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  c->state = IDLE;
  c->reused = false;
}

/* The request has its outcome. */
static void settle(Client *c, const char *error) {
  requests++;
  c->retrying = false;
  c->state = IDLE;
  if (!error) return;
  failed++;
  count(errors, error);
}

/* Without an answer. The pause keeps a dead server from being asked millions of times. */
static void fail(Client *c, const char *error) {
  settle(c, error);
  disconnect(c);
  if (c->next_at < now() + PAUSE_AFTER_FAILURE) c->next_at = now() + PAUSE_AFTER_FAILURE;
}

static void connect_client(Client *c) {
  int one = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, address, &a.sin_addr);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  c->reused = false;
  c->state = CONNECTING;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0 && errno != EINPROGRESS) fail(c, "connect");
}

static void retry(Client *c) {
  retried++;
  c->retrying = true;
  disconnect(c);
  connect_client(c);
}

/* What browsers and HTTP libraries do: a kept connection that the server closed in an orderly way before a
 * byte of the answer is no failure, the request goes out once more on a new one. A reset, or half an answer,
 * is. */
static void lose(Client *c, bool orderly) {
  if (orderly && c->reused && c->length == 0 && !c->retrying) retry(c);
  else fail(c, orderly ? "closed" : "reset");
}

static void send_request(Client *c) {
  char out[1024];
  int length = snprintf(out, sizeof out, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, address,
                        keepalive ? "" : "Connection: close\r\n");
  c->state = WAITING;
  c->length = c->body = 0;
  if (send(c->fd, out, (size_t)length, MSG_NOSIGNAL) != length) lose(c, errno == EPIPE);
}

static void begin_request(Client *c) {
  double t = now();
  c->began_at = t;
  c->next_at = c->next_at + pause_between > t ? c->next_at + pause_between : t;
  if (c->fd < 0) connect_client(c);
  else send_request(c);
}

static const char *find_header(Client *c, const char *name) {
  const char *found = strcasestr(c->in, name);
  return found ? found + strlen(name) : NULL;
}

static void finish(Client *c, int status) {
  char name[64] = "none", error[16];
  const char *version = find_header(c, "\r\nX-Version: "), *connection = find_header(c, "\r\nConnection: ");
  if (version) sscanf(version, "%63[^\r\n\"\\]", name);
  snprintf(error, sizeof error, "%d", status);
  bool good = status >= 200 && status < 300, closing = connection && strncasecmp(connection, "close", 5) == 0;
  keep_latency(now() - c->began_at);
  if (good) count(versions, name);
  settle(c, good ? NULL : error);
  c->reused = true;
  if (closing || !keepalive) disconnect(c);
}

/* Finishes the request when the answer is whole; without a Content-Length it ends with the connection. */
static void examine(Client *c, bool ended) {
  int status = 0;
  const char *body = strstr(c->in, "\r\n\r\n"), *length = find_header(c, "\r\nContent-Length: ");
  if (!body || sscanf(c->in, "HTTP/1.%*d %d", &status) != 1) {
    if (ended) lose(c, true);
    return;
  }
  size_t received = c->length + c->body - (size_t)(body + 4 - c->in);
  bool whole = length ? received >= (size_t)atol(length) : ended || status == 204;
  if (whole) finish(c, status);
  else if (ended) lose(c, true);
  if (whole && ended) disconnect(c);
}

static void receive(Client *c) {
  char rest[65536];
  size_t room = sizeof c->in - 1 - c->length;
  ssize_t n = recv(c->fd, room ? c->in + c->length : rest, room ? room : sizeof rest, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (c->state == IDLE) {
    disconnect(c); /* closed while nobody asked for anything */
    return;
  }
  if (n > 0 && room) c->length += (size_t)n;
  else if (n > 0) c->body += (size_t)n;
  c->in[c->length] = '\0';
  if (n < 0) lose(c, false);
  else examine(c, n == 0);
}

static void finish_connecting(Client *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) fail(c, "connect");
  else send_request(c);
}

static bool any_busy(void) {
  for (int i = 0; i < client_count; i++) {
    if (clients[i].state != IDLE) return true;
  }
  return false;
}

/* When something is due without any event: a request to send, or the end of one's patience. */
static double next_due(void) {
  double due = now() + 1;
  for (int i = 0; i < client_count; i++) {
    Client *c = &clients[i];
    double at = c->state == IDLE ? (ending ? due : c->next_at) : c->began_at + TIMEOUT;
    if (at < due) due = at;
  }
  return due;
}

static void advance(Client *c) {
  if (c->state == IDLE && !ending && now() >= c->next_at) begin_request(c);
  if (c->state != IDLE && now() - c->began_at >= TIMEOUT) fail(c, "timeout");
}

/* SIGUSR1 asks for the numbers so far; the others end the load. */
static void read_signal(int signals) {
  struct signalfd_siginfo info;
  if (read(signals, &info, sizeof info) != sizeof info) return;
  if (info.ssi_signo == SIGUSR1) report();
  else ending = true;
}

static void turn(int signals) {
  static struct pollfd fds[MAX_CLIENTS + 1];
  for (int i = 0; i < client_count; i++) {
    advance(&clients[i]);
    fds[i] = (struct pollfd){clients[i].fd, clients[i].state == CONNECTING ? POLLOUT : POLLIN, 0};
  }
  double wait = next_due() - now();
  if (wait < 0) wait = 0;
  struct timespec t = {(time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9)};
  fds[client_count] = (struct pollfd){signals, POLLIN, 0};
  if (ppoll(fds, (nfds_t)client_count + 1, &t, NULL) <= 0) return;
  if (fds[client_count].revents) read_signal(signals);
  for (int i = 0; i < client_count; i++) {
    if (!fds[i].revents) continue;
    if (clients[i].state == CONNECTING) finish_connecting(&clients[i]);
    else receive(&clients[i]);
  }
}

static int open_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, NULL);
  return signalfd(-1, &set, SFD_CLOEXEC);
}

static void usage(const char *problem) {
  fprintf(
      stderr,
      "load: %s\nusage: load --port N [--address A] [--connections N] [--rate R] [--path P] [--seconds S] "
      "[--no-keepalive]\n",
      problem);
  exit(2);
}

static void read_arguments(int argc, char **argv, double *seconds) {
  double rate = 0;
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(argv[i], "--no-keepalive") == 0) {
      keepalive = false;
      continue;
    }
    if (!value) usage(argv[i]);
    if (strcmp(argv[i], "--port") == 0) port = atoi(value);
    else if (strcmp(argv[i], "--address") == 0) address = value;
    else if (strcmp(argv[i], "--path") == 0) path = value;
    else if (strcmp(argv[i], "--connections") == 0) client_count = atoi(value);
    else if (strcmp(argv[i], "--seconds") == 0) *seconds = atof(value);
    else if (strcmp(argv[i], "--rate") == 0) rate = atof(value);
    else usage(argv[i]);
    i++;
  }
  if (port <= 0 || port > 65535) usage("--port is 1 to 65535");
  if (client_count < 1 || client_count > MAX_CLIENTS) usage("--connections is 1 to 1024");
  pause_between = rate > 0 ? client_count / rate : 0;
}

int main(int argc, char **argv) {
  double seconds = 0, began_at = now();
  read_arguments(argc, argv, &seconds);
  int signals = open_signals();
  for (int i = 0; i < client_count; i++) {
    clients[i].fd = -1;
    clients[i].next_at = began_at + pause_between * i / client_count;
  }
  while (!ending || any_busy()) {
    turn(signals);
    if (seconds > 0 && now() - began_at > seconds) ending = true;
  }
  report();
  return 0;
}
