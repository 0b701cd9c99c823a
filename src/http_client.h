/* http_client.h -- libcurl, loaded on first use, with its transfers on the loop. */
#ifndef DEPLOYRT_HTTP_CLIENT_H
#define DEPLOYRT_HTTP_CLIENT_H

#define CURL_DISABLE_DEPRECATION /* CURLOPT_PROTOCOLS works in every version, its successor since 7.85 */
#include <curl/curl.h>
#include <stdbool.h>

#include "task.h"

#define CURL_FUNCTIONS(X)                                                                                    \
  X(global_init)                                                                                             \
  X(global_cleanup)                                                                                          \
  X(easy_init)                                                                                               \
  X(easy_cleanup)                                                                                            \
  X(easy_setopt)                                                                                             \
  X(easy_getinfo)                                                                                            \
  X(easy_strerror)                                                                                           \
  X(multi_init)                                                                                              \
  X(multi_cleanup)                                                                                           \
  X(multi_setopt)                                                                                            \
  X(multi_add_handle)                                                                                        \
  X(multi_remove_handle)                                                                                     \
  X(multi_socket_action)                                                                                     \
  X(multi_assign)                                                                                            \
  X(multi_info_read)                                                                                         \
  X(slist_append)                                                                                            \
  X(slist_free_all)

typedef struct Curl {
#define CURL_FIELD(name) __typeof__(&curl_##name) name;
  CURL_FUNCTIONS(CURL_FIELD)
#undef CURL_FIELD
} Curl;

/* libcurl's functions, once http_client_open() has succeeded. */
extern Curl curl;

/* One transfer; whoever owns it waits with `waiter` until it is done. */
typedef struct Transfer {
  CURL *easy;
  Waiter waiter;
  bool done;
  CURLcode result;
  char problem[CURL_ERROR_SIZE];
  struct Transfer *next;
} Transfer;

/* Returns NULL, or why there can be no transfer. */
const char *http_client_open(void);

/* Ends all transfers and closes all connections. */
void http_client_close(void);

/* Makes t->easy, to be configured and then started. */
bool transfer_open(Transfer *t);
bool transfer_start(Transfer *t);

/* May be called at any time and again; afterwards curl sees nothing of the transfer's owner. */
void transfer_close(Transfer *t);

#endif
