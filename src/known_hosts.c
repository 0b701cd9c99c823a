/* known_hosts.c -- Verifies the server's key against the user's known_hosts files, line by line as ssh does.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ssh_session.h"

/* How a server may sign with a key, the best first, and what known_hosts calls that key. */
static const struct {
  const char *method, *type;
} methods[] = {{"ssh-ed25519", "ssh-ed25519"},
               {"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"},
               {"ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"},
               {"ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"},
               {"rsa-sha2-512", "ssh-rsa"},
               {"rsa-sha2-256", "ssh-rsa"}};

enum { METHODS = sizeof methods / sizeof *methods };

typedef struct Word {
  const char *text;
  size_t length;
} Word;

typedef struct Entry {
  Word marker, hosts, type, key;
} Entry;

/* What a line says against the key that the server showed: the later, the worse. */
typedef enum { NOTHING, OTHER_TYPE, OTHER_KEY, REVOKED } Objection;

/* What the files say of a name. */
typedef struct Search {
  const char *name;
  char type[64];  /* of the key; empty before there is one */
  char *key;      /* in base64, as the files have it */
  unsigned can;   /* bits of methods[]: what libssh2 does here */
  unsigned known; /* of those: for which the name has a key */
  bool foreign;   /* it has a key, or an authority, that only the ssh command can use */
  bool same;      /* it has this key */
  Objection objection;
  const char *file; /* where the worst objection is */
  int line;
} Search;

static Word take_word(const char **at) {
  static const char blanks[] = " \t\r\n";
  *at += strspn(*at, blanks);
  Word word = {*at, strcspn(*at, blanks)};
  *at += word.length;
  return word;
}

static bool is_word(Word word, const char *text) {
  return strlen(text) == word.length && memcmp(word.text, text, word.length) == 0;
}

static bool is_same_letter(char a, char b) {
  return tolower((unsigned char)a) == tolower((unsigned char)b);
}

static bool pattern_fits(const char *p, const char *end, const char *name) {
  const char *star = NULL, *retry = NULL;
  while (*name) {
    if (p < end && *p == '*') {
      star = p++;
      retry = name;
    } else if (p < end && (*p == '?' || is_same_letter(*p, *name))) {
      p++;
      name++;
    } else if (star) {
      p = star + 1;
      name = ++retry;
    } else {
      return false;
    }
  }
  while (p < end && *p == '*') p++;
  return p == end;
}

/* One pattern with "!" before it that fits rules the line out, whatever else fits. */
static bool list_fits(Word hosts, const char *name) {
  bool fits = false;
  const char *end = hosts.text + hosts.length, *next;
  for (const char *p = hosts.text; p < end; p = next + 1) {
    next = memchr(p, ',', (size_t)(end - p));
    if (!next) next = end;
    bool negated = *p == '!';
    if (!pattern_fits(p + negated, next, name)) continue;
    if (negated) return false;
    fits = true;
  }
  return fits;
}

/* "|1|salt|hash": whose line it is can only be tried. */
static bool hash_fits(Word hosts, const char *name) {
  unsigned char salt[64], hash[EVP_MAX_MD_SIZE], text[EVP_MAX_MD_SIZE * 2];
  unsigned length = 0;
  if (hosts.length < 4 || memcmp(hosts.text, "|1|", 3) != 0) return false;
  const char *end = hosts.text + hosts.length, *middle = memchr(hosts.text + 3, '|', hosts.length - 3);
  int size = middle ? (int)(middle - hosts.text) - 3 : 0;
  if (size <= 0 || size > 64) return false;
  int salted = EVP_DecodeBlock(salt, (const unsigned char *)hosts.text + 3, size);
  for (const char *p = middle; p > hosts.text && p[-1] == '='; p--) salted--;
  if (salted <= 0) return false;
  if (!HMAC(EVP_sha1(), salt, salted, (const unsigned char *)name, strlen(name), hash, &length)) return false;
  EVP_EncodeBlock(text, hash, (int)length);
  return is_word((Word){middle + 1, (size_t)(end - middle) - 1}, (char *)text);
}

