/* One layer over a sequence: what charjax/model/recurrence/xla.py does in XLA, with the product
 * of a tile and the gates that follow from it in one piece.
 *
 * The rows of a tile are all gates of some units, so that gates follow from the sums where
 * they lie. */

#include "layer.h"

typedef struct Forward {
  Shape shape;
  const float *kernel, *bias, *columns; /* [hidden, gates], [hidden], [gates, symbols] */
  const int32_t *tokens;                /* [time, batch], or NULL: columns are positions */
  long symbols;                         /* of the vocabulary, or time * batch */
  const float *begun[2];                /* the carry before the first step */
  float *carry[2];                      /* after the step just done */
  float *outputs;                       /* a stack */
  void *before;                         /* a stack of the states before each step, or NULL */
  float *saved;                         /* what is kept, or NULL */
  Scratch scratch;
} Forward;

/* The units of a tile: so many from `first` to `end`. */
typedef struct Units {
  long count, first, end;
} Units;

INLINE Units units_of(int cell, const Shape *s, long tile) {
  const long count = ROWS / cell, first = tile * count;
  return (Units){count, first, first + count < s->hidden ? first + count : s->hidden};
}

/* Rows of a tile: gate by gate. Terms: states. */
INLINE void pack(int cell, bool narrow, const Forward *f, long tile) {
  const Shape *s = &f->shape;
  const Units units = units_of(cell, s, tile);
  const long gates = cell * s->hidden, whole = units.end - units.first == units.count;
  char *to = tile_at(narrow, s, &f->scratch, tile);
  float weights[2][ROWS] = {0};
  for (long k = 0; k < s->terms; k++) {
    for (long gate = 0; gate < cell; gate++) {
      const float *from = f->kernel + k * gates + gate * s->hidden + units.first;
      float *row = weights[k % 2] + gate * units.count;
      if (k == s->hidden) memset(row, 0, units.count * sizeof *row);
      else if (whole) memcpy(row, from, units.count * sizeof *row); /* a known size is quick */
      else memcpy(row, from, (units.end - units.first) * sizeof *row);
    }
    if (k % 2 == 1) fill_tile(narrow, to, k - 1, weights);
  }
}

/* The carry before the first step. */
INLINE void begin(int cell, bool narrow, const Forward *f, long tile, Place p) {
  const Shape *s = &f->shape;
  const Units units = units_of(cell, s, tile);
  Vector states[ROWS];
  for (long unit = units.first; unit < units.end; unit++) {
    const long own = in_carry(s, unit, p);
    const Vector h = load(f->begun[0] + own, p.count);
    states[unit - units.first] = h;
    store(f->carry[0] + own, h, p.count);
    if (cell == LSTM) store(f->carry[1] + own, load(f->begun[1] + own, p.count), p.count);
    if (f->before != NULL) keep(narrow, f->before, in_stack(s, unit, p), h, p.count);
  }
  fill_panel(narrow, panel_at(narrow, s, &f->scratch, 0, p.panel), units.first, states,
             units.end - units.first);
}

/* The input's share of one gate of one unit. */
INLINE Vector input(const Forward *f, long row, Integers tokens, Place p) {
  const float *column = f->columns + row * f->symbols;
  if (f->tokens != NULL) return gather(column, tokens);
  return load(column + p.at * f->shape.batch + p.lane, p.count);
}

/* From both shares of a unit's gates to its next state. The formulas, and the order of gates, are
 * those of charjax/model/cells.py. */
INLINE Vector advance(int cell, const Forward *f, long unit, Place p, const Vector x[4],
                      const Vector u[4]) {
  const Shape *s = &f->shape;
  const long own = in_carry(s, unit, p);
  float *saved = f->saved == NULL ? NULL : f->saved + in_kept(cell, s, unit, p);
  if (cell == GRU) {
    const Vector r = sigmoid(x[0] + u[0]), z = sigmoid(x[1] + u[1]);
    const Vector by_r = u[2] + f->bias[unit];
    const Vector n = hyperbolic_tangent(x[2] + r * by_r);
    if (saved != NULL) {
      store(saved, r, LANES);
      store(saved + LANES, z, LANES);
      store(saved + 2 * LANES, n, LANES);
      store(saved + 3 * LANES, by_r, LANES);
    }
    return n + z * (load(f->carry[0] + own, p.count) - n);
  }
  if (cell == LSTM) {
    const Vector in = sigmoid(x[0] + u[0]), forget = sigmoid(x[1] + u[1]);
    const Vector g = hyperbolic_tangent(x[2] + u[2]), out = sigmoid(x[3] + u[3]);
    const Vector c = forget * load(f->carry[1] + own, p.count) + in * g;
    store(f->carry[1] + own, c, p.count);
    if (saved != NULL) {
      store(saved, in, LANES);
      store(saved + LANES, forget, LANES);
      store(saved + 2 * LANES, g, LANES);
      store(saved + 3 * LANES, out, LANES);
      store(saved + 4 * LANES, c, LANES);
    }
    return out * hyperbolic_tangent(c);
  }
  return hyperbolic_tangent(x[0] + u[0]);
}

