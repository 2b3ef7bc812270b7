/* The forward pass of one layer: the micro-kernel with the cell fused behind it.
 *
 * A weight panel holds all gates of some units (MR / gates of them), gate by gate. So the register
 * tile that leaves the micro-kernel has all that those units' next state needs, and goes through the
 * cell before it is stored. Each time step is a phase; a barrier follows it. */

#include "layer.h"

typedef struct Forward {
  Layer layer;
  const float *kernel, *bias; /* [hidden, gates], [hidden] */
  const float *igates;        /* [gates, vocab], or [gates, time * batch] */
  const int32_t *tokens;      /* [time, batch]: columns of igates; or NULL */
  long columns;               /* of igates */
  const float *initial[2];    /* the carry before the first step */
  float *carry[2];            /* after the step just done, reset where the next one resets */
  float *outputs;             /* [hidden, time, batch], as is: */
  void *previous;             /* h before each step, in the compute dtype; NULL without gradient */
  float *residuals;           /* NULL without gradient */
  Scratch scratch;
} Forward;

/* Units of a weight panel: `count`, of which the layer has those from `first` to before `end`. */
typedef struct Units {
  long count, first, end;
} Units;

INLINE Units units_of(Cell cell, const Layer *l, long weight_panel) {
  const long count = MR / CELLS[cell].gates, first = weight_panel * count;
  return (Units){count, first, first + count < l->hidden ? first + count : l->hidden};
}

INLINE void pack_weight_panel(Cell cell, bool bf16, const Forward *f, long panel) {
  const Layer *l = &f->layer;
  const Units units = units_of(cell, l, panel);
  const long rows = CELLS[cell].gates * l->hidden;
  const bool full = units.end - units.first == units.count;
  char *to = weight_panel_at(bf16, l, &f->scratch, panel);
  float weights[2][MR] = {0};
  for (long k = 0; k < l->k; k++) {
    for (long gate = 0; gate < CELLS[cell].gates; gate++) {
      const float *from = f->kernel + k * rows + gate * l->hidden + units.first;
      float *row = weights[k % 2] + gate * units.count;
      if (k == l->hidden) memset(row, 0, units.count * sizeof *row); /* padding */
      else if (full) memcpy(row, from, units.count * sizeof *row); /* a constant size: no call */
      else memcpy(row, from, (units.end - units.first) * sizeof *row);
    }
    if (k % 2 == 1) pack_weights(bf16, to, k - 1, weights);
  }
}

/* Zeros the carry before position p where it is reset: of `units`, whose h is in `states`. */
INLINE void reset_carry(Cell cell, bool bf16, const Forward *f, Units units, Position p,
                        Vector states[]) {
  const Layer *l = &f->layer;
  for (long unit = units.first; unit < units.end; unit++) {
    const Vector h = states[unit - units.first] = reset_lanes(l, p, states[unit - units.first]);
    float *carry = f->carry[0] + carry_index(l, unit, p);
    store(carry, h, p.count);
    if (f->previous != NULL)
      store_rounded(bf16, f->previous, sequence_index(l, unit, p), h, p.count);
    if (CELLS[cell].states == 1) continue;
    carry = f->carry[1] + carry_index(l, unit, p);
    store(carry, reset_lanes(l, p, load(carry, p.count)), p.count);
  }
}

INLINE void copy_initial_carry(Cell cell, bool bf16, const Forward *f, long weight_panel,
                               Position p) {
  const Layer *l = &f->layer;
  const Units units = units_of(cell, l, weight_panel);
  Vector states[MR];
  for (long unit = units.first; unit < units.end; unit++) {
    const long at = carry_index(l, unit, p);
    const Vector h = load(f->initial[0] + at, p.count);
    states[unit - units.first] = h;
    store(f->carry[0] + at, h, p.count);
    if (CELLS[cell].states > 1)
      store(f->carry[1] + at, load(f->initial[1] + at, p.count), p.count);
    if (f->previous != NULL)
      store_rounded(bf16, f->previous, sequence_index(l, unit, p), h, p.count);
  }
  if (may_reset(l, p)) reset_carry(cell, bf16, f, units, p, states);
  pack_states(bf16, state_panel_at(bf16, l, &f->scratch, 0, p.panel), units.first, states,
              units.end - units.first);
}

INLINE Vector load_igate(const Forward *f, long row, IntVector tokens, Position p) {
  const float *igates = f->igates + row * f->columns;
  if (f->tokens != NULL) return gather(igates, tokens);
  return load(igates + p.t * f->layer.batch + p.sequence, p.count);
}

/* One unit's next h, from the hidden gates that the micro-kernel computed. */
INLINE Vector next_state(Cell cell, const Forward *f, long unit, Position p, IntVector tokens,
                         const Vector hgates[]) {
  const Layer *l = &f->layer;
  const long at = carry_index(l, unit, p);
  Vector igates[MAX_GATES];
  for (int gate = 0; gate < CELLS[cell].gates; gate++)
    igates[gate] = load_igate(f, gate * l->hidden + unit, tokens, p);
  float *c = CELLS[cell].states > 1 ? f->carry[1] + at : NULL;
  const float *bias = CELLS[cell].reset_after ? f->bias + unit : NULL;
  float *residuals =
      f->residuals == NULL ? NULL : f->residuals + residual_index(cell, l, unit, p);
  const State before = {f->carry[0] + at, c, p.count};
  const Vector h = cell_forward(cell, igates, hgates, bias, before, c, residuals);
  store(f->carry[0] + at, h, p.count);
  return h;
}

