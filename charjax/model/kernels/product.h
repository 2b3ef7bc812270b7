/* The product that every kernel here spends its time in: a tile of packed weights by a
 * panel of lanes, the sums in registers.
 *
 * Each sum adds its terms one after the other, in the order of k, each with one rounding.
 * So a result is the same bits whichever tile or panel it falls in, and however many
 * lanes there are. In bfloat16 the terms come in pairs, as the instruction has them. */

#pragma once

#include "vector.h"

enum { ROWS = ACCUMULATORS }; /* of a tile */

/* The length of sums, made even: terms come in pairs. */
INLINE long even(long terms) { return terms + (terms & 1); }

/* Bytes of a tile of weights, or of a panel of states, with `terms` terms. */
INLINE long tile_size(bool narrow, long terms) { return terms * ROWS * (narrow ? 2 : 4); }
INLINE long panel_size(bool narrow, long terms) { return terms * LANES * (narrow ? 2 : 4); }

/* results[row] = sum over k of tile[k][row] * panel[k] */
INLINE void multiply(bool narrow, long terms, const void *tile, const void *panel,
                     Vector results[ROWS]) {
  Vector sums[ROWS];
#pragma GCC unroll 24
  for (int row = 0; row < ROWS; row++) sums[row] = all(0.0f);
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  if (narrow) {
    const uint32_t *weights = tile, *states = panel;
    for (long k = 0; k < terms; k += 2, weights += ROWS, states += LANES) {
      const __m512bh pairs = (__m512bh)_mm512_loadu_si512(states);
#pragma GCC unroll 24
      for (int row = 0; row < ROWS; row++)
        sums[row] =
            (Vector)_mm512_dpbf16_ps((__m512)sums[row], pairs,
                                     (__m512bh)_mm512_set1_epi32((int)weights[row]));
    }
  } else
#endif
  {
    (void)narrow;
    const float *weights = tile, *states = panel;
    for (long k = 0; k < terms; k++, weights += ROWS, states += LANES) {
      Vector state;
      memcpy(&state, states, sizeof state);
#pragma GCC unroll 24
      for (int row = 0; row < ROWS; row++) sums[row] += all(weights[row]) * state;
    }
  }
#pragma GCC unroll 24
  for (int row = 0; row < ROWS; row++) results[row] = sums[row];
}

#if defined(__AVX512BF16__) && defined(__AVX512F__)
INLINE Halves halves(Vector x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }
INLINE uint16_t half(float x) { return halves(all(x))[0]; }

INLINE void store_halves(uint16_t *to, Vector x, long count) {
  const Halves rounded = halves(x);
  if (count == LANES) memcpy(to, &rounded, sizeof rounded);
  else memcpy(to, &rounded, count * sizeof(uint16_t));
}
#else
INLINE uint16_t half(float x) { return (void)x, 0; }
INLINE void store_halves(uint16_t *to, Vector x, long count) { (void)to, (void)x, (void)count; }
#endif

/* Numbers as a stack keeps them, in bfloat16 where the stack is narrow. */
INLINE void keep(bool narrow, void *stack, long at, Vector x, long count) {
  if (narrow) store_halves((uint16_t *)stack + at, x, count);
  else store((float *)stack + at, x, count);
}

/* Writes states k to k + count of a panel; an odd count is followed by zeros. */
INLINE void fill_panel(bool narrow, void *panel, long k, const Vector *states, long count) {
  if (!narrow) {
    memcpy((float *)panel + k * LANES, states, count * sizeof(Vector));
    return;
  }
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  for (long i = 0; i < count; i += 2) {
    const __m512 second = i + 1 < count ? (__m512)states[i + 1] : _mm512_setzero_ps();
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)states[i]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
    _mm512_storeu_si512((uint32_t *)panel + (k + i) / 2 * LANES,
                        _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
#endif
}

/* Writes one weight of a tile. */
INLINE void fill_tile(bool narrow, void *tile, long k, long row, float weight) {
  if (narrow) ((uint16_t *)tile)[(k / 2 * ROWS + row) * 2 + k % 2] = half(weight);
  else ((float *)tile)[k * ROWS + row] = weight;
}
