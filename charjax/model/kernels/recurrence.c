/* One layer over a sequence, forwards and backwards: what charjax/model/recurrence.py does
 * in XLA, with the product of a tile of units and the gates of these units in one piece.
 *
 * A tile is as many rows of the kernel as there are accumulators. Forwards, these are all
 * gates of some units, so that gates follow from the sums where they lie; backwards, each
 * row is a unit. A panel is as many lanes as a vector has. An item of work is a tile and
 * two panels at one time step; a step begins when the one before it is finished.
 *
 * Shapes, all contiguous, are those of charjax/model/compiled.py. A cell is known by its
 * number of gates: 1 RNN, 3 GRU, 4 LSTM. */

#include "vector.h"

#include "frame.h"
#include "product.h"
#include "team.h"

enum { RNN = 1, GRU = 3, LSTM = 4 };

/* Below so many multiplications an item, another thread costs more than it brings. */
enum { WORTH_SHARING = 1 << 14 };

/* What both directions share. */
typedef struct Shape {
  long hidden, time, batch;
  long panels; /* of lanes */
  long tiles;  /* of rows of the kernel */
  long terms;  /* of a sum */
} Shape;

/* How many numbers are kept of a unit for the way back. */
INLINE long kept(int cell) { return cell == GRU ? 4 : cell == LSTM ? 5 : 0; }

INLINE long lanes_from(const Shape *shape, long first) {
  return shape->batch - first < LANES ? shape->batch - first : LANES;
}

