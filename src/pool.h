/* pool.h -- The allocator of the Lua state: many small blocks, and in a large plan a great many. */
#ifndef DEPLOYRT_POOL_H
#define DEPLOYRT_POOL_H

#include <stddef.h>

/* A lua_Alloc for the one state of a program. What it has taken for small blocks it keeps for other small
 * blocks. */
void *pool_allocate(void *data, void *block, size_t old_size, size_t size);

#endif
