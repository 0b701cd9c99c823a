/* ssh.c -- Connects, verifies, logs in, and keeps a libssh2 session alive on the loop. */
#include "ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"
#include "ssh_session.h"

static int concurrency = 64;
static int opening;
static SshLink *queue_first, *queue_last;
static bool initialized;

static void start_next(void);

void ssh_set_concurrency(int links) {
  concurrency = links > 0 ? links : 1;
}

static void on_idle(uv_idle_t *idle) {
  uv_idle_stop(idle);
  ssh_advance(idle->data);
}

void ssh_schedule(SshLink *s) {
  if (s->busy) s->again = true;
  else if (s->idle) uv_idle_start(s->idle, on_idle);
}

#define MAX_GREETING (64 * 1024)
#define TURN_BYTES (1024 * 1024)
#define CALL_BYTES                                                                                           \
  256 /* that a call to receive costs as much as; libssh2 takes the greeting byte by byte                    \
       */

static bool is_greeting(const SshLink *s) {
  if (s->state != SSH_HANDSHAKE) return false;
  const char *banner = libssh2_session_banner_get(s->session);
  return !banner || strncmp(banner, "SSH-", 4) != 0;
}

/* Counts what arrives: ssh_channels_advance() is done only when a whole round received nothing. libssh2 goes
 * on for as long as something does, so a peer that never stops is interrupted, for others to have their turn.
 */
static ssize_t on_receive(libssh2_socket_t fd, void *data, size_t length, int flags, void **abstract) {
  SshLink *s = *abstract;
  if (s->turn >= TURN_BYTES) return -EAGAIN;
  if (s->received >= MAX_GREETING && is_greeting(s)) {
    ssh_fail(s, "unreachable", "%s:%d: not an SSH server: it sends something else without an end", s->address,
             s->port);
    return -ECONNABORTED;
  }
  ssize_t n = recv(fd, data, length, flags);
  if (n < 0) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  s->received += (size_t)n;
  s->turn += (size_t)n + CALL_BYTES;
  return n;
}

/* Each of them was malloc'ed; the session goes last because the agent and the channels belong to it. */
static void release(SshLink *s) {
  handle_close(s->poll);
  handle_close(s->timer);
  handle_close(s->idle);
  s->poll = NULL;
  s->timer = NULL;
  s->idle = NULL;
  ssh_connect_release(s);
  if (s->fd >= 0) shutdown(s->fd, SHUT_RDWR); /* or libssh2 waits for the peer, answers EAGAIN and leaks */
  if (s->agent) libssh2_agent_free(s->agent);
  s->agent = NULL;
  if (s->session) {
    for (int i = 0; i < 100 && libssh2_session_free(s->session) == LIBSSH2_ERROR_EAGAIN; i++) continue;
  }
  s->session = NULL;
  if (s->fd >= 0) close(s->fd);
  s->fd = -1;
}

static void changed(SshLink *s) {
  if (s->link.on_change) s->link.on_change(s->link.owner);
}

static void opened(SshLink *s, SshState state) {
  if (s->state > SSH_QUEUED && s->state < SSH_READY) opening--;
  s->state = state;
}

void ssh_fail(SshLink *s, const char *code, const char *format, ...) {
  if (s->state == SSH_LOST) return;
  va_list args;
  va_start(args, format);
  vsnprintf(s->link.message, sizeof s->link.message, format, args);
  va_end(args);
  snprintf(s->link.code, sizeof s->link.code, "%s", code);
  opened(s, SSH_LOST);
  s->link.state = LINK_LOST;
}

/* What ssh_fail() could not do from the middle of a libssh2 call. */
static void bury(SshLink *s) {
  ssh_channels_fail(s);
  release(s);
  changed(s);
  start_next();
}

static void on_poll(uv_poll_t *poll, int status, int events) {
  SshLink *s = poll->data;
  (void)events;
  s->heard = loop_now();
  if (status < 0 && s->state != SSH_CONNECT) ssh_fail(s, "lost", "connection lost: %s", uv_strerror(status));
  ssh_advance(s);
}

static void watch(SshLink *s) {
  if (!s->poll) return;
  int events = UV_READABLE;
  if (s->state == SSH_CONNECT) events = UV_WRITABLE;
  else if (libssh2_session_block_directions(s->session) & LIBSSH2_SESSION_BLOCK_OUTBOUND)
    events |= UV_WRITABLE;
  if (events == s->events) return;
  s->events = events;
  uv_poll_start(s->poll, events, on_poll);
}

