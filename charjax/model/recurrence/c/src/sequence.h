/* Numbers of the compute dtype at every position, in one of two layouts: [features, time, batch], as
 * XLA's matmuls read them; or tiles [time, state panels, features, LANES], which the passes write and
 * the weight gradients read one after another. Rows [time, batch] are a page or more apart, often a
 * multiple of 4 KiB: what a time step stores would fall into one set of the L1 cache. */

#pragma once

#include "ffi.h"
#include "gemm.h"

typedef struct Sequence {
  Number *numbers;
  long time, panels;
  long batch; /* of tiles all lanes: those without a sequence are stored and read, too */
  long feature_stride, time_stride, panel_stride;
} Sequence;

/* The next of `buffers`, in the layout that its rank tells. */
static inline Sequence take_sequence(Call *call, Buffers *buffers, const char *name, long features,
                                     long time, long batch) {
  const Buffer *buffer = next_buffer(buffers);
  const long panels = num_blocks(batch, LANES), tile = features * LANES;
  if (buffer == NULL || buffer->rank != 4)
    return (Sequence){take(call, buffers, name, DTYPE, SHAPE(features, time, batch)),
                      time, panels, batch, time * batch, batch, LANES};
  return (Sequence){take(call, buffers, name, DTYPE, SHAPE(time, panels, features, LANES)),
                    time, panels, panels * LANES, LANES, panels * tile, tile};
}

/* The sequences of a state panel. */
INLINE long num_sequences(const Sequence *s, long panel) {
  return min(s->batch - panel * LANES, LANES);
}

/* Stores a feature of a state panel at time t. */
INLINE void store_feature(const Sequence *s, long feature, long t, long panel, Vector x) {
  Number *to =
      s->numbers + feature * s->feature_stride + t * s->time_stride + panel * s->panel_stride;
  store_rounded(to, x, num_sequences(s, panel));
}
