/* The cross entropy of the network's targets: outputs of the last layer are projected to logits, whose
 * softmax and its gradient are computed while they are in cache.
 *
 * Positions do not depend on one another: an item of work is TILES_PER_ITEM tiles (sequence.h), each of
 * LANES adjacent positions, which a weight panel in the L1 cache multiplies one after another. Phase 0
 * packs the weights. Backward, two further phases compute the kernel's gradient, a sum over all positions
 * (weight_gradient.h). */

#pragma once

#include "ffi.h"
#include "gemm.h"
#include "sequence.h"
#include "thread_pool.h"
#include "weight_gradient.h"

enum { TILES_PER_ITEM = 8 };

typedef struct CrossEntropy {
  long features, vocab, time, batch;
  long positions, tiles;      /* time times batch; of LANES positions, the last may have fewer */
  const float *kernel;        /* [features, vocab] */
  float *weights;             /* packed */
  const int32_t *targets;     /* [time, batch] */
  float *exps;                /* [tiles, vocab, LANES]: exp(logit - its position's largest) */
  float *sums;                /* [tiles, LANES], of exps over the vocabulary */
  const float *x;             /* [features, time, batch] */
  /* Forward. */
  const float *bias;          /* [vocab] */
  Sequence inputs;            /* x in tiles */
  float *excess;              /* [tiles, LANES]: the largest logit - that of the target */
  /* Backward. */
  const float *d_nats;        /* [time, batch] */
  Sequence d_logits;
  float *d_bias;              /* [items, vocab] */
  float *d_x;                 /* as x */
  Gradient d_kernel;          /* [vocab, features] */
} CrossEntropy;

/* The numbers of a tile's positions, of an array [time, batch]; zeros past the last position. */
INLINE Vector load_positions(const CrossEntropy *c, const float *array, long tile) {
  return load_tile(array, tile, c->positions);
}

INLINE IntVector load_targets(const CrossEntropy *c, long tile) {
  return (IntVector)load_positions(c, (const float *)c->targets, tile);
}

/* Packs the columns of a weight panel: the kernel's transpose. */
INLINE void pack_vocab(const CrossEntropy *c, long panel) {
  static const float zeros[SMALL_ROWS];
  const long rows = panel_rows(c->vocab, 1);
  const Range tokens = block_range(panel, rows, c->vocab);
  for (long k = 0; k < c->features; k += 2) {
    const float *first = c->kernel + k * c->vocab + tokens.first;
    pack_rows(c->weights + panel * rows * even(c->features) / NUMBERS_PER_WORD, rows, k, first,
              k + 1 < c->features ? first + c->vocab : zeros, tokens.end - tokens.first);
  }
}

INLINE void pack_inputs(const CrossEntropy *c, Range tiles) {
  for (long k = 0; k < c->features; k += 2)
    for (long tile = tiles.first; tile < tiles.end; tile++) {
      const float *row = c->x + k * c->positions;
      Vector second = {0};
      if (k + 1 < c->features) second = load_positions(c, row + c->positions, tile);
      store_pair(tile_at(&c->inputs, 0, tile), LANES, k, load_positions(c, row, tile), second, LANES);
    }
}

/* The logits of a weight panel. */
INLINE void project(const CrossEntropy *c, long panel, Range tiles) {
  const long iterations = even(c->features) / NUMBERS_PER_WORD, rows = panel_rows(c->vocab, 1);
  const Range tokens = block_range(panel, rows, c->vocab);
  for (long tile = tiles.first; tile < tiles.end; tile++) {
    Vector logits[SMALL_ROWS];
    multiply_panel_rows(rows, iterations, c->weights + panel * iterations * rows,
                        tile_at(&c->inputs, 0, tile), logits);
    float *to = c->exps + tile * c->vocab * LANES;
    for (long token = tokens.first; token < tokens.end; token++)
      store(to + token * LANES, logits[token - tokens.first] + c->bias[token], LANES);
  }
}

/* Replaces a tile's logits by their exps. A target outside the vocabulary has a NaN. */
INLINE void exponentiate(const CrossEntropy *c, long tile) {
  const IntVector targets = load_targets(c, tile);
  float *logits = c->exps + tile * c->vocab * LANES;
  Vector largest = load(logits, LANES), of_target = broadcast(__builtin_nanf("")), sum = {0};
  for (int token = 0; token < c->vocab; token++) {
    const Vector logit = load(logits + token * LANES, LANES);
    largest = select_lanes(logit > largest, logit, largest);
    of_target = select_lanes(targets == token, logit, of_target);
  }
  for (int token = 0; token < c->vocab; token++) {
    const Vector exp = vec_exp(load(logits + token * LANES, LANES) - largest);
    store(logits + token * LANES, exp, LANES);
    sum += exp;
  }
  store(c->sums + tile * LANES, sum, LANES);
  store(c->excess + tile * LANES, largest - of_target, LANES);
}