/* Where a unit's lanes begin in a stack [features, time, batch]. */
INLINE long in_stack(const Shape *s, long feature, long at, long lane) {
  return (feature * s->time + at) * s->batch + lane;
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

INLINE long most_helpers(const Shape *s) {
  return s->terms * ROWS * LANES < WORTH_SHARING ? 0 : items(s) - 1;
}

/* ---- Forwards ---- */

typedef struct Forward {
  Shape shape;
  const float *kernel, *bias, *columns; /* [hidden, gates], [hidden], [gates, symbols] */
  const int32_t *tokens;                /* [time, batch], or NULL: columns are positions */
  long symbols;                         /* of columns: of the vocabulary, or time * batch */
  const float *begun[2];                /* the carry before the first step, [hidden, batch] */
  float *outputs;                       /* [hidden, time, batch] */
  float *carry[2];                      /* after the step just done */
  void *before;                         /* the states before each step, or NULL */
  float *saved;                         /* [time, hidden, kept, batch], or NULL */
  char *weights;                        /* tiles */
  char *states[2];                      /* panels, of even and of odd steps */
} Forward;

/* Rows of a tile: gate by gate, so many units each. */
INLINE void pack_forward(int cell, bool narrow, const Forward *f, long tile) {
  const Shape *s = &f->shape;
  const long units = ROWS / cell, first = tile * units, gates = cell * s->hidden;
  const long count = s->hidden - first < units ? s->hidden - first : units;
  char *to = f->weights + tile * tile_size(narrow, s->terms);
  float weights[2][ROWS] = {0};
  for (long k = 0; k < s->terms; k++) {
    for (long gate = 0; gate < cell; gate++) {
      const float *from = f->kernel + k * gates + gate * s->hidden + first;
      float *row = weights[k % 2] + gate * units;
      if (k == s->hidden) memset(row, 0, units * sizeof *row);
      else if (count == units) memcpy(row, from, units * sizeof *row);
      else memcpy(row, from, count * sizeof *row);
    }
    if (k % 2 == 1) fill_tile(narrow, to, k - 1, weights);
  }
}

/* The carry before the first step, of a tile's units. */
INLINE void begin_forward(int cell, bool narrow, const Forward *f, long tile, long panel) {
  const Shape *s = &f->shape;
  const long units = ROWS / cell, first = tile * units, lane = panel * LANES;
  const long count = lanes_from(s, lane);
  Vector states[ROWS];
  long unit = first;
  for (; unit < first + units && unit < s->hidden; unit++) {
    const Vector h = load(f->begun[0] + unit * s->batch + lane, count);
    states[unit - first] = h;
    store(f->carry[0] + unit * s->batch + lane, h, count);
    if (f->before != NULL) keep(narrow, f->before, in_stack(s, unit, 0, lane), h, count);
    if (cell == LSTM)
      store(f->carry[1] + unit * s->batch + lane,
            load(f->begun[1] + unit * s->batch + lane, count), count);
  }
  char *to = f->states[0] + panel * panel_size(narrow, s->terms);
  if (unit > first) fill_panel(narrow, to, first, states, unit - first);
}

/* Has memory come near while the product runs: a step reads, and writes, a line here and a line
 * there, far apart, and would wait for each. */
INLINE void expect(const void *line, bool to_write) {
  if (to_write) __builtin_prefetch(line, 1);
  else __builtin_prefetch(line, 0);
}

/* Where the numbers kept of a unit begin: a panel's lie side by side. */
INLINE long saved_at(int cell, const Shape *s, long at, long unit, long panel) {
  return ((at * s->panels + panel) * s->hidden + unit) * kept(cell) * LANES;
}

/* The input's share of one gate of one unit. */
INLINE Vector input(const Forward *f, long row, Integers tokens, long at, long lane, long count) {
  const float *column = f->columns + row * f->symbols;
  if (f->tokens != NULL) return gather(column, tokens);
  return load(column + at * f->shape.batch + lane, count);
}

INLINE void step_forward(int cell, bool narrow, const Forward *f, long at, long tile,
                         long panel) {
  const Shape *s = &f->shape;
  const long units = ROWS / cell, first = tile * units, lane = panel * LANES;
  const long count = lanes_from(s, lane);
  const long from = panel * panel_size(narrow, s->terms);
  Vector u[ROWS], states[ROWS];
  const long end = first + units < s->hidden ? first + units : s->hidden;
  const long width = narrow ? 2 : 4;
  for (long unit = first; unit < end; unit++) {
    expect(f->outputs + in_stack(s, unit, at, lane), true);
    if (f->before != NULL && at + 1 < s->time)
      expect((char *)f->before + width * in_stack(s, unit, at + 1, lane), true);
  }
  multiply(narrow, s->terms, f->weights + tile * tile_size(narrow, s->terms),
           f->states[at % 2] + from, u);

  Integers tokens = {0};
  if (f->tokens != NULL) memcpy(&tokens, f->tokens + at * s->batch + lane, count * sizeof(int32_t));
  long unit = first;
  for (; unit < first + units && unit < s->hidden; unit++) {
    const long i = unit - first, own = unit * s->batch + lane;
    Vector a[4]; /* of each gate, the sum of its shares, or the input's alone */
    for (int gate = 0; gate < cell; gate++) {
      a[gate] = input(f, gate * s->hidden + unit, tokens, at, lane, count);
      if (cell != GRU || gate < 2) a[gate] += u[gate * units + i];
    }
    float *saved = f->saved + saved_at(cell, s, at, unit, panel);
    Vector h;
    if (cell == GRU) {
      const Vector r = sigmoid(a[0]), z = sigmoid(a[1]), by_r = u[2 * units + i] + f->bias[unit];
      const Vector n = hyperbolic_tangent(a[2] + r * by_r);
      h = n + z * (load(f->carry[0] + own, count) - n);
      if (f->saved != NULL) {
        store(saved, r, LANES);
        store(saved + LANES, z, LANES);
        store(saved + 2 * LANES, n, LANES);
        store(saved + 3 * LANES, by_r, LANES);
      }
    } else if (cell == LSTM) {
      const Vector in = sigmoid(a[0]), forget = sigmoid(a[1]), out = sigmoid(a[3]);
      const Vector g = hyperbolic_tangent(a[2]);
      const Vector c = forget * load(f->carry[1] + own, count) + in * g;
      h = out * hyperbolic_tangent(c);
      store(f->carry[1] + own, c, count);
      if (f->saved != NULL) {
        store(saved, in, LANES);
        store(saved + LANES, forget, LANES);
        store(saved + 2 * LANES, g, LANES);
        store(saved + 3 * LANES, out, LANES);
        store(saved + 4 * LANES, c, LANES);
      }
    } else {
      h = hyperbolic_tangent(a[0]);
    }
    states[i] = h;
    store(f->carry[0] + own, h, count);
    store(f->outputs + in_stack(s, unit, at, lane), h, count);
    if (f->before != NULL && at + 1 < s->time)
      keep(narrow, f->before, in_stack(s, unit, at + 1, lane), h, count);
  }
  if (unit > first)
    fill_panel(narrow, f->states[(at + 1) % 2] + from, first, states, unit - first);
}

/* Phase 0 rearranges the weights and begins; each one that follows is a time step. */
INLINE void item_forward(int cell, bool narrow, const Forward *f, long phase, long index) {
  const Share share = share_of(&f->shape, index);
  if (phase == 0 && share.first == 0) pack_forward(cell, narrow, f, share.tile);
  for (long panel = share.first; panel < share.end; panel++)
    if (phase > 0) step_forward(cell, narrow, f, phase - 1, share.tile, panel);
    else begin_forward(cell, narrow, f, share.tile, panel);
}

/* ---- Backwards ---- */

typedef struct Backward {
  Shape shape;
  const float *kernel;                 /* [hidden, gates] */
  const float *begun[2];               /* as forwards */
  const float *outputs, *saved;        /* of the way forwards */
  const float *d_outputs, *d_carry[2]; /* what arrives, [hidden, time, batch], [hidden, batch] */
  void *d_u, *own;                     /* [gates, time, batch], [hidden, time, batch] */
  float *d_bias;                       /* [hidden, panels * LANES] */
  float *d_begun[2];                   /* [hidden, batch], of the carry before the step just done */
  char *weights, *grads[2];            /* tiles, panels */
} Backward;

/* Where a gate begins among the terms of a sum. */
INLINE long gate_start(const Shape *s, long gate) { return gate * even(s->hidden); }

/* Rows of a tile: units. Terms: gate by gate, as `gate_start` says. */
INLINE void pack_backward(int cell, bool narrow, const Backward *b, long tile) {
  const Shape *s = &b->shape;
  const long first = tile * ROWS, gates = cell * s->hidden;
  const long count = s->hidden - first < ROWS ? s->hidden - first : ROWS;
  char *to = b->weights + tile * tile_size(narrow, s->terms);
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

/* The gradients of one unit's gates; adds to `d_bias`, replaces the carry's. */
INLINE void unit_backward(int cell, bool narrow, const Backward *b, long at, long unit,
                          long panel, Vector dh, Vector d_u[4]) {
  const Shape *s = &b->shape;
  const long lane = panel * LANES, count = lanes_from(s, lane);
  const long here = unit * s->batch + lane;
  const float *saved = b->saved + saved_at(cell, s, at, unit, panel);
  if (cell == GRU) {
    const Vector r = load(saved, LANES), z = load(saved + LANES, LANES);
    const Vector n = load(saved + 2 * LANES, LANES);
    const Vector by_r = load(saved + 3 * LANES, LANES);
    const float *before =
        at == 0 ? b->begun[0] + here : b->outputs + in_stack(s, unit, at - 1, lane);
    const Vector dn = dh * (1.0f - z) * (1.0f - n * n);
    d_u[0] = dn * by_r * r * (1.0f - r);
    d_u[1] = dh * (load(before, count) - n) * z * (1.0f - z);
    d_u[2] = dn * r;
    keep(narrow, b->own, in_stack(s, unit, at, lane), dn, count);
    store(b->d_begun[0] + here, dh * z, count);
    float *sum = b->d_bias + unit * s->panels * LANES + lane;
    store(sum, load(sum, LANES) + d_u[2], LANES);
  } else if (cell == LSTM) {
    const Vector in = load(saved, LANES), forget = load(saved + LANES, LANES);
    const Vector g = load(saved + 2 * LANES, LANES);
    const Vector out = load(saved + 3 * LANES, LANES);
    const Vector tanh_c = hyperbolic_tangent(load(saved + 4 * LANES, LANES));
    const long step = s->panels * s->hidden * kept(cell) * LANES;
    const Vector before = at == 0 ? load(b->begun[1] + here, count)
                                  : load(saved + 4 * LANES - step, LANES);
    const Vector dc =
        load(b->d_begun[1] + here, count) + dh * out * (1.0f - tanh_c * tanh_c);
    d_u[0] = dc * g * in * (1.0f - in);
    d_u[1] = dc * before * forget * (1.0f - forget);
    d_u[2] = dc * in * (1.0f - g * g);
    d_u[3] = dh * tanh_c * out * (1.0f - out);
    store(b->d_begun[1] + here, dc * forget, count);
    store(b->d_begun[0] + here, all(0.0f), count);
  } else {
    const Vector h = load(b->outputs + in_stack(s, unit, at, lane), count);
    d_u[0] = dh * (1.0f - h * h);
    store(b->d_begun[0] + here, all(0.0f), count);
  }
}

/* Step 0 is the gates of the last character; the ones that follow multiply the gradients of
 * a character's gates, then compute those of the one before it; the last only multiplies. */
INLINE void step_backward(int cell, bool narrow, const Backward *b, long step, long tile,
                          long panel) {
  const Shape *s = &b->shape;
  const long first = tile * ROWS, lane = panel * LANES, count = lanes_from(s, lane);
  const long from = panel * panel_size(narrow, s->terms), at = s->time - 1 - step;
  Vector through[ROWS], d_u[4][ROWS];
  const long end = first + ROWS < s->hidden ? first + ROWS : s->hidden;
  const long width = narrow ? 2 : 4;
  for (long unit = first; at >= 0 && unit < end; unit++) {
    expect(b->d_outputs + in_stack(s, unit, at, lane), false);
    if (cell != LSTM && at > 0) expect(b->outputs + in_stack(s, unit, at - 1, lane), false);
    for (long gate = 0; gate < cell; gate++)
      expect((char *)b->d_u + width * in_stack(s, gate * s->hidden + unit, at, lane), true);
    if (cell == GRU) expect((char *)b->own + width * in_stack(s, unit, at, lane), true);
  }
  if (step > 0)
    multiply(narrow, s->terms, b->weights + tile * tile_size(narrow, s->terms),
             b->grads[step % 2] + from, through);
  long unit = first;
  for (; unit < first + ROWS && unit < s->hidden; unit++) {
    const long i = unit - first;
    float *running = b->d_begun[0] + unit * s->batch + lane;
    Vector dh = load(running, count);
    if (step > 0) dh += through[i];
    if (at < 0) {
      store(running, dh, count);
      continue;
    }
    dh += load(b->d_outputs + in_stack(s, unit, at, lane), count);
    Vector grads[4];
    unit_backward(cell, narrow, b, at, unit, panel, dh, grads);
    for (int gate = 0; gate < cell; gate++) {
      d_u[gate][i] = grads[gate];
      keep(narrow, b->d_u, in_stack(s, gate * s->hidden + unit, at, lane), grads[gate], count);
    }
  }
  if (at >= 0 && unit > first)
    for (int gate = 0; gate < cell; gate++)
      fill_panel(narrow, b->grads[(step + 1) % 2] + from, gate_start(s, gate) + first, d_u[gate],
                 unit - first);
}

INLINE void begin_backward(int cell, const Backward *b, long tile, long panel) {
  const Shape *s = &b->shape;
  const long first = tile * ROWS, lane = panel * LANES, count = lanes_from(s, lane);
  for (long unit = first; unit < first + ROWS && unit < s->hidden; unit++) {
    const long here = unit * s->batch + lane;
    for (int state = 0; state < (cell == LSTM ? 2 : 1); state++)
      store(b->d_begun[state] + here, load(b->d_carry[state] + here, count), count);
    if (cell == GRU) store(b->d_bias + unit * s->panels * LANES + lane, all(0.0f), LANES);
  }
}

INLINE void item_backward(int cell, bool narrow, const Backward *b, long phase, long index) {
  const Share share = share_of(&b->shape, index);
  if (phase == 0 && share.first == 0) pack_backward(cell, narrow, b, share.tile);
  for (long panel = share.first; panel < share.end; panel++)
    if (phase > 0) step_backward(cell, narrow, b, phase - 1, share.tile, panel);
    else begin_backward(cell, b, share.tile, panel);
}

/* ---- Calls ---- */

/* One function for each cell and precision, so that neither is asked for inside. */
#define VARIANT(cell, narrow, name)                                                 \
  static void forward_##name(const void *work, long phase, long index) {            \
    item_forward(cell, narrow, work, phase, index);                                 \
  }                                                                                 \
  static void backward_##name(const void *work, long phase, long index) {           \
    item_backward(cell, narrow, work, phase, index);                                \
  }
