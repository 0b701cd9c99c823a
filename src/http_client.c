/* http_client.c -- libcurl, loaded on first use, with its transfers on the loop. */
#include "http_client.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loop.h"

Curl curl;

static struct {
  CURLM *multi;
  uv_timer_t *timer;
  Transfer *live;
} client;

/* Linking libcurl would cost 10 ms of every start, and few commands make a request. */
static const char *curl_load(void) {
  static bool loaded;
  if (loaded) return NULL;
  void *library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcurl-gnutls.so.4", RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
  void *symbol;
#define CURL_LOAD(name)                                                                                      \
  if (!(symbol = dlsym(library, "curl_" #name))) return dlerror();                                           \
  memcpy(&curl.name, &symbol, sizeof symbol);
  CURL_FUNCTIONS(CURL_LOAD)
  loaded = true;
  return NULL;
}

static void transfer_finish(Transfer *t, CURLcode result) {
  if (t->done) return;
  t->done = true;
  t->result = result;
  task_wake(&t->waiter);
}

static Transfer *easy_transfer(CURL *easy) {
  char *t = NULL;
  curl.easy_getinfo(easy, CURLINFO_PRIVATE, &t);
  return (Transfer *)(void *)t;
}

static void client_act(curl_socket_t fd, int flags) {
  int count;
  CURLMsg *message;
  curl.multi_socket_action(client.multi, fd, flags, &count);
  while ((message = curl.multi_info_read(client.multi, &count))) {
    if (message->msg == CURLMSG_DONE)
      transfer_finish(easy_transfer(message->easy_handle), message->data.result);
  }
}

static void on_ready(uv_poll_t *poll, int status, int events) {
  int flags = status < 0 ? CURL_CSELECT_ERR : 0;
  if (events & UV_READABLE) flags |= CURL_CSELECT_IN;
  if (events & UV_WRITABLE) flags |= CURL_CSELECT_OUT;
  client_act((curl_socket_t)(intptr_t)poll->data, flags);
}

static void on_timer(uv_timer_t *timer) {
  (void)timer;
  client_act(CURL_SOCKET_TIMEOUT, 0);
}

static int on_timer_wanted(CURLM *multi, long timeout_ms, void *user) {
  (void)multi;
  (void)user;
  if (timeout_ms < 0) return uv_timer_stop(client.timer), 0;
  loop_update();
  uv_timer_start(client.timer, on_timer, (uint64_t)timeout_ms, 0);
  return 0;
}

static uv_poll_t *poll_new(curl_socket_t fd) {
  uv_poll_t *poll = handle_new(sizeof *poll);
  if (uv_poll_init(loop_get(), poll, fd) != 0) return free(poll), NULL;
  poll->data = (void *)(intptr_t)fd;
  curl.multi_assign(client.multi, fd, poll);
  return poll;
}

/* curl also has transfers of its own, which have no owner here. */
static void transfer_fail(Transfer *t, const char *problem) {
  if (!t) return;
  snprintf(t->problem, sizeof t->problem, "%s", problem);
  transfer_finish(t, CURLE_FAILED_INIT);
}

/* A failure must not be returned: curl would give up all transfers of the multi handle. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *known) {
  (void)user;
  uv_poll_t *poll = known;
  if (what == CURL_POLL_REMOVE) {
    handle_close(poll);
    curl.multi_assign(client.multi, fd, NULL);
    return 0;
  }
  if (!poll) poll = poll_new(fd);
  if (!poll) {
    transfer_fail(easy_transfer(easy), "the loop cannot watch its socket");
    return 0;
  }
  int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
  uv_poll_start(poll, events, on_ready);
  return 0;
}

/* libuv and OpenSSL write to sockets in a way that ends the process when the other side has gone. */
static void ignore_broken_pipes(void) {
  struct sigaction now;
  if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

const char *http_client_open(void) {
  if (client.multi) return NULL;
  const char *problem = curl_load();
  if (problem) return problem;
  ignore_broken_pipes();
  if (curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) return "it does not start";
  client.multi = curl.multi_init();
  if (!client.multi) return "it does not start";
  client.timer = handle_new(sizeof *client.timer);
  uv_timer_init(loop_get(), client.timer);
  curl.multi_setopt(client.multi, CURLMOPT_SOCKETFUNCTION, on_socket);
  curl.multi_setopt(client.multi, CURLMOPT_TIMERFUNCTION, on_timer_wanted);
  return NULL;
}

bool transfer_open(Transfer *t) {
  t->easy = curl.easy_init();
  if (!t->easy) return false;
  t->next = client.live;
  client.live = t;
  curl.easy_setopt(t->easy, CURLOPT_PRIVATE, t);
  curl.easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->problem);
  return true;
}

bool transfer_start(Transfer *t) {
  return curl.multi_add_handle(client.multi, t->easy) == CURLM_OK;
}

static void transfer_unlink(Transfer *t) {
  for (Transfer **p = &client.live; *p; p = &(*p)->next) {
    if (*p == t) {
      *p = t->next;
      return;
    }
  }
}

void transfer_close(Transfer *t) {
  if (!t->easy) return;
  curl.multi_remove_handle(client.multi, t->easy);
  curl.easy_cleanup(t->easy);
  t->easy = NULL;
  transfer_unlink(t);
}

void http_client_close(void) {
  while (client.live) transfer_close(client.live);
  if (!client.multi) return;
  curl.multi_cleanup(client.multi);
  client.multi = NULL;
  handle_close(client.timer);
  client.timer = NULL;
  curl.global_cleanup();
}
