/* The forward pass of one layer: the micro-kernel with the cell fused behind it.
 *
 * A weight panel holds all gates of some units, gate by gate. So the register tile that leaves the
 * micro-kernel has all that those units' next state needs, and goes through the cell before it is
 * stored. layer.h divides the work.
 *
 * A table of input gates is packed likewise: for each weight panel a row a token. A step loads the rows
 * of its tokens and transposes them in registers, which is faster than to gather each gate. */

#pragma once

#include "layer.h"

typedef struct Forward {
  Layer layer;
  const float *kernel, *bias; /* [hidden, gates], [hidden] */
  const float *igates;        /* [gates, vocab], or [gates, time * batch] */
  const int32_t *tokens;      /* [time, batch]: columns of igates; or NULL */
  long columns;               /* of igates */
  float *table;               /* packed igates [weight_panels, vocab, table_rows]; or NULL */
  float *initial[2], *last[2]; /* the carry before the first step, and after the last */
  float *outputs;             /* [hidden, time, batch] */
  float *gates, *extra;       /* residuals; NULL without gradient */
} Forward;

/* Rows of a weight panel: a multiple of the gates. */
INLINE int forward_rows(Cell cell) { return SMALL_ROWS % CELLS[cell].gates == 0 ? SMALL_ROWS : MR; }

/* Numbers of a packed table's row: those of a weight panel, padded to vectors. */
INLINE int table_rows(Cell cell) { return num_blocks(forward_rows(cell), LANES) * LANES; }

INLINE float *table_row(Cell cell, const Forward *f, long weight_panel, long token) {
  return f->table + (weight_panel * f->columns + token) * table_rows(cell);
}

INLINE void pack_table(Cell cell, const Forward *f, long weight_panel) {
  const Layer *l = &f->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  for (long token = 0; token < f->columns; token += LANES)
    for (long first = 0; first < table_rows(cell); first += LANES) {
      Vector square[LANES] = {0};
      for (long i = 0; i < LANES; i++) {
        const long gate = (first + i) / l->units, unit = units.first + (first + i) % l->units;
        if (gate < CELLS[cell].gates && unit < units.end)
          square[i] = load(f->igates + (gate * l->hidden + unit) * f->columns + token,
                           min(f->columns - token, LANES));
      }
      transpose(square);
      for (long i = 0; i < min(f->columns - token, LANES); i++)
        store(table_row(cell, f, weight_panel, token + i) + first, square[i], LANES);
    }
}

/* The input gates of a weight panel at the tokens of p, row by row as its register tile. */
INLINE void look_up(Cell cell, const Forward *f, long weight_panel, Position p, Vector igates[]) {
  const int32_t *tokens = f->tokens + p.t * f->layer.batch + p.sequence;
  for (long first = 0; first < table_rows(cell); first += LANES) {
    Vector *square = igates + first;
#pragma GCC unroll 16
    for (long lane = 0; lane < LANES; lane++)
      square[lane] = load(
          table_row(cell, f, weight_panel, lane < p.count ? tokens[lane] : 0) + first, LANES);
    transpose(square);
  }
}

INLINE void pack_gates(Cell cell, const Forward *f, long weight_panel) {
  const Layer *l = &f->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  const long gates = CELLS[cell].gates, most = forward_rows(cell) / gates;
  const long count = units.end - units.first;
  for (long k = 0; k < l->hidden; k += 2) {
    float rows[2][MR] = {0};
    for (long i = 0; i < min(2, l->hidden - k); i++)
      for (long gate = 0; gate < gates; gate++) {
        const float *from = f->kernel + ((k + i) * gates + gate) * l->hidden + units.first;
        float *to = rows[i] + gate * most;
        if (count == most) memcpy(to, from, most * sizeof *to); /* a constant size: no call */
        else memcpy(to, from, count * sizeof *to);
      }
    pack_rows(weight_panel_at(l, weight_panel), l->rows, k, rows[0], rows[1], l->rows);
  }
}

