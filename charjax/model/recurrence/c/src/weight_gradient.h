/* The gradients that are sums over all positions (time and batch): that of the recurrent kernel, a
 * matmul, and that of a table of input gates, a scatter-add by token.
 *
 * The matmul is a times b transposed; K runs over positions, which are contiguous in both. `a` is
 * packed whole into row panels [K, MR], in a first phase. Then each item packs a few column panels
 * [KC, LANES] of `b`, a block of KC iterations of the K loop at a time, so that they stay in cache
 * while all row panels pass by; there they are scattered by token as well. Blocks of K are added in
 * order, whichever worker has the item. */

#pragma once

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { KC = 512, MAX_PANELS = 8 }; /* of an item */

typedef struct Gradient {
  long rows, columns, positions, vocab;
  long iterations;       /* of the K loop: words of all positions */
  const Number *a, *b;   /* [rows, positions], [columns, positions] */
  const int32_t *tokens; /* [positions], or NULL */
  float *packed_a;       /* row panels */
  float *matmul;         /* [rows, columns] */
  float *by_token;       /* [column panels, vocab, LANES] */
  long panels_per_item;
} Gradient;

/* `count` numbers in the first words, zeros in the others. */
INLINE Vector load_words(const Number *from, long count) {
  Vector x = {0};
  if (count == LANES * NUMBERS_PER_WORD) memcpy(&x, from, sizeof x);
  else memcpy(&x, from, count * sizeof *from);
  return x;
}

/* Packs `count` words, from `start` on, of `width` rows of a matrix into a panel [count, width]: a
 * transpose, in squares of LANES. Rows past the last are zero, and so is the second number of a
 * pair past the last position. */
INLINE void pack_panel(const Number *matrix, long rows, long positions, long row, int width,
                       long start, long count, float *to) {
  for (long k = 0; k < count; k += LANES)
    for (int first = 0; first < width; first += LANES) {
      const int wide = min(width - first, LANES), present = min(wide, rows - row - first);
      const long position = (start + k) * NUMBERS_PER_WORD;
      const long numbers = min(LANES * NUMBERS_PER_WORD, positions - position);
      const Number *from = matrix + (row + first) * positions + position;
      Vector square[LANES] = {0};
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        if (i < present) square[i] = load_words(from + i * positions, numbers);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        if (k + i < count) store(to + (k + i) * width + first, square[i], wide);
    }
}

/* Scatter-adds a packed column panel, `count` words from `start` on. */
INLINE void scatter_panel(const Gradient *g, long panel, long start, long count,
                          const float *packed) {
  float *by_token = g->by_token + panel * g->vocab * LANES;
  if (start == 0) memset(by_token, 0, g->vocab * sizeof(Vector));
  for (long k = start; k < start + count; k++, packed += LANES)
#pragma GCC unroll 2
    for (long i = 0; i < NUMBERS_PER_WORD; i++) {
      const long position = k * NUMBERS_PER_WORD + i;
      if (position == g->positions) return;
      float *sum = by_token + g->tokens[position] * LANES;
      store(sum, load(sum, LANES) + number_of_words(load(packed, LANES), i), LANES);
    }
}

/* Adds a row panel times a packed column panel, over `count` words from `start` on. */
INLINE void multiply_panels(const Gradient *g, long row_panel, long column_panel, long start,
                            long count, const float *packed) {
  const long row = row_panel * MR, column = column_panel * LANES;
  const long rows = min(MR, g->rows - row), columns = min(LANES, g->columns - column);
  float *to = g->matmul + row * g->columns + column;
  Vector tile[MR];
  for (long i = 0; i < rows; i++) __builtin_prefetch(to + i * g->columns, 1);
  micro_kernel(MR, count, g->packed_a + (row_panel * g->iterations + start) * MR, packed, tile);
  for (long i = 0; i < rows; i++, to += g->columns)
    store(to, start == 0 ? tile[i] : load(to, columns) + tile[i], columns);
}

/* All sums of some column panels. */
INLINE void reduce_columns(const Gradient *g, Range panels) {
  static _Thread_local float packed[MAX_PANELS][KC * LANES]; /* 256 KiB: too large for a stack */
  for (long start = 0; start < g->iterations; start += KC) {
    const long count = min(KC, g->iterations - start);
    for (long panel = panels.first; panel < panels.end; panel++) {
      float *to = packed[panel - panels.first];
      pack_panel(g->b, g->columns, g->positions, panel * LANES, LANES, start, count, to);
      if (g->tokens != NULL) scatter_panel(g, panel, start, count, to);
    }
    for (long row_panel = 0; row_panel < num_blocks(g->rows, MR); row_panel++)
      for (long panel = panels.first; panel < panels.end; panel++)
        multiply_panels(g, row_panel, panel, start, count, packed[panel - panels.first]);
  }
}

/* Phase 0 packs `a`, phase 1 sums. In the phase with less work, the last items do nothing. */
static void weight_gradient(const void *data, long phase, long item) {
  const Gradient *g = data;
  if (phase == 1)
    reduce_columns(g, block_range(item, g->panels_per_item, num_blocks(g->columns, LANES)));
  else if (item < num_blocks(g->rows, MR))
    pack_panel(g->a, g->rows, g->positions, item * MR, MR, 0, g->iterations,
               g->packed_a + item * g->iterations * MR);
}

/* Arguments: a [rows, positions] and b [columns, positions] in the compute dtype; tokens [positions]
 *   or none. Tokens must be in range.
 * Results: a times b transposed [rows, columns]; with tokens, b summed by token [column panels,
 *   vocab, LANES]; scratch, in the compute dtype. */
XLA_FFI_Error *TARGET(weight_gradient)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const int64_t *a_sizes = sizes_of(&call, "a", next_buffer(&call.arguments), 2);
  const int64_t *sizes = sizes_of(&call, "matmul", next_buffer(&call.results), 2);
  Gradient g = {.rows = sizes[0], .columns = sizes[1], .positions = a_sizes[1]};
  g.iterations = num_blocks(g.positions, NUMBERS_PER_WORD);
  g.a = ARGUMENT(&call, "a", DTYPE, g.rows, g.positions);
  g.b = ARGUMENT(&call, "b", DTYPE, g.columns, g.positions);
  g.matmul = RESULT(&call, "matmul", F32, g.rows, g.columns);
  const long row_panels = num_blocks(g.rows, MR), column_panels = num_blocks(g.columns, LANES);
  if (num_left(&call.arguments) > 0) {
    g.tokens = ARGUMENT(&call, "tokens", S32, g.positions);
    g.vocab = sizes_of(&call, "by_token", next_buffer(&call.results), 3)[1];
    g.by_token = RESULT(&call, "by_token", F32, column_panels, g.vocab, LANES);
  }
  g.packed_a = RESULT(&call, "scratch", DTYPE, row_panels * MR * even(g.positions));
  if (call.problem[0]) return call_error(&call);
  /* Several items per processor, so that a late or slow processor delays the end less. */
  g.panels_per_item = min(max(column_panels / (4 * num_processors()), 1), MAX_PANELS);
  const long items = max(num_blocks(column_panels, g.panels_per_item), row_panels);
  return parallel_for(frame, (Loop){weight_gradient, &g, 2, items}, items - 1);
}
