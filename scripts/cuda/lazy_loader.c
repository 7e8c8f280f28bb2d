/* Finds one CUDA library when the first of its functions is called.
 *
 * Compiled once per library by lazy_stubs.py with
 *   LIBRARY_NAMES  its file names, newest first, as C strings
 *   ABSENT_STATUS  the status its functions return when it cannot be found
 * and linked with assembly that defines the three hidden symbols below. The functions of these
 * libraries return a status, a string, a size or nothing, so a missing library becomes an ordinary
 * error of the caller and the program runs on. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One entry per function: its name, and what it returns ('e' status, 's' string, 'z' size or nothing). */
struct import {
  const char *name;
  long returns;
};
extern __attribute__((visibility("hidden"))) const struct import rlvr_imports[];
extern __attribute__((visibility("hidden"))) void *rlvr_targets[];
__attribute__((visibility("hidden"))) void *rlvr_resolve(unsigned index);

static int absent_status(void) { return ABSENT_STATUS; }
static const char *absent_string(void) { return "the library could not be loaded"; }
static size_t absent_size(void) { return 0; }

static const char *const default_folders =
    "/usr/local/cuda/lib64:/usr/local/cuda/targets/x86_64-linux/lib:/usr/local/nvidia/lib64";

static void *open_library(void) {
  static const char *const names[] = {LIBRARY_NAMES};
  const size_t count = sizeof names / sizeof *names;
  for (size_t i = 0; i < count; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
    if (library) return library;
  }
  const char *folders = getenv("RLVR_CUDA_LIBRARY_PATH");
  if (!folders) folders = default_folders;
  while (*folders) {
    const int length = (int)strcspn(folders, ":");
    for (size_t i = 0; i < count && length; i++) {
      char path[4096];
      if (snprintf(path, sizeof path, "%.*s/%s", length, folders, names[i]) >= (int)sizeof path) continue;
      void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
      if (library) return library;
    }
    folders += length + (folders[length] == ':');
  }
  return NULL;
}

/* The address to jump to. Threads may race here: each finds the same address and stores it whole. */
void *rlvr_resolve(unsigned index) {
  static void *library;
  void *open = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
  if (!open) {
    open = open_library();
    __atomic_store_n(&library, open, __ATOMIC_RELEASE);
  }
  const struct import *wanted = &rlvr_imports[index];
  void *target = open ? dlsym(open, wanted->name) : NULL;
  if (target) {
    __atomic_store_n(&rlvr_targets[index], target, __ATOMIC_RELEASE);
    return target;
  }
  if (open) fprintf(stderr, "rlvr: the CUDA library on this machine has no %s; update the driver\n", wanted->name);
  switch (wanted->returns) {
    case 's': return (void *)absent_string;
    case 'z': return (void *)absent_size;
    default: return (void *)absent_status;
  }
}
