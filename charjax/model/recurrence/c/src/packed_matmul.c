/* A matmul of few or many rows with a packed kernel: one call per character of generated text.
 *
 * Vectors run along the kernel's columns, so that a single row fills them. The kernel is packed once
 * into column panels [K, COLUMNS]; the register tile is up to ROWS rows by VECTORS vectors. A sum
 * adds its terms in the order of K, as in gemm.h. So the matmul is batch-invariant: a row's result
 * has the same bits however many rows there are. */

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { VECTORS = 4, COLUMNS = VECTORS * LANES, ROWS = ACCUMULATORS / VECTORS };

/* With fewer multiplications, a worker costs more than it saves. */
enum { MIN_MULTIPLICATIONS_PER_WORKER = 1 << 18 };

typedef struct Matmul {
  long rows, k, columns;
  const char *panels;
  const float *states; /* [rows, k]; in bf16 rows of pairs, padded */
  float *results;      /* [rows, columns] */
} Matmul;

INLINE long num_panels(long columns) { return (columns + COLUMNS - 1) / COLUMNS; }
INLINE long panel_bytes(bool bf16, long k) { return even(k) * COLUMNS * bytes_each(bf16); }

/* Rounds states to bf16. Neighbours are pairs already; an odd row is padded with a zero. */
INLINE void round_states(const Matmul *m, const float *states, uint16_t *to) {
  const long stride = even(m->k);
  for (long row = 0; row < m->rows; row++, states += m->k, to += stride) {
    if (stride > m->k) to[m->k] = 0;
    for (long k = 0; k < m->k; k += LANES) {
      const long count = m->k - k < LANES ? m->k - k : LANES;
      store_rounded(true, to, k, load(states + k, count), count);
    }
  }
}

/* One column panel by `rows` rows from `first` on. `rows` is a constant, so that sums are in
 * registers. */
INLINE void multiply_rows(bool bf16, const Matmul *m, long panel, long first, const int rows) {
  const float *weights = (const float *)(m->panels + panel * panel_bytes(bf16, m->k));
  const long iterations = k_iterations(bf16, m->k);
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
      const Vector state = broadcast_weight(bf16, states + row * iterations + k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        sums[row][v] = multiply_add(bf16, sums[row][v], columns[v], state);
    }
  }
  const long left = m->columns - panel * COLUMNS;
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++) {
    float *to = m->results + (first + row) * m->columns + panel * COLUMNS;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const long count = left - v * LANES;
      if (count > 0) store(to + v * LANES, sums[row][v], count < LANES ? count : LANES);
    }
  }
}

#define CASE(rows)                                                          \
  case rows:                                                                \
    multiply_rows(bf16, m, panel, first, rows < ROWS ? rows : ROWS);        \
    break

INLINE void multiply_panel(bool bf16, const Matmul *m, long panel) {
  for (long first = 0; first < m->rows; first += ROWS) {
    const long left = m->rows - first;
    switch (left < ROWS ? left : ROWS) {
      CASE(1);
      CASE(2);
      CASE(3);
      CASE(4);
      CASE(5);
      CASE(6);
    }
  }
}
_Static_assert(ROWS <= 6, "multiply_panel needs a case for each number of rows");

static void multiply_panel_f32(const void *data, long phase, long panel) {
  (void)phase;
  multiply_panel(false, data, panel);
}
static void multiply_panel_bf16(const void *data, long phase, long panel) {
  (void)phase;
  multiply_panel(true, data, panel);
}

/* Packs rows k and k + 1 of one vector of a kernel; `second` is NULL past the last row. */
INLINE void pack_rows(bool bf16, float *to, const float *first, const float *second, long count) {
  const Vector a = load(first, count);
  const Vector b = second != NULL ? load(second, count) : broadcast(0.0f);
  if (bf16) {
    store(to, bf16_pairs(a, b), LANES);
  } else {
    store(to, a, LANES);
    if (second != NULL) store(to + COLUMNS, b, LANES);
  }
}

/* Argument: kernel [k, columns]. Result: its column panels, in the compute dtype. */
XLA_FFI_Error *charjax_pack(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = {.frame = frame};
  const Buffer *kernel = peek(&call, "kernel", next_argument(&call), 2);
  const long k_end = kernel->dims[0], columns = kernel->dims[1];
  const bool bf16 = is_bf16(&call, peek(&call, "panels", next_result(&call), 1));
  const float *from = ARGUMENT(&call, "kernel", F32, k_end, columns);
  char *panels = RESULT(&call, "panels", bf16 ? BF16 : F32,
                        num_panels(columns) * even(k_end) * COLUMNS);
  if (call.problem[0]) return call_error(&call);
  for (long panel = 0; panel < num_panels(columns); panel++) {
    float *to = (float *)(panels + panel * panel_bytes(bf16, k_end));
    for (long k = 0; k < k_end; k += 2, to += (bf16 ? 1 : 2) * COLUMNS)
      for (long v = 0; v < VECTORS; v++) {
        const long column = panel * COLUMNS + v * LANES, left = columns - column;
        const long count = left < 0 ? 0 : left < LANES ? left : LANES;
        const float *first = from + k * columns + (count ? column : 0);
        pack_rows(bf16, to + v * LANES, first, k + 1 < k_end ? first + columns : NULL, count);
      }
  }
  return NULL;
}

/* Arguments: states [rows, k]; the panels of a kernel. Results: the matmul [rows, columns]; in bf16
 * working memory for the rounded states [rows, even k], too. */
XLA_FFI_Error *charjax_multiply(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = {.frame = frame};
  Matmul m = {0};
  const Buffer *states = peek(&call, "states", next_argument(&call), 2);
  m.rows = states->dims[0];
  m.k = states->dims[1];
  m.columns = peek(&call, "results", next_result(&call), 2)->dims[1];
  m.states = ARGUMENT(&call, "states", F32, m.rows, m.k);
  const bool bf16 = is_bf16(&call, peek(&call, "panels", next_argument(&call), 1));
  m.panels = ARGUMENT(&call, "panels", bf16 ? BF16 : F32,
                      num_panels(m.columns) * even(m.k) * COLUMNS);
  m.results = RESULT(&call, "results", F32, m.rows, m.columns);
  uint16_t *rounded = bf16 ? RESULT(&call, "rounded", BF16, m.rows, even(m.k)) : NULL;
  if (call.problem[0]) return call_error(&call);
  if (bf16) {
    round_states(&m, m.states, rounded);
    m.states = (const float *)rounded;
  }
  const long helpers = m.rows * m.k * m.columns / MIN_MULTIPLICATIONS_PER_WORKER;
  const long panels = num_panels(m.columns);
  const Loop loop = {bf16 ? multiply_panel_bf16 : multiply_panel_f32, &m, 1, panels};
  return parallel_for(frame, loop, helpers < panels - 1 ? helpers : panels - 1);
}

/* For Python: see charjax/model/recurrence/c/build.py. */
const int charjax_packed_columns = COLUMNS;