static void on_open_deadline(uv_timer_t *timer) {
  SshLink *s = timer->data;
  if (s->state == SSH_CONNECT && s->next_address) {
    ssh_connect_next(s, "no answer");
    ssh_advance(s);
    return;
  }
  const char *doing = s->state == SSH_RESOLVE   ? "looking up its address"
                      : s->state == SSH_CONNECT ? "connecting"
                                                : "logging in";
  ssh_fail(s, "unreachable", "%s:%d: no answer within %gs while %s", s->address, s->port, s->timeout, doing);
  ssh_advance(s);
}

void ssh_limit(SshLink *s, double seconds) {
  loop_update();
  uv_timer_start(s->timer, on_open_deadline, loop_milliseconds(seconds > 0 ? seconds : 0), 0);
}

static void on_keepalive(uv_timer_t *timer) {
  SshLink *s = timer->data;
  int next = 0;
  if (loop_now() - s->heard > 3 * s->keepalive) {
    ssh_fail(s, "lost", "connection lost: no sign of life for %gs", 3 * s->keepalive);
  } else if (!s->blocker) {
    libssh2_keepalive_send(s->session, &next);
  }
  ssh_advance(s);
}

#define NEAR_AHEAD (256 * 1024)
#define AHEAD_PER_US 256 /* of round trip */

/* What a command has not taken yet lies in sshd's memory, where it is copied each time that a packet finds no
 * room: once the whole window of 2 MB lies there, that costs a host more than all else in an upload. So less
 * is sent ahead, and more of it where the way is longer. To ask right after the connect is to have the way
 * alone. */
static size_t bytes_ahead(int fd) {
  struct tcp_info info = {0};
  socklen_t length = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return 0; /* through a jump host */
  return NEAR_AHEAD + (size_t)info.tcpi_rtt * AHEAD_PER_US;
}

static void begin_session(SshLink *s) {
  int one = 1;
  s->ahead = bytes_ahead(s->fd);
  setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* 8 ms an operation instead of 50 */
  fcntl(s->fd, F_SETFL, fcntl(s->fd, F_GETFL) | O_NONBLOCK);
  s->session = libssh2_session_init_ex(NULL, NULL, NULL, s);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
  libssh2_session_callback_set(s->session, LIBSSH2_CALLBACK_RECV, (void *)on_receive);
#pragma GCC diagnostic pop
  libssh2_session_set_blocking(s->session, 0);
  libssh2_session_method_pref(s->session, LIBSSH2_METHOD_CRYPT_CS, "aes128-ctr,aes192-ctr,aes256-ctr");
  known_hosts_prefer(s);
  s->state = SSH_HANDSHAKE;
}

/* A descriptor that is watched already belongs to somebody else, who closes it. */
bool ssh_watch(SshLink *s, SshState state) {
  uv_poll_t *poll = handle_new(sizeof *poll);
  int code = uv_poll_init(loop_get(), poll, s->fd);
  s->state = state;
  if (code == 0) {
    poll->data = s;
    s->poll = poll;
    s->events = 0;
    return true;
  }
  free(poll);
  if (code == UV_EEXIST) s->fd = -1;
  ssh_fail(s, "unreachable", "%s:%d: its socket cannot be watched: %s", s->address, s->port,
           uv_strerror(code));
  return false;
}

static void begin(SshLink *s) {
  opening++;
  s->timer = handle_new(sizeof *s->timer);
  s->timer->data = s;
  uv_timer_init(loop_get(), s->timer);
  s->deadline = loop_now() + s->timeout;
  ssh_limit(s, s->timeout);
  if (s->fd < 0) ssh_connect_begin(s);
  else if (ssh_watch(s, SSH_HANDSHAKE)) begin_session(s);
}

static void start_next(void) {
  while (queue_first && opening < concurrency) {
    SshLink *s = queue_first;
    queue_first = s->next;
    if (!queue_first) queue_last = NULL;
    begin(s);
    ssh_schedule(s);
  }
}

static int step_connect(SshLink *s) {
  int rc = ssh_connect_advance(s);
  if (rc != 0) return rc;
  ssh_limit(s, s->deadline - loop_now());
  begin_session(s);
  return 0;
}

static int fail_last(SshLink *s, int rc, const char *code, const char *what) {
  char *message = NULL;
  if (rc == LIBSSH2_ERROR_EAGAIN) return rc;
  libssh2_session_last_error(s->session, &message, NULL, 0);
  ssh_fail(s, code, "%s:%d: %s: %s", s->address, s->port, what, message && *message ? message : "it hung up");
  return rc;
}