INLINE void forward_step(Cell cell, bool bf16, const Forward *f, long weight_panel, Position p) {
  const Layer *l = &f->layer;
  const Units units = units_of(cell, l, weight_panel);
  const Position next = shifted(p, 1);
  const bool save_next = f->previous != NULL && next.t < l->time;
  for (long unit = units.first; unit < units.end; unit++) {
    prefetch_write(f->outputs + sequence_index(l, unit, p));
    if (save_next) prefetch_write(rounded_at(bf16, f->previous, sequence_index(l, unit, next)));
  }
  Vector tile[MR], states[MR];
  micro_kernel(bf16, l->k, weight_panel_at(bf16, l, &f->scratch, weight_panel),
               state_panel_at(bf16, l, &f->scratch, p.t, p.panel), tile);

  IntVector tokens = {0};
  if (f->tokens != NULL)
    memcpy(&tokens, f->tokens + p.t * l->batch + p.sequence, p.count * sizeof(int32_t));
  for (long unit = units.first; unit < units.end; unit++) {
    const long i = unit - units.first;
    Vector hgates[MAX_GATES];
    for (int gate = 0; gate < CELLS[cell].gates; gate++)
      hgates[gate] = tile[gate * units.count + i];
    const Vector h = states[i] = next_state(cell, f, unit, p, tokens, hgates);
    store(f->outputs + sequence_index(l, unit, p), h, p.count);
    if (save_next)
      store_rounded(bf16, f->previous, sequence_index(l, unit, next), h, p.count);
  }
  if (may_reset(l, next)) reset_carry(cell, bf16, f, units, next, states);
  pack_states(bf16, state_panel_at(bf16, l, &f->scratch, next.t, p.panel), units.first, states,
              units.end - units.first);
}

/* Phase 0 packs weights and the initial state; phase t + 1 is time step t. */
INLINE void forward(Cell cell, bool bf16, const Forward *f, long phase, long index) {
  const Layer *l = &f->layer;
  const Item item = item_at(l, index);
  if (phase == 0 && item.first == 0) pack_weight_panel(cell, bf16, f, item.weight_panel);
  for (long panel = item.first; panel < item.end; panel++)
    if (phase == 0)
      copy_initial_carry(cell, bf16, f, item.weight_panel, position(l, 0, panel));
    else forward_step(cell, bf16, f, item.weight_panel, position(l, phase - 1, panel));
}

VARIANTS(forward)

/* Attributes: cell, save_residuals.
 * Arguments: kernel [hidden, gates]; bias [hidden] of a cell with reset_after; igates
 *   [gates, time, batch], or a table [gates, vocab] and tokens [time, batch]; the carry, [hidden,
 *   batch] each; keep [time, batch] or none. Tokens must be in range.
 * Results: outputs [hidden, time, batch]; the last carry; with save_residuals h before each step
 *   [hidden, time, batch] in the compute dtype and residuals [time, residuals * hidden,
 *   state_panels * LANES]; scratch, in the compute dtype. */
XLA_FFI_Error *charjax_forward(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = {.frame = frame};
  const Cell cell = cell_attribute(&call);
  const CellInfo info = CELLS[cell];
  const bool save = bool_attribute(&call, "save_residuals");
  const Layer l = new_layer(peek(&call, "outputs", next_result(&call), 3)->dims,
                            MR / info.gates,
                            even(peek(&call, "kernel", next_argument(&call), 2)->dims[0]));
  const long rows = info.gates * l.hidden, lanes = l.state_panels * LANES;

  Forward f = {.layer = l};
  f.kernel = ARGUMENT(&call, "kernel", F32, l.hidden, rows);
  if (info.reset_after) f.bias = ARGUMENT(&call, "bias", F32, l.hidden);
  const Buffer *igates = next_argument(&call);
  if (igates != NULL && igates->rank == 2) {
    f.columns = igates->dims[1];
    f.igates = ARGUMENT(&call, "igates", F32, rows, f.columns);
    f.tokens = ARGUMENT(&call, "tokens", S32, l.time, l.batch);
  } else {
    f.columns = l.time * l.batch;
    f.igates = ARGUMENT(&call, "igates", F32, rows, l.time, l.batch);
  }
  for (int i = 0; i < info.states; i++)
    f.initial[i] = ARGUMENT(&call, "initial carry", F32, l.hidden, l.batch);
  if (next_argument(&call) != NULL) f.layer.keep = ARGUMENT(&call, "keep", S32, l.time, l.batch);

  f.outputs = RESULT(&call, "outputs", F32, l.hidden, l.time, l.batch);
  for (int i = 0; i < info.states; i++)
    f.carry[i] = RESULT(&call, "last carry", F32, l.hidden, l.batch);
  const Buffer *last = frame->rets.size ? frame->rets.rets[frame->rets.size - 1] : NULL;
  const bool bf16 = is_bf16(&call, peek(&call, "scratch", last, 1));
  if (save) {
    f.previous = RESULT(&call, "previous", bf16 ? BF16 : F32, l.hidden, l.time, l.batch);
    f.residuals = RESULT(&call, "residuals", F32, l.time, info.residuals * l.hidden, lanes);
  }
  char *scratch = RESULT(&call, "scratch", bf16 ? BF16 : F32, scratch_size(&l));
  if (call.problem[0]) return call_error(&call);
  f.scratch = divide_scratch(bf16, &l, scratch);
  return run_phases(frame, &l, forward_variants[cell][bf16], &f, 1 + l.time);
}

/* For Python: see charjax/model/recurrence/c/build.py. */
const CellInfo *const charjax_cells = CELLS;
const int charjax_num_cells = NUM_CELLS;
const int charjax_lanes = LANES, charjax_panel_rows = MR, charjax_has_bf16 = HAS_BF16;
