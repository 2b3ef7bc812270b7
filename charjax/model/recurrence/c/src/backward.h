/* The backward pass of one layer, from the last time step to the first: gradients of the gates at
 * every step, and of the initial carry.
 *
 * The matmul is d_hgates times the kernel's transpose. A weight panel holds some units; K runs
 * over all gates of all units. So the micro-kernel gives the gradient of a unit's state, from which the
 * cell computes those of its gates one step earlier, in the same register tile. layer.h divides the
 * work. */

#pragma once

#include "layer.h"

typedef struct Backward {
  Layer layer;
  const float *kernel;              /* [hidden, gates] */
  float *initial[2];                /* the carry before the first step */
  const float *outputs;             /* of the forward pass */
  const float *gates, *extra;       /* its residuals */
  const float *d_outputs;           /* [hidden, time, batch] */
  float *d_last[2];                 /* of the last carry */
  Sequence d_candidate;             /* with a table; d_hgates are the layer's states */
  Number *d_igates;                 /* [gates, time, batch]; NULL with a table */
  float *d_bias;                    /* [hidden, state_panels * LANES]: to be summed over lanes */
  float *d_carry[2];                /* of the initial carry */
} Backward;

/* In squares of LANES units and LANES columns, so that whole cache lines are read. */
INLINE void pack_transposed(Cell cell, const Backward *b, long weight_panel) {
  const Layer *l = &b->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  const long gates = CELLS[cell].gates;
  for (long gate = 0; gate < gates; gate++)
    for (long k = 0; k < l->hidden; k += LANES)
      for (long row = 0; row < l->units; row += LANES) {
        Vector square[LANES] = {0};
        const long count = min(l->hidden - k, LANES);
        for (long i = 0; i < min(units.end - units.first - row, LANES); i++) {
          const long kernel_row = (units.first + row + i) * gates + gate;
          square[i] = load(b->kernel + kernel_row * l->hidden + k, count);
        }
        transpose(square);
        for (long i = 0; i < count; i += 2)
          store_pair(weight_panel_at(l, weight_panel) + row, l->units, gate_start(l, gate) + k + i,
                     square[i], square[i + 1], min(l->units - row, LANES));
      }
}

INLINE void copy_last_gradient(Cell cell, const Backward *b, long weight_panel, Position p) {
  const Layer *l = &b->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  for (long unit = units.first; unit < units.end; unit++) {
    store_carry(cell, l, unit, p, load_rows(cell, l, b->d_last, unit, p));
    if (CELLS[cell].reset_after)
      store(b->d_bias + lane_index(l, unit, p), broadcast(0.0f), LANES);
  }
}

/* One unit's state before step p: the initial carry; later h is an output, and c a residual. */
INLINE State load_before(Cell cell, const Backward *b, long unit, Position p) {
  const Layer *l = &b->layer;
  if (p.t == 0) return load_rows(cell, l, b->initial, unit, p);
  const Position previous = shifted(p, -1);
  State before = {.h = load(b->outputs + sequence_index(l, unit, previous), p.count)};
  if (CELLS[cell].states > 1)
    before.c = load(b->extra + residual_index(l, 1, 0, unit, previous), p.count);
  return before;
}

/* One unit's residuals of step p. */
INLINE Residuals load_residuals(Cell cell, const Backward *b, long unit, Position p) {
  const Layer *l = &b->layer;
  const int gates = CELLS[cell].gates;
  Residuals residuals;
  for (int gate = 0; gate < gates; gate++)
    residuals.gates[gate] = load(b->gates + residual_index(l, gates, gate, unit, p), LANES);
  if (CELLS[cell].extra) residuals.extra = load(b->extra + residual_index(l, 1, 0, unit, p), LANES);
  return residuals;
}

/* Stores one unit's gradients of step p. The carry becomes the gradient of that before the step,
 * except what flows through the hidden gates: the matmul of the next step adds that. */
INLINE void store_grads(Cell cell, const Backward *b, long unit, Position p, const CellGrads *d) {
  const Layer *l = &b->layer;
  const int gates = CELLS[cell].gates;
  float *d_hgates = state_panel_at(l, p.t, p.panel);
  store_carry(cell, l, unit, p, reset(l, p, d->before));
  for (int gate = 0; gate < gates; gate++) {
    const bool is_candidate = CELLS[cell].reset_after && gate == gates - 1;
    store_row(d_hgates, gate_start(l, gate) + unit, d->hgates[gate]);
    if (b->d_igates != NULL)
      store_rounded(b->d_igates + sequence_index(l, gate * l->hidden + unit, p),
                    is_candidate ? d->candidate : d->hgates[gate], p.count);
  }
  if (CELLS[cell].reset_after) {
    float *d_bias = b->d_bias + lane_index(l, unit, p);
    store(d_bias, load(d_bias, LANES) + d->hgates[gates - 1], LANES);
    if (b->d_igates == NULL)
      store_row(tile_at(&b->d_candidate, p.t, p.panel), unit, d->candidate);
  }
}

/* Pads the gates' gradients of `units` units at step p. */
INLINE void pad_grads(Cell cell, const Backward *b, long units, Position p) {
  const Layer *l = &b->layer;
  for (int gate = 0; gate < CELLS[cell].gates; gate++)
    pad_rows(state_panel_at(l, p.t, p.panel), gate_start(l, gate) + units);
  if (CELLS[cell].reset_after && b->d_igates == NULL)
    pad_rows(tile_at(&b->d_candidate, p.t, p.panel), units);
}

/* Step 0 computes the gates' gradients of the last character. A later step multiplies those of one
 * character by the kernel, then computes those of the character before, at p; before the first
 * (p.t < 0) only the gradient of the initial carry is left. */