static bool hosts_fit(Word hosts, const char *name) {
  return *hosts.text == '|' ? hash_fits(hosts, name) : list_fits(hosts, name);
}

/* Whether a line is about the name: with the file of a large fleet, few are, and the rest of the others is
 * not looked at. The keys of protocol 1 began with a number of bits. */
static bool parse_line(const char *line, const char *name, Entry *e) {
  *e = (Entry){.hosts = take_word(&line)};
  if (*e->hosts.text == '@') {
    e->marker = e->hosts;
    e->hosts = take_word(&line);
  }
  if (*e->hosts.text == '#' || !hosts_fit(e->hosts, name)) return false;
  e->type = take_word(&line);
  e->key = take_word(&line);
  return e->key.length > 0 && !isdigit((unsigned char)*e->type.text);
}

static unsigned methods_of(Word type) {
  unsigned bits = 0;
  for (int i = 0; i < METHODS; i++) {
    if (is_word(type, methods[i].type)) bits |= 1U << i;
  }
  return bits;
}

/* Takes in a line whose hosts fit. */
static Objection search_add(Search *f, const Entry *e) {
  bool same = f->key && is_word(e->key, f->key);
  if (is_word(e->marker, "@revoked")) return same ? REVOKED : NOTHING;
  if (is_word(e->marker, "@cert-authority")) f->foreign = true;
  if (e->marker.length > 0) return NOTHING;
  unsigned can = f->can & methods_of(e->type);
  f->known |= can;
  if (!can) f->foreign = true;
  if (same) f->same = true;
  return same ? NOTHING : is_word(e->type, f->type) ? OTHER_KEY : OTHER_TYPE;
}

static void search_file(Search *f, const char *path) {
  static char buffer[65536];
  char *line = NULL;
  size_t room = 0;
  int number = 0;
  FILE *file = fopen(path, "re");
  if (!file) return; /* a missing file knows nobody */
  setvbuf(file, buffer, _IOFBF, sizeof buffer);
  while (getline(&line, &room, file) > 0) {
    Entry e;
    number++;
    Objection objection = parse_line(line, f->name, &e) ? search_add(f, &e) : NOTHING;
    if (objection <= f->objection) continue;
    f->objection = objection;
    f->file = path;
    f->line = number;
  }
  free(line);
  fclose(file);
}

static void search(const SshLink *s, Search *f, const char *name) {
  f->name = name;
  for (char **file = s->known_hosts; *file; file++) search_file(f, *file);
}

/* As ssh does it, what is known of the host without its port counts where nothing is known with it. */
static bool counts_without_port(const SshLink *s, const Search *f) {
  return !s->aliased && s->port != 22 && !f->known && !f->foreign && f->objection != REVOKED;
}

static unsigned available_methods(LIBSSH2_SESSION *session) {
  const char **names = NULL;
  unsigned bits = 0;
  int count = libssh2_session_supported_algs(session, LIBSSH2_METHOD_HOSTKEY, &names);
  for (int i = 0; i < count * METHODS; i++) {
    if (strcmp(names[i / METHODS], methods[i % METHODS].method) == 0) bits |= 1U << i % METHODS;
  }
  if (count > 0) libssh2_free(session, names);
  return bits;
}

void known_hosts_prefer(SshLink *s) {
  char order[256] = "";
  size_t length = 0;
  Search found = {.can = available_methods(s->session)};
  search(s, &found, s->known_as);
  if (counts_without_port(s, &found)) search(s, &found, s->address);
  for (int i = 0; i < 2 * METHODS; i++) {
    unsigned bit = 1U << i % METHODS;
    bool is_turn = (found.known & bit) ? i < METHODS : i >= METHODS;
    if (!is_turn || !(found.can & bit)) continue;
    length += (size_t)snprintf(order + length, sizeof order - length, "%s%s", length ? "," : "",
                               methods[i % METHODS].method);
  }
  if (length) libssh2_session_method_pref(s->session, LIBSSH2_METHOD_HOSTKEY, order);
}

