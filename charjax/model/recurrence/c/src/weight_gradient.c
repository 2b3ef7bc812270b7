/* The gradients that are sums over all positions (time and batch): that of the recurrent kernel, a
 * matmul, and that of a table of input gates, a scatter-add by token.
 *
 * The matmul is a times b transposed; K runs over positions, which are contiguous in both. `a` is
 * packed whole into row panels [K, MR], in a first phase. Then each item packs a few column panels
 * [KC, LANES] of `b`, a block of KC iterations of the K loop at a time, so that they stay in cache
 * while all row panels pass by; there they are scattered by token as well. Blocks of K are added in
 * order, whichever worker has the item. */

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { KC = 512, MAX_PANELS = 8 }; /* of an item */

typedef struct Gradient {
  long rows, columns, positions, vocab;
  const char *a, *b;     /* [rows, positions], [columns, positions] */
  const int32_t *tokens; /* [positions], or NULL */
  char *packed_a;        /* row panels */
  float *matmul;         /* [rows, columns] */
  float *by_token;       /* [column panels, vocab, LANES] */
  long panels_per_item;
} Gradient;

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long num_row_panels(const Gradient *g) { return (g->rows + MR - 1) / MR; }
INLINE long num_column_panels(const Gradient *g) { return (g->columns + LANES - 1) / LANES; }

/* What one iteration of the K loop reads of a row: a float32, or a pair of bf16, whose second is
 * zero past the last position. */
INLINE float load_iteration(bool bf16, const char *row, long iteration, long positions) {
  float here = 0.0f;
  const bool single = bf16 && 2 * iteration + 1 == positions;
  memcpy(&here, row + iteration * sizeof here, single ? sizeof here / 2 : sizeof here);
  return here;
}

/* Packs `count` iterations, from `start` on, of `width` rows of a matrix into a panel
 * [count, width]: a transpose, in squares of LANES where they are full. Rows past the last are
 * zero. */
INLINE void pack_panel(bool bf16, const char *matrix, long rows, long positions, long row, int width,
                       long start, long count, float *to) {
  const long stride = positions * bytes_each(bf16), present = min(width, rows - row);
  const long full = min(count, positions / (bf16 ? 2 : 1) - start) / LANES * LANES;
  const char *from = matrix + row * stride + start * sizeof(float);
  for (long k = 0; k < full; k += LANES)
    for (int first = 0; first < width; first += LANES) {
      const int wide = width - first < LANES ? width - first : LANES;
      Vector square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        square[i] = i < wide && first + i < present
                        ? load((const float *)(from + (first + i) * stride) + k, LANES)
                        : broadcast(0.0f);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(to + (k + i) * width + first, square[i], wide);
    }
  const long left = positions - start * (bf16 ? 2 : 1);
  for (long k = full; k < count; k++)
    for (long i = 0; i < width; i++)
      to[k * width + i] = i < present ? load_iteration(bf16, from + i * stride, k, left) : 0.0f;
}

INLINE void add_to_token(const Gradient *g, long panel, long position, Vector column) {
  float *sum = g->by_token + (panel * g->vocab + g->tokens[position]) * LANES;
  store(sum, load(sum, LANES) + column, LANES);
}

/* Scatter-adds a packed column panel, `count` iterations from `start` on. */
INLINE void scatter_panel(bool bf16, const Gradient *g, long panel, long start, long count,
                          const float *packed) {
  if (start == 0) memset(g->by_token + panel * g->vocab * LANES, 0, g->vocab * sizeof(Vector));
  for (long k = start; k < start + count; k++, packed += LANES) {
    const Vector here = load(packed, LANES);
    if (bf16) { /* a bf16 number is the high half of its float32 */
      add_to_token(g, panel, 2 * k, (Vector)((IntVector)here << 16));
      if (2 * k + 1 < g->positions)
        add_to_token(g, panel, 2 * k + 1, (Vector)((IntVector)here & ~0xffff));
    } else {
      add_to_token(g, panel, k, here);
    }
  }
}

/* Adds a row panel times a packed column panel, over `count` iterations from `start` on. */
INLINE void multiply_panels(bool bf16, const Gradient *g, long row_panel, long column_panel,
                            long start, long count, const float *packed) {
  const long row = row_panel * MR, column = column_panel * LANES;
  const long rows = min(MR, g->rows - row), columns = min(LANES, g->columns - column);
  const long iterations = k_iterations(bf16, g->positions);
  float *to = g->matmul + row * g->columns + column;
  Vector tile[MR];
  for (long i = 0; i < rows; i++) __builtin_prefetch(to + i * g->columns, 1);
  micro_kernel(bf16, bf16 ? 2 * count : count,
               g->packed_a + (row_panel * iterations + start) * MR * sizeof(float), packed, tile);
  for (long i = 0; i < rows; i++, to += g->columns)
    store(to, start == 0 ? tile[i] : load(to, columns) + tile[i], columns);
}

