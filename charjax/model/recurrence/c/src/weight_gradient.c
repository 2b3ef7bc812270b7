/* The gradients of weights: products of two stacks over all positions, each a character of a lane.
 *
 * The terms of such a sum lie side by side. One stack is packed whole, as tiles. Of the other some
 * panels at a time are packed where they are needed, for so many steps that they stay in the cache
 * while all tiles pass; there they are summed by symbol as well, which is what the gradient of a
 * table is. Sums of so many steps are added up in their order, whoever computes them. */

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { STEPS = 512, MOST_PANELS = 8 }; /* at a time */

typedef struct Gradient {
  long rows, columns, positions, symbols;
  const char *a, *b;     /* stacks [rows, positions], [columns, positions] */
  const int32_t *tokens; /* [positions], or NULL */
  char *tiles;           /* `a`, packed */
  float *product;        /* [rows, columns] */
  float *by_symbol;      /* [panels, symbols, LANES] */
  long together;         /* panels of an item */
} Gradient;

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long tiles_of(const Gradient *g) { return (g->rows + ROWS - 1) / ROWS; }
INLINE long panels_of(const Gradient *g) { return (g->columns + LANES - 1) / LANES; }

/* One step of a row: a number, or where narrow a pair, whose second there may not be. */
INLINE float step_of(bool narrow, const char *row, long step, long positions) {
  float here = 0.0f;
  const bool half = narrow && 2 * step + 1 == positions;
  memcpy(&here, row + step * sizeof here, half ? sizeof here / 2 : sizeof here);
  return here;
}

/* Turns `count` steps of `width` rows: to[step][row]; rows that a stack does not have are zero. */
INLINE void turn(bool narrow, const char *stack, long rows, long positions, long row, int width,
                 long step, long count, float *to) {
  const long stride = positions * (narrow ? 2 : 4), there = least(width, rows - row);
  const long whole = least(count, positions / (narrow ? 2 : 1) - step) / LANES * LANES;
  const char *from = stack + row * stride + step * sizeof(float);
  for (long s = 0; s < whole; s += LANES)
    for (int first = 0; first < width; first += LANES) {
      const int wide = width - first < LANES ? width - first : LANES;
      Vector square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        square[i] = i < wide && first + i < there
                        ? load((const float *)(from + (first + i) * stride) + s, LANES)
                        : all(0.0f);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(to + (s + i) * width + first, square[i], wide);
    }
  for (long s = whole; s < count; s++)
    for (long i = 0; i < width; i++)
      to[s * width + i] =
          i < there ? step_of(narrow, from + i * stride, s, positions - step * (narrow ? 2 : 1))
                    : 0.0f;
}

/* Adds one position's numbers to those of its symbol. */
INLINE void add_to_symbol(const Gradient *g, long panel, long position, Vector numbers) {
  float *sum = g->by_symbol + (panel * g->symbols + g->tokens[position]) * LANES;
  store(sum, load(sum, LANES) + numbers, LANES);
}

/* Adds a packed panel, `count` steps from `step` on, by symbol. */
INLINE void add_by_symbol(bool narrow, const Gradient *g, long panel, long step, long count,
                          const float *numbers) {
  if (step == 0)
    memset(g->by_symbol + panel * g->symbols * LANES, 0, g->symbols * sizeof(Vector));
  for (long s = step; s < step + count; s++, numbers += LANES) {
    const Vector here = load(numbers, LANES);
    if (narrow) {
      add_to_symbol(g, panel, 2 * s, (Vector)((Integers)here << 16));
      if (2 * s + 1 < g->positions)
        add_to_symbol(g, panel, 2 * s + 1, (Vector)((Integers)here & ~0xffff));
    } else {
      add_to_symbol(g, panel, s, here);
    }
  }
}

/* Adds a tile times a packed panel, over `count` steps from `step` on. */
INLINE void add_product_of(bool narrow, const Gradient *g, long tile, long panel, long step,
                           long count, const float *numbers) {
  const long row = tile * ROWS, column = panel * LANES;
  const long rows = least(ROWS, g->rows - row), lanes = least(LANES, g->columns - column);
  const long tile_steps = steps_of(narrow, g->positions);
  float *to = g->product + row * g->columns + column;
  Vector sums[ROWS];
  for (long i = 0; i < rows; i++) __builtin_prefetch(to + i * g->columns, 1);
  multiply(narrow, narrow ? 2 * count : count,
           g->tiles + (tile * tile_steps + step) * ROWS * sizeof(float), numbers, sums);
  for (long i = 0; i < rows; i++, to += g->columns)
    store(to, step == 0 ? sums[i] : load(to, lanes) + sums[i], lanes);
}

INLINE void pack_tile(bool narrow, const Gradient *g, long tile) {
  const long steps = steps_of(narrow, g->positions);
  turn(narrow, g->a, g->rows, g->positions, tile * ROWS, ROWS, 0, steps,
       (float *)g->tiles + tile * steps * ROWS);
}

INLINE void multiply_panels(bool narrow, const Gradient *g, long first, long end) {
  static _Thread_local float packed[MOST_PANELS][STEPS * LANES]; /* much for a stack */
  const long steps = steps_of(narrow, g->positions);
  for (long step = 0; step < steps; step += STEPS) {
    const long count = least(STEPS, steps - step);
    for (long panel = first; panel < end; panel++) {
      float *numbers = packed[panel - first];
      turn(narrow, g->b, g->columns, g->positions, panel * LANES, LANES, step, count, numbers);
      if (g->tokens != NULL) add_by_symbol(narrow, g, panel, step, count, numbers);
    }
    for (long tile = 0; tile < tiles_of(g); tile++)
      for (long panel = first; panel < end; panel++)
        add_product_of(narrow, g, tile, panel, step, count, packed[panel - first]);
  }
}

/* Phase 0 packs the tiles, phase 1 multiplies; the one with fewer items has idle ones. */
INLINE void gradient(bool narrow, const Gradient *g, long phase, long index) {
  const long first = index * g->together;
  if (phase == 1) multiply_panels(narrow, g, first, least(first + g->together, panels_of(g)));
  else if (index < tiles_of(g)) pack_tile(narrow, g, index);
}

static void gradient_wide(const void *work, long phase, long index) {
  gradient(false, work, phase, index);
}
static void gradient_narrow(const void *work, long phase, long index) {
  gradient(true, work, phase, index);
}

/* (a [rows, positions], b [columns, positions], tokens [positions] or none)
 *   -> (a times b, b by symbol, scratch) */
XLA_FFI_Error *charjax_gradient(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *a = argument(frame, 0), *b = argument(frame, 1);
  const XLA_FFI_Buffer *by_symbol = result(frame, 1);
  Gradient g = {.rows = a->dims[0],
                .columns = b->dims[0],
                .positions = b->dims[1],
                .symbols = by_symbol->dims[1],
                .a = a->data,
                .b = b->data,
                .tokens = filled(argument(frame, 2)),
                .tiles = result(frame, 2)->data,
                .product = result(frame, 0)->data,
                .by_symbol = by_symbol->data};
  /* Some items a processor, so that none waits long for the last. */
  const long share = panels_of(&g) / (4 * processors());
  g.together = share < 1 ? 1 : least(share, MOST_PANELS);
  const long pieces = (panels_of(&g) + g.together - 1) / g.together;
  const long items = pieces > tiles_of(&g) ? pieces : tiles_of(&g);
  const bool narrow = b->dtype == XLA_FFI_DataType_BF16;
  return run(frame, (Job){narrow ? gradient_narrow : gradient_wide, &g, 2, items}, items - 1);
}
