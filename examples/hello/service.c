/* service.c -- A small HTTP service that says which version it is: something real to deploy.
 *
 *   cc -O2 -o service service.c && ./service --port 8080
 *
 * GET /            "hello from VERSION", from --version, else $VERSION, else the file VERSION
 * GET /healthz     200 while it is well
 * GET /slow?ms=N   answers after N ms; others are served meanwhile
 * GET /env?NAME    the value of an environment variable
 * GET /metrics     requests by status and how long they took, as Prometheus reads them
 *
 * --fault, or `fault=` in the file service.conf, makes it misbehave: dies, sick, flap, stumbles (its third
 * probe alone finds it sick), stubborn, errors or slow.
 * --start-delay 500ms, or `start_delay=`: it listens only then.
 * In service.conf also: `errors=1.5%` of the answers are failures, evenly spread, or by chance with `seed=7`;
 * `delay=10ms` is how long an answer takes on average, from half to one and a half of it; for `warm_up=2s`
 * after the start it is sick, and every answer a failure, and so it is while the file of `outage=/path`
 * exists. With `fades=1s` every answer is a failure from then on, and its health says nothing of that. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
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

#define MAX_CLIENTS 4000
#define GRACE 0.5 /* seconds that a connection just made has to send its request when the service ends */

typedef struct Client {
  int fd;
  char in[8192];
  size_t length;
  char method[16], path[512];
  double began_at;
  double answer_at; /* a slow answer is under way until then; 0: none */
  bool served;      /* it got an answer already, so it knows that an idle connection may be closed */
  bool closing;     /* it asked for the connection to be closed */
} Client;

static Client clients[MAX_CLIENTS];
static int client_count;
static bool ending;
static double ended_at;
static char version[64] = "unversioned", fault[32];
static char outage[256];
static long requests, probes, delayed;
static double error_share, error_debt, usual_delay, warm_at, fades_at;
static unsigned seed;

/* What /metrics tells. */
static const double edges[] = {0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1};
#define EDGES (sizeof edges / sizeof *edges)
static long answers_good, answers_failed, slower_than[EDGES];
static double seconds_spent;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool has_fault(const char *name) {
  return strcmp(fault, name) == 0;
}

static void respond(Client *c, int status, const char *body) {
  char out[8192];
  const char *reason = status == 200 ? "OK" : status == 503 ? "Service Unavailable" : "Server Error";
  c->closing = c->closing || ending;
  int length = snprintf(out, sizeof out,
                        "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                        "X-Version: %s\r\n%s\r\n%s",
                        status, reason, strlen(body), version, c->closing ? "Connection: close\r\n" : "",
                        strcmp(c->method, "HEAD") == 0 ? "" : body);
  bool sent = send(c->fd, out, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) == length;
  if (!sent) c->closing = true; /* it left, or reads nothing */
  c->served = true;
  printf("%s %s %d\n", c->method, c->path, status);
  fflush(stdout);
}

static void tally(Client *c, bool failed) {
  double seconds = now() - c->began_at;
  if (failed) answers_failed++;
  else answers_good++;
  seconds_spent += seconds;
  for (size_t i = 0; i < EDGES; i++) slower_than[i] += seconds > edges[i];
}

static void answer_metrics(Client *c) {
  char body[4096];
  long all = answers_good + answers_failed;
  int n = snprintf(body, sizeof body,
                   "# TYPE http_requests_total counter\nhttp_requests_total{code=\"200\"} %ld\n"
                   "http_requests_total{code=\"500\"} %ld\n# TYPE http_request_duration_seconds histogram\n",
                   answers_good, answers_failed);
  for (size_t i = 0; i < EDGES; i++) {
    n += snprintf(body + n, sizeof body - (size_t)n, "http_request_duration_seconds_bucket{le=\"%g\"} %ld\n",
                  edges[i], all - slower_than[i]);
  }
  snprintf(body + n, sizeof body - (size_t)n,
           "http_request_duration_seconds_bucket{le=\"+Inf\"} %ld\nhttp_request_duration_seconds_sum %.6f\n"
           "http_request_duration_seconds_count %ld\n",
           all, seconds_spent, all);
  respond(c, 200, body);
}

