/* What the forward and the backward pass have in common: shapes, indices, and the division of work.
 *
 * The hidden state is multiplied as weight panels times state panels (gemm.h). Sequences do not depend
 * on one another. So, where there are enough of them, an item of work is all time steps of some state
 * panels, and no thread waits for another. Else it is one weight panel by PANELS_PER_ITEM state panels
 * at one time step, the gates included; a time step is then a phase of a parallel loop: a barrier
 * separates it from the next, which needs all its states. Phase 0 packs the weights. Sequences are
 * [features, time, batch], a carry is [hidden, batch]. */

#pragma once

#include "cells.h"
#include "ffi.h"
#include "gemm.h"
#include "sequence.h"
#include "thread_pool.h"

typedef struct Layer {
  long hidden, time, batch;
  long rows, units; /* of a weight panel */
  long state_panels, weight_panels;
  long iterations; /* of the K loop */
  long steps;
  long panels_per_item; /* state panels of an item with all their steps; 0: a step is a phase */
  /* [time, batch]: 0 where the carry before a position is reset to zeros, else -1; NULL: no resets */
  const int32_t *keep;
  float *weights;  /* packed */
  Sequence states; /* that the matmul reads: of all time steps, or of two in turn */
  float *carry; /* between two steps, or its gradient: [state_panels, hidden, MAX_STATES, LANES] */
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

/* Words of the parts of a layer's working memory. */
INLINE long weight_words(const Layer *l) { return l->weight_panels * l->iterations * l->rows; }
INLINE long carry_words(const Layer *l) {
  return l->state_panels * l->hidden * MAX_STATES * LANES;
}

/* Length of the working memory, with so many words of others. */
INLINE long scratch_length(const Layer *l, long others) {
  return (weight_words(l) + carry_words(l) + others) * NUMBERS_PER_WORD;
}

INLINE float *weight_panel_at(const Layer *l, long panel) {
  return l->weights + panel * l->iterations * l->rows;
}

INLINE float *state_panel_at(const Layer *l, long t, long panel) {
  return tile_at(&l->states, t % l->states.time, panel);
}

/* Takes a layer's last buffers: argument `keep`, which may be missing, and the result that is the
 * working memory. Returns its last part, the words of others. */
INLINE float *take_keep_and_scratch(Call *call, Layer *l, long others) {
  if (num_left(&call->arguments) > 0) l->keep = ARGUMENT(call, "keep", S32, l->time, l->batch);
  l->weights = RESULT(call, "scratch", DTYPE, scratch_length(l, others));
  if (call->problem[0]) return NULL;
  l->carry = l->weights + weight_words(l);
  return l->carry + carry_words(l);
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

/* The first row of a gate in tiles of gates: that of each is padded to an even number of units. */
INLINE long gate_start(const Layer *l, long gate) { return gate * even(l->hidden); }

/* Indices into a sequence [features, time, batch], into one number a unit and lane
 * [hidden, state_panels * LANES], and into residuals, float32 in tiles (sequence.h) of `gates`. */
INLINE long sequence_index(const Layer *l, long feature, Position p) {
  return (feature * l->time + p.t) * l->batch + p.sequence;
}

INLINE long lane_index(const Layer *l, long unit, Position p) {
  return unit * l->state_panels * LANES + p.sequence;
}

INLINE long residual_index(const Layer *l, long gates, long gate, long unit, Position p) {
  const long tile = p.t * l->state_panels + p.panel;
  return (tile * gate_start(l, gates) + gate_start(l, gate) + unit) * LANES;
}

/* One unit of the carry between two steps. Of rows [hidden, batch] a thread with 16 of 32 sequences
 * would use every second cache line, so half of the sets of its L1 cache. */
INLINE float *carry_at(const Layer *l, long unit, Position p) {
  return l->carry + (p.panel * l->hidden + unit) * MAX_STATES * LANES;
}

INLINE State load_carry(Cell cell, const Layer *l, long unit, Position p) {
  const float *carry = carry_at(l, unit, p);
  return (State){load(carry, LANES),
                 CELLS[cell].states > 1 ? load(carry + LANES, LANES) : broadcast(0.0f)};
}

INLINE void store_carry(Cell cell, const Layer *l, long unit, Position p, State state) {
  float *carry = carry_at(l, unit, p);
  store(carry, state.h, LANES);
  if (CELLS[cell].states > 1) store(carry + LANES, state.c, LANES);
}

/* One unit of a carry that is an argument or a result, [hidden, batch] each. */
INLINE State load_rows(Cell cell, const Layer *l, float *const carry[2], long unit, Position p) {
  const long at = unit * l->batch + p.sequence;
  return (State){load(carry[0] + at, p.count),
                 CELLS[cell].states > 1 ? load(carry[1] + at, p.count) : broadcast(0.0f)};
}

INLINE void store_rows(Cell cell, const Layer *l, float *const carry[2], long unit, Position p,
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

/* Plans a layer's work in `steps` steps, of which the first packs the weights. Items are independent
 * where no worker gets more state panels than others, or hardly more. */
INLINE void plan_steps(Layer *l, long steps, long workers) {
  const bool are_many = l->state_panels >= 8 * workers;
  const bool are_even = are_many || l->state_panels % workers == 0;
  l->steps = steps;
  l->panels_per_item = are_even ? num_blocks(l->state_panels, workers) : 0;
}

/* What an item of a phase does. */
typedef struct Item {
  Range steps, weight_panels, state_panels;
} Item;

INLINE Item item_at(const Layer *l, long phase, long index) {
  if (phase == 0)
    return (Item){{0, 1}, block_range(index, 1, l->weight_panels), {0, l->state_panels}};
  if (l->panels_per_item > 0) {
    const Range panels = block_range(index, l->panels_per_item, l->state_panels);
    return (Item){{1, panels.first < panels.end ? l->steps : 1}, {0, l->weight_panels}, panels};
  }
  const long items = items_per_weight_panel(l);
  return (Item){{phase, phase + 1},
                block_range(index / items, 1, l->weight_panels),
                block_range(index % items, PANELS_PER_ITEM, l->state_panels)};
}

/* With fewer multiplications between two barriers, one costs more than a thread saves. */
enum { MIN_PARALLEL_MULTIPLICATIONS = 1 << 14 };

/* Runs all items. In a phase with fewer of them than others, the last do nothing. */
INLINE XLA_FFI_Error *run_steps(const Call *call, const Layer *l, Body *body, const void *data) {
  if (call->problem[0]) return call_error(call);
  const bool independent = l->panels_per_item > 0;
  const long items = independent
                         ? max(num_blocks(l->state_panels, l->panels_per_item), l->weight_panels)
                         : l->weight_panels * items_per_weight_panel(l);
  const long tiles = independent ? l->weight_panels * l->steps : 1; /* between two barriers */
  const long multiplications = tiles * l->iterations * NUMBERS_PER_WORD * l->rows * LANES;
  const bool parallel = multiplications >= MIN_PARALLEL_MULTIPLICATIONS;
  const Loop loop = {body, data, independent ? 2 : l->steps, items};
  return parallel_for(call->frame, loop, parallel ? items - 1 : 0);
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
