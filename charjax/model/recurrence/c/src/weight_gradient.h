/* The gradients that are sums over all positions (time and batch): that of the recurrent kernel, a
 * matmul, and that of a table of input gates, a scatter-add by token.
 *
 * The matmul is a times b transposed; K runs over positions, tile by tile (sequence.h): over the
 * sequences of a state panel, the state panels and time. `a` is packed whole into row panels
 * [K, rows], in a first phase. Then each item packs a few column panels [KC, LANES] of `b`, a
 * block of KC iterations of the K loop at a time, so that they stay in cache while all row panels pass
 * by; there they are scattered by token as well. Blocks of K are added in order, whichever worker has
 * the item. */

#pragma once

#include "ffi.h"
#include "gemm.h"
#include "sequence.h"
#include "thread_pool.h"

/* Of an item. A longer block would be faster by 1 %, but its sums have a larger error. */
enum { KC = 512, MAX_PANELS = 8 };

typedef struct Gradient {
  long rows, columns, tiles, vocab;
  long panel_rows;       /* of a row panel */
  long iterations;       /* of the K loop: words of all tiles */
  Sequence a, b;         /* of rows, of columns */
  const float *b_rows;   /* [columns, positions], LANES of which are a tile, instead of b; or NULL */
  long positions;
  const int32_t *tokens; /* [time, batch], or NULL */
  long batch;
  float *packed_a;       /* row panels */
  float *matmul;         /* [rows, columns] */
  float *by_token;       /* [column panels, vocab, LANES] */
  long panels_per_item;
} Gradient;

/* The tile that the words from `word` on begin with. */
INLINE long tile_of(long word) { return word / LANES * NUMBERS_PER_WORD; }

/* Packs `count` words, from `start` on, of `width` features into a panel [count, width]: a transpose,
 * in squares of LANES. Features past the last are zero, and so are tiles past the last. The same words
 * of the tiles after them are prefetched. */
INLINE void pack_panel(const Sequence *s, long feature, long width, long start, long count, float *to) {
  const long size = tile_words(s), tiles = s->time * s->panels;
  for (long k = 0; k < count; k += LANES, to += LANES * width) {
    float *from[NUMBERS_PER_WORD];
    for (long i = 0, tile = tile_of(start + k); i < NUMBERS_PER_WORD; i++)
      from[i] = tile + i < tiles ? s->words + (tile + i) * size : NULL;
    for (long first = 0; first < width; first += LANES) {
      const long present = s->features - feature - first;
      Vector square[LANES] = {0};
#pragma GCC unroll 16
      for (int row = 0; row < LANES; row += NUMBERS_PER_WORD)
        if (row < present) {
          const long word = (feature + first + row) / NUMBERS_PER_WORD * LANES;
          for (int i = 0; i < NUMBERS_PER_WORD; i++)
            __builtin_prefetch(from[0] + word + (NUMBERS_PER_WORD + i) * size);
          load_words(from, feature + first + row, square + row);
        }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        store(to + i * width + first, square[i], min(width - first, LANES));
    }
  }
}

/* Packs LANES words, from `start` on, of a column panel of b, as pack_panel does. */
INLINE void pack_columns(const Gradient *g, long panel, long start, float *to) {
  if (g->b_rows == NULL) return pack_panel(&g->b, panel * LANES, LANES, start, LANES, to);
  const long first = tile_of(start);
  Vector square[LANES] = {0};
  for (long row = 0; row < min(g->columns - panel * LANES, LANES); row++) {
    Vector numbers[NUMBERS_PER_WORD] = {0};
    for (long tile = first; tile < min(first + NUMBERS_PER_WORD, g->tiles); tile++)
      numbers[tile - first] =
          load_tile(g->b_rows + (panel * LANES + row) * g->positions, tile, g->positions);
    square[row] = round_to_words(numbers);
  }
  transpose(square);
  for (long i = 0; i < LANES; i++) store(to + i * LANES, square[i], LANES);
}

/* Scatter-adds a packed column panel, `count` words from `start` on. */
INLINE void scatter_panel(const Gradient *g, long panel, long start, long count,
                          const float *packed) {
  float *by_token = g->by_token + panel * g->vocab * LANES;
  if (start == 0) memset(by_token, 0, g->vocab * sizeof(Vector));
  const long first = tile_of(start), end = min(first + tile_of(count), g->tiles);
  for (long tile = first; tile < end; tile++) {
    const long sequence = tile % g->b.panels * LANES, t = tile / g->b.panels;
    const int32_t *tokens = g->tokens + t * g->batch + sequence;
    for (long lane = 0; lane < min(g->batch - sequence, LANES); lane++) {
      const long number = (tile - first) * LANES + lane;
      const Vector words = load(packed + number / NUMBERS_PER_WORD * LANES, LANES);
      float *sum = by_token + tokens[lane] * LANES;
      store(sum, load(sum, LANES) + number_of_words(words, number % NUMBERS_PER_WORD), LANES);
    }
  }
}