/* Whether this answer is one of those that fail: each in its turn, or by chance. */
static bool fails_now(void) {
  if (now() < warm_at || (fades_at > 0 && now() > fades_at)) return true;
  if (outage[0] && access(outage, F_OK) == 0) return true;
  if (has_fault("errors") && ++requests % 3 == 0) return true;
  if (seed) return rand_r(&seed) < error_share * RAND_MAX;
  error_debt += error_share;
  if (error_debt < 1) return false;
  error_debt -= 1;
  return true;
}

static bool is_own(Client *c) {
  return strcmp(c->path, "/healthz") == 0 || strcmp(c->path, "/metrics") == 0;
}

static void answer(Client *c) {
  char body[4096];
  bool failed = !is_own(c) && strncmp(c->path, "/env?", 5) != 0 && fails_now();
  if (!is_own(c)) tally(c, failed);
  if (strcmp(c->path, "/healthz") == 0) {
    bool stumbles = ++probes % 2 == 0 ? has_fault("flap") : probes == 3 && has_fault("stumbles");
    bool sick = has_fault("sick") || now() < warm_at || stumbles;
    respond(c, sick ? 503 : 200, sick ? "sick\n" : "ok\n");
  } else if (strncmp(c->path, "/env?", 5) == 0) {
    const char *value = getenv(c->path + 5);
    snprintf(body, sizeof body, "%s\n", value ? value : "");
    respond(c, 200, body);
  } else if (strcmp(c->path, "/metrics") == 0) {
    answer_metrics(c);
  } else if (failed) {
    respond(c, 500, "something went wrong\n");
  } else {
    snprintf(body, sizeof body, "hello from %s\n", version);
    respond(c, 200, body);
  }
}

static double delay_of(Client *c) {
  long ms = has_fault("slow") && !is_own(c) ? 200 : 0;
  if (sscanf(c->path, "/slow?ms=%ld", &ms) != 1 && usual_delay > 0 && !is_own(c)) {
    return usual_delay * (0.5 + (double)(7 * delayed++ % 16) / 15);
  }
  return (double)ms / 1000;
}

/* Takes one whole request off the buffer; answers it now or after its delay. False: there was none. */
static bool serve(Client *c) {
  c->in[c->length] = '\0';
  char *end = strstr(c->in, "\r\n\r\n");
  if (!end || c->answer_at > 0 || c->closing) return false;
  *end = '\0';
  if (sscanf(c->in, "%15s %511s", c->method, c->path) != 2) c->closing = true;
  if (strcasestr(c->in, "\r\nConnection: close")) c->closing = true;
  if (strstr(c->in, " HTTP/1.0") && !strcasestr(c->in, "\r\nConnection: keep-alive")) c->closing = true;
  size_t used = (size_t)(end + 4 - c->in);
  memmove(c->in, c->in + used, c->length - used);
  c->length -= used;
  c->began_at = now();
  double delay = delay_of(c);
  if (delay > 0) c->answer_at = now() + delay;
  else answer(c);
  return true;
}

