/* One product of the states of some lanes with a kernel: what writing text does at every
 * character, with one lane or with many.
 *
 * Vectors run along the outputs, so that one lane fills them. A tile is four vectors of
 * outputs; it meets as many lanes at once as there are accumulators for. Each sum adds its
 * terms in the order of k, as in product.h: a lane's bits do not depend on who is beside it. */

#include "ffi.h"
#include "gemm.h"
#include "thread_pool.h"

enum { VECTORS = 4, OUTPUTS = VECTORS * LANES, AT_ONCE = ACCUMULATORS / VECTORS };

/* Below so many multiplications a thread, another one costs more than it brings. */
enum { WORTH_SHARING = 1 << 18 };

typedef struct Product {
  long lanes, terms, outputs;
  const char *tiles;
  const float *states; /* [lanes, terms], where narrow in pairs of bfloat16 */
  float *results;      /* [lanes, outputs] */
} Product;

/* Rounds states to bfloat16: as they follow one another, they are pairs. */
INLINE void narrow_states(const Product *p, const float *states, uint16_t *to) {
  const long row = 2 * steps_of(true, p->terms);
  for (long lane = 0; lane < p->lanes; lane++, states += p->terms, to += row) {
    if (row > p->terms) to[p->terms] = 0;
    for (long k = 0; k < p->terms; k += LANES) {
      const long count = p->terms - k < LANES ? p->terms - k : LANES;
      keep(true, to, k, load(states + k, count), count);
    }
  }
}

INLINE long size_of_tile(bool narrow, long terms) {
  return even(terms) * OUTPUTS * (narrow ? 2 : 4);
}

/* One tile by `count` lanes from `first` on; `count` is known when this is compiled. */
INLINE void multiply_lanes(bool narrow, const Product *p, long tile, long first,
                           const int count) {
  const float *weights = (const float *)(p->tiles + tile * size_of_tile(narrow, p->terms));
  const long steps = steps_of(narrow, p->terms);
  const float *states = p->states + first * steps;
  Vector sums[AT_ONCE][VECTORS];
#pragma GCC unroll 8
  for (int lane = 0; lane < count; lane++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[lane][v] = all(0.0f);
  for (long k = 0; k < steps; k++, weights += OUTPUTS) {
    Vector row[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) row[v] = load(weights + v * LANES, LANES);
#pragma GCC unroll 8
    for (int lane = 0; lane < count; lane++) {
      const Vector state = spread(narrow, states + lane * steps + k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        sums[lane][v] = add_product(narrow, sums[lane][v], row[v], state);
    }
  }
  const long left = p->outputs - tile * OUTPUTS;
#pragma GCC unroll 8
  for (int lane = 0; lane < count; lane++) {
    float *to = p->results + (first + lane) * p->outputs + tile * OUTPUTS;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const long here = left - v * LANES;
      if (here > 0) store(to + v * LANES, sums[lane][v], here < LANES ? here : LANES);
    }
  }
}

#define LANES_LEFT(count)                                                             \
  case count:                                                                         \
    multiply_lanes(narrow, p, tile, first, count < AT_ONCE ? count : AT_ONCE);        \
    break

INLINE void multiply_tile(bool narrow, const Product *p, long tile) {
  for (long first = 0; first < p->lanes; first += AT_ONCE) {
    const long left = p->lanes - first;
    switch (left < AT_ONCE ? left : AT_ONCE) {
      LANES_LEFT(1);
      LANES_LEFT(2);
      LANES_LEFT(3);
      LANES_LEFT(4);
      LANES_LEFT(5);
      LANES_LEFT(6);
    }
  }
}
_Static_assert(AT_ONCE <= 6, "a case for each count of lanes");

static void tile_wide(const void *work, long phase, long tile) {
  (void)phase;
  multiply_tile(false, work, tile);
}
static void tile_narrow(const void *work, long phase, long tile) {
  (void)phase;
  multiply_tile(true, work, tile);
}

/* Numbers k and k + 1 as the terms of one step, or the one there is; none is zero. */
INLINE void put_terms(bool narrow, float *to, const float *first, const float *second, long count,
                      long stride) {
  const Vector a = load(first, count), b = second != NULL ? load(second, count) : all(0.0f);
  if (narrow) {
    store(to, pairs(a, b), LANES);
  } else {
    store(to, a, LANES);
    if (second != NULL) store(to + stride, b, LANES);
  }
}

/* (kernel [terms, outputs]) -> its tiles, bytes. */
XLA_FFI_Error *charjax_pack(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = argument(frame, 0), *packed = result(frame, 0);
  const long terms = kernel->dims[0], outputs = kernel->dims[1];
  const bool narrow = packed->dtype == XLA_FFI_DataType_BF16;
  const float *from = kernel->data;
  for (long first = 0; first < outputs; first += OUTPUTS) {
    float *to = (float *)((char *)packed->data + first / OUTPUTS * size_of_tile(narrow, terms));
    for (long k = 0; k < terms; k += 2, to += (narrow ? 1 : 2) * OUTPUTS)
      for (long v = 0; v < VECTORS; v++) {
        const long output = first + v * LANES, left = outputs - output;
        const long count = left < 0 ? 0 : left < LANES ? left : LANES;
        const float *here = from + k * outputs + (count ? output : 0);
        put_terms(narrow, to + v * LANES, here, k + 1 < terms ? here + outputs : NULL, count,
                  OUTPUTS);
      }
  }
  return NULL;
}

/* (states [lanes, terms], tiles) -> results [lanes, outputs], and working memory, float32
 * [lanes, steps], if narrow. */
XLA_FFI_Error *charjax_multiply(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *states = argument(frame, 0), *tiles = argument(frame, 1);
  const XLA_FFI_Buffer *results = result(frame, 0);
  const bool narrow = tiles->dtype == XLA_FFI_DataType_BF16;
  const Product p = {.lanes = states->dims[0],
                     .terms = states->dims[1],
                     .outputs = results->dims[1],
                     .tiles = tiles->data,
                     .states = narrow ? result(frame, 1)->data : states->data,
                     .results = results->data};
  if (narrow) narrow_states(&p, states->data, result(frame, 1)->data);
  const long count = (p.outputs + OUTPUTS - 1) / OUTPUTS;
  const long helpers = p.lanes * p.terms * p.outputs / WORTH_SHARING;
  const Job job = {narrow ? tile_narrow : tile_wide, &p, 1, count};
  return run(frame, job, helpers < count - 1 ? helpers : count - 1);
}

/* For Python to size what it allocates. */
const int charjax_lanes = LANES, charjax_rows = ROWS, charjax_outputs = OUTPUTS;
const int charjax_has_bfloat16 = HAS_BFLOAT16;