/* Adds a row panel times a packed column panel, over `count` words from `start` on. */
INLINE void multiply_panels(const Gradient *g, long row_panel, long column_panel, long start,
                            long count, const float *packed) {
  const long row = row_panel * g->panel_rows, column = column_panel * LANES;
  const long rows = min(g->panel_rows, g->rows - row), columns = min(LANES, g->columns - column);
  float *to = g->matmul + row * g->columns + column;
  Vector tile[SMALL_ROWS];
  for (long i = 0; i < rows; i++) __builtin_prefetch(to + i * g->columns, 1);
  multiply_panel_rows(g->panel_rows, count,
                      g->packed_a + (row_panel * g->iterations + start) * g->panel_rows, packed, tile);
  for (long i = 0; i < rows; i++, to += g->columns)
    store(to, start == 0 ? tile[i] : load(to, columns) + tile[i], columns);
}

/* All sums of some column panels. */
INLINE void reduce_columns(const Gradient *g, Range panels) {
  static _Thread_local float packed[MAX_PANELS][KC * LANES]; /* 256 KiB: too large for a stack */
  for (long start = 0; start < g->iterations; start += KC) {
    const long count = min(KC, g->iterations - start);
    for (long k = 0; k < count; k += LANES) /* tile by tile, as they are in memory */
      for (long panel = panels.first; panel < panels.end; panel++)
        pack_columns(g, panel, start + k, packed[panel - panels.first] + k * LANES);
    for (long panel = panels.first; g->tokens != NULL && panel < panels.end; panel++)
      scatter_panel(g, panel, start, count, packed[panel - panels.first]);
    for (long row_panel = 0; row_panel < num_blocks(g->rows, g->panel_rows); row_panel++)
      for (long panel = panels.first; panel < panels.end; panel++)
        multiply_panels(g, row_panel, panel, start, count, packed[panel - panels.first]);
  }
}

/* Phase 0 packs `a`, phase 1 sums. In the phase with less work, the last items do nothing. */
static void weight_gradient(const void *data, long phase, long item) {
  const Gradient *g = data;
  if (phase == 1)
    reduce_columns(g, block_range(item, g->panels_per_item, num_blocks(g->columns, LANES)));
  else if (item < num_blocks(g->rows, g->panel_rows))
    pack_panel(&g->a, item * g->panel_rows, g->panel_rows, 0, g->iterations,
               g->packed_a + item * g->iterations * g->panel_rows);
}

/* Words of a row of `packed_a`. */
INLINE long row_words(long tiles) { return num_blocks(tiles, NUMBERS_PER_WORD) * LANES; }

/* The gradient [rows, columns] of two Sequences; its buffers are still to be set. */
static Gradient new_gradient(long rows, long columns, Sequence a, Sequence b) {
  Gradient g = {.rows = rows, .columns = columns, .tiles = a.time * a.panels, .a = a, .b = b};
  g.iterations = row_words(g.tiles), g.panel_rows = panel_rows(rows, NUMBERS_PER_WORD);
  /* Several items per processor, so that a late or slow processor delays the end less. */
  const long column_panels = num_blocks(columns, LANES);
  g.panels_per_item = min(max(column_panels / (4 * num_processors()), 1), MAX_PANELS);
  return g;
}

/* Items of each phase. */
INLINE long gradient_items(const Gradient *g) {
  return max(num_blocks(num_blocks(g->columns, LANES), g->panels_per_item),
             num_blocks(g->rows, g->panel_rows));
}

/* Length of the scratch below, for `a` of so many rows and tiles. */
long TARGET(weight_gradient_length)(long rows, long tiles) {
  const long height = panel_rows(rows, NUMBERS_PER_WORD);
  return num_blocks(rows, height) * height * row_words(tiles) * NUMBERS_PER_WORD;
}

/* Arguments: Sequences a and b; tokens [time, batch] or none. Tokens must be in range.
 * Results: a times b transposed [rows, columns]; with tokens, b summed by token [column
 *   panels, vocab, LANES]; scratch, in the compute dtype. */
XLA_FFI_Error *TARGET(weight_gradient)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const int64_t *sizes = sizes_of(&call, "matmul", next_buffer(&call.results), 2);
  const long rows = sizes[0], columns = sizes[1];
  const int64_t *a_sizes = sizes_of(&call, "a", next_buffer(&call.arguments), 4);
  const long time = a_sizes[0], panels = a_sizes[1];
  const Sequence a = take_sequence(&call, &call.arguments, "a", even(rows), time, panels);
  const Sequence b = take_sequence(&call, &call.arguments, "b", even(columns), time, panels);
  Gradient g = new_gradient(rows, columns, a, b);
  g.matmul = RESULT(&call, "matmul", F32, rows, columns);
  if (num_left(&call.arguments) > 0) {
    g.batch = sizes_of(&call, "tokens", next_buffer(&call.arguments), 2)[1];
    g.tokens = ARGUMENT(&call, "tokens", S32, time, g.batch);
    g.vocab = sizes_of(&call, "by_token", next_buffer(&call.results), 3)[1];
    g.by_token = RESULT(&call, "by_token", F32, num_blocks(columns, LANES), g.vocab, LANES);
    if (num_blocks(g.batch, LANES) != panels) PROBLEM(&call, "charjax: batches of two sizes");
  }
  g.packed_a = RESULT(&call, "scratch", DTYPE, TARGET(weight_gradient_length)(rows, g.tiles));
  if (call.problem[0]) return call_error(&call);
  const long items = gradient_items(&g);
  return parallel_for(frame, (Loop){weight_gradient, &g, 2, items}, items - 1);
}