/* Reads and answers; says whether the client stays. */
static bool handle(Client *c, bool readable) {
  if (readable || ending) {
    ssize_t n = recv(c->fd, c->in + c->length, sizeof c->in - 1 - c->length, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
    if (n > 0) c->length += (size_t)n;
  }
  if (c->answer_at > 0 && now() >= c->answer_at) {
    c->answer_at = 0;
    answer(c);
  }
  while (serve(c)) continue;
  if (c->answer_at > 0) return c->length < sizeof c->in - 1;
  if (c->closing || c->length >= sizeof c->in - 1) return false;
  return !ending || (!c->served && now() < ended_at + GRACE);
}

/* The orderly end goes out first, so that a request that comes too late meets no reset. */
static void drop(int i) {
  shutdown(clients[i].fd, SHUT_WR);
  close(clients[i].fd);
  clients[i] = clients[--client_count];
}

static int listen_on(const char *address, int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  bool valid = inet_pton(AF_INET, address, &a.sin_addr) == 1 && port > 0 && port < 65536;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (!valid || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0) {
    fprintf(stderr, "fatal: cannot listen on %s:%d: %s\n", address, port,
            !valid                ? "no such address"
            : errno == EADDRINUSE ? "address already in use"
                                  : strerror(errno));
    exit(1);
  }
  return fd;
}

static void accept_all(int listener) {
  int fd;
  while (client_count < MAX_CLIENTS && (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
    clients[client_count].fd = fd;
    clients[client_count].length = 0;
    clients[client_count].answer_at = 0;
    clients[client_count].served = clients[client_count].closing = false;
    client_count++;
  }
}

/* Until an answer or the end of a grace is due; else until something happens. */
static int time_to_wait_ms(void) {
  double due = 0;
  for (int i = 0; i < client_count; i++) {
    double at = clients[i].answer_at > 0 ? clients[i].answer_at : ending ? ended_at + GRACE : 0;
    if (at > 0 && (due == 0 || at < due)) due = at;
  }
  if (due == 0) return -1;
  return due > now() ? (int)((due - now()) * 1000) + 1 : 0;
}

/* Those whose handshake is done are served, not reset. */
static void stop_listening(int *listener) {
  if (*listener < 0) return;
  ended_at = now();
  accept_all(*listener);
  close(*listener);
  *listener = -1;
}

/* Serves until SIGTERM came and the last answer is out. */
static void loop(int listener, int signals) {
  static struct pollfd fds[MAX_CLIENTS + 2];
  while (!ending || client_count > 0) {
    int count = client_count;
    for (int i = 0; i < count; i++) fds[i] = (struct pollfd){clients[i].fd, POLLIN, 0};
    fds[count] = (struct pollfd){count < MAX_CLIENTS ? listener : -1, POLLIN, 0};
    fds[count + 1] = (struct pollfd){ending ? -1 : signals, POLLIN, 0};
    poll(fds, (nfds_t)count + 2, time_to_wait_ms());
    ending = ending || fds[count + 1].revents;
    if (ending) stop_listening(&listener);
    for (int i = count - 1; i >= 0; i--) {
      if (!handle(&clients[i], fds[i].revents != 0)) drop(i);
    }
    if (!ending && fds[count].revents) accept_all(listener);
  }
}

/* "500ms", "2s", or a bare number of ms, in seconds. */
static double duration(const char *text) {
  char *unit;
  double value = strtod(text, &unit);
  return *unit == 's' ? value : value / 1000;
}

static void read_files(double *delay) {
  char line[128];
  FILE *f = fopen("VERSION", "r");
  if (f && fscanf(f, "%63s", version) != 1) strcpy(version, "unversioned");
  if (f) fclose(f);
  if (getenv("VERSION")) snprintf(version, sizeof version, "%s", getenv("VERSION"));
  f = fopen("service.conf", "r");
  while (f && fgets(line, sizeof line, f)) {
    sscanf(line, "fault=%31s", fault);
    if (strncmp(line, "start_delay=", 12) == 0) *delay = duration(line + 12);
    if (strncmp(line, "warm_up=", 8) == 0) warm_at = now() + duration(line + 8);
    if (strncmp(line, "fades=", 6) == 0) fades_at = now() + duration(line + 6);
    if (strncmp(line, "delay=", 6) == 0) usual_delay = duration(line + 6);
    if (sscanf(line, "errors=%lf", &error_share) == 1) error_share /= 100;
    sscanf(line, "seed=%u", &seed);
    sscanf(line, "outage=%255s", outage);
  }
  if (f) fclose(f);
}

/* SIGTERM as something to poll for, so that it comes neither too early nor too late. A stubborn service has
 * none. */
static int open_signals(void) {
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, NULL);
  return has_fault("stubborn") ? -1 : signalfd(-1, &term, SFD_CLOEXEC);
}

int main(int argc, char **argv) {
  int port = 0;
  double delay = 0;
  const char *address = "0.0.0.0";
  read_files(&delay);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--port") == 0) port = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--address") == 0) address = argv[i + 1];
    else if (strcmp(argv[i], "--version") == 0) snprintf(version, sizeof version, "%s", argv[i + 1]);
    else if (strcmp(argv[i], "--fault") == 0) snprintf(fault, sizeof fault, "%s", argv[i + 1]);
    else if (strcmp(argv[i], "--start-delay") == 0) delay = duration(argv[i + 1]);
  }
  if (has_fault("dies")) {
    fputs("fatal: cannot open database\n", stderr);
    return 1;
  }
  struct pollfd signals = {open_signals(), POLLIN, 0};
  if (poll(&signals, 1, (int)(delay * 1000)) == 0) loop(listen_on(address, port), signals.fd);
  return 0;
}
