/* A parallel for loop over phases, on the threads of XLA's pool, with a barrier between phases.
 *
 * A loop has some phases of equally many items; a phase starts when the one before it is finished.
 * Workers take items from one counter, in order. A worker that has taken an item waits only for
 * items taken before it, by workers that are running. So the loop ends however many of the helpers
 * asked for ever start, and never waits for a thread that the pool uses for something else. Which
 * worker runs an item changes no result. */

#pragma once

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "ffi.h"

typedef void Body(const void *data, long phase, long item);

typedef struct Loop {
  Body *body;
  const void *data;
  long phases, items; /* items of each phase */
} Loop;

/* What the workers of a loop share: on the heap, since the last of them may leave after the caller.
 * Each counter has a cache line of its own. */
typedef struct SharedLoop {
  Loop loop;
  _Alignas(64) atomic_long next_item;
  _Alignas(64) atomic_long finished;
  _Alignas(64) atomic_long workers;
} SharedLoop;

static inline void spin_until(const atomic_long *count, long target) {
  for (long spins = 0; atomic_load_explicit(count, memory_order_acquire) < target; spins++) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
    if (spins % 1024 == 1023) sched_yield();
  }
}

/* Runs items until none is left; the last worker to leave frees the loop. */
static void run_worker(void *argument) {
  SharedLoop *shared = argument;
  const Loop *loop = &shared->loop;
  const long total = loop->items * loop->phases;
  for (;;) {
    const long next = atomic_fetch_add_explicit(&shared->next_item, 1, memory_order_relaxed);
    if (next >= total) break;
    const long phase = next / loop->items;
    spin_until(&shared->finished, phase * loop->items);
    loop->body(loop->data, phase, next % loop->items);
    atomic_fetch_add_explicit(&shared->finished, 1, memory_order_release);
  }
  spin_until(&shared->finished, total);
  if (atomic_fetch_sub_explicit(&shared->workers, 1, memory_order_acq_rel) == 1) free(shared);
}

/* An error of the pool is dropped: the caller then runs the items of helpers that did not start. */
static inline bool succeeded(const XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  if (error != NULL) XLA_CALL(frame, Error_Destroy, .error = error);
  return error == NULL;
}

/* Processors that this process may use. A pool may have more threads: they would spin for the
 * processor of the one they wait for. */
static inline long num_processors(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return sysconf(_SC_NPROCESSORS_ONLN);
}

static inline long pool_threads(const XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  succeeded(frame, XLA_CALL(frame, ThreadPool_NumThreads, .ctx = frame->ctx,
                            .num_threads = &threads));
  return threads;
}

/* Threads that a loop may have. */
static inline long num_workers(const XLA_FFI_CallFrame *frame) {
  return min(pool_threads(frame), num_processors());
}

/* Runs a loop on this thread and up to `max_helpers` of the pool. */
static inline XLA_FFI_Error *parallel_for(const XLA_FFI_CallFrame *frame, Loop loop,
                                          long max_helpers) {
  SharedLoop *shared = aligned_alloc(64, sizeof(SharedLoop));
  if (shared == NULL)
    return XLA_CALL(frame, Error_Create, .message = "charjax: out of memory",
                    .errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  *shared = (SharedLoop){.loop = loop, .workers = 1};
  const long helpers = min(max_helpers, num_workers(frame) - 1);
  for (long i = 0; i < helpers; i++) {
    atomic_fetch_add_explicit(&shared->workers, 1, memory_order_relaxed);
    if (!succeeded(frame, XLA_CALL(frame, ThreadPool_Schedule, .ctx = frame->ctx,
                                   .task = run_worker, .data = shared))) {
      atomic_fetch_sub_explicit(&shared->workers, 1, memory_order_relaxed);
      break;
    }
  }
  run_worker(shared);
  return NULL;
}
