/* The product that the recurrence spends its time in: a tile of packed weights by a panel of
 * lanes, the sums in registers.
 *
 * Each sum adds its terms one after the other, in the order of k, each with one rounding.
 * So a result is the same bits whichever tile or panel it falls in, and however many
 * lanes there are. In bfloat16 the terms come in pairs, as the instruction has them. */

#pragma once

#include "simd.h"

enum { ROWS = ACCUMULATORS }; /* of a tile */

/* The length of sums, made even: terms come in pairs. */
INLINE long even(long terms) { return terms + (terms & 1); }

/* Bytes of a tile of weights, or of a panel of states, with `terms` terms. */
INLINE long tile_size(bool narrow, long terms) { return terms * ROWS * (narrow ? 2 : 4); }
INLINE long panel_size(bool narrow, long terms) { return terms * LANES * (narrow ? 2 : 4); }

/* One number, or where narrow a pair, in all lanes. A pair is moved as a whole number: on AMD's
 * Zen 4 its product waits less for it, see docs/performance.md. */
INLINE Vector spread(bool narrow, const float *from) {
#ifdef __AVX512F__
  int32_t bits;
  memcpy(&bits, from, sizeof bits);
  if (narrow) return (Vector)_mm512_set1_epi32(bits);
#else
  (void)narrow;
#endif
  return all(*from);
}

/* One step of a sum: a term, or where narrow two, whose numbers are pairs of bfloat16. */
INLINE Vector add_product(bool narrow, Vector sum, Vector a, Vector b) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  if (narrow) return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  (void)narrow;
#endif
  return sum + a * b;
}

/* How many steps a sum of so many terms has. */
INLINE long steps_of(bool narrow, long terms) { return narrow ? even(terms) / 2 : terms; }

/* A tile comes from a far cache: its lines are fetched so many steps ahead. A step has up to two,
 * and to fetch beyond the end does no harm. */
enum { AHEAD = 32, LINE = 16 /* numbers */ };

/* results[row] = sum over k of tile[k][row] * panel[k] */
INLINE void multiply(bool narrow, long terms, const void *tile, const void *panel,
                     Vector results[ROWS]) {
  const float *weights = tile, *states = panel;
  Vector sums[ROWS];
#pragma GCC unroll 24
  for (int row = 0; row < ROWS; row++) sums[row] = all(0.0f);
  for (long step = steps_of(narrow, terms); step > 0; step--, weights += ROWS, states += LANES) {
    __builtin_prefetch(weights + AHEAD * ROWS);
    __builtin_prefetch(weights + AHEAD * ROWS + LINE);
    const Vector state = load(states, LANES);
#pragma GCC unroll 24
    for (int row = 0; row < ROWS; row++)
      sums[row] = add_product(narrow, sums[row], state, spread(narrow, weights + row));
  }
#pragma GCC unroll 24
  for (int row = 0; row < ROWS; row++) results[row] = sums[row];
}

#if defined(__AVX512BF16__) && defined(__AVX512F__)
INLINE Halves halves(Vector x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }

/* Two terms of each lane, side by side as the instruction has them. */
INLINE Vector pairs(Vector first, Vector second) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)halves(first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)halves(second));
  return (Vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#else
typedef Vector Halves; /* never used: nothing is narrow */
INLINE Halves halves(Vector x) { return x; }
INLINE Vector pairs(Vector first, Vector second) { return (void)second, first; }
#endif

/* Numbers as a stack keeps them, in bfloat16 where the stack is narrow. */
INLINE void keep(bool narrow, void *stack, long at, Vector x, long count) {
  if (!narrow) {
    store((float *)stack + at, x, count);
    return;
  }
  const Halves rounded = halves(x);
  uint16_t *to = (uint16_t *)stack + at;
  if (count == LANES) memcpy(to, &rounded, LANES * sizeof *to);
  else memcpy(to, &rounded, count * sizeof *to);
}

/* Writes states k to k + count of a panel; an odd count is followed by zeros. */
INLINE void fill_panel(bool narrow, void *panel, long k, const Vector *states, long count) {
  if (!narrow) {
    memcpy((float *)panel + k * LANES, states, count * sizeof(Vector));
    return;
  }
  for (long i = 0; i < count; i += 2) {
    const Vector next = i + 1 < count ? states[i + 1] : all(0.0f);
    store((float *)panel + (k + i) / 2 * LANES, pairs(states[i], next), LANES);
  }
}

/* Writes weights k and k + 1 of all rows of a tile. */
INLINE void fill_tile(bool narrow, void *tile, long k, const float weights[2][ROWS]) {
  if (!narrow) {
    memcpy((float *)tile + k * ROWS, weights, 2 * ROWS * sizeof(float));
    return;
  }
  for (long row = 0; row < ROWS; row += LANES) {
    const long count = ROWS - row < LANES ? ROWS - row : LANES;
    const Vector both = pairs(load(weights[0] + row, count), load(weights[1] + row, count));
    store((float *)tile + k / 2 * ROWS + row, both, count);
  }
}
