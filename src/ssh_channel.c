/* ssh_channel.c -- Channels of a libssh2 session, each a state machine moved along by ssh_advance(). */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh_session.h"

#define MAX_SESSIONS 9
#define MAX_COMMAND 32700 /* bytes: a packet need not hold more than 32768 (RFC 4253, section 6.1) */

typedef enum { CH_OPEN, CH_EXEC, CH_DATA, CH_CLOSE, CH_FREE, CH_DEAD } ChannelState;

struct SshChannel {
  Channel channel;
  ChannelState state;
  SshLink *ssh;
  LIBSSH2_CHANNEL *handle;
  char *command; /* NULL: a connection to address:port */
  char *address;
  int port;
  Buffer out;
  size_t sent;   /* of out */
  size_t window; /* the largest that the peer granted */
  bool end_asked, end_sent, told, closed, paused;
  SshChannel *next;
};

static void tell_exit(SshChannel *c, int status, int signal) {
  if (c->told) return;
  c->told = true;
  if (!c->closed) c->channel.events->on_exit(c->channel.owner, status, signal);
}

static void tell_failure(SshChannel *c, const char *code, const char *message) {
  if (c->told) return;
  c->told = true;
  if (!c->closed) c->channel.events->on_fail(c->channel.owner, code, message);
}

static int signal_by_name(const char *name) {
  static const struct {
    const char *name;
    int number;
  } signals[] = {{"ABRT", 6},  {"ALRM", 14}, {"FPE", 8},   {"HUP", 1},  {"ILL", 4},
                 {"INT", 2},   {"KILL", 9},  {"PIPE", 13}, {"QUIT", 3}, {"SEGV", 11},
                 {"TERM", 15}, {"USR1", 10}, {"USR2", 12}, {"BUS", 7}};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
    if (strcmp(signals[i].name, name) == 0) return signals[i].number;
  }
  return 1;
}

/* libssh2 puts messages together for us: this is the payload of a channel open of RFC 4254, section 7.2. */
static void add_string(Buffer *b, const char *text) {
  uint32_t length = htonl((uint32_t)strlen(text));
  buffer_append(b, &length, sizeof length);
  buffer_text(b, text);
}

static LIBSSH2_CHANNEL *open_connection(SshChannel *c) {
  if (!is_path(c->address)) {
    return libssh2_channel_direct_tcpip_ex(c->ssh->session, c->address, c->port, "127.0.0.1", 0);
  }
  Buffer message = {0}; /* OpenSSH PROTOCOL, section 2.4 */
  uint32_t zero = 0;
  add_string(&message, c->address);
  add_string(&message, "");
  buffer_append(&message, &zero, sizeof zero);
  static const char type[] = "direct-streamlocal@openssh.com";
  LIBSSH2_CHANNEL *handle =
      libssh2_channel_open_ex(c->ssh->session, type, sizeof type - 1, LIBSSH2_CHANNEL_WINDOW_DEFAULT,
                              LIBSSH2_CHANNEL_PACKET_DEFAULT, message.data, (unsigned)message.length);
  buffer_free(&message);
  return handle;
}

static int last_error(SshLink *s) {
  return libssh2_session_last_errno(s->session);
}

/* libssh2 tells the reason of RFC 4254, section 5.1, in words only. */
static const char *why_not_open(const SshChannel *c) {
  char *message = NULL;
  if (c->command) return "the server opens no more sessions (MaxSessions?)";
  libssh2_session_last_error(c->ssh->session, &message, NULL, 0);
  bool forbidden = message && strstr(message, "prohibited");
  return forbidden ? "its sshd forwards no connections there (AllowTcpForwarding?)"
                   : "connection refused, or nobody there";
}

static int advance_open(SshChannel *c) {
  SshLink *s = c->ssh;
  if (s->opener && s->opener != c) return LIBSSH2_ERROR_EAGAIN;
  if (c->command && s->opener != c && s->sessions >= MAX_SESSIONS) return LIBSSH2_ERROR_EAGAIN;
  s->opener = c;
  c->handle = c->command ? libssh2_channel_open_session(s->session) : open_connection(c);
  if (!c->handle && last_error(s) == LIBSSH2_ERROR_EAGAIN) return LIBSSH2_ERROR_EAGAIN;
  s->opener = NULL;
  if (c->handle && c->command) s->sessions++;
  if (c->handle) return 0;
  if (last_error(s) != LIBSSH2_ERROR_CHANNEL_FAILURE) return last_error(s);
  tell_failure(c, "refused", why_not_open(c));
  c->state = CH_DEAD;
  return 0;
}

static int advance_exec(SshChannel *c) {
  int rc = libssh2_channel_process_startup(c->handle, "exec", 4, c->command, (unsigned)strlen(c->command));
  if (rc == LIBSSH2_ERROR_CHANNEL_REQUEST_DENIED) {
    tell_failure(c, "refused", "the server refuses to run a command");
    c->state = CH_CLOSE;
    return 0;
  }
  return rc;
}

