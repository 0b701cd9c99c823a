/* memory.h -- Allocation that does not fail softly, and a growable byte buffer. */
#ifndef DEPLOYRT_MEMORY_H
#define DEPLOYRT_MEMORY_H

#include <stddef.h>

/* Zeroed memory; the process ends with a message when there is none. */
void *memory_new(size_t size);
void *memory_resize(void *old, size_t size);
char *memory_copy(const char *text);

/* Bytes that grow at the end and are consumed at the front. */
typedef struct Buffer {
  char *data;
  size_t length;
  size_t capacity;
} Buffer;

void buffer_append(Buffer *b, const void *data, size_t length);
void buffer_text(Buffer *b, const char *text);
void buffer_format(Buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Makes room for `length` more bytes and returns where they go; add them with b->length. */
char *buffer_reserve(Buffer *b, size_t length);
/* Drops `length` bytes at the front. */
void buffer_consume(Buffer *b, size_t length);
void buffer_free(Buffer *b);

/* Appends `text` as one word of POSIX shell. The only place where the project quotes. */
void buffer_quote(Buffer *b, const char *text, size_t length);

#endif
