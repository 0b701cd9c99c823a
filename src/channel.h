/* channel.h -- Bytes to and from one command or connection on a host, whatever carries them. */
#ifndef DEPLOYRT_CHANNEL_H
#define DEPLOYRT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct Channel Channel;
typedef struct Link Link;

/* What the owner of a channel hears of it. After on_exit or on_fail nothing more comes; close it then. */
typedef struct ChannelEvents {
  void (*on_open)(void *owner); /* a connection stands; may be NULL */
  void (*on_output)(void *owner, int stream, const char *data,
                    size_t length);                     /* 1 or 2, as file descriptors */
  void (*on_drain)(void *owner);                        /* all that was written has left */
  void (*on_exit)(void *owner, int status, int signal); /* signal 0: it exited; a connection ends with 0, 0 */
  void (*on_fail)(void *owner, const char *code, const char *message);
} ChannelEvents;

typedef struct ChannelClass {
  void (*write)(Channel *c, const char *data, size_t length);
  void (*end)(Channel *c);                /* no more input will be written */
  size_t (*pending)(const Channel *c);    /* bytes written that have not left yet */
  void (*pause)(Channel *c, bool paused); /* holds output back, at its source */
  void (*close)(Channel *c);              /* frees it; a command that still runs is hung up on */
} ChannelClass;

struct Channel {
  const ChannelClass *class;
  const ChannelEvents *events;
  void *owner;
};

/* How a host is reached. Channels are opened at once; failure arrives through on_fail. */
typedef struct LinkClass {
  Channel *(*exec)(Link *l, const char *command, const ChannelEvents *events, void *owner);
  Channel *(*dial)(Link *l, const char *address, int port, const ChannelEvents *events, void *owner);
  void (*close)(Link *l); /* fails what is open, then frees the link */
} LinkClass;

typedef enum { LINK_OPENING, LINK_OPEN, LINK_LOST } LinkState;

struct Link {
  const LinkClass *class;
  LinkState state;
  char *name;    /* of the host, for messages */
  char code[24]; /* why it was lost */
  char message[512];
  void (*on_change)(void *owner); /* the state changed */
  void *owner;
};

/* A path starting with '/' in `address` is a unix socket. */
static inline bool is_path(const char *address) {
  return address[0] == '/';
}

/* Moves bytes between a channel and one end of a socket pair; returns the other end, or -1. Closes both by
 * itself. */
int channel_bridge(Link *l, const char *address, int port);

/* The link to this machine. */
Link *local_open(const char *name);

/* Lets go of the children that have not ended yet, when nothing will run the loop any more. */
void local_shutdown(void);

/* A link that runs the ssh command; `options` are its words up to and with the destination, NULL at the end.
 */
Link *openssh_open(const char *name, char **options);

#endif
