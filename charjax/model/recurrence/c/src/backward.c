/* The backward pass of one layer, from the last time step to the first: gradients of the gates at
 * every step, and of the initial carry.
 *
 * The matmul is d_hgates times the kernel's transpose. A weight panel holds MR units; K runs over
 * all gates of all units. So the micro-kernel gives the gradient of a unit's state, from which the
 * cell computes those of its gates one step earlier, in the same register tile. Each time step is a
 * phase; a barrier follows it. */

#include "layer.h"

typedef struct Backward {
  Layer layer;
  const float *kernel;              /* [hidden, gates] */
  const float *initial[2];          /* the carry before the first step */
  const float *outputs, *residuals; /* of the forward pass */
  const float *d_outputs;           /* [hidden, time, batch] */
  const float *d_last[2];           /* of the last carry */
  void *d_hgates, *d_candidate;     /* sequences, in the compute dtype */
  float *d_bias;                    /* [hidden, state_panels * LANES]: still to be summed over lanes */
  float *d_carry[2];                /* of the carry before the step just done */
  Scratch scratch;
} Backward;

/* The units of a weight panel are those from panel * MR to before this one. */
INLINE long end_of(const Layer *l, long weight_panel) {
  return (weight_panel + 1) * MR < l->hidden ? (weight_panel + 1) * MR : l->hidden;
}

/* The first k of a gate: each is padded to an even number of units. */
INLINE long gate_start(const Layer *l, long gate) { return gate * even(l->hidden); }

INLINE void pack_weight_panel(Cell cell, bool bf16, const Backward *b, long panel) {
  const Layer *l = &b->layer;
  const long first = panel * MR, count = end_of(l, panel) - first;
  const long gates = CELLS[cell].gates, columns = gates * l->hidden;
  char *to = weight_panel_at(bf16, l, &b->scratch, panel);
  float weights[2][MR] = {0};
  for (long gate = 0; gate < gates; gate++)
    for (long k = 0; k < even(l->hidden); k += 2) {
      const float *from = b->kernel + first * columns + gate * l->hidden + k;
      for (long row = 0; row < count; row++, from += columns) {
        weights[0][row] = from[0];
        weights[1][row] = k + 1 < l->hidden ? from[1] : 0.0f;
      }
      pack_weights(bf16, to, gate_start(l, gate) + k, weights);
    }
}

INLINE void copy_last_gradient(Cell cell, const Backward *b, long weight_panel, Position p) {
  const Layer *l = &b->layer;
  for (long unit = weight_panel * MR; unit < end_of(l, weight_panel); unit++) {
    const long at = carry_index(l, unit, p);
    for (int i = 0; i < CELLS[cell].states; i++)
      store(b->d_carry[i] + at, load(b->d_last[i] + at, p.count), p.count);
    if (CELLS[cell].reset_after)
      store(b->d_bias + lane_index(l, unit, p), broadcast(0.0f), LANES);
  }
}

/* One unit's gradients of step p from `dh`, that of its h after the step. d_carry becomes the
 * gradient of the carry before the step, except what flows through the hidden gates: the matmul of
 * the next phase adds that. */
INLINE CellGrads unit_backward(Cell cell, const Backward *b, long unit, Position p, Vector dh) {
  const Layer *l = &b->layer;
  const long at = carry_index(l, unit, p);
  const Position previous = shifted(p, -1);
  const bool first = p.t == 0;
  const float *residuals = b->residuals + residual_index(cell, l, unit, p);
  const float *h_after = b->outputs + sequence_index(l, unit, p);
  float *dc = NULL;
  /* The state before the first step is the initial carry; later h is an output, and c a residual. */
  State before = {.count = p.count};
  before.h = first ? b->initial[0] + at : b->outputs + sequence_index(l, unit, previous);
  if (CELLS[cell].states > 1) {
    before.c = first ? b->initial[1] + at
                     : b->residuals + residual_index(cell, l, unit, previous) + LSTM_C * LANES;
    dc = b->d_carry[1] + at;
  }
  Vector h, c;
  if (may_reset(l, p)) {
    h = reset_lanes(l, p, load(before.h, p.count));
    before.h = (const float *)&h;
    if (CELLS[cell].states > 1) c = reset_lanes(l, p, load(before.c, p.count));
    before.c = (const float *)&c;
  }
  const CellGrads d = cell_backward(cell, residuals, before, h_after, dh, dc);
  store(b->d_carry[0] + at, d.h, p.count);
  return d;
}

