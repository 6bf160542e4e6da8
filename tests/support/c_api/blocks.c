/* blocks.c - linked into a libcondinst whose malloc and free are wrapped: counts what the library
   has allocated itself, and lets an allocation of the test's choice fail. */

#include <stddef.h>

long blocks_live = 0, blocks_until_failure = 0; /* 1: the next one; 0: none */

void *__real_malloc(size_t bytes);
void __real_free(void *block);

void *__wrap_malloc(size_t bytes) {
    if (blocks_until_failure > 0 && --blocks_until_failure == 0) return NULL;
    void *block = __real_malloc(bytes);
    if (block != NULL) blocks_live++;
    return block;
}

void __wrap_free(void *block) {
    if (block != NULL) blocks_live--;
    __real_free(block);
}