static int step_handshake(SshLink *s) {
  int rc = libssh2_session_handshake(s->session, s->fd);
  if (rc == LIBSSH2_ERROR_KEX_FAILURE) return fail_last(s, rc, "unsupported", "no algorithm in common");
  if (rc != 0) return fail_last(s, rc, "unreachable", "not an SSH server, or it refuses us");
  s->state = SSH_HOST_KEY;
  return 0;
}

static int step_host_key(SshLink *s) {
  if (!known_hosts_check(s)) return -1;
  s->state = SSH_METHODS;
  return 0;
}

static int step_methods(SshLink *s) {
  if (s->use_agent) {
    s->agent = libssh2_agent_init(s->session);
    if (s->agent && (libssh2_agent_connect(s->agent) != 0 || libssh2_agent_list_identities(s->agent) != 0)) {
      libssh2_agent_free(s->agent);
      s->agent = NULL;
    }
  }
  s->state = s->agent ? SSH_AGENT : SSH_IDENTITY;
  return 0;
}

static bool is_wanted_of_agent(const SshLink *s, const struct libssh2_agent_publickey *key) {
  if (!s->agent_keys[0]) return true;
  char *text = memory_new(4 * ((key->blob_len + 2) / 3) + 1);
  EVP_EncodeBlock((unsigned char *)text, key->blob, (int)key->blob_len);
  bool wanted = false;
  for (char **each = s->agent_keys; *each; each++) wanted = wanted || strcmp(*each, text) == 0;
  free(text);
  return wanted;
}

static int step_agent(SshLink *s) {
  while (!s->agent_asked) {
    struct libssh2_agent_publickey *next = NULL;
    if (libssh2_agent_get_identity(s->agent, &next, s->agent_key) != 0) {
      s->state = SSH_IDENTITY;
      return 0;
    }
    s->agent_key = next;
    s->agent_asked = is_wanted_of_agent(s, next);
    s->agent_offers += s->agent_asked;
  }
  int rc = libssh2_agent_userauth(s->agent, s->user, s->agent_key);
  if (rc == LIBSSH2_ERROR_EAGAIN) return rc;
  s->agent_asked = false;
  if (rc == 0) s->state = SSH_READY;
  return 0;
}

static const char *passphrase_of(const SshLink *s, int identity) {
  return s->passphrases[0] ? s->passphrases[identity] : "";
}

/* None of the keys has got us in; one that could not be read was not offered to anybody. */
static int fail_identities(SshLink *s) {
  char *message = NULL;
  char unread[320] = "";
  libssh2_session_last_error(s->session, &message, NULL, 0);
  if (s->unread >= 0)
    snprintf(unread, sizeof unread, "%s cannot be read: %s", s->identities[s->unread],
             *passphrase_of(s, s->unread) ? "the passphrase is wrong" : "it is no key that libssh2 knows");
  if (*unread && !s->agent_offers && !s->offers) {
    ssh_fail(s, "denied", "%s, so there is no key to offer to %s@%s:%d", unread, s->user, s->address,
             s->port);
    return -1;
  }
  ssh_fail(s, "denied", "%s@%s:%d refuses %s%s%s%s%s", s->user, s->address, s->port,
           s->offers         ? "every key offered"
           : s->agent_offers ? "the keys of the agent, or so many of them: say which one with identity:"
                             : "us: there is no key to offer (identity: or an agent)",
           *unread ? "; " : "", unread, !*unread && message && *message ? "; last: " : "",
           !*unread && message ? message : "");
  return -1;
}

static int step_identity(SshLink *s) {
  char *file = s->identities[s->next_identity];
  if (!file) return fail_identities(s);
  const char *passphrase = passphrase_of(s, s->next_identity);
  int rc =
      libssh2_userauth_publickey_fromfile(s->session, s->user, NULL, file, *passphrase ? passphrase : NULL);
  if (rc == LIBSSH2_ERROR_EAGAIN) return rc;
  if (rc == 0) s->state = SSH_READY;
  else if (rc == LIBSSH2_ERROR_SOCKET_DISCONNECT || rc == LIBSSH2_ERROR_SOCKET_RECV) {
    return fail_last(s, rc, "denied", "the server hung up while logging in");
  } else {
    if (rc == LIBSSH2_ERROR_FILE) s->unread = s->next_identity;
    else s->offers++;
    s->next_identity++;
  }
  return 0;
}

