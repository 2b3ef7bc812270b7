/* A matmul of few or many rows with a packed kernel: one call per character of generated text.
 *
 * Vectors run along the kernel's columns, so that a single row fills them. The kernel is packed once
 * into column panels [K, COLUMNS]; the register tile is up to ROWS rows by VECTORS vectors. A sum
 * adds its terms in the order of K, as in gemm.h. So the matmul is batch-invariant: a row's result
 * has the same bits however many rows there are. */

#pragma once

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { VECTORS = 4, COLUMNS = VECTORS * LANES, ROWS = ACCUMULATORS / VECTORS };

/* With fewer multiplications, a worker costs more than it saves. */
enum { MIN_MULTIPLICATIONS_PER_WORKER = 1 << 18 };

typedef struct Matmul {
  long rows, k, columns;
  const float *panels;
  const float *states; /* [rows, words] */
  float *results;      /* [rows, columns] */
} Matmul;

INLINE long num_panels(long columns) { return num_blocks(columns, COLUMNS); }
INLINE long panel_numbers(long k) { return even(k) * COLUMNS; }
INLINE long panel_words(long k) { return panel_numbers(k) / NUMBERS_PER_WORD; }

/* One column panel by `rows` rows from `first` on. `rows` is a constant, so that sums are in
 * registers. */
INLINE void multiply_rows(const Matmul *m, long panel, long first, const int rows) {
  const float *weights = m->panels + panel * panel_words(m->k);
  const long iterations = m->k / NUMBERS_PER_WORD;
  const float *states = m->states + first * iterations;
  Vector sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[row][v] = broadcast(0.0f);
  for (long k = 0; k < iterations; k++, weights += COLUMNS) {
    Vector columns[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) columns[v] = load(weights + v * LANES, LANES);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
      const Vector state = broadcast_word(states + row * iterations + k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        sums[row][v] = multiply_add(sums[row][v], columns[v], state);
    }
  }
  const long left = min(m->columns - panel * COLUMNS, COLUMNS);
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++) {
    float *to = m->results + (first + row) * m->columns + panel * COLUMNS;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++)
      if (left > v * LANES) store(to + v * LANES, sums[row][v], min(left - v * LANES, LANES));
  }
}

#define CASE(rows)                                                          \
  case rows:                                                                \
    multiply_rows(m, panel, first, min(rows, ROWS));                        \
    break

static void multiply_panel(const void *data, long phase, long panel) {
  (void)phase;
  const Matmul *m = data;
  for (long first = 0; first < m->rows; first += ROWS)
    switch (min(m->rows - first, ROWS)) {
      CASE(1);
      CASE(2);
      CASE(3);
      CASE(4);
      CASE(5);
      CASE(6);
    }
}
_Static_assert(ROWS <= 6, "multiply_panel needs a case for each number of rows");

/* Length of a packed kernel [k, columns]. */
long TARGET(pack_length)(long k, long columns) { return num_panels(columns) * panel_numbers(k); }

/* Argument: kernel [k, columns]. Result: its column panels, in the compute dtype. */
XLA_FFI_Error *TARGET(pack)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const int64_t *sizes = sizes_of(&call, "kernel", next_buffer(&call.arguments), 2);
  const long k_end = sizes[0], columns = sizes[1];
  const float *kernel = ARGUMENT(&call, "kernel", F32, k_end, columns);
  float *panels = RESULT(&call, "panels", DTYPE, TARGET(pack_length)(k_end, columns));
  if (call.problem[0]) return call_error(&call);
  static const float zeros[COLUMNS];
  for (long panel = 0; panel < num_panels(columns); panel++)
    for (long k = 0; k < k_end; k += 2) {
      const float *first = kernel + k * columns + panel * COLUMNS;
      pack_rows(panels + panel * panel_words(k_end), COLUMNS, k, first,
                k + 1 < k_end ? first + columns : zeros, min(columns - panel * COLUMNS, COLUMNS));
    }
  return NULL;
}

/* Arguments: states [rows, k], k padded to words, and the panels of a kernel, in the compute dtype.
 * Result: the matmul [rows, columns]. */
XLA_FFI_Error *TARGET(multiply)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const int64_t *sizes = sizes_of(&call, "states", next_buffer(&call.arguments), 2);
  Matmul m = {.rows = sizes[0], .k = sizes[1]};
  m.columns = sizes_of(&call, "results", next_buffer(&call.results), 2)[1];
  const long panels = num_panels(m.columns);
  m.states = ARGUMENT(&call, "states", DTYPE, m.rows,
                      num_blocks(m.k, NUMBERS_PER_WORD) * NUMBERS_PER_WORD);
  m.panels = ARGUMENT(&call, "panels", DTYPE, TARGET(pack_length)(m.k, m.columns));
  m.results = RESULT(&call, "results", F32, m.rows, m.columns);
  if (call.problem[0]) return call_error(&call);
  const long helpers = m.rows * m.k * m.columns / MIN_MULTIPLICATIONS_PER_WORKER;
  return parallel_for(frame, (Loop){multiply_panel, &m, 1, panels}, min(helpers, panels - 1));
}