/* Zeros the gradients of the carry before position p, which a step has just computed, where that
 * carry is reset. */
INLINE void reset_gradient(Cell cell, const Backward *b, long weight_panel, Position p) {
  const Layer *l = &b->layer;
  for (long unit = weight_panel * MR; unit < end_of(l, weight_panel); unit++)
    for (int i = 0; i < CELLS[cell].states; i++) {
      float *d_carry = b->d_carry[i] + carry_index(l, unit, p);
      store(d_carry, reset_lanes(l, p, load(d_carry, p.count)), p.count);
    }
}

INLINE void prefetch_step(Cell cell, bool bf16, const Backward *b, long weight_panel, Position p) {
  const Layer *l = &b->layer;
  for (long unit = weight_panel * MR; unit < end_of(l, weight_panel); unit++) {
    prefetch_read(b->d_outputs + sequence_index(l, unit, p));
    if (CELLS[cell].states == 1 && p.t > 0) /* h is read, and no c */
      prefetch_read(b->outputs + sequence_index(l, unit, shifted(p, -1)));
    for (long gate = 0; gate < CELLS[cell].gates; gate++)
      prefetch_write(
          rounded_at(bf16, b->d_hgates, sequence_index(l, gate * l->hidden + unit, p)));
    if (CELLS[cell].reset_after)
      prefetch_write(rounded_at(bf16, b->d_candidate, sequence_index(l, unit, p)));
  }
}

INLINE void store_grads(Cell cell, bool bf16, const Backward *b, long unit, Position p,
                        const CellGrads *d) {
  const Layer *l = &b->layer;
  const int gates = CELLS[cell].gates;
  for (int gate = 0; gate < gates; gate++)
    store_rounded(bf16, b->d_hgates, sequence_index(l, gate * l->hidden + unit, p),
                  d->hgates[gate], p.count);
  if (CELLS[cell].reset_after) {
    store_rounded(bf16, b->d_candidate, sequence_index(l, unit, p), d->candidate, p.count);
    float *d_bias = b->d_bias + lane_index(l, unit, p);
    store(d_bias, load(d_bias, LANES) + d->hgates[gates - 1], LANES);
  }
}

/* Step 0 computes the gates' gradients of the last character. A later step multiplies those of one
 * character by the kernel, then computes those of the character before, at p; before the first
 * (p.t < 0) only the gradient of the initial carry is left. */
INLINE void backward_step(Cell cell, bool bf16, const Backward *b, long weight_panel, long step,
                          Position p) {
  const Layer *l = &b->layer;
  const long first = weight_panel * MR, end = end_of(l, weight_panel);
  const Position next = shifted(p, 1);
  Vector tile[MR], d_hgates[MAX_GATES][MR];
  if (p.t >= 0) prefetch_step(cell, bf16, b, weight_panel, p);
  if (step > 0)
    micro_kernel(bf16, l->k, weight_panel_at(bf16, l, &b->scratch, weight_panel),
                 state_panel_at(bf16, l, &b->scratch, step, p.panel), tile);
  if (step > 0 && may_reset(l, next))
    for (int i = 0; i < MR; i++) tile[i] = reset_lanes(l, next, tile[i]);
  for (long unit = first; unit < end; unit++) {
    float *d_carry = b->d_carry[0] + carry_index(l, unit, p);
    Vector dh = load(d_carry, p.count);
    if (step > 0) dh += tile[unit - first];
    if (p.t < 0) {
      store(d_carry, dh, p.count);
      continue;
    }
    dh += load(b->d_outputs + sequence_index(l, unit, p), p.count);
    const CellGrads d = unit_backward(cell, b, unit, p, dh);
    store_grads(cell, bf16, b, unit, p, &d);
    for (int gate = 0; gate < CELLS[cell].gates; gate++)
      d_hgates[gate][unit - first] = d.hgates[gate];
  }
  if (p.t < 0) return;
  if (may_reset(l, p)) reset_gradient(cell, b, weight_panel, p);
  char *panel = state_panel_at(bf16, l, &b->scratch, step + 1, p.panel);
  for (int gate = 0; gate < CELLS[cell].gates; gate++)
    pack_states(bf16, panel, gate_start(l, gate) + first, d_hgates[gate], end - first);
}

