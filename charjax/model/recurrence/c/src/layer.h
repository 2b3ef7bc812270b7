/* What the forward and the backward pass have in common: shapes, strides, and the division of work.
 *
 * The hidden state is multiplied as weight panels times state panels (gemm.h). An item of work is
 * one weight panel by PANELS_PER_ITEM state panels at one time step, the gates included. A time step
 * is a phase of a parallel loop: a barrier separates it from the next, which needs all its states.
 * Phase 0 packs the weights. Sequences are [features, time, batch], a carry is [hidden, batch]. */

#pragma once

#include "cells.h"
#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

typedef struct Layer {
  long hidden, time, batch;
  long state_panels, weight_panels;
  long k; /* the length of a sum of the matmul */
  /* [time, batch]: 0 where the carry before a position is reset to zeros, else -1; NULL: no resets */
  const int32_t *keep;
} Layer;

/* `units`: units of a weight panel. */
INLINE Layer new_layer(const int64_t sizes[3], long units, long k) {
  return (Layer){.hidden = sizes[0],
                 .time = sizes[1],
                 .batch = sizes[2],
                 .state_panels = (sizes[2] + LANES - 1) / LANES,
                 .weight_panels = (sizes[0] + units - 1) / units,
                 .k = k};
}

/* One state panel (its sequences) at one time step. */
typedef struct Position {
  long t, panel;
  long sequence, count; /* the first sequence of the panel, and how many it has */
} Position;

INLINE Position position(const Layer *l, long t, long panel) {
  const long sequence = panel * LANES, left = l->batch - sequence;
  return (Position){t, panel, sequence, left < LANES ? left : LANES};
}

INLINE Position shifted(Position p, long steps) {
  p.t += steps;
  return p;
}

/* Indices into a carry [hidden, batch], into a sequence [features, time, batch], into one number a
 * unit and lane [hidden, state_panels * LANES], and into the residuals of a unit
 * [time, state_panels, hidden, residuals, LANES]. */
INLINE long carry_index(const Layer *l, long unit, Position p) {
  return unit * l->batch + p.sequence;
}

INLINE long sequence_index(const Layer *l, long feature, Position p) {
  return (feature * l->time + p.t) * l->batch + p.sequence;
}

INLINE long lane_index(const Layer *l, long unit, Position p) {
  return unit * l->state_panels * LANES + p.sequence;
}

INLINE long residual_index(Cell cell, const Layer *l, long unit, Position p) {
  return ((p.t * l->state_panels + p.panel) * l->hidden + unit) * CELLS[cell].residuals * LANES;
}

INLINE bool may_reset(const Layer *l, Position p) { return l->keep != NULL && p.t < l->time; }

/* x in the lanes whose carry before this position is kept, 0 in those where it is reset. */
INLINE Vector reset_lanes(const Layer *l, Position p, Vector x) {
  const int32_t *keep = l->keep + p.t * l->batch + p.sequence;
  return (Vector)((IntVector)load((const float *)keep, p.count) & (IntVector)x);
}

/* Rows of a sequence are a page or more apart, where the hardware prefetcher does not help: what a
 * step is about to read and write is prefetched while its matmul runs. */
INLINE void prefetch_read(const void *line) { __builtin_prefetch(line, 0); }
INLINE void prefetch_write(const void *line) { __builtin_prefetch(line, 1); }

INLINE const void *rounded_at(bool bf16, const void *array, long index) {
  return (const char *)array + bytes_each(bf16) * index;
}

/* Two neighbouring state panels share cache lines, of bf16 sequences too. In one item, no line moves
 * between processors. */
enum { PANELS_PER_ITEM = 2 };

typedef struct Item {
  long weight_panel, first, end; /* state panels from `first` to before `end` */
} Item;

INLINE long items_per_weight_panel(const Layer *l) {
  return (l->state_panels + PANELS_PER_ITEM - 1) / PANELS_PER_ITEM;
}

INLINE long num_items(const Layer *l) { return l->weight_panels * items_per_weight_panel(l); }

INLINE Item item_at(const Layer *l, long index) {
  const long pieces = items_per_weight_panel(l);
  const long first = index % pieces * PANELS_PER_ITEM;
  const long end = first + PANELS_PER_ITEM < l->state_panels ? first + PANELS_PER_ITEM
                                                             : l->state_panels;
  return (Item){index / pieces, first, end};
}

/* With fewer multiplications in a register tile, a barrier costs more than a thread saves. */
enum { MIN_PARALLEL_MULTIPLICATIONS = 1 << 14 };

INLINE XLA_FFI_Error *run_phases(const XLA_FFI_CallFrame *frame, const Layer *l, Body *body,
                                 const void *data, long phases) {
  const bool parallel = l->k * MR * LANES >= MIN_PARALLEL_MULTIPLICATIONS;
  const Loop loop = {body, data, phases, num_items(l)};
  return parallel_for(frame, loop, parallel ? num_items(l) - 1 : 0);
}

/* Working memory: the packed weights, and the packed states of two steps, one of which is read while
 * the other is written. */
typedef struct Scratch {
  char *weights, *states[2];
} Scratch;

INLINE long weight_panel_bytes(bool bf16, const Layer *l) { return l->k * MR * bytes_each(bf16); }
INLINE long state_panel_bytes(bool bf16, const Layer *l) { return l->k * LANES * bytes_each(bf16); }

/* How many numbers of the compute dtype it takes. */
INLINE long scratch_size(const Layer *l) {
  return l->k * (l->weight_panels * MR + 2 * l->state_panels * LANES);
}

/* States are zeroed: rows of padding and lanes without a sequence stay so. */
INLINE Scratch divide_scratch(bool bf16, const Layer *l, char *scratch) {
  const long bytes = l->state_panels * state_panel_bytes(bf16, l);
  char *states = scratch + l->weight_panels * weight_panel_bytes(bf16, l);
  memset(states, 0, 2 * bytes);
  return (Scratch){scratch, {states, states + bytes}};
}

INLINE char *state_panel_at(bool bf16, const Layer *l, const Scratch *scratch, long step,
                            long panel) {
  return scratch->states[step % 2] + panel * state_panel_bytes(bf16, l);
}

INLINE char *weight_panel_at(bool bf16, const Layer *l, const Scratch *scratch, long panel) {
  return scratch->weights + panel * weight_panel_bytes(bf16, l);
}

/* Compiles `pass` once for each cell and dtype, both constants; in a table PASS_variants. */
#define VARIANT(pass, cell, bf16, name)                                     \
  static void pass##_##name(const void *data, long phase, long item) {      \
    pass(cell, bf16, data, phase, item);                                    \
  }
#define VARIANTS(pass)                                                      \
  VARIANT(pass, RNN, false, rnn)                                            \
  VARIANT(pass, GRU, false, gru)                                            \
  VARIANT(pass, LSTM, false, lstm)                                          \
  VARIANT(pass, RNN, true, rnn_bf16)                                        \
  VARIANT(pass, GRU, true, gru_bf16)                                        \
  VARIANT(pass, LSTM, true, lstm_bf16)                                      \
  static Body *const pass##_variants[NUM_CELLS][2] = {                      \
      [RNN] = {pass##_rnn, pass##_rnn_bf16},                                \
      [GRU] = {pass##_gru, pass##_gru_bf16},                                \
      [LSTM] = {pass##_lstm, pass##_lstm_bf16}};
