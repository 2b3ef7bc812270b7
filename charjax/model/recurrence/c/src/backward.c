/* The way back through one layer: the gradients of the gates, step by step, and of the carry.
 *
 * The rows of a tile are units, the terms of its sums the gradients of all gates. So the
 * gradient of a unit's state is a sum, and those of its gates one step earlier follow from it
 * where it lies. */

#include "layer.h"

typedef struct Backward {
  Shape shape;
  const float *kernel;                 /* [hidden, gates] */
  const float *begun[2];               /* the carry before the first step */
  const float *outputs, *saved;        /* a stack; what was kept */
  const float *d_outputs, *d_carry[2]; /* what arrives: a stack; a carry */
  void *d_u, *own;                     /* stacks, see charjax/model/cells.py */
  float *d_bias;                       /* [hidden, panels * LANES] */
  float *d_begun[2];                   /* a carry: that before the step just done */
  Scratch scratch;
} Backward;

INLINE long end_of(const Shape *s, long tile) {
  return (tile + 1) * ROWS < s->hidden ? (tile + 1) * ROWS : s->hidden;
}

/* Where a gate begins among the terms of a sum. */
INLINE long gate_start(const Shape *s, long gate) { return gate * even(s->hidden); }

INLINE void pack(int cell, bool narrow, const Backward *b, long tile) {
  const Shape *s = &b->shape;
  const long first = tile * ROWS, count = end_of(s, tile) - first, gates = cell * s->hidden;
  char *to = tile_at(narrow, s, &b->scratch, tile);
  float weights[2][ROWS] = {0};
  for (long gate = 0; gate < cell; gate++)
    for (long k = 0; k < even(s->hidden); k += 2) {
      const float *from = b->kernel + first * gates + gate * s->hidden + k;
      for (long row = 0; row < count; row++, from += gates) {
        weights[0][row] = from[0];
        weights[1][row] = k + 1 < s->hidden ? from[1] : 0.0f;
      }
      fill_tile(narrow, to, gate_start(s, gate) + k, weights);
    }
}

/* The gradient of the carry after the last step. */
INLINE void begin(int cell, const Backward *b, long tile, Place p) {
  const Shape *s = &b->shape;
  for (long unit = tile * ROWS; unit < end_of(s, tile); unit++) {
    const long here = in_carry(s, unit, p);
    for (int part = 0; part < (cell == LSTM ? 2 : 1); part++)
      store(b->d_begun[part] + here, load(b->d_carry[part] + here, p.count), p.count);
    if (cell == GRU) store(b->d_bias + unit * s->panels * LANES + p.lane, all(0.0f), LANES);
  }
}

/* From the gradient of a unit's state to those of its gates; the carry's is then the one before
 * this step, but for what flows through the gates. The formulas are those of
 * charjax/model/cells.py. */
INLINE void retreat(int cell, bool narrow, const Backward *b, long unit, Place p, Vector dh,
                    Vector d_u[4]) {
  const Shape *s = &b->shape;
  const long here = in_carry(s, unit, p);
  const float *saved = b->saved + in_kept(cell, s, unit, p);
  Vector d_state = all(0.0f);
  if (cell == GRU) {
    const Vector r = load(saved, LANES), z = load(saved + LANES, LANES);
    const Vector n = load(saved + 2 * LANES, LANES), by_r = load(saved + 3 * LANES, LANES);
    const float *before =
        p.at == 0 ? b->begun[0] + here : b->outputs + in_stack(s, unit, moved(p, -1));
    const Vector dn = dh * (1.0f - z) * (1.0f - n * n);
    d_u[0] = dn * by_r * r * (1.0f - r);
    d_u[1] = dh * (load(before, p.count) - n) * z * (1.0f - z);
    d_u[2] = dn * r;
    d_state = dh * z;
    keep(narrow, b->own, in_stack(s, unit, p), dn, p.count);
    float *sum = b->d_bias + unit * s->panels * LANES + p.lane;
    store(sum, load(sum, LANES) + d_u[2], LANES);
  } else if (cell == LSTM) {
    const Vector in = load(saved, LANES), forget = load(saved + LANES, LANES);
    const Vector g = load(saved + 2 * LANES, LANES), out = load(saved + 3 * LANES, LANES);
    const Vector tanh_c = hyperbolic_tangent(load(saved + 4 * LANES, LANES));
    const Vector before =
        p.at == 0 ? load(b->begun[1] + here, p.count)
                  : load(b->saved + in_kept(cell, s, unit, moved(p, -1)) + 4 * LANES, LANES);
    const Vector dc =
        load(b->d_begun[1] + here, p.count) + dh * out * (1.0f - tanh_c * tanh_c);
    d_u[0] = dc * g * in * (1.0f - in);
    d_u[1] = dc * before * forget * (1.0f - forget);
    d_u[2] = dc * in * (1.0f - g * g);
    d_u[3] = dh * tanh_c * out * (1.0f - out);
    store(b->d_begun[1] + here, dc * forget, p.count);
  } else {
    const Vector h = load(b->outputs + in_stack(s, unit, p), p.count);
    d_u[0] = dh * (1.0f - h * h);
  }
  store(b->d_begun[0] + here, d_state, p.count);
}