/* Stores one unit's state before position p, zeroed where it is reset there. */
INLINE void store_state(Cell cell, const Forward *f, long unit, Position p, State state) {
  const Layer *l = &f->layer;
  state = reset(l, p, state);
  if (p.t == l->time) return store_rows(cell, l, f->last, unit, p, state);
  store_carry(cell, l, unit, p, state);
  store_row(state_panel_at(l, p.t, p.panel), unit, state.h);
}

/* Pads the states of `units` units before position p. */
INLINE void pad_states(const Forward *f, long units, Position p) {
  if (p.t < f->layer.time) pad_rows(state_panel_at(&f->layer, p.t, p.panel), units);
}

INLINE void copy_initial_carry(Cell cell, const Forward *f, long weight_panel, Position p) {
  const Layer *l = &f->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  for (long unit = units.first; unit < units.end; unit++)
    store_state(cell, f, unit, p, load_rows(cell, l, f->initial, unit, p));
  pad_states(f, units.end, p);
}

/* Stores one unit's residuals of step p, if there is a gradient. */
INLINE void store_residuals(Cell cell, const Forward *f, long unit, Position p,
                            const Residuals *residuals) {
  const Layer *l = &f->layer;
  const int gates = CELLS[cell].gates;
  if (f->gates == NULL) return;
  for (int gate = 0; gate < gates; gate++)
    store(f->gates + residual_index(l, gates, gate, unit, p), residuals->gates[gate], LANES);
  if (CELLS[cell].extra) store(f->extra + residual_index(l, 1, 0, unit, p), residuals->extra, LANES);
}

/* One unit's state after step p, from its gates. */
INLINE State next_state(Cell cell, const Forward *f, long unit, Position p, const Vector igates[],
                        const Vector hgates[]) {
  const Layer *l = &f->layer;
  const float *bias = CELLS[cell].reset_after ? f->bias + unit : NULL;
  const State before = load_carry(cell, l, unit, p);
  Residuals residuals;
  const State after = cell_forward(cell, igates, hgates, bias, before, &residuals);
  store_residuals(cell, f, unit, p, &residuals);
  return after;
}

INLINE void forward_step(Cell cell, const Forward *f, long weight_panel, Position p) {
  const Layer *l = &f->layer;
  const Range units = block_range(weight_panel, l->units, l->hidden);
  const Position next = shifted(p, 1);
  /* Rows of a sequence are a page or more apart, where the hardware prefetcher does not help: what
   * the step is about to write is prefetched while its matmul runs. */
  for (long unit = units.first; unit < units.end; unit++)
    __builtin_prefetch(f->outputs + sequence_index(l, unit, p), 1);
  Vector tile[MR], looked_up[MR + LANES];
  micro_kernel(forward_rows(cell), l->iterations, weight_panel_at(l, weight_panel),
               state_panel_at(l, p.t, p.panel), tile);
  if (f->table != NULL) look_up(cell, f, weight_panel, p, looked_up);
  for (long unit = units.first; unit < units.end; unit++) {
    const long i = unit - units.first;
    Vector igates[MAX_GATES], hgates[MAX_GATES];
    for (int gate = 0; gate < CELLS[cell].gates; gate++) {
      hgates[gate] = tile[gate * l->units + i];
      const float *row = f->igates + (gate * l->hidden + unit) * f->columns;
      igates[gate] = f->table != NULL ? looked_up[gate * l->units + i]
                                      : load(row + p.t * l->batch + p.sequence, p.count);
    }
    const State state = next_state(cell, f, unit, p, igates, hgates);
    store(f->outputs + sequence_index(l, unit, p), state.h, p.count);
    store_state(cell, f, unit, next, state);
  }
  pad_states(f, units.end, next);
}

/* Step 0 packs weights and the initial state; step t + 1 is time step t. */
INLINE void forward(Cell cell, const Forward *f, long phase, long index) {
  const Layer *l = &f->layer;
  const Item item = item_at(l, phase, index);
  const Range w = item.weight_panels, s = item.state_panels;
  for (long step = item.steps.first; step < item.steps.end; step++)
    for (long weight_panel = w.first; weight_panel < w.end; weight_panel++) {
      if (step == 0) pack_gates(cell, f, weight_panel);
      if (step == 0 && f->table != NULL) pack_table(cell, f, weight_panel);
      for (long panel = s.first; panel < s.end; panel++)
        if (step == 0) copy_initial_carry(cell, f, weight_panel, position(l, 0, panel));
        else forward_step(cell, f, weight_panel, position(l, step - 1, panel));
    }
}

