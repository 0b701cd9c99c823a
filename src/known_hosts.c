/* known_hosts.c -- Verifies the server's key against the user's known_hosts files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssh_session.h"

/* Whether a line may be about the host: it has its name, or hides whose it is. With the file of a large
 * fleet, parsing all lines for each host would cost more than logging in. */
static bool may_concern(const SshLink *s, const char *line, size_t length) {
  return line[0] == '|' || memmem(line, length, s->known_as, strlen(s->known_as)) != NULL;
}

static void load_file(const SshLink *s, LIBSSH2_KNOWNHOSTS *hosts, const char *path) {
  static char buffer[65536];
  char *line = NULL;
  size_t room = 0;
  FILE *file = fopen(path, "re");
  if (!file) return; /* a missing file knows nobody */
  setvbuf(file, buffer, _IOFBF, sizeof buffer);
  for (ssize_t n; (n = getline(&line, &room, file)) > 0;) {
    if (!may_concern(s, line, (size_t)n)) continue;
    libssh2_knownhost_readline(hosts, line, (size_t)n, LIBSSH2_KNOWNHOST_FILE_OPENSSH);
  }
  free(line);
  fclose(file);
}

static LIBSSH2_KNOWNHOSTS *load(SshLink *s) {
  LIBSSH2_KNOWNHOSTS *hosts = libssh2_knownhost_init(s->session);
  for (char **file = s->known_hosts; hosts && *file; file++) load_file(s, hosts, *file);
  return hosts;
}

static int lookup(SshLink *s, LIBSSH2_KNOWNHOSTS *hosts, const char *key, size_t length,
                  struct libssh2_knownhost **found) {
  int type = LIBSSH2_KNOWNHOST_TYPE_PLAIN | LIBSSH2_KNOWNHOST_KEYENC_RAW;
  return libssh2_knownhost_checkp(hosts, s->known_as, s->port, key, length, type, found);
}

/* Which key types are known is found by asking for a key that cannot be right. */
void known_hosts_prefer(SshLink *s) {
  LIBSSH2_KNOWNHOSTS *hosts = load(s);
  if (!hosts) return;
  static const struct {
    int bits;
    const char *methods;
  } orders[] = {{LIBSSH2_KNOWNHOST_KEY_ED25519,
                 "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521"},
                {LIBSSH2_KNOWNHOST_KEY_ECDSA_256,
                 "ecdsa-sha2-nistp256,ssh-ed25519,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521"},
                {LIBSSH2_KNOWNHOST_KEY_ECDSA_384,
                 "ecdsa-sha2-nistp384,ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp521"},
                {LIBSSH2_KNOWNHOST_KEY_ECDSA_521,
                 "ecdsa-sha2-nistp521,ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384"}};
  const char *best = orders[0].methods;
  for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
    struct libssh2_knownhost *found = NULL;
    int type = LIBSSH2_KNOWNHOST_TYPE_PLAIN | LIBSSH2_KNOWNHOST_KEYENC_RAW | orders[i].bits;
    if (libssh2_knownhost_checkp(hosts, s->known_as, s->port, "?", 1, type, &found) ==
        LIBSSH2_KNOWNHOST_CHECK_MISMATCH) {
      best = orders[i].methods;
      break;
    }
  }
  libssh2_session_method_pref(s->session, LIBSSH2_METHOD_HOSTKEY, best);
  libssh2_knownhost_free(hosts);
}

static int key_bits(int type) {
  switch (type) {
    case LIBSSH2_HOSTKEY_TYPE_RSA: return LIBSSH2_KNOWNHOST_KEY_SSHRSA;
    case LIBSSH2_HOSTKEY_TYPE_ECDSA_256: return LIBSSH2_KNOWNHOST_KEY_ECDSA_256;
    case LIBSSH2_HOSTKEY_TYPE_ECDSA_384: return LIBSSH2_KNOWNHOST_KEY_ECDSA_384;
    case LIBSSH2_HOSTKEY_TYPE_ECDSA_521: return LIBSSH2_KNOWNHOST_KEY_ECDSA_521;
    default: return LIBSSH2_KNOWNHOST_KEY_ED25519;
  }
}

/* How the file names a host. */
static void entry_name(const SshLink *s, char *name, size_t size) {
  snprintf(name, size, s->port == 22 ? "%s" : "[%s]:%d", s->known_as, s->port);
}

/* Appends the one new line; rewriting the file through libssh2 would lose what it does not understand. */
static bool remember(SshLink *s, LIBSSH2_KNOWNHOSTS *hosts, const char *key, size_t length, int type) {
  char line[4096], name[300];
  size_t size = 0;
  struct libssh2_knownhost *entry = NULL;
  entry_name(s, name, sizeof name);
  int bits = LIBSSH2_KNOWNHOST_TYPE_PLAIN | LIBSSH2_KNOWNHOST_KEYENC_RAW | key_bits(type);
  if (libssh2_knownhost_addc(hosts, name, NULL, key, length, NULL, 0, bits, &entry) != 0) return false;
  if (libssh2_knownhost_writeline(hosts, entry, line, sizeof line, &size, LIBSSH2_KNOWNHOST_FILE_OPENSSH) !=
      0) {
    return false;
  }
  FILE *file = fopen(s->known_hosts[0], "a");
  if (!file) return false;
  bool written = fwrite(line, 1, size, file) == size;
  return fclose(file) == 0 && written;
}

bool known_hosts_check(SshLink *s) {
  size_t length;
  int type;
  const char *key = libssh2_session_hostkey(s->session, &length, &type);
  LIBSSH2_KNOWNHOSTS *hosts = load(s);
  struct libssh2_knownhost *found = NULL;
  int verdict = key && hosts ? lookup(s, hosts, key, length, &found) : LIBSSH2_KNOWNHOST_CHECK_FAILURE;
  const char *file = s->known_hosts[0] ? s->known_hosts[0] : "known_hosts";
  bool fine = verdict == LIBSSH2_KNOWNHOST_CHECK_MATCH;
  char name[300];
  entry_name(s, name, sizeof name);
  if (verdict == LIBSSH2_KNOWNHOST_CHECK_MISMATCH) {
    ssh_fail(s, "host_key",
             "the host key of %s is not the one in %s: somebody may be listening in, or the machine was set "
             "up anew; "
             "if you know why, remove the old key with: ssh-keygen -f '%s' -R '%s'",
             s->known_as, file, file, name);
  } else if (!fine && s->accept_new && s->known_hosts[0] && key && hosts) {
    fine = remember(s, hosts, key, length, type);
    if (!fine) ssh_fail(s, "host_key", "cannot write the new host key of %s to %s", s->known_as, file);
  } else if (!fine) {
    ssh_fail(
        s, "host_key",
        "the host key of %s is not in %s; connect once with ssh and check the fingerprint, or allow new keys "
        "with 'known_hosts: accept-new' of the host",
        s->known_as, file);
  }
  if (hosts) libssh2_knownhost_free(hosts);
  return fine;
}