INLINE void step(int cell, bool narrow, const Forward *f, long tile, Place p) {
  const Shape *s = &f->shape;
  const Units units = units_of(cell, s, tile);
  const bool keeps = f->before != NULL && p.at + 1 < s->time;
  for (long unit = units.first; unit < units.end; unit++) {
    expect_write(f->outputs + in_stack(s, unit, p));
    if (keeps) expect_write(in_bytes(narrow, f->before, in_stack(s, unit, moved(p, 1))));
  }
  Vector sums[ROWS], states[ROWS];
  multiply(narrow, s->terms, tile_at(narrow, s, &f->scratch, tile),
           panel_at(narrow, s, &f->scratch, p.at, p.panel), sums);

  Integers tokens = {0};
  if (f->tokens != NULL)
    memcpy(&tokens, f->tokens + p.at * s->batch + p.lane, p.count * sizeof(int32_t));
  for (long unit = units.first; unit < units.end; unit++) {
    const long i = unit - units.first;
    Vector x[4], u[4];
    for (int gate = 0; gate < cell; gate++) {
      x[gate] = input(f, gate * s->hidden + unit, tokens, p);
      u[gate] = sums[gate * units.count + i];
    }
    const Vector h = states[i] = advance(cell, f, unit, p, x, u);
    store(f->carry[0] + in_carry(s, unit, p), h, p.count);
    store(f->outputs + in_stack(s, unit, p), h, p.count);
    if (keeps) keep(narrow, f->before, in_stack(s, unit, moved(p, 1)), h, p.count);
  }
  fill_panel(narrow, panel_at(narrow, s, &f->scratch, p.at + 1, p.panel), units.first, states,
             units.end - units.first);
}

/* Phase 0 packs the weights and begins; each one that follows is a time step. */
INLINE void forward(int cell, bool narrow, const Forward *f, long phase, long index) {
  const Shape *s = &f->shape;
  const Share share = share_of(s, index);
  if (phase == 0 && share.first == 0) pack(cell, narrow, f, share.tile);
  for (long panel = share.first; panel < share.end; panel++)
    if (phase == 0) begin(cell, narrow, f, share.tile, place_of(s, 0, panel));
    else step(cell, narrow, f, share.tile, place_of(s, phase - 1, panel));
}

VARIANTS(forward)

/* (kernel, bias, columns, tokens, begun...) -> (outputs, carry..., before, saved, scratch) */
XLA_FFI_Error *charjax_forward(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = argument(frame, 0), *columns = argument(frame, 2);
  const XLA_FFI_Buffer *outputs = result(frame, 0), *before = result(frame, 3);
  const int cell = (int)(kernel->dims[1] / kernel->dims[0]);
  const bool narrow = before->dtype == XLA_FFI_DataType_BF16;
  const Shape s = shape_of(outputs, ROWS / cell, even(kernel->dims[0]));
  const Forward f = {.shape = s,
                     .kernel = kernel->data,
                     .bias = argument(frame, 1)->data,
                     .columns = columns->data,
                     .tokens = filled(argument(frame, 3)),
                     .symbols = columns->dims[1],
                     .begun = {argument(frame, 4)->data, argument(frame, 5)->data},
                     .carry = {result(frame, 1)->data, result(frame, 2)->data},
                     .outputs = outputs->data,
                     .before = filled(before),
                     .saved = filled(result(frame, 4)),
                     .scratch = lay_out(narrow, &s, result(frame, 5))};
  return run_steps(frame, &s, forward_variants[cell][narrow], &f, 1 + s.time);
}
