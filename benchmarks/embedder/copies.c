/* Counts large allocations and copies of the processes it is preloaded into: see copies.py.

   The file that LIKENESS_COPIES names holds four numbers, which all processes add to: allocations, their bytes, copies,
   their bytes. Counted is what is at least AT_LEAST bytes, so pictures and what is made of them, and little else. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define AT_LEAST 16384

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

typedef void *copy(void *, const void *, size_t);
static copy *copy_apart, *copy_within;
static uint64_t *counts;

__attribute__((constructor)) static void begin(void) {
  copy_apart = (copy *)dlsym(RTLD_NEXT, "memcpy");
  copy_within = (copy *)dlsym(RTLD_NEXT, "memmove");
  const char *path = getenv("LIKENESS_COPIES");
  int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, 4 * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) counts = mapped;
}

static void count(int which, size_t size) {
  if (size < AT_LEAST || !counts) return;
  __atomic_fetch_add(&counts[which], 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&counts[which + 1], size, __ATOMIC_RELAXED);
}

void *malloc(size_t size) {
  count(0, size);
  return __libc_malloc(size);
}

void *calloc(size_t number, size_t size) {
  count(0, number * size);
  return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size) {
  count(0, size);
  return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
  count(0, size);
  return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **place, size_t alignment, size_t size) {
  void *found = memalign(alignment, size);
  if (!found) return 12; /* ENOMEM */
  *place = found;
  return 0;
}

/* Before the constructor has run, and nowhere else, byte by byte. */
void *memcpy(void *to, const void *from, size_t size) {
  count(2, size);
  if (copy_apart) return copy_apart(to, from, size);
  for (size_t i = 0; i < size; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
  return to;
}

/* What a compiler makes of memcpy where it knows how large the place is. */
void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) {
  if (size > room) abort();
  return memcpy(to, from, size);
}

void *memmove(void *to, const void *from, size_t size) {
  count(2, size);
  if (copy_within) return copy_within(to, from, size);
  if (to < from)
    for (size_t i = 0; i < size; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
  else
    while (size--) ((volatile char *)to)[size] = ((const char *)from)[size];
  return to;
}