INLINE void pack_row_panel(bool bf16, const Gradient *g, long panel) {
  const long iterations = k_iterations(bf16, g->positions);
  pack_panel(bf16, g->a, g->rows, g->positions, panel * MR, MR, 0, iterations,
             (float *)g->packed_a + panel * iterations * MR);
}

/* All sums of the column panels from `first` to before `end`. */
INLINE void reduce_columns(bool bf16, const Gradient *g, long first, long end) {
  static _Thread_local float packed[MAX_PANELS][KC * LANES]; /* 256 KiB: too large for a stack */
  const long iterations = k_iterations(bf16, g->positions);
  for (long start = 0; start < iterations; start += KC) {
    const long count = min(KC, iterations - start);
    for (long panel = first; panel < end; panel++) {
      float *to = packed[panel - first];
      pack_panel(bf16, g->b, g->columns, g->positions, panel * LANES, LANES, start, count, to);
      if (g->tokens != NULL) scatter_panel(bf16, g, panel, start, count, to);
    }
    for (long row_panel = 0; row_panel < num_row_panels(g); row_panel++)
      for (long panel = first; panel < end; panel++)
        multiply_panels(bf16, g, row_panel, panel, start, count, packed[panel - first]);
  }
}

/* Phase 0 packs `a`, phase 1 sums. In the phase with less work, the last items do nothing. */
INLINE void weight_gradient(bool bf16, const Gradient *g, long phase, long item) {
  const long first = item * g->panels_per_item;
  if (phase == 1)
    reduce_columns(bf16, g, first, min(first + g->panels_per_item, num_column_panels(g)));
  else if (item < num_row_panels(g)) pack_row_panel(bf16, g, item);
}

static void weight_gradient_f32(const void *data, long phase, long item) {
  weight_gradient(false, data, phase, item);
}
static void weight_gradient_bf16(const void *data, long phase, long item) {
  weight_gradient(true, data, phase, item);
}

/* Arguments: a [rows, positions] and b [columns, positions] in the compute dtype; tokens [positions]
 *   or none. Tokens must be in range.
 * Results: a times b transposed [rows, columns]; with tokens, b summed by token [column panels,
 *   vocab, LANES]; scratch, in the compute dtype. */
XLA_FFI_Error *charjax_weight_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = {.frame = frame};
  Gradient g = {0};
  const Buffer *a = peek(&call, "a", next_argument(&call), 2);
  const bool bf16 = is_bf16(&call, a);
  const int dtype = bf16 ? BF16 : F32;
  g.rows = a->dims[0];
  g.positions = a->dims[1];
  g.a = ARGUMENT(&call, "a", dtype, g.rows, g.positions);
  g.columns = peek(&call, "b", next_argument(&call), 2)->dims[0];
  g.b = ARGUMENT(&call, "b", dtype, g.columns, g.positions);
  g.matmul = RESULT(&call, "matmul", F32, g.rows, g.columns);
  if (next_argument(&call) != NULL) {
    g.tokens = ARGUMENT(&call, "tokens", S32, g.positions);
    g.vocab = peek(&call, "by_token", next_result(&call), 3)->dims[1];
    g.by_token = RESULT(&call, "by_token", F32, num_column_panels(&g), g.vocab, LANES);
  }
  g.packed_a = RESULT(&call, "scratch", dtype, num_row_panels(&g) * MR * even(g.positions));
  if (call.problem[0]) return call_error(&call);
  /* Several items per processor, so that a late or slow processor delays the end less. */
  const long even_count = num_column_panels(&g) / (4 * num_processors());
  g.panels_per_item = even_count < 1 ? 1 : min(even_count, MAX_PANELS);
  const long pieces = (num_column_panels(&g) + g.panels_per_item - 1) / g.panels_per_item;
  const long items = pieces > num_row_panels(&g) ? pieces : num_row_panels(&g);
  const Loop loop = {bf16 ? weight_gradient_bf16 : weight_gradient_f32, &g, 2, items};
  return parallel_for(frame, loop, items - 1);
}
