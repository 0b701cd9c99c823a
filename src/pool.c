/* pool.c -- The allocator of the Lua state: many small blocks, and in a large plan a great many. */
#include "pool.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Lua says how large a block is that it gives back, so that none needs a header. Most live as long as the
   program, or as short as an operation, and come again in the same sizes. */
#define GRAIN 16                  /* bytes: alignment of a block, and step from one size class to the next */
#define CLASSES 256               /* larger blocks than CLASSES * GRAIN are malloc's */
#define SMALL_STRETCH (64 * 1024) /* bytes taken from malloc at once, at first */
#define HUGE_PAGE                                                                                            \
  (2 * 1024 * 1024) /* bytes; a third of a large plan's time went into page faults of 4 KiB each */
#define HUGE_FROM                                                                                            \
  (8 * 1024 * 1024) /* bytes in use from which on huge pages are asked for: a small run stays small */

typedef struct Free {
  struct Free *next;
} Free;

static Free *freed[CLASSES];
static char *fresh;       /* what nobody had yet of the last stretch */
static size_t fresh_left; /* bytes */
static size_t taken;      /* bytes of all stretches */

static size_t class_of(size_t size) {
  return (size - 1) / GRAIN;
}

static bool add_stretch(void) {
  bool huge = taken >= HUGE_FROM;
  size_t size = huge ? (taken / 8 + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : SMALL_STRETCH;
  char *stretch = huge ? aligned_alloc(HUGE_PAGE, size) : malloc(size);
  if (!stretch) return false;
  if (huge) madvise(stretch, size, MADV_HUGEPAGE);
  fresh = stretch;
  fresh_left = size;
  taken += size;
  return true;
}

static void *take(size_t size) {
  size_t class = class_of(size);
  if (class >= CLASSES) return malloc(size);
  Free *block = freed[class];
  if (block) {
    freed[class] = block->next;
    return block;
  }
  size_t room = (class + 1) * GRAIN;
  if (fresh_left < room && !add_stretch()) return NULL;
  void *result = fresh;
  fresh += room;
  fresh_left -= room;
  return result;
}

static void give(void *block, size_t size) {
  size_t class = class_of(size);
  if (class >= CLASSES) {
    free(block);
    return;
  }
  Free *head = block;
  head->next = freed[class];
  freed[class] = head;
}

void *pool_allocate(void *data, void *block, size_t old_size, size_t size) {
  (void)data;
  if (!block) return size ? take(size) : NULL;
  if (!size) {
    give(block, old_size);
    return NULL;
  }
  size_t before = class_of(old_size), after = class_of(size);
  if (before >= CLASSES && after >= CLASSES) return realloc(block, size);
  if (before == after) return block;
  void *result = take(size);
  if (!result) return NULL;
  memcpy(result, block, old_size < size ? old_size : size);
  give(block, old_size);
  return result;
}
