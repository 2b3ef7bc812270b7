/* What the two loops over time share: the shape of a layer, and how its work is cut.
 *
 * A tile is as many rows of packed weights as there are accumulators, a panel as many lanes
 * as a vector has. An item of work is a tile and two panels at one time step; a step begins
 * when the one before it is finished. Stacks are [features, time, batch], as XLA multiplies
 * them afterwards; a carry is [hidden, batch]; all are contiguous. */

#pragma once

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

/* A cell is known by its number of gates. */
enum { RNN = 1, GRU = 3, LSTM = 4 };

/* How many numbers are kept of a unit for the way back. */
INLINE long kept(int cell) { return cell == GRU ? 4 : cell == LSTM ? 5 : 0; }

typedef struct Shape {
  long hidden, time, batch;
  long panels; /* of lanes */
  long tiles;  /* of weights */
  long terms;  /* of a sum */
} Shape;

/* `rows` of a layer's tiles are units; its sums have so many terms. */
INLINE Shape shape_of(const XLA_FFI_Buffer *outputs, long rows, long terms) {
  const int64_t *dims = outputs->dims;
  return (Shape){.hidden = dims[0],
                 .time = dims[1],
                 .batch = dims[2],
                 .panels = (dims[2] + LANES - 1) / LANES,
                 .tiles = (dims[0] + rows - 1) / rows,
                 .terms = terms};
}

/* Some lanes at one time step. */
typedef struct Place {
  long at, panel;
  long lane, count; /* the first lane, and how many */
} Place;

INLINE Place place_of(const Shape *s, long at, long panel) {
  const long lane = panel * LANES, left = s->batch - lane;
  return (Place){at, panel, lane, left < LANES ? left : LANES};
}

/* Where a place begins among the numbers of a unit: in a carry, in a stack, and in what is kept,
 * [time, panels, hidden, kept, LANES]. */
INLINE long in_carry(const Shape *s, long unit, Place p) { return unit * s->batch + p.lane; }

INLINE long in_stack(const Shape *s, long feature, Place p) {
  return (feature * s->time + p.at) * s->batch + p.lane;
}

INLINE long in_kept(int cell, const Shape *s, long unit, Place p) {
  return ((p.at * s->panels + p.panel) * s->hidden + unit) * kept(cell) * LANES;
}

/* The same lanes some steps later, or earlier. */
INLINE Place moved(Place p, long steps) {
  p.at += steps;
  return p;
}

/* Has a line come near while the product runs: those of a stack lie a page apart, where the
 * processor does not look ahead. */
INLINE void expect_read(const void *line) { __builtin_prefetch(line, 0); }
INLINE void expect_write(const void *line) { __builtin_prefetch(line, 1); }

INLINE const void *in_bytes(bool narrow, const void *stack, long at) {
  return (const char *)stack + (narrow ? 2 : 4) * at;
}

/* An item's panels lie in the same cache lines, also of a stack of two bytes a number: so no
 * line goes to and fro between threads. */
enum { TOGETHER = 2 };

typedef struct Share {
  long tile, first, end; /* panels */
} Share;

INLINE long items(const Shape *s) { return s->tiles * ((s->panels + TOGETHER - 1) / TOGETHER); }

INLINE Share share_of(const Shape *s, long index) {
  const long pieces = (s->panels + TOGETHER - 1) / TOGETHER;
  const long first = index % pieces * TOGETHER;
  const long end = first + TOGETHER < s->panels ? first + TOGETHER : s->panels;
  return (Share){index / pieces, first, end};
}

/* Below so many multiplications a panel, another thread costs more than it brings. */
enum { WORTH_A_THREAD = 1 << 14 };

INLINE XLA_FFI_Error *run_steps(const XLA_FFI_CallFrame *frame, const Shape *s, Item *item,
                                const void *work, long phases) {
  const bool worth = s->terms * ROWS * LANES >= WORTH_A_THREAD;
  return run(frame, (Job){item, work, phases, items(s)}, worth ? items(s) - 1 : 0);
}

/* Working memory: the tiles, and the panels of two steps, zero where no state is ever put. */
typedef struct Scratch {
  char *tiles, *panels[2];
} Scratch;

INLINE Scratch lay_out(bool narrow, const Shape *s, const XLA_FFI_Buffer *scratch) {
  const long panels = s->panels * panel_size(narrow, s->terms);
  char *tiles = scratch->data, *first = tiles + s->tiles * tile_size(narrow, s->terms);
  memset(first, 0, 2 * panels);
  return (Scratch){tiles, {first, first + panels}};
}

INLINE char *panel_at(bool narrow, const Shape *s, const Scratch *scratch, long step, long panel) {
  return scratch->panels[step % 2] + panel * panel_size(narrow, s->terms);
}

INLINE char *tile_at(bool narrow, const Shape *s, const Scratch *scratch, long tile) {
  return scratch->tiles + tile * tile_size(narrow, s->terms);
}

/* One function for each cell and precision, so that neither is asked for inside. */
#define VARIANT(way, cell, narrow, name)                                  \
  static void way##_##name(const void *work, long phase, long index) {    \
    way(cell, narrow, work, phase, index);                                \
  }
#define VARIANTS(way)                   \
  VARIANT(way, RNN, false, rnn)         \
  VARIANT(way, GRU, false, gru)         \
  VARIANT(way, LSTM, false, lstm)       \
  VARIANT(way, RNN, true, narrow_rnn)   \
  VARIANT(way, GRU, true, narrow_gru)   \
  VARIANT(way, LSTM, true, narrow_lstm) \
  static Item *const way##_variants[5][2] = {[RNN] = {way##_rnn, way##_narrow_rnn},   \
                                             [GRU] = {way##_gru, way##_narrow_gru},   \
                                             [LSTM] = {way##_lstm, way##_narrow_lstm}};
