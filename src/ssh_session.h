/* ssh_session.h -- What ssh.c (log in), ssh_connect.c (connect), ssh_channel.c (channels) and known_hosts.c
 * share. */
#ifndef DEPLOYRT_SSH_SESSION_H
#define DEPLOYRT_SSH_SESSION_H

#include <libssh2.h>
#include <uv.h>

#include "memory.h"
#include "ssh.h"

typedef enum {
  SSH_QUEUED,
  SSH_RESOLVE,
  SSH_CONNECT,
  SSH_HANDSHAKE,
  SSH_HOST_KEY,
  SSH_METHODS,
  SSH_AGENT,
  SSH_IDENTITY,
  SSH_READY,
  SSH_LOST
} SshState;

typedef struct SshChannel SshChannel;

typedef struct SshLink {
  Link link;
  SshState state;
  char *address, *known_as, *user;
  char **identities, **passphrases, **known_hosts, **agent_keys;
  int next_identity;
  int offers;   /* keys of files that the server was asked about */
  int unread;   /* the last of identities that could not be read, or -1 */
  bool aliased; /* known_as is not its address */
  bool accept_new, use_agent;
  int port, fd;
  double timeout, keepalive, heard;
  double deadline; /* until when it may be opening */
  LIBSSH2_SESSION *session;
  LIBSSH2_AGENT *agent;
  struct libssh2_agent_publickey *agent_key;
  bool agent_asked;
  int agent_offers; /* keys of the agent that were offered */
  uv_poll_t *poll;
  int events;        /* what poll watches for */
  uv_timer_t *timer; /* the deadline while opening, keepalive afterwards */
  uv_getaddrinfo_t *resolving;
  struct addrinfo *addresses, *next_address; /* what its name stands for, and which of them is tried next */
  uv_idle_t *idle;                           /* advances after a call that could not advance itself */
  bool busy;                                 /* inside ssh_advance(); closes wait for its end */
  bool again;                                /* something was asked for meanwhile */
  bool closing;
  size_t received; /* bytes from the socket, ever */
  size_t turn;     /* what was received, and how often, since the loop last had its turn */
  size_t ahead;    /* most bytes on their way to one command, or 0: as many as the peer's window allows */
  SshChannel *channels;
  int sessions;         /* commands that run; sshd allows MaxSessions, 10 by default */
  SshChannel *blocker;  /* libssh2 wants this one's packet finished before any other */
  SshChannel *opener;   /* libssh2 opens one channel at a time */
  struct SshLink *next; /* in the queue of links to open */
} SshLink;

/* Asks for ssh_advance() at the next turn of the loop. */
void ssh_schedule(SshLink *s);
void ssh_fail(SshLink *s, const char *code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Goes on as far as it can without waiting. */
void ssh_advance(SshLink *s);
/* Watches its socket; on failure has called ssh_fail(). */
bool ssh_watch(SshLink *s, SshState state);
/* Has what it is doing while it opens end after so many seconds. */
void ssh_limit(SshLink *s, double seconds);

/* Looks its address up, and connects. */
void ssh_connect_begin(SshLink *s);
/* Gives the present address up, because of `why`, and tries the next one; without one has called ssh_fail().
 */
void ssh_connect_next(SshLink *s, const char *why);
/* 0 once it is connected. */
int ssh_connect_advance(SshLink *s);
void ssh_connect_release(SshLink *s);

/* Moves all channels as far as they go, or until libssh2 must first get rid of a packet. */
void ssh_channels_advance(SshLink *s);
void ssh_channels_fail(SshLink *s);
void ssh_channels_orphan(SshLink *s);
Channel *ssh_channel_exec(Link *l, const char *command, const ChannelEvents *events, void *owner);
Channel *ssh_channel_dial(Link *l, const char *address, int port, const ChannelEvents *events, void *owner);

/* Sets the order of host key types to those that known_hosts has for this host. */
void known_hosts_prefer(SshLink *s);
/* Checks the key that the server showed; on refusal has called ssh_fail(). */
bool known_hosts_check(SshLink *s);

#endif
