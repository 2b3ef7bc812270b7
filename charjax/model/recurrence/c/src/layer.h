/* What the forward and the backward pass have in common: shapes, indices, and the division of work.
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
  long rows, units; /* of a weight panel */
  long state_panels, weight_panels;
  long iterations; /* of the K loop */
  /* [time, batch]: 0 where the carry before a position is reset to zeros, else -1; NULL: no resets */
  const int32_t *keep;
  float *weights;   /* packed */
  float *states[2]; /* packed, of two steps: one is read while the other is written */
} Layer;

/* `sizes` of a sequence [hidden, time, batch], `rows` and `units` of a weight panel, and the length
 * `k` of a sum of the matmul. */
INLINE Layer new_layer(const int64_t sizes[3], long rows, long units, long k) {
  return (Layer){.hidden = sizes[0],
                 .time = sizes[1],
                 .batch = sizes[2],
                 .rows = rows,
                 .units = units,
                 .state_panels = num_blocks(sizes[2], LANES),
                 .weight_panels = num_blocks(sizes[0], units),
                 .iterations = k / NUMBERS_PER_WORD};
}

INLINE float *weight_panel_at(const Layer *l, long panel) {
  return l->weights + panel * l->iterations * l->rows;
}

INLINE float *state_panel_at(const Layer *l, long step, long panel) {
  return l->states[step % 2] + panel * l->iterations * LANES;
}

/* Takes a layer's last buffers: argument `keep`, which may be missing, and the result that is the
 * working memory. States are zeroed: rows of padding and lanes without a sequence stay so. */
INLINE void take_keep_and_scratch(Call *call, Layer *l) {
  const long weights = l->weight_panels * l->iterations * l->rows;
  const long states = l->state_panels * l->iterations * LANES;
  if (num_left(&call->arguments) > 0) l->keep = ARGUMENT(call, "keep", S32, l->time, l->batch);
  l->weights = RESULT(call, "scratch", DTYPE, (weights + 2 * states) * NUMBERS_PER_WORD);
  if (call->problem[0]) return;
  l->states[0] = l->weights + weights;
  l->states[1] = l->states[0] + states;
  memset(l->states[0], 0, 2 * states * sizeof(float));
}

/* One state panel (its sequences) at one time step. */
typedef struct Position {
  long t, panel;
  long sequence, count; /* the first sequence of the panel, and how many it has */
} Position;

INLINE Position position(const Layer *l, long t, long panel) {
  const long sequence = panel * LANES;
  return (Position){t, panel, sequence, min(l->batch - sequence, LANES)};
}

INLINE Position shifted(Position p, long steps) {
  p.t += steps;
  return p;
}

/* Indices into a sequence [features, time, batch], into one number a unit and lane
 * [hidden, state_panels * LANES], and into the residuals of a unit
 * [time, state_panels, hidden, residuals, LANES]. */
INLINE long sequence_index(const Layer *l, long feature, Position p) {
  return (feature * l->time + p.t) * l->batch + p.sequence;
}

INLINE long lane_index(const Layer *l, long unit, Position p) {
  return unit * l->state_panels * LANES + p.sequence;
}

INLINE long residual_index(Cell cell, const Layer *l, long unit, Position p) {
  return ((p.t * l->state_panels + p.panel) * l->hidden + unit) * CELLS[cell].residuals * LANES;
}

/* One unit of a carry, an array for each state. */
INLINE State load_carry(Cell cell, const Layer *l, float *const carry[2], long unit, Position p) {
  const long at = unit * l->batch + p.sequence;
  return (State){load(carry[0] + at, p.count),
                 CELLS[cell].states > 1 ? load(carry[1] + at, p.count) : broadcast(0.0f)};
}

INLINE void store_carry(Cell cell, const Layer *l, float *const carry[2], long unit, Position p,
                        State state) {
  const long at = unit * l->batch + p.sequence;
  store(carry[0] + at, state.h, p.count);
  if (CELLS[cell].states > 1) store(carry[1] + at, state.c, p.count);
}

/* A state before position p, or its gradient, with zeros in the lanes that are reset there. */
INLINE State reset(const Layer *l, Position p, State state) {
  if (l->keep == NULL || p.t >= l->time) return state;
  const float *keep = (const float *)l->keep + p.t * l->batch + p.sequence;
  const IntVector mask = (IntVector)load(keep, p.count);
  return (State){(Vector)(mask & (IntVector)state.h), (Vector)(mask & (IntVector)state.c)};
}

/* Two neighbouring state panels share cache lines, of bf16 sequences too. In one item, no line moves
 * between processors. */
enum { PANELS_PER_ITEM = 2 };

INLINE long items_per_weight_panel(const Layer *l) {
  return num_blocks(l->state_panels, PANELS_PER_ITEM);
}

/* With fewer multiplications in a register tile, a barrier costs more than a thread saves. */
enum { MIN_PARALLEL_MULTIPLICATIONS = 1 << 14 };

INLINE XLA_FFI_Error *run_phases(const Call *call, const Layer *l, Body *body, const void *data,
                                 long phases) {
  if (call->problem[0]) return call_error(call);
  const long items = l->weight_panels * items_per_weight_panel(l);
  const long multiplications = l->iterations * NUMBERS_PER_WORD * l->rows * LANES;
  const bool parallel = multiplications >= MIN_PARALLEL_MULTIPLICATIONS;
  return parallel_for(call->frame, (Loop){body, data, phases, items}, parallel ? items - 1 : 0);
}

/* Compiles `pass` once for each cell, a constant; in a table PASS_variants. */
#define VARIANT(pass, cell)                                                  \
  static void pass##_##cell(const void *data, long phase, long item) {       \
    pass(cell, data, phase, item);                                           \
  }
#define VARIANTS(pass)                                                       \
  VARIANT(pass, RNN)                                                         \
  VARIANT(pass, GRU)                                                         \
  VARIANT(pass, LSTM)                                                        \
  static Body *const pass##_variants[NUM_CELLS] = {                          \
      [RNN] = pass##_RNN, [GRU] = pass##_GRU, [LSTM] = pass##_LSTM};