/* Whether the peer's command has taken enough of what was sent; its window grows when it does. */
static bool has_room(SshChannel *c) {
  size_t left = libssh2_channel_window_write_ex(c->handle, NULL);
  if (left > c->window) c->window = left;
  return c->ssh->ahead == 0 || c->window - left < c->ssh->ahead;
}

static int advance_write(SshChannel *c) {
  while (c->sent < c->out.length) {
    if (!has_room(c)) return 0;
    ssize_t n = libssh2_channel_write(c->handle, c->out.data + c->sent, c->out.length - c->sent);
    if (n == LIBSSH2_ERROR_CHANNEL_CLOSED || n == LIBSSH2_ERROR_CHANNEL_EOF_SENT)
      n = (ssize_t)(c->out.length - c->sent);
    if (n < 0) return (int)n;
    c->sent += (size_t)n;
    if (c->sent < c->out.length) continue;
    c->out.length = c->sent = 0;
    if (!c->closed && !c->told && !c->end_asked) c->channel.events->on_drain(c->channel.owner);
  }
  if (c->end_asked && !c->end_sent) {
    int rc = libssh2_channel_send_eof(c->handle);
    if (rc != 0) return rc;
    c->end_sent = true;
  }
  return 0;
}

static int advance_read(SshChannel *c, int stream) {
  static char shared[65536];
  while (!c->paused) {
    ssize_t n = libssh2_channel_read_ex(c->handle, stream == 2 ? 1 : 0, shared, sizeof shared);
    if (n <= 0) return (int)n;
    if (!c->closed && !c->told) c->channel.events->on_output(c->channel.owner, stream, shared, (size_t)n);
  }
  return LIBSSH2_ERROR_EAGAIN;
}

/* Reads and writes in turn; a peer's end of file ends the data phase. */
static int advance_data(SshChannel *c) {
  int written = advance_write(c);
  if (written != 0 && written != LIBSSH2_ERROR_EAGAIN) return written;
  bool stuck =
      written != 0 && (libssh2_session_block_directions(c->ssh->session) & LIBSSH2_SESSION_BLOCK_OUTBOUND);
  if (stuck && !libssh2_channel_eof(c->handle)) {
    size_t window = libssh2_channel_window_write_ex(c->handle, NULL);
    if (window > 0) return LIBSSH2_ERROR_EAGAIN; /* the socket is full: this packet first */
  }
  for (int stream = 1; stream <= 2; stream++) {
    int rc = advance_read(c, stream);
    if (rc != 0 && rc != LIBSSH2_ERROR_EAGAIN) return rc;
  }
  if (libssh2_channel_eof(c->handle) || c->closed) return 0;
  return LIBSSH2_ERROR_EAGAIN;
}

static int advance_close(SshChannel *c) {
  int rc = libssh2_channel_close(c->handle);
  if (rc != 0) return rc;
  char *signal = NULL;
  if (c->command) libssh2_channel_get_exit_signal(c->handle, &signal, NULL, NULL, NULL, NULL, NULL);
  int number = signal ? signal_by_name(signal) : 0;
  if (signal) libssh2_free(c->ssh->session, signal);
  tell_exit(c, c->command && !number ? libssh2_channel_get_exit_status(c->handle) : 0, number);
  return 0;
}

/* libssh2 would fail in the middle of a session with it, which then cannot go on. */
static bool is_too_long(const SshChannel *c) {
  return c->command && strlen(c->command) > MAX_COMMAND;
}

static void refuse_command(SshChannel *c) {
  char message[160];
  snprintf(message, sizeof message,
           "the command has %zu bytes, and SSH carries at most %d: pass the rest on standard input",
           strlen(c->command), MAX_COMMAND);
  tell_failure(c, "spawn", message);
  c->state = CH_DEAD;
}

static int channel_advance(SshChannel *c) {
  int rc = 0;
  switch (c->state) {
    case CH_OPEN:
      if (c->closed && c->ssh->opener != c) {
        c->state = CH_DEAD;
        return 0;
      }
      if (is_too_long(c)) {
        refuse_command(c);
        return 0;
      }
      rc = advance_open(c);
      if (rc != 0 || c->state == CH_DEAD) return rc;
      c->state = c->command ? CH_EXEC : CH_DATA;
      if (!c->command && !c->closed && c->channel.events->on_open)
        c->channel.events->on_open(c->channel.owner);
      /* fall through */
    case CH_EXEC:
      if (c->state == CH_EXEC) {
        rc = advance_exec(c);
        if (rc != 0) return rc;
        if (c->state == CH_EXEC) c->state = CH_DATA;
      }
      /* fall through */
    case CH_DATA:
      if (c->state == CH_DATA) {
        rc = advance_data(c);
        if (rc != 0) return rc;
        c->state = CH_CLOSE;
      }
      /* fall through */
    case CH_CLOSE:
      rc = advance_close(c);
      if (rc != 0) return rc;
      c->state = CH_FREE;
      /* fall through */
    case CH_FREE:
      rc = libssh2_channel_free(c->handle);
      if (rc == LIBSSH2_ERROR_EAGAIN) return rc;
      c->handle = NULL;
      c->state = CH_DEAD;
      if (c->command) c->ssh->sessions--;
      ssh_schedule(c->ssh); /* somebody may wait for its place */
      /* fall through */
    case CH_DEAD: break;
  }
  return 0;
}

