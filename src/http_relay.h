/* http_relay.h -- Lets libcurl use a connection that exists already. */
#ifndef DEPLOYRT_HTTP_RELAY_H
#define DEPLOYRT_HTTP_RELAY_H

/*
 * CURLOPT_OPENSOCKETFUNCTION with CURL_SOCKOPT_ALREADY_CONNECTED is meant for this, but libcurl 7.88 calls
 * connect() all the same. So curl connects to a listener of ours, and what it says is passed on to the given
 * socket.
 */
typedef struct Relay Relay;

/* Takes over `fd`, also when it fails and returns NULL. */
Relay *relay_open(int fd);

/* The name of the abstract unix socket to connect to; nobody but this process is let in. */
const char *relay_name(const Relay *r);

/* Closes both connections and frees the relay; NULL is ignored. */
void relay_close(Relay *r);

#endif