VARIANTS(forward)

INLINE Layer forward_layer(Cell cell, const int64_t sizes[3]) {
  const long rows = forward_rows(cell);
  return new_layer(sizes, rows, rows / CELLS[cell].gates, even(sizes[0]));
}

/* Words of a packed table, and of the states of two time steps. */
INLINE long table_words(Cell cell, const Layer *l, long vocab) {
  return l->weight_panels * vocab * table_rows(cell);
}
INLINE long two_steps_words(const Layer *l) { return 2 * l->state_panels * l->iterations * LANES; }

/* Length of the scratch below; `vocab` is 0 without a table. */
long TARGET(forward_length)(const char *cell_name, long hidden, long batch, long vocab) {
  const Cell cell = cell_named(cell_name, strlen(cell_name));
  const Layer l = forward_layer(cell, (int64_t[]){hidden, 0, batch});
  return scratch_length(&l, table_words(cell, &l, vocab) + two_steps_words(&l));
}

/* Attribute: cell.
 * Arguments: kernel [hidden, gates]; bias [hidden] of a cell with reset_after; igates
 *   [gates, time, batch], or a table [gates, vocab] and tokens [time, batch]; the carry, [hidden,
 *   batch] each; keep [time, batch] or none. Tokens must be in range.
 * Results: outputs [hidden, time, batch]; the last carry; for a gradient h before each step, a
 *   Sequence of hidden, and residuals, tiles of float32: the gates, and the extra numbers of a cell
 *   that has them; scratch, in the compute dtype. */
XLA_FFI_Error *TARGET(forward)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  const Cell cell = cell_attribute(&call);
  const CellInfo info = CELLS[cell];
  const int64_t *sizes = sizes_of(&call, "outputs", next_buffer(&call.results), 3);
  Forward f = {.layer = forward_layer(cell, sizes)};
  const long hidden = f.layer.hidden, time = f.layer.time, batch = f.layer.batch;
  f.kernel = ARGUMENT(&call, "kernel", F32, hidden, info.gates * hidden);
  if (info.reset_after) f.bias = ARGUMENT(&call, "bias", F32, hidden);
  const Buffer *igates = next_buffer(&call.arguments);
  const bool is_table = igates != NULL && igates->rank == 2;
  f.columns = is_table ? igates->dims[1] : time * batch;
  f.igates = is_table ? ARGUMENT(&call, "igates", F32, info.gates * hidden, f.columns)
                      : ARGUMENT(&call, "igates", F32, info.gates * hidden, time, batch);
  if (is_table) f.tokens = ARGUMENT(&call, "tokens", S32, time, batch);
  for (int i = 0; i < info.states; i++)
    f.initial[i] = ARGUMENT(&call, "initial carry", F32, hidden, batch);
  f.outputs = RESULT(&call, "outputs", F32, hidden, time, batch);
  for (int i = 0; i < info.states; i++)
    f.last[i] = RESULT(&call, "last carry", F32, hidden, batch);
  const long panels = f.layer.state_panels;
  const bool has_gradient = num_left(&call.results) > 1;
  if (has_gradient) {
    f.layer.states = take_sequence(&call, &call.results, "previous", even(hidden), time, panels);
    f.gates = RESULT(&call, "gates", F32, time, panels, info.gates * even(hidden), LANES);
    if (info.extra) f.extra = RESULT(&call, "extra", F32, time, panels, even(hidden), LANES);
  }
  const long table = is_table ? table_words(cell, &f.layer, f.columns) : 0;
  float *rest = take_keep_and_scratch(&call, &f.layer, table + two_steps_words(&f.layer));
  f.table = is_table ? rest : NULL;
  if (!has_gradient && rest != NULL)
    f.layer.states = (Sequence){rest + table, 2, panels, even(hidden)};
  plan_steps(&f.layer, 1 + time, num_workers(frame));
  return run_steps(&call, &f.layer, forward_variants[cell], &f);
}