INLINE void backward_step(Cell cell, const Backward *b, long weight_panel, long step, Position p) {
  const Layer *l = &b->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  Vector tile[SMALL_ROWS];
  if (step > 0)
    micro_kernel(SMALL_ROWS, l->iterations, weight_panel_at(l, weight_panel),
                 state_panel_at(l, p.t + 1, p.panel), tile);
  for (long unit = units.first; unit < units.end; unit++) {
    State d_after = load_carry(cell, l, unit, p);
    if (step > 0) d_after.h += reset(l, shifted(p, 1), (State){.h = tile[unit - units.first]}).h;
    if (p.t < 0) {
      store_rows(cell, l, b->d_carry, unit, p, d_after);
      continue;
    }
    d_after.h += load(b->d_outputs + sequence_index(l, unit, p), p.count);
    const Residuals residuals = load_residuals(cell, b, unit, p);
    const State before = reset(l, p, load_before(cell, b, unit, p));
    const CellGrads d = cell_backward(cell, &residuals, before, d_after);
    store_grads(cell, b, unit, p, &d);
  }
  if (p.t >= 0) pad_grads(cell, b, units.end, p);
}

/* Step 0 packs weights and copies the last carry's gradient. */
INLINE void backward(Cell cell, const Backward *b, long phase, long index) {
  const Layer *l = &b->layer;
  const Item item = item_at(l, phase, index);
  const Range w = item.weight_panels, s = item.state_panels;
  for (long step = item.steps.first; step < item.steps.end; step++)
    for (long weight_panel = w.first; weight_panel < w.end; weight_panel++) {
      if (step == 0) pack_transposed(cell, b, weight_panel);
      for (long panel = s.first; panel < s.end; panel++) {
        const Position p = position(l, l->time - step, panel);
        if (step == 0) copy_last_gradient(cell, b, weight_panel, p);
        else backward_step(cell, b, weight_panel, step - 1, p);
      }
    }
}

VARIANTS(backward)

INLINE Layer backward_layer(Cell cell, const int64_t sizes[3]) {
  return new_layer(sizes, SMALL_ROWS, SMALL_ROWS, CELLS[cell].gates * even(sizes[0]));
}

/* Length of the scratch below. */
long TARGET(backward_length)(const char *cell_name, long hidden, long batch) {
  const Layer l = backward_layer(cell_named(cell_name, strlen(cell_name)),
                                 (int64_t[]){hidden, 0, batch});
  return scratch_length(&l, 0);
}

/* Attribute: cell.
 * Arguments: outputs [hidden, time, batch]; the residuals of forward; kernel [hidden, gates]; the
 *   initial carry, [hidden, batch] each; d_outputs, as outputs; the gradient of the last carry; keep
 *   [time, batch] or none.
 * Results: d_hgates, a Sequence of gates, the features of each padded; without a table d_igates
 *   [gates, time, batch], in the compute dtype; of a cell with reset_after d_candidate, a Sequence of
 *   hidden, with a table, and d_bias [hidden, state_panels * LANES]; the gradient of the initial
 *   carry; scratch, in the compute dtype. In float32 d_hgates may have the memory of the gates, and
 *   d_candidate that of the extra residuals: a unit's are read before its gradients are written. */
XLA_FFI_Error *TARGET(backward)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const Cell cell = cell_attribute(&call);
  const CellInfo info = CELLS[cell];
  const int64_t *sizes = sizes_of(&call, "outputs", next_buffer(&call.arguments), 3);
  Backward b = {.layer = backward_layer(cell, sizes)};
  const long hidden = b.layer.hidden, time = b.layer.time, batch = b.layer.batch;
  const long rows = info.gates * hidden, panels = b.layer.state_panels;
  b.outputs = ARGUMENT(&call, "outputs", F32, hidden, time, batch);
  b.gates = ARGUMENT(&call, "gates", F32, time, panels, info.gates * even(hidden), LANES);
  if (info.extra) b.extra = ARGUMENT(&call, "extra", F32, time, panels, even(hidden), LANES);
  b.kernel = ARGUMENT(&call, "kernel", F32, hidden, rows);
  for (int i = 0; i < info.states; i++)
    b.initial[i] = ARGUMENT(&call, "initial carry", F32, hidden, batch);
  b.d_outputs = ARGUMENT(&call, "d_outputs", F32, hidden, time, batch);
  for (int i = 0; i < info.states; i++)
    b.d_last[i] = ARGUMENT(&call, "gradient of the last carry", F32, hidden, batch);
  b.layer.states = take_sequence(&call, &call.results, "d_hgates", info.gates * even(hidden), time,
                                 panels);
  const Buffer *next = next_buffer(&call.results);
  const bool has_rows = next != NULL && next->rank == 3;
  if (has_rows) b.d_igates = RESULT(&call, "d_igates", DTYPE, rows, time, batch);
  if (info.reset_after && !has_rows)
    b.d_candidate = take_sequence(&call, &call.results, "d_candidate", even(hidden), time, panels);
  if (info.reset_after) b.d_bias = RESULT(&call, "d_bias", F32, hidden, panels * LANES);
  for (int i = 0; i < info.states; i++)
    b.d_carry[i] = RESULT(&call, "gradient of the initial carry", F32, hidden, batch);
  take_keep_and_scratch(&call, &b.layer, 0);
  plan_steps(&b.layer, 2 + time, num_workers(frame));
  /* Of rows [time, batch], two items would write halves of cache lines. */
  if (NUMBERS_PER_WORD > 1 && has_rows && b.layer.panels_per_item % 2 == 1 && panels > 1)
    b.layer.panels_per_item = 0;
  return run_steps(&call, &b.layer, backward_variants[cell], &b);
}
