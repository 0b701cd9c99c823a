/* ssh.h -- Links made of a libssh2 session: one connection, any number of channels. */
#ifndef DEPLOYRT_SSH_H
#define DEPLOYRT_SSH_H

#include "channel.h"

/* All strings are copied. */
typedef struct SshOptions {
  const char *name;
  const char *address; /* a name or a number */
  int port;
  const char *known_as; /* its whole name in known_hosts; NULL: the address, and the port unless it is 22 */
  const char *user;
  char **identities;  /* private key files, tried in order, NULL at the end */
  char **passphrases; /* of each of them, or none at all; "": it has none */
  char **known_hosts; /* files, NULL at the end; a new key is added to the first */
  bool accept_new;
  bool agent;
  char **agent_keys; /* only these of its keys, in base64, NULL at the end; none: all of them */
  double timeout;    /* seconds to connect and log in */
  double keepalive;  /* seconds between two signs of life; the link is lost after three without an answer */
  int fd;            /* a connected socket (through a jump host), or -1 */
} SshOptions;

/* Begins to connect; at most ssh_set_concurrency() links do so at once, the others queue. */
Link *ssh_open(const SshOptions *options);
void ssh_set_concurrency(int links);

/* Frees what libssh2 holds for the whole process. */
void ssh_shutdown(void);

#endif