VARIANT(RNN, false, rnn)
VARIANT(GRU, false, gru)
VARIANT(LSTM, false, lstm)
VARIANT(RNN, true, narrow_rnn)
VARIANT(GRU, true, narrow_gru)
VARIANT(LSTM, true, narrow_lstm)

typedef void Item(const void *, long, long);
#define BY_CELL(way, cell, narrow)                                                        \
  (narrow ? cell == GRU ? way##_narrow_gru : cell == LSTM ? way##_narrow_lstm             \
                                                          : way##_narrow_rnn              \
          : cell == GRU ? way##_gru : cell == LSTM ? way##_lstm : way##_rnn)

INLINE float *filled(const XLA_FFI_Buffer *buffer) {
  return buffer->rank == 1 && buffer->dims[0] == 0 ? NULL : buffer->data;
}

/* Panels are read before all of their terms are written where a sum's length was made even. */
INLINE void lay_out(bool narrow, const Shape *s, char *scratch, char **weights, char *panels[2]) {
  const long size = s->panels * panel_size(narrow, s->terms);
  *weights = scratch;
  panels[0] = scratch + s->tiles * tile_size(narrow, s->terms);
  panels[1] = panels[0] + size;
  memset(panels[0], 0, 2 * size);
}

XLA_FFI_Error *charjax_forward(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = argument(frame, 0), *columns = argument(frame, 2);
  const XLA_FFI_Buffer *outputs = result(frame, 0), *before = result(frame, 3);
  const int cell = (int)(kernel->dims[1] / kernel->dims[0]);
  const bool narrow = before->dtype == XLA_FFI_DataType_BF16;
  Forward f = {.shape = {.hidden = outputs->dims[0],
                         .time = outputs->dims[1],
                         .batch = outputs->dims[2]}};
  Shape *s = &f.shape;
  s->panels = (s->batch + LANES - 1) / LANES;
  s->tiles = (s->hidden + ROWS / cell - 1) / (ROWS / cell);
  s->terms = even(s->hidden);
  f.kernel = kernel->data;
  f.bias = argument(frame, 1)->data;
  f.columns = columns->data;
  f.symbols = columns->dims[1];
  f.tokens = (const int32_t *)filled(argument(frame, 3));
  f.begun[0] = argument(frame, 4)->data;
  f.begun[1] = argument(frame, 5)->data;
  f.outputs = outputs->data;
  f.carry[0] = result(frame, 1)->data;
  f.carry[1] = result(frame, 2)->data;
  f.before = filled(before);
  f.saved = filled(result(frame, 4));
  lay_out(narrow, s, result(frame, 5)->data, &f.weights, f.states);
  const Job job = {BY_CELL(forward, cell, narrow), &f, 1 + s->time, items(s)};
  return run(frame, job, most_helpers(s));
}

XLA_FFI_Error *charjax_backward(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = argument(frame, 0), *outputs = argument(frame, 3);
  const XLA_FFI_Buffer *d_u = result(frame, 0);
  const int cell = (int)(kernel->dims[1] / kernel->dims[0]);
  const bool narrow = d_u->dtype == XLA_FFI_DataType_BF16;
  Backward b = {.shape = {.hidden = outputs->dims[0],
                          .time = outputs->dims[1],
                          .batch = outputs->dims[2]}};
  Shape *s = &b.shape;
  s->panels = (s->batch + LANES - 1) / LANES;
  s->tiles = (s->hidden + ROWS - 1) / ROWS;
  s->terms = cell * even(s->hidden);
  b.kernel = kernel->data;
  b.begun[0] = argument(frame, 1)->data;
  b.begun[1] = argument(frame, 2)->data;
  b.outputs = outputs->data;
  b.saved = argument(frame, 4)->data;
  b.d_outputs = argument(frame, 5)->data;
  b.d_carry[0] = argument(frame, 6)->data;
  b.d_carry[1] = argument(frame, 7)->data;
  b.d_u = d_u->data;
  b.own = result(frame, 1)->data;
  b.d_bias = result(frame, 2)->data;
  b.d_begun[0] = result(frame, 3)->data;
  b.d_begun[1] = result(frame, 4)->data;
  lay_out(narrow, s, result(frame, 5)->data, &b.weights, b.grads);
  const Job job = {BY_CELL(backward, cell, narrow), &b, 2 + s->time, items(s)};
  return run(frame, job, most_helpers(s));
}

/* For Python to size what it allocates. */
const int charjax_lanes = LANES, charjax_rows = ROWS, charjax_has_bfloat16 = HAS_BFLOAT16;