/* Phase 0 packs weights and copies the last carry's gradient; each later phase is a step. */
INLINE void backward(Cell cell, bool bf16, const Backward *b, long phase, long index) {
  const Layer *l = &b->layer;
  const Item item = item_at(l, index);
  if (phase == 0 && item.first == 0) pack_weight_panel(cell, bf16, b, item.weight_panel);
  for (long panel = item.first; panel < item.end; panel++) {
    const Position p = position(l, l->time - phase, panel);
    if (phase == 0) copy_last_gradient(cell, b, item.weight_panel, p);
    else backward_step(cell, bf16, b, item.weight_panel, phase - 1, p);
  }
}

VARIANTS(backward)

/* Attribute: cell.
 * Arguments: kernel [hidden, gates]; the initial carry, [hidden, batch] each; outputs [hidden, time,
 *   batch]; residuals; d_outputs, as outputs; the gradient of the last carry; keep [time, batch] or
 *   none.
 * Results: d_hgates [gates, time, batch] in the compute dtype; of a cell with reset_after
 *   d_candidate [hidden, time, batch] likewise and d_bias [hidden, state_panels * LANES]; the
 *   gradient of the initial carry; scratch, in the compute dtype. */
XLA_FFI_Error *charjax_backward(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = {.frame = frame};
  const Cell cell = cell_attribute(&call);
  const CellInfo info = CELLS[cell];
  const Buffer *d_hgates = peek(&call, "d_hgates", next_result(&call), 3);
  const long hidden = peek(&call, "kernel", next_argument(&call), 2)->dims[0];
  const long rows = info.gates * hidden;
  const int64_t sizes[3] = {hidden, d_hgates->dims[1], d_hgates->dims[2]};
  const Layer l = new_layer(sizes, MR, info.gates * even(hidden));
  const long lanes = l.state_panels * LANES;
  const bool bf16 = is_bf16(&call, d_hgates);
  const int dtype = bf16 ? BF16 : F32;

  Backward b = {.layer = l};
  b.kernel = ARGUMENT(&call, "kernel", F32, hidden, rows);
  for (int i = 0; i < info.states; i++)
    b.initial[i] = ARGUMENT(&call, "initial carry", F32, hidden, l.batch);
  b.outputs = ARGUMENT(&call, "outputs", F32, hidden, l.time, l.batch);
  b.residuals = ARGUMENT(&call, "residuals", F32, l.time, info.residuals * hidden, lanes);
  b.d_outputs = ARGUMENT(&call, "d_outputs", F32, hidden, l.time, l.batch);
  for (int i = 0; i < info.states; i++)
    b.d_last[i] = ARGUMENT(&call, "gradient of the last carry", F32, hidden, l.batch);
  if (next_argument(&call) != NULL) b.layer.keep = ARGUMENT(&call, "keep", S32, l.time, l.batch);

  b.d_hgates = RESULT(&call, "d_hgates", dtype, rows, l.time, l.batch);
  if (info.reset_after) {
    b.d_candidate = RESULT(&call, "d_candidate", dtype, hidden, l.time, l.batch);
    b.d_bias = RESULT(&call, "d_bias", F32, hidden, lanes);
  }
  for (int i = 0; i < info.states; i++)
    b.d_carry[i] = RESULT(&call, "gradient of the initial carry", F32, hidden, l.batch);
  char *scratch = RESULT(&call, "scratch", dtype, scratch_size(&l));
  if (call.problem[0]) return call_error(&call);
  b.scratch = divide_scratch(bf16, &l, scratch);
  return run_phases(frame, &l, backward_variants[cell][bf16], &b, 2 + l.time);
}
