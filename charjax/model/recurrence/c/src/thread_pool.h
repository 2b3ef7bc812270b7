/* Work shared among the threads of XLA's pool.
 *
 * A job is a row of phases, each of so many items; a phase begins when the one before
 * it is finished. Items are claimed from one counter in their order. Whoever has claimed
 * an item waits only for items claimed before it, by threads that run: so a job ends
 * however many of the helpers it asked for ever come, and no thread is waited for that
 * the pool is using for something else. Which thread takes an item changes no result. */

#pragma once

#include <sched.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "xla/ffi/api/c_api.h"

typedef void Item(const void *work, long phase, long index);

typedef struct Job {
  Item *item;
  const void *work;
  long phases, items; /* items a phase */
} Job;

typedef struct Team {
  Job job;
  _Alignas(64) atomic_long claimed;
  _Alignas(64) atomic_long finished;
  _Alignas(64) atomic_long members;
} Team;

static inline void wait_until(const atomic_long *count, long enough) {
  for (long spins = 0; atomic_load_explicit(count, memory_order_acquire) < enough; spins++) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
    if (spins % 1024 == 1023) sched_yield();
  }
}

/* Takes part until nothing is left to claim; the last to leave closes the team. */
static void join_team(void *data) {
  Team *team = data;
  const long items = team->job.items, total = items * team->job.phases;
  for (;;) {
    const long next = atomic_fetch_add_explicit(&team->claimed, 1, memory_order_relaxed);
    if (next >= total) break;
    const long phase = next / items;
    wait_until(&team->finished, phase * items);
    team->job.item(team->job.work, phase, next % items);
    atomic_fetch_add_explicit(&team->finished, 1, memory_order_release);
  }
  wait_until(&team->finished, total);
  if (atomic_fetch_sub_explicit(&team->members, 1, memory_order_acq_rel) == 1) free(team);
}

/* A failure to find helpers is none: the caller does the work. */
static inline bool succeeded(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  if (error == NULL) return true;
  XLA_FFI_Error_Destroy_Args args = {.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE};
  args.error = error;
  api->XLA_FFI_Error_Destroy(&args);
  return false;
}

/* How many threads can run at once. A pool may have more: each would wait for the others' core. */
static inline long processors(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return sysconf(_SC_NPROCESSORS_ONLN);
}

/* Does the job, with up to `most_helpers` threads beside this one. */
static inline XLA_FFI_Error *run(const XLA_FFI_CallFrame *frame, Job job, long most_helpers) {
  const XLA_FFI_Api *api = frame->api;
  Team *team = aligned_alloc(64, sizeof(Team));
  if (team == NULL) {
    XLA_FFI_Error_Create_Args args = {.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE};
    args.message = "charjax: out of memory";
    args.errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED;
    return api->XLA_FFI_Error_Create(&args);
  }
  team->job = job;
  atomic_init(&team->claimed, 0);
  atomic_init(&team->finished, 0);
  atomic_init(&team->members, 1);

  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args pool = {
      .struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE};
  pool.ctx = frame->ctx;
  pool.num_threads = &threads;
  if (!succeeded(api, api->XLA_FFI_ThreadPool_NumThreads(&pool))) threads = 1;
  const long others = (threads < processors() ? threads : processors()) - 1;
  const long helpers = most_helpers < others ? most_helpers : others;
  for (long i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {
        .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE};
    args.ctx = frame->ctx;
    args.task = join_team;
    args.data = team;
    atomic_fetch_add_explicit(&team->members, 1, memory_order_relaxed);
    if (!succeeded(api, api->XLA_FFI_ThreadPool_Schedule(&args))) {
      atomic_fetch_sub_explicit(&team->members, 1, memory_order_relaxed);
      break;
    }
  }
  join_team(team);
  return NULL;
}