/* The name of its type stands before the key itself, after four bytes of length. */
static bool take_host_key(const SshLink *s, Search *f) {
  size_t length = 0;
  int type;
  const unsigned char *key = (const unsigned char *)libssh2_session_hostkey(s->session, &length, &type);
  if (!key || length < 4 || length > 65536) return false;
  size_t name = (size_t)key[0] << 24 | (size_t)key[1] << 16 | (size_t)key[2] << 8 | key[3];
  if (name > length - 4 || name >= sizeof f->type) return false;
  memcpy(f->type, key + 4, name);
  f->key = memory_new(length * 4 / 3 + 8);
  EVP_EncodeBlock((unsigned char *)f->key, key, (int)length);
  f->can = available_methods(s->session);
  return true;
}

static int open_for_more(const char *path) {
  int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  char *directory = memory_copy(path), *slash = strrchr(directory, '/');
  if (slash) *slash = '\0';
  if (fd < 0 && errno == ENOENT && slash && mkdir(directory, 0700) == 0) {
    fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  }
  free(directory);
  return fd;
}

/* Appends the one new line, in one write: others may append too. The last one may lack its end. */
static bool remember(const SshLink *s, const Search *f) {
  Buffer text = {0};
  char last = '\n';
  int fd = open_for_more(s->known_hosts[0]);
  if (fd < 0) return false;
  off_t end = lseek(fd, 0, SEEK_END);
  if (end > 0 && pread(fd, &last, 1, end - 1) == 1 && last != '\n') buffer_text(&text, "\n");
  buffer_format(&text, "%s %s %s\n", s->known_as, f->type, f->key);
  bool written = write(fd, text.data, text.length) == (ssize_t)text.length;
  buffer_free(&text);
  return close(fd) == 0 && written;
}

static bool refuse(SshLink *s, const Search *f) {
  const char *who = s->known_as, *file = s->known_hosts[0] ? s->known_hosts[0] : "known_hosts";
  if (f->objection == REVOKED) {
    ssh_fail(s, "host_key",
             "the host key of %s is marked as revoked in line %d of %s: whoever has it is not to be trusted",
             who, f->line, f->file);
  } else if (f->objection == OTHER_KEY) {
    ssh_fail(
        s, "host_key",
        "the host key of %s is not the one in %s (line %d): somebody may be listening in, or the machine was "
        "set up anew; if you know why, remove the old key with: ssh-keygen -f '%s' -R '%s'",
        who, f->file, f->line, f->file, who);
  } else if (f->foreign) {
    ssh_fail(s, "unsupported",
             "%s is known by a key or an authority that libssh2 cannot verify; the ssh command can: set "
             "'transport: openssh' of the host",
             who);
  } else if (f->known) {
    ssh_fail(s, "host_key",
             "%s shows a host key of the type %s, but %s (line %d) knows it by another type only, which it "
             "no longer "
             "has; if you know why, remove the old key with: ssh-keygen -f '%s' -R '%s'",
             who, f->type, f->file, f->line, f->file, who);
  } else {
    ssh_fail(
        s, "host_key",
        "the host key of %s is not in %s; connect once with ssh and check the fingerprint, or allow new keys "
        "with 'known_hosts: accept-new' of the host",
        who, file);
  }
  return false;
}

static bool verify(SshLink *s, Search *f) {
  search(s, f, s->known_as);
  if (counts_without_port(s, f)) {
    Search plain = *f;
    search(s, &plain, s->address);
    if (plain.objection == REVOKED) return refuse(s, &plain);
    if (plain.same) return true;
  }
  if (f->same && f->objection != REVOKED) return true;
  if (f->known || f->foreign || f->objection == REVOKED || !s->accept_new || !s->known_hosts[0])
    return refuse(s, f);
  if (remember(s, f)) return true;
  ssh_fail(s, "host_key", "cannot write the new host key of %s to %s: %s", s->known_as, s->known_hosts[0],
           strerror(errno));
  return false;
}

bool known_hosts_check(SshLink *s) {
  Search found = {0};
  bool fine = false;
  if (take_host_key(s, &found)) fine = verify(s, &found);
  else ssh_fail(s, "host_key", "%s shows no host key", s->known_as);
  free(found.key);
  return fine;
}