static void cross_entropy_forward(const void *data, long phase, long item) {
  const CrossEntropy *c = data;
  const long weight_panels = num_blocks(c->vocab, panel_rows(c->vocab, 1));
  const Range tiles = block_range(item, TILES_PER_ITEM, c->tiles);
  if (phase == 0) {
    if (item < weight_panels) pack_vocab(c, item);
  } else if (tiles.first < tiles.end) {
    pack_inputs(c, tiles);
    for (long panel = 0; panel < weight_panels; panel++) project(c, panel, tiles);
    for (long tile = tiles.first; tile < tiles.end; tile++) exponentiate(c, tile);
  }
}

/* Packs the rows of a weight panel, in squares of LANES, so that whole cache lines are read. */
INLINE void pack_features(const CrossEntropy *c, long panel) {
  const Range rows = block_range(panel, SMALL_ROWS, c->features);
  float *to = c->weights + panel * SMALL_ROWS * even(c->vocab) / NUMBERS_PER_WORD;
  for (long token = 0; token < c->vocab; token += LANES)
    for (long row = 0; row < SMALL_ROWS; row += LANES) {
      Vector square[LANES] = {0};
      const long count = min(c->vocab - token, LANES);
      for (long i = 0; i < min(rows.end - rows.first - row, LANES); i++)
        square[i] = load(c->kernel + (rows.first + row + i) * c->vocab + token, count);
      transpose(square);
      for (long i = 0; i < count; i += 2)
        store_pair(to + row, SMALL_ROWS, token + i, square[i], square[i + 1],
                   min(SMALL_ROWS - row, LANES));
    }
}

INLINE float sum_lanes(Vector x) {
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; lane++) sum += x[lane];
  return sum;
}

/* d_logits = d_nats (softmax - one-hot target), and their sums. */
INLINE void grads_of_logits(const CrossEntropy *c, Range tiles, float *d_bias) {
  Vector d_nats[TILES_PER_ITEM], scale[TILES_PER_ITEM];
  IntVector targets[TILES_PER_ITEM];
  const long count = tiles.end - tiles.first;
  for (long i = 0; i < count; i++) {
    d_nats[i] = load_positions(c, c->d_nats, tiles.first + i);
    scale[i] = d_nats[i] / load(c->sums + (tiles.first + i) * LANES, LANES);
    targets[i] = load_targets(c, tiles.first + i);
  }
  for (int token = 0; token < c->vocab; token += 2) {
    Vector sums[2] = {0};
    for (long i = 0; i < count; i++) {
      const float *exps = c->exps + ((tiles.first + i) * c->vocab + token) * LANES;
      Vector d[2] = {0};
      for (int k = 0; k < min(c->vocab - token, 2); k++) {
        const Vector of_target = select_lanes(targets[i] == token + k, d_nats[i], broadcast(0.0f));
        d[k] = load(exps + k * LANES, LANES) * scale[i] - of_target;
        sums[k] += d[k];
      }
      store_pair(tile_at(&c->d_logits, 0, tiles.first + i), LANES, token, d[0], d[1], LANES);
    }
    for (int k = 0; k < min(c->vocab - token, 2); k++) d_bias[token + k] = sum_lanes(sums[k]);
  }
}

/* d_x of a weight panel: the kernel times d_logits. */
INLINE void grads_of_inputs(const CrossEntropy *c, long panel, Range tiles) {
  const long size = c->positions, iterations = even(c->vocab) / NUMBERS_PER_WORD;
  const Range features = block_range(panel, SMALL_ROWS, c->features);
  for (long tile = tiles.first; tile < tiles.end; tile++) {
    const long count = min(size - tile * LANES, LANES);
    float *to = c->d_x + features.first * size + tile * LANES;
    Vector d_x[SMALL_ROWS];
    for (long row = 0; row < features.end - features.first; row++)
      __builtin_prefetch(to + row * size, 1);
    micro_kernel(SMALL_ROWS, iterations, c->weights + panel * SMALL_ROWS * iterations,
                 tile_at(&c->d_logits, 0, tile), d_x);
    for (long row = 0; row < features.end - features.first; row++)
      store(to + row * size, d_x[row], count);
  }
}

static void cross_entropy_backward(const void *data, long phase, long item) {
  const CrossEntropy *c = data;
  const long weight_panels = num_blocks(c->features, SMALL_ROWS);
  const Range tiles = block_range(item, TILES_PER_ITEM, c->tiles);
  if (phase == 0) {
    if (item < weight_panels) pack_features(c, item);
  } else if (phase > 1) {
    weight_gradient(&c->d_kernel, phase - 2, item);
  } else if (tiles.first < tiles.end) {
    grads_of_logits(c, tiles, c->d_bias + item * c->vocab);
    for (long panel = 0; panel < weight_panels; panel++) grads_of_inputs(c, panel, tiles);
  }
}

/* Numbers of the packed weights, forward and backward. */
INLINE long vocab_panels_length(long features, long vocab) {
  const long rows = panel_rows(vocab, 1);
  return num_blocks(vocab, rows) * rows * even(features);
}
INLINE long feature_panels_length(long features, long vocab) {
  return num_blocks(features, SMALL_ROWS) * SMALL_ROWS * even(vocab);
}