/* What a step reads and writes of stacks; `p` is the character that it computes the gates of. */
INLINE void expect(int cell, bool narrow, const Backward *b, long tile, Place p) {
  const Shape *s = &b->shape;
  for (long unit = tile * ROWS; unit < end_of(s, tile); unit++) {
    expect_read(b->d_outputs + in_stack(s, unit, p));
    if (cell != LSTM && p.at > 0) expect_read(b->outputs + in_stack(s, unit, moved(p, -1)));
    for (long gate = 0; gate < cell; gate++)
      expect_write(in_bytes(narrow, b->d_u, in_stack(s, gate * s->hidden + unit, p)));
    if (cell == GRU) expect_write(in_bytes(narrow, b->own, in_stack(s, unit, p)));
  }
}

/* Step 0 is the gates of the last character; the ones that follow multiply the gradients of
 * a character's gates, then compute those of the one before it; the last only multiplies. */
INLINE void step(int cell, bool narrow, const Backward *b, long tile, long number, Place p) {
  const Shape *s = &b->shape;
  const long first = tile * ROWS, end = end_of(s, tile);
  Vector sums[ROWS], d_u[4][ROWS];
  if (p.at >= 0) expect(cell, narrow, b, tile, p);
  if (number > 0)
    multiply(narrow, s->terms, tile_at(narrow, s, &b->scratch, tile),
             panel_at(narrow, s, &b->scratch, number, p.panel), sums);
  for (long unit = first; unit < end; unit++) {
    float *running = b->d_begun[0] + in_carry(s, unit, p);
    Vector dh = load(running, p.count);
    if (number > 0) dh += sums[unit - first];
    if (p.at < 0) {
      store(running, dh, p.count);
      continue;
    }
    Vector gates[4];
    dh += load(b->d_outputs + in_stack(s, unit, p), p.count);
    retreat(cell, narrow, b, unit, p, dh, gates);
    for (int gate = 0; gate < cell; gate++) {
      d_u[gate][unit - first] = gates[gate];
      keep(narrow, b->d_u, in_stack(s, gate * s->hidden + unit, p), gates[gate], p.count);
    }
  }
  if (p.at < 0) return;
  char *panel = panel_at(narrow, s, &b->scratch, number + 1, p.panel);
  for (int gate = 0; gate < cell; gate++)
    fill_panel(narrow, panel, gate_start(s, gate) + first, d_u[gate], end - first);
}

/* Phase 0 packs the weights and begins; each one that follows is a step. */
INLINE void backward(int cell, bool narrow, const Backward *b, long phase, long index) {
  const Shape *s = &b->shape;
  const Share share = share_of(s, index);
  if (phase == 0 && share.first == 0) pack(cell, narrow, b, share.tile);
  for (long panel = share.first; panel < share.end; panel++) {
    const Place p = place_of(s, s->time - phase, panel);
    if (phase == 0) begin(cell, b, share.tile, p);
    else step(cell, narrow, b, share.tile, phase - 1, p);
  }
}

VARIANTS(backward)

/* (kernel, begun..., outputs, saved, d_outputs, d_carry...)
 *   -> (d_u, own, d_bias, d_begun..., scratch) */
XLA_FFI_Error *charjax_backward(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = argument(frame, 0), *outputs = argument(frame, 3);
  const XLA_FFI_Buffer *d_u = result(frame, 0);
  const int cell = (int)(kernel->dims[1] / kernel->dims[0]);
  const bool narrow = d_u->dtype == XLA_FFI_DataType_BF16;
  const Shape s = shape_of(outputs, ROWS, cell * even(kernel->dims[0]));
  const Backward b = {.shape = s,
                      .kernel = kernel->data,
                      .begun = {argument(frame, 1)->data, argument(frame, 2)->data},
                      .outputs = outputs->data,
                      .saved = argument(frame, 4)->data,
                      .d_outputs = argument(frame, 5)->data,
                      .d_carry = {argument(frame, 6)->data, argument(frame, 7)->data},
                      .d_u = d_u->data,
                      .own = result(frame, 1)->data,
                      .d_bias = result(frame, 2)->data,
                      .d_begun = {result(frame, 3)->data, result(frame, 4)->data},
                      .scratch = lay_out(narrow, &s, result(frame, 5))};
  return run_steps(frame, &s, backward_variants[cell][narrow], &b, 2 + s.time);
}