static void channel_free(SshChannel *c) {
  free(c->command);
  free(c->address);
  buffer_free(&c->out);
  free(c);
}

static void sweep(SshLink *s) {
  for (SshChannel **p = &s->channels; *p;) {
    SshChannel *c = *p;
    if (c->state == CH_DEAD && c->closed) {
      *p = c->next;
      channel_free(c);
    } else {
      p = &c->next;
    }
  }
}

static bool advance_one(SshLink *s, SshChannel *c) {
  int rc = channel_advance(c);
  if (rc == LIBSSH2_ERROR_EAGAIN) {
    bool outbound = libssh2_session_block_directions(s->session) & LIBSSH2_SESSION_BLOCK_OUTBOUND;
    s->blocker = outbound ? c : NULL;
    return !outbound;
  }
  s->blocker = NULL;
  if (rc != 0) {
    char *message = NULL;
    libssh2_session_last_error(s->session, &message, NULL, 0);
    ssh_fail(s, "lost", "connection lost: %s", message && *message ? message : "the server hung up");
    return false;
  }
  return true;
}

/* A read for one channel may take a packet of another off the socket, hence the rounds. */
void ssh_channels_advance(SshLink *s) {
  size_t before;
  if (s->blocker && !advance_one(s, s->blocker)) return;
  do {
    before = s->received;
    for (SshChannel *c = s->channels; c; c = c->next) {
      if (c->state != CH_DEAD && !advance_one(s, c)) return;
    }
    sweep(s);
  } while (s->received != before);
}

/* The session is gone, and libssh2's channels with it. */
void ssh_channels_fail(SshLink *s) {
  for (SshChannel *c = s->channels, *next; c; c = next) {
    next = c->next;
    c->handle = NULL;
    c->state = CH_DEAD;
    tell_failure(c, "lost", s->link.message);
  }
  s->blocker = s->opener = NULL;
  sweep(s);
}

/* The link goes before the owners of its channels do: each channel lives on until it is closed. */
void ssh_channels_orphan(SshLink *s) {
  for (SshChannel *c = s->channels, *next; c; c = next) {
    next = c->next;
    c->ssh = NULL;
  }
  s->channels = NULL;
}

static void ssh_write(Channel *channel, const char *data, size_t length) {
  SshChannel *c = (SshChannel *)channel;
  if (c->told || c->end_asked) return;
  buffer_append(&c->out, data, length);
  ssh_schedule(c->ssh);
}

static void ssh_end(Channel *channel) {
  SshChannel *c = (SshChannel *)channel;
  c->end_asked = true;
  ssh_schedule(c->ssh);
}

static size_t ssh_pending(const Channel *channel) {
  const SshChannel *c = (const SshChannel *)channel;
  return c->out.length - c->sent;
}

static void ssh_pause(Channel *channel, bool paused) {
  SshChannel *c = (SshChannel *)channel;
  c->paused = paused; /* the window closes, and the peer with it */
  if (!paused && c->ssh) ssh_schedule(c->ssh);
}

static void ssh_channel_close(Channel *channel) {
  SshChannel *c = (SshChannel *)channel;
  c->closed = true;
  c->out.length = c->sent = 0;
  if (c->ssh) ssh_schedule(c->ssh);
  else channel_free(c);
}

static const ChannelClass ssh_channel_class = {ssh_write, ssh_end, ssh_pending, ssh_pause, ssh_channel_close};

static SshChannel *channel_new(Link *l, const ChannelEvents *events, void *owner) {
  SshLink *s = (SshLink *)l;
  SshChannel *c = memory_new(sizeof *c);
  c->channel = (Channel){&ssh_channel_class, events, owner};
  c->ssh = s;
  SshChannel **p = &s->channels;
  while (*p) p = &(*p)->next;
  *p = c;
  ssh_schedule(s);
  return c;
}

Channel *ssh_channel_exec(Link *l, const char *command, const ChannelEvents *events, void *owner) {
  SshChannel *c = channel_new(l, events, owner);
  c->command = memory_copy(command);
  return &c->channel;
}

Channel *ssh_channel_dial(Link *l, const char *address, int port, const ChannelEvents *events, void *owner) {
  SshChannel *c = channel_new(l, events, owner);
  c->address = memory_copy(address);
  c->port = port;
  return &c->channel;
}
