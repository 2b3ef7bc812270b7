/* Operands of matmuls at every time step: hidden states, or gradients of gates.
 *
 * They are tiles [time, state panels, features, LANES] in the compute dtype, features padded to an even
 * number with zeros. A tile is a state panel (gemm.h): what a step writes, the matmul of the next step
 * and the weight gradients read where it is, one line of memory after another. Lanes without a sequence
 * have any states, but zeros as gradients, so that they add nothing to a sum over positions. */

#pragma once

#include "ffi.h"
#include "gemm.h"

typedef struct Sequence {
  float *words;
  long time, panels;
  long features; /* of a tile */
} Sequence;

INLINE long tile_words(const Sequence *s) { return s->features / NUMBERS_PER_WORD * LANES; }

INLINE float *tile_at(const Sequence *s, long t, long panel) {
  return s->words + (t * s->panels + panel) * tile_words(s);
}

/* A tile's numbers of a row of `count`, LANES to a tile; zeros past the last number. */
INLINE Vector load_tile(const float *row, long tile, long count) {
  return load(row + tile * LANES, min(count - tile * LANES, LANES));
}

/* The next of `buffers`. */
static inline Sequence take_sequence(Call *call, Buffers *buffers, const char *name, long features,
                                     long time, long panels) {
  float *words = take(call, buffers, name, DTYPE, SHAPE(time, panels, features, LANES));
  return (Sequence){words, time, panels, features};
}

/* Pads k rows of a tile with a row of zeros if k is odd. */
INLINE void pad_rows(float *tile, long k) {
  if (k % 2 == 1) store_row(tile, k, broadcast(0.0f));
}