static void become_ready(SshLink *s) {
  opening--;
  const char *banner = libssh2_session_banner_get(s->session);
  if (!banner || !strstr(banner, "OpenSSH")) s->ahead = 0; /* others may tell too late what was taken */
  s->link.state = LINK_OPEN;
  s->heard = loop_now();
  libssh2_keepalive_config(s->session, 1, 1); /* when, is the timer's business */
  uint64_t pause = loop_milliseconds(s->keepalive);
  uv_timer_start(s->timer, on_keepalive, pause, pause);
  uv_unref((uv_handle_t *)s->timer);
  changed(s);
  start_next();
}

static int step_open(SshLink *s) {
  switch (s->state) {
    case SSH_CONNECT: return step_connect(s);
    case SSH_HANDSHAKE: return step_handshake(s);
    case SSH_HOST_KEY: return step_host_key(s);
    case SSH_METHODS: return step_methods(s);
    case SSH_AGENT: return step_agent(s);
    case SSH_IDENTITY: return step_identity(s);
    default: return LIBSSH2_ERROR_EAGAIN;
  }
}

static void free_link(SshLink *s);

void ssh_advance(SshLink *s) {
  if (s->busy) return;
  s->busy = true;
  s->turn = 0;
  while (s->state > SSH_RESOLVE && s->state < SSH_READY && step_open(s) == 0) continue;
  if (s->state == SSH_READY && s->link.state == LINK_OPENING) become_ready(s);
  if (s->state == SSH_READY) ssh_channels_advance(s);
  s->busy = false;
  if (s->state == SSH_LOST) {
    if (s->session || s->timer || s->channels) bury(s);
  } else if (s->state != SSH_QUEUED) {
    watch(s);
    if (s->again) uv_idle_start(s->idle, on_idle);
  }
  s->again = false;
  if (s->closing) free_link(s);
}

static void free_words(char **words) {
  for (char **word = words; *word; word++) free(*word);
  free(words);
}

static void free_link(SshLink *s) {
  ssh_fail(s, "closed", "the link was closed");
  s->link.on_change = NULL;
  bury(s);
  ssh_channels_orphan(s);
  free(s->address);
  free(s->known_as);
  free(s->user);
  free_words(s->identities);
  free_words(s->passphrases);
  free_words(s->agent_keys);
  free_words(s->known_hosts);
  free(s->link.name);
  free(s);
}

static void unqueue(SshLink *s) {
  SshLink *last = NULL;
  for (SshLink **p = &queue_first; *p;) {
    if (*p == s) *p = s->next;
    else {
      last = *p;
      p = &(*p)->next;
    }
  }
  queue_last = last;
}

static void ssh_close(Link *l) {
  SshLink *s = (SshLink *)l;
  if (s->state == SSH_QUEUED) unqueue(s);
  s->closing = true;
  if (!s->busy) free_link(s);
}

static const LinkClass ssh_class = {ssh_channel_exec, ssh_channel_dial, ssh_close};

static char **copy_words(char **words) {
  int count = 0;
  while (words && words[count]) count++;
  char **copy = memory_new((size_t)(count + 1) * sizeof *copy);
  for (int i = 0; i < count; i++) copy[i] = memory_copy(words[i]);
  return copy;
}

static char *copy_known_name(const SshOptions *o) {
  Buffer name = {0};
  if (o->known_as || o->port == 22) return memory_copy(o->known_as ? o->known_as : o->address);
  buffer_format(&name, "[%s]:%d", o->address, o->port);
  buffer_append(&name, "", 1);
  return name.data;
}

Link *ssh_open(const SshOptions *o) {
  if (!initialized) initialized = libssh2_init(0) == 0;
  SshLink *s = memory_new(sizeof *s);
  s->link.class = &ssh_class;
  s->link.name = memory_copy(o->name);
  s->address = memory_copy(o->address);
  s->known_as = copy_known_name(o);
  s->aliased = o->known_as != NULL;
  s->user = memory_copy(o->user);
  s->identities = copy_words(o->identities);
  s->passphrases = copy_words(o->passphrases);
  s->agent_keys = copy_words(o->agent_keys);
  s->known_hosts = copy_words(o->known_hosts);
  s->accept_new = o->accept_new;
  s->use_agent = o->agent;
  s->unread = -1;
  s->port = o->port;
  s->fd = o->fd;
  s->timeout = o->timeout;
  s->keepalive = o->keepalive;
  s->idle = handle_new(sizeof *s->idle);
  s->idle->data = s;
  uv_idle_init(loop_get(), s->idle);
  if (queue_last) queue_last->next = s;
  else queue_first = s;
  queue_last = s;
  start_next();
  return &s->link;
}

void ssh_shutdown(void) {
  if (initialized) libssh2_exit();
  initialized = false;
}
