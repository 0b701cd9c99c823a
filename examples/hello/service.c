/* service.c -- A small HTTP service that says which version it is: something real to deploy. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 4000

typedef struct Client {
  int fd;
  char in[4096];
  size_t length;
  double answer_at; /* a slow answer is under way until then; 0: none */
  char path[256];
} Client;

static Client clients[MAX_CLIENTS];
static int client_count;
static volatile sig_atomic_t ending;
static char version[64] = "unversioned", fault[32];
static long requests, probes;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void on_term(int number) {
  (void)number;
  ending = 1;
}

static bool has_fault(const char *name) {
  return strcmp(fault, name) == 0;
}

static void respond(Client *c, int status, const char *body) {
  char out[1024];
  const char *reason = status == 200 ? "OK" : status == 503 ? "Service Unavailable" : "Internal Server Error";
  int length = snprintf(out, sizeof out,
                        "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nX-Version: %s\r\n%s\r\n%s",
                        status, reason, strlen(body), version, ending ? "Connection: close\r\n" : "", body);
  if (write(c->fd, out, (size_t)length) != length) c->length = sizeof c->in; /* a client that left: closed below */
  printf("GET %s %d\n", c->path, status);
  fflush(stdout);
}

static void answer(Client *c) {
  char body[512];
  if (strcmp(c->path, "/healthz") == 0) {
    bool sick = has_fault("sick") || (has_fault("flap") && probes++ % 2);
    respond(c, sick ? 503 : 200, sick ? "sick\n" : "ok\n");
  } else if (strncmp(c->path, "/env?", 5) == 0) {
    const char *value = getenv(c->path + 5);
    snprintf(body, sizeof body, "%s\n", value ? value : "");
    respond(c, 200, body);
  } else if (has_fault("errors") && ++requests % 3 == 0) {
    respond(c, 500, "something went wrong\n");
  } else {
    snprintf(body, sizeof body, "hello from %s\n", version);
    respond(c, 200, body);
  }
}

/* Takes one whole request off the buffer; answers it now, or after the delay that it asks for. */
static bool serve(Client *c) {
  char *end = memmem(c->in, c->length, "\r\n\r\n", 4);
  if (!end || c->answer_at > 0) return false;
  c->in[c->length < sizeof c->in ? c->length : sizeof c->in - 1] = '\0';
  if (sscanf(c->in, "GET %255s", c->path) != 1) strcpy(c->path, "?");
  size_t used = (size_t)(end + 4 - c->in);
  memmove(c->in, c->in + used, c->length - used);
  c->length -= used;
  long delay = has_fault("slow") && strcmp(c->path, "/healthz") != 0 ? 200 : 0;
  sscanf(c->path, "/slow?ms=%ld", &delay);
  if (delay > 0) c->answer_at = now() + (double)delay / 1000;
  else answer(c);
  return true;
}

static void drop(int i) {
  close(clients[i].fd);
  clients[i] = clients[--client_count];
}

/* Reads, answers, and says whether the client stays. */
static bool handle(Client *c, bool readable) {
  if (readable) {
    ssize_t n = read(c->fd, c->in + c->length, sizeof c->in - 1 - c->length);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
    if (n > 0) c->length += (size_t)n;
  }
  if (c->answer_at > 0 && now() >= c->answer_at) {
    c->answer_at = 0;
    answer(c);
    if (ending) return false;
  }
  while (serve(c)) {
    if (ending && c->answer_at == 0) return false;
  }
  return c->length < sizeof c->in - 1 && !(ending && c->answer_at == 0);
}

static int listen_on(const char *address, int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, address, &a.sin_addr);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0) {
    fprintf(stderr, "cannot listen on %s:%d: %s\n", address, port, strerror(errno));
    exit(1);
  }
  return fd;
}

static void accept_all(int listener) {
  int fd;
  while (client_count < MAX_CLIENTS && (fd = accept(listener, NULL, NULL)) >= 0) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    clients[client_count] = (Client){.fd = fd};
    client_count++;
  }
}

/* Until it was told to end and the last answer is out. */
static void loop(int listener) {
  static struct pollfd fds[MAX_CLIENTS + 1];
  while (!ending || client_count > 0) {
    for (int i = 0; i < client_count; i++) fds[i] = (struct pollfd){clients[i].fd, POLLIN, 0};
    fds[client_count] = (struct pollfd){ending ? -1 : listener, POLLIN, 0};
    int count = client_count;
    poll(fds, (nfds_t)count + 1, 10);
    for (int i = count - 1; i >= 0; i--) {
      if (!handle(&clients[i], fds[i].revents != 0)) drop(i);
    }
    if (!ending) accept_all(listener);
    else if (listener >= 0) {
      accept_all(listener); /* those whose handshake is done are served, not reset */
      close(listener);
      listener = -1;
    }
  }
}

static void read_files(double *delay) {
  char line[128];
  FILE *f = fopen("VERSION", "r");
  if (f) {
    if (fscanf(f, "%63s", version) != 1) strcpy(version, "unversioned");
    fclose(f);
  }
  if (getenv("VERSION")) snprintf(version, sizeof version, "%s", getenv("VERSION"));
  f = fopen("service.conf", "r");
  while (f && fgets(line, sizeof line, f)) {
    sscanf(line, "fault=%31s", fault);
    if (sscanf(line, "start_delay=%lf", delay) == 1) *delay /= 1000;
  }
  if (f) fclose(f);
}

int main(int argc, char **argv) {
  int port = 0;
  double delay = 0;
  const char *address = "0.0.0.0";
  read_files(&delay);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--port") == 0) port = atoi(argv[i + 1]);
    if (strcmp(argv[i], "--address") == 0) address = argv[i + 1];
    if (strcmp(argv[i], "--version") == 0) snprintf(version, sizeof version, "%s", argv[i + 1]);
    if (strcmp(argv[i], "--fault") == 0) snprintf(fault, sizeof fault, "%s", argv[i + 1]);
    if (strcmp(argv[i], "--start-delay") == 0) delay = atof(argv[i + 1]) / 1000;
  }
  if (has_fault("dies")) {
    fputs("fatal: cannot open database\n", stderr);
    return 1;
  }
  signal(SIGPIPE, SIG_IGN);
  if (has_fault("stubborn")) signal(SIGTERM, SIG_IGN);
  else sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term}, NULL);
  usleep((useconds_t)(delay * 1e6));
  loop(listen_on(address, port));
  return 0;
}
