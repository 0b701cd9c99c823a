/* memory.c -- Allocation that does not fail softly, a growable byte buffer, and shell quoting. */
#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *memory_or_die(void *p) {
  if (p) return p;
  fputs("deployrt: out of memory\n", stderr);
  abort();
}

void *memory_new(size_t size) {
  return memory_or_die(calloc(1, size ? size : 1));
}

void *memory_resize(void *old, size_t size) {
  return memory_or_die(realloc(old, size ? size : 1));
}

char *memory_copy(const char *text) {
  size_t size = strlen(text) + 1;
  return memcpy(memory_new(size), text, size);
}

char *buffer_reserve(Buffer *b, size_t length) {
  if (b->length + length > b->capacity) {
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < b->length + length) capacity *= 2;
    b->data = memory_resize(b->data, capacity);
    b->capacity = capacity;
  }
  return b->data + b->length;
}

void buffer_append(Buffer *b, const void *data, size_t length) {
  if (length == 0) return;
  memcpy(buffer_reserve(b, length), data, length);
  b->length += length;
}

void buffer_text(Buffer *b, const char *text) {
  buffer_append(b, text, strlen(text));
}

void buffer_format(Buffer *b, const char *format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int length = vsnprintf(NULL, 0, format, args);
  vsnprintf(buffer_reserve(b, (size_t)length + 1), (size_t)length + 1, format, again);
  b->length += (size_t)length;
  va_end(again);
  va_end(args);
}

void buffer_consume(Buffer *b, size_t length) {
  if (length == 0) return;
  b->length -= length;
  memmove(b->data, b->data + length, b->length);
}

void buffer_free(Buffer *b) {
  free(b->data);
  *b = (Buffer){0};
}

void buffer_quote(Buffer *b, const char *text, size_t length) {
  buffer_append(b, "'", 1);
  for (size_t i = 0; i < length; i++) {
    if (text[i] == '\'') buffer_text(b, "'\\''");
    else buffer_append(b, text + i, 1);
  }
  buffer_append(b, "'", 1);
}