/* Lengths of the scratch below. */
long TARGET(cross_entropy_forward_length)(long features, long vocab, long tiles) {
  return vocab_panels_length(features, vocab) + tiles * even(features) * LANES;
}
long TARGET(cross_entropy_backward_length)(long features, long vocab, long tiles) {
  return feature_panels_length(features, vocab) + tiles * even(vocab) * LANES +
         TARGET(weight_gradient_length)(vocab, tiles);
}

/* The first arguments of both: kernel [features, vocab]; targets [time, batch]; x [features, time,
 * batch]. */
static CrossEntropy take_cross_entropy(Call *call) {
  const int64_t *kernel = sizes_of(call, "kernel", next_buffer(&call->arguments), 2);
  CrossEntropy c = {.features = kernel[0], .vocab = kernel[1]};
  c.kernel = ARGUMENT(call, "kernel", F32, c.features, c.vocab);
  const int64_t *targets = sizes_of(call, "targets", next_buffer(&call->arguments), 2);
  c.time = targets[0], c.batch = targets[1];
  c.targets = ARGUMENT(call, "targets", S32, c.time, c.batch);
  c.x = ARGUMENT(call, "x", F32, c.features, c.time, c.batch);
  c.positions = c.time * c.batch, c.tiles = num_blocks(c.positions, LANES);
  return c;
}

static XLA_FFI_Error *run_phases(const Call *call, const CrossEntropy *c, Body *body, long phases,
                                 long items) {
  if (call->problem[0]) return call_error(call);
  items = max(items, num_blocks(c->tiles, TILES_PER_ITEM));
  return parallel_for(call->frame, (Loop){body, c, phases, items}, items - 1);
}

/* Takes the scratch: the packed weights, a Sequence, and the numbers after it, which are returned. */
static float *take_scratch(Call *call, CrossEntropy *c, long weights, Sequence *sequence,
                           long features, long length) {
  c->weights = RESULT(call, "scratch", DTYPE, length);
  *sequence = (Sequence){c->weights + weights / NUMBERS_PER_WORD, 1, c->tiles, even(features)};
  return tile_at(sequence, 1, 0);
}

/* Arguments: those above; bias [vocab].
 * Results: exps [tiles, vocab, LANES]; their sums, and the excess of the largest logit over the
 *   target's, [tiles, LANES]; scratch, in the compute dtype. The cross entropy is excess + log(sum). */
XLA_FFI_Error *TARGET(cross_entropy_forward)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  CrossEntropy c = take_cross_entropy(&call);
  c.bias = ARGUMENT(&call, "bias", F32, c.vocab);
  c.exps = RESULT(&call, "exps", F32, c.tiles, c.vocab, LANES);
  c.sums = RESULT(&call, "sums", F32, c.tiles, LANES);
  c.excess = RESULT(&call, "excess", F32, c.tiles, LANES);
  take_scratch(&call, &c, vocab_panels_length(c.features, c.vocab), &c.inputs, c.features,
               TARGET(cross_entropy_forward_length)(c.features, c.vocab, c.tiles));
  return run_phases(&call, &c, cross_entropy_forward, 2, num_blocks(c.vocab, panel_rows(c.vocab, 1)));
}

/* Arguments: those above; exps and sums, results of forward; d_nats [time, batch].
 * Results: the kernel's gradient, transposed: [vocab, features]; d_bias [items, vocab], to be summed
 *   over items; d_x [features, time, batch]; scratch, in the compute dtype. */
XLA_FFI_Error *TARGET(cross_entropy_backward)(XLA_FFI_CallFrame *frame) {
  if (is_metadata_query(frame)) return NULL;
  Call call = new_call(frame);
  CrossEntropy c = take_cross_entropy(&call);
  c.exps = ARGUMENT(&call, "exps", F32, c.tiles, c.vocab, LANES);
  c.sums = ARGUMENT(&call, "sums", F32, c.tiles, LANES);
  c.d_nats = ARGUMENT(&call, "d_nats", F32, c.time, c.batch);
  float *d_kernel = RESULT(&call, "d_kernel", F32, c.vocab, c.features);
  c.d_bias = RESULT(&call, "d_bias", F32, num_blocks(c.tiles, TILES_PER_ITEM), c.vocab);
  c.d_x = RESULT(&call, "d_x", F32, c.features, c.time, c.batch);
  float *packed = take_scratch(&call, &c, feature_panels_length(c.features, c.vocab), &c.d_logits,
                               c.vocab,
                               TARGET(cross_entropy_backward_length)(c.features, c.vocab, c.tiles));
  c.d_kernel = new_gradient(c.vocab, c.features, c.d_logits, (Sequence){0});
  c.d_kernel.b_rows = c.x, c.d_kernel.positions = c.positions;
  c.d_kernel.matmul = d_kernel, c.d_kernel.packed_a = packed;
  return run_phases(&call, &c, cross_entropy_backward, 4,
                    max(num_blocks(c.features, SMALL_ROWS), gradient_items(&c.d_kernel)));
}
