/* http.c -- HTTP requests of tasks: options in, response or error out. */
#include "http.h"

#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "class.h"
#include "error.h"
#include "http_client.h"
#include "http_relay.h"
#include "memory.h"
#include "task.h"

#define REQUEST "deployrt.HttpRequest"

enum { BODY_LIMIT = 1024 * 1024, HEAD_LIMIT = 256 * 1024, REDIRECT_LIMIT = 10 };

typedef struct Options {
  const char *url, *method, *body, *unix_socket, *address, *proxy;
  size_t body_length;
  double timeout, connect_timeout, max_body;
  bool follow, verify, no_reuse;
  int fd;
} Options;

/* One request. What curl sees of it is gone after request_close(), which its collection calls at the latest.
 */
typedef struct Request {
  Transfer transfer;
  struct curl_slist *headers, *connect_to;
  Buffer head, body;
  size_t max_body;
  const char *oversized; /* the part of the answer that was larger than allowed */
  Relay *relay;
  double timeout, connect_timeout;
  char *label; /* method and URL, as errors show them */
} Request;

static void request_close(Request *r) {
  transfer_close(&r->transfer);
  if (r->headers) curl.slist_free_all(r->headers);
  if (r->connect_to) curl.slist_free_all(r->connect_to);
  r->headers = r->connect_to = NULL;
  buffer_free(&r->head);
  buffer_free(&r->body);
  free(r->label);
  r->label = NULL;
  relay_close(r->relay);
  r->relay = NULL;
}

void http_shutdown(void) {
  http_client_close();
}

static int l_request_gc(lua_State *L) {
  request_close(lua_touserdata(L, 1));
  return 0;
}

/* Processes that are started while a connection is open must not inherit it. */
static curl_socket_t on_open_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address) {
  (void)user;
  (void)purpose;
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static size_t request_receive(Request *r, Buffer *b, size_t limit, const char *part, const char *data,
                              size_t length) {
  if (length > limit - b->length) {
    r->oversized = part;
    return 0;
  }
  buffer_append(b, data, length);
  return length;
}

static size_t on_body(char *data, size_t size, size_t count, void *user) {
  Request *r = user;
  return request_receive(r, &r->body, r->max_body, "body", data, size * count);
}

/* A redirect and 100 Continue have a head of their own before that of the answer. */
static size_t on_head(char *data, size_t size, size_t count, void *user) {
  Request *r = user;
  if (size * count >= 5 && memcmp(data, "HTTP/", 5) == 0) r->head.length = 0;
  return request_receive(r, &r->head, HEAD_LIMIT, "headers", data, size * count);
}

/* The URL without userinfo, query and fragment, where secrets are. */
static char *url_label(const char *method, const char *url) {
  Buffer b = {0};
  const char *scheme_end = strstr(url, "://");
  const char *authority = scheme_end && scheme_end < url + strcspn(url, "/?#") + 1 ? scheme_end + 3 : url;
  const char *end = authority + strcspn(authority, "?#");
  const char *host = authority;
  for (const char *p = authority; p < authority + strcspn(authority, "/?#"); p++) {
    if (*p == '@') host = p + 1;
  }
  buffer_format(&b, "%s %.*s%.*s", method, (int)(authority - url), url, (int)(end - host), host);
  buffer_append(&b, "", 1);
  return b.data;
}

#define SET(option, value) curl.easy_setopt(r->transfer.easy, option, value)

static void request_set_target(Request *r, const Options *o) {
  SET(CURLOPT_URL, o->url);
  SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  SET(CURLOPT_REDIR_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
  SET(CURLOPT_USERAGENT, "deployrt");
  SET(CURLOPT_PROXY, o->proxy ? o->proxy : "");
  SET(CURLOPT_FOLLOWLOCATION, (long)o->follow);
  SET(CURLOPT_MAXREDIRS, (long)REDIRECT_LIMIT);
  SET(CURLOPT_SSL_VERIFYPEER, (long)o->verify);
  SET(CURLOPT_SSL_VERIFYHOST, o->verify ? 2L : 0L);
  if (o->unix_socket) SET(CURLOPT_UNIX_SOCKET_PATH, o->unix_socket);
  if (r->relay) SET(CURLOPT_ABSTRACT_UNIX_SOCKET, relay_name(r->relay));
  if (!o->address) return;
  Buffer to = {0};
  buffer_format(&to, "::%s", o->address);
  buffer_append(&to, "", 1);
  r->connect_to = curl.slist_append(NULL, to.data);
  buffer_free(&to);
  SET(CURLOPT_CONNECT_TO, r->connect_to);
}

/* The deadline is task_wait's: one clock decides. */
static void request_set_connection(Request *r, const Options *o) {
  SET(CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
  SET(CURLOPT_QUICK_EXIT, 1L); /* closing must not wait for a name server */
#endif
  SET(CURLOPT_CONNECTTIMEOUT_MS,
      (long)ceil((o->connect_timeout > 0 ? o->connect_timeout : o->timeout + 1) * 1000));
  SET(CURLOPT_FRESH_CONNECT, (long)(o->no_reuse || r->relay));
  SET(CURLOPT_FORBID_REUSE, (long)(o->no_reuse || r->relay));
  SET(CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
}

static void request_set_answer(Request *r) {
  SET(CURLOPT_WRITEFUNCTION, on_body);
  SET(CURLOPT_WRITEDATA, r);
  SET(CURLOPT_HEADERFUNCTION, on_head);
  SET(CURLOPT_HEADERDATA, r);
}

/* curl's own idea of a method is used where it has one, because it then knows what a redirect makes of it. */
static void request_set_method(Request *r, const Options *o) {
  bool post = strcmp(o->method, "POST") == 0;
  bool sends = post || o->body || strcmp(o->method, "PUT") == 0 || strcmp(o->method, "PATCH") == 0;
  if (sends) {
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)o->body_length);
    SET(CURLOPT_COPYPOSTFIELDS, o->body ? o->body : "");
  }
  if (strcmp(o->method, "HEAD") == 0 && !sends) SET(CURLOPT_NOBODY, 1L);
  else if (strcmp(o->method, sends ? "POST" : "GET") != 0) SET(CURLOPT_CUSTOMREQUEST, o->method);
}

/* Headers that curl adds on its own are left out unless the caller gave them. */
static void request_set_headers(Request *r) {
  bool has_type = false;
  for (struct curl_slist *h = r->headers; h; h = h->next) {
    if (strncasecmp(h->data, "Content-Type:", 13) == 0) has_type = true;
  }
  r->headers = curl.slist_append(r->headers, "Expect:");
  if (!has_type) r->headers = curl.slist_append(r->headers, "Content-Type:");
  SET(CURLOPT_HTTPHEADER, r->headers);
}

/* Returns NULL, or why there can be no request. */
static const char *request_start(Request *r, const Options *o) {
  r->label = url_label(o->method, o->url);
  r->max_body = (size_t)o->max_body;
  r->timeout = o->timeout;
  r->connect_timeout = o->connect_timeout > 0 ? o->connect_timeout : o->timeout;
  if (o->fd >= 0 && !(r->relay = relay_open(o->fd))) return "the given socket cannot be used";
  if (!transfer_open(&r->transfer)) return "libcurl does not start";
  request_set_target(r, o);
  request_set_connection(r, o);
  request_set_answer(r);
  request_set_method(r, o);
  request_set_headers(r);
  return transfer_start(&r->transfer) ? NULL : "libcurl does not start";
}

/* One line of a list ("Name: value"), or an entry of a table; no line may smuggle in another. Errors show
   only the key: a value may be a secret. */
static void check_header(lua_State *L, Request *r) {
  bool line = lua_isinteger(L, -2);
  size_t length;
  if (!line && lua_type(L, -2) != LUA_TSTRING) luaL_error(L, "option 'headers': a name must be a string");
  if (!lua_isstring(L, -1)) luaL_error(L, "option 'headers': string expected, got %s", luaL_typename(L, -1));
  lua_pushvalue(L, -1);
  const char *value = lua_tolstring(L, -1, &length);
  const char *format = line ? "%s%s" : *value ? "%s: %s" : "%s;%s"; /* curl's way to send an empty one */
  const char *text = lua_pushfstring(L, format, line ? "" : lua_tostring(L, -3), value);
  if (strlen(value) != length || strpbrk(text, "\r\n") || !strpbrk(text, ":;")) {
    luaL_error(L, "option 'headers': '%s' is not one header", luaL_tolstring(L, -4, NULL));
  }
  r->headers = curl.slist_append(r->headers, text);
  lua_pop(L, 2);
}

static void check_headers(lua_State *L, int index, Request *r) {
  int kind = lua_getfield(L, index, "headers");
  if (kind != LUA_TNIL && kind != LUA_TTABLE) luaL_error(L, "option 'headers': table expected");
  if (kind == LUA_TTABLE) {
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) check_header(L, r);
  }
  lua_pop(L, 1);
}

static double check_seconds(lua_State *L, int index, const char *name, double fallback) {
  double seconds = check_number_field(L, index, name, fallback);
  if (seconds >= 0 && seconds <= 86400) return seconds;
  return luaL_error(L, "option '%s': seconds between 0 and 86400 expected", name);
}

static const char *const known_options[] = {
    "url",         "method",  "headers", "body", "timeout",  "connect_timeout", "max_body", "follow",
    "unix_socket", "address", "verify",  "fd",   "no_reuse", "proxy",           NULL};

/* The strings belong to the options table; curl copies them before the wait. */
static void check_options(lua_State *L, int index, Options *o) {
  luaL_checktype(L, index, LUA_TTABLE);
  check_known_fields(L, index, "http.request", known_options);
  *o = (Options){.url = check_string_field(L, index, "url", NULL)};
  luaL_argcheck(L, o->url, index, "option 'url' is missing");
  o->body = check_bytes_field(L, index, "body", &o->body_length);
  o->method = check_string_field(L, index, "method", o->body ? "POST" : "GET");
  luaL_argcheck(L, *o->method && !o->method[strspn(o->method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")], index,
                "option 'method': capital letters expected");
  o->unix_socket = check_string_field(L, index, "unix_socket", NULL);
  o->address = check_string_field(L, index, "address", NULL);
  o->proxy = check_string_field(L, index, "proxy", NULL);
  o->timeout = check_seconds(L, index, "timeout", 10);
  o->connect_timeout = check_seconds(L, index, "connect_timeout", 0);
  o->max_body = check_number_field(L, index, "max_body", BODY_LIMIT);
  luaL_argcheck(L, o->max_body >= 0 && o->max_body <= INT_MAX, index, "option 'max_body': bytes expected");
  o->follow = check_boolean_field(L, index, "follow", false);
  o->verify = check_boolean_field(L, index, "verify", true);
  o->no_reuse = check_boolean_field(L, index, "no_reuse", false);
  o->fd = check_socket_field(L, index, "fd");
}

static double request_seconds(const Request *r, CURLINFO info) {
  curl_off_t microseconds = 0;
  curl.easy_getinfo(r->transfer.easy, info, &microseconds);
  return (double)microseconds / 1e6;
}

/* How far it came says where to look: at the name server, the network or the service. */
static int push_timeout(lua_State *L, const Request *r, double seconds) {
  const char *what = "connected, but no complete answer";
  if (request_seconds(r, CURLINFO_NAMELOOKUP_TIME_T) == 0) what = "the name was not resolved";
  else if (request_seconds(r, CURLINFO_PRETRANSFER_TIME_T) == 0) what = "no connection";
  char within[32];
  snprintf(within, sizeof within, "%g", seconds);
  return push_error(L, "timeout", NULL, "%s: %s within %s s", r->label, what, within);
}

static const char *request_reason(Request *r) {
  long number = 0;
  curl.easy_getinfo(r->transfer.easy, CURLINFO_OS_ERRNO, &number);
  if (r->transfer.result == CURLE_COULDNT_CONNECT && number != 0) return strerror((int)number);
  if (r->transfer.result == CURLE_URL_MALFORMAT || !r->transfer.problem[0])
    return curl.easy_strerror(r->transfer.result);
  r->transfer.problem[strcspn(r->transfer.problem, "\r\n")] = '\0';
  return r->transfer.problem;
}

static int push_failure(lua_State *L, Request *r) {
  if (r->transfer.result == CURLE_OPERATION_TIMEDOUT) return push_timeout(L, r, r->connect_timeout);
  if (r->oversized) {
    int limit = *r->oversized == 'b' ? (int)r->max_body : HEAD_LIMIT;
    return push_error(L, "http", NULL, "%s: %s larger than %d bytes", r->label, r->oversized, limit);
  }
  const char *code = r->transfer.result == CURLE_COULDNT_CONNECT        ? "refused"
                     : r->transfer.result == CURLE_COULDNT_RESOLVE_HOST ? "unresolved"
                                                                        : "http";
  return push_error(L, code, NULL, "%s: %s", r->label, request_reason(r));
}

static void push_lower(lua_State *L, const char *text, size_t length) {
  luaL_Buffer b;
  char *lower = luaL_buffinitsize(L, &b, length);
  for (size_t i = 0; i < length; i++)
    lower[i] = text[i] >= 'A' && text[i] <= 'Z' ? text[i] + ('a' - 'A') : text[i];
  luaL_pushresultsize(&b, length);
}

/* Adds a line of the head to the table on top; a header that comes again is joined with a comma. */
static void push_header(lua_State *L, const char *line, const char *end) {
  const char *colon = memchr(line, ':', (size_t)(end - line));
  if (!colon) return;
  const char *value = colon + 1;
  while (value < end && (*value == ' ' || *value == '\t')) value++;
  while (end > value && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\r')) end--;
  push_lower(L, line, (size_t)(colon - line));
  lua_pushvalue(L, -1);
  if (lua_rawget(L, -3) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_pushlstring(L, value, (size_t)(end - value));
  } else {
    lua_pushliteral(L, ", ");
    lua_pushlstring(L, value, (size_t)(end - value));
    lua_concat(L, 3);
  }
  lua_rawset(L, -3);
}

static void push_response_headers(lua_State *L, const Buffer *head) {
  const char *line = head->data, *end = head->data + head->length, *newline;
  lua_newtable(L);
  for (; line < end && (newline = memchr(line, '\n', (size_t)(end - line))); line = newline + 1) {
    if (line != head->data) push_header(L, line, newline);
  }
}

static int push_response(lua_State *L, const Request *r) {
  long status = 0;
  curl.easy_getinfo(r->transfer.easy, CURLINFO_RESPONSE_CODE, &status);
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, status);
  lua_setfield(L, -2, "status");
  lua_pushlstring(L, r->body.data ? r->body.data : "", r->body.length);
  lua_setfield(L, -2, "body");
  push_response_headers(L, &r->head);
  lua_setfield(L, -2, "headers");
  lua_pushnumber(L, request_seconds(r, CURLINFO_TOTAL_TIME_T));
  lua_setfield(L, -2, "seconds");
  return 1;
}

static int push_outcome(lua_State *L, Request *r) {
  if (r->transfer.done) return r->transfer.result == CURLE_OK ? push_response(L, r) : push_failure(L, r);
  if (task_reason() == WAKE_CANCEL) return push_interruption(L, NULL, r->label);
  return push_timeout(L, r, r->timeout);
}

static int request_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  Request *r = (Request *)ctx;
  int count = push_outcome(L, r);
  request_close(r);
  return count;
}

/* http.request(opts) -> response | nil, err */
static int l_request(lua_State *L) {
  Options o;
  check_options(L, 1, &o);
  check_can_wait(L);
  lua_settop(L, 1);
  Request *r = lua_newuserdatauv(L, sizeof *r, 0);
  memset(r, 0, sizeof *r);
  luaL_setmetatable(L, REQUEST);
  const char *missing = http_client_open();
  if (!missing) check_headers(L, 1, r);
  if (missing && o.fd >= 0) close(o.fd);
  if (missing) return push_error(L, "http", NULL, "HTTP needs libcurl (package libcurl4): %s", missing);
  const char *problem = request_start(r, &o);
  if (problem) return push_error(L, "http", NULL, "%s: %s", r->label, problem);
  return task_wait(L, &r->transfer.waiter, o.timeout, (lua_KContext)r, request_step);
}

void push_http_functions(lua_State *L) {
  push_class(L, REQUEST, NULL, l_request_gc);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, l_request);
  lua_setfield(L, -2, "request");
}
