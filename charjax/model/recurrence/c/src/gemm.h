/* The matmul's micro-kernel: a weight panel times a state panel, in one register tile.
 *
 * Operands are packed in panels, K-major, as in GotoBLAS and BLIS: a weight panel is [K, MR], a
 * state panel [K, LANES]. The register tile has MR rows of weights by LANES sequences. An iteration
 * of the K loop loads one vector of states, broadcasts MR weights and does MR fused
 * multiply-adds. In bf16 an iteration has two terms: adjacent K are interleaved in pairs, as the
 * dot-product instruction (vdpbf16ps) reads them.
 *
 * A sum adds its terms in the order of K, with one rounding each. So its bits depend neither on the
 * panel that it falls into nor on the batch size. */

#pragma once

#include "simd.h"

enum { MR = ACCUMULATORS };

/* The length K of sums, padded to pairs. */
INLINE long even(long k) { return k + (k & 1); }

/* Iterations of a K loop. */
INLINE long k_iterations(bool bf16, long k) { return bf16 ? even(k) / 2 : k; }

INLINE long bytes_each(bool bf16) { return bf16 ? 2 : 4; }

/* One weight in all lanes, in bf16 one pair. Broadcast as an integer: on AMD Zen 4 the multiply-add
 * that follows waits less for it (docs/kernels.md). */
INLINE Vector broadcast_weight(bool bf16, const float *weight) {
#ifdef __AVX512F__
  int32_t bits;
  memcpy(&bits, weight, sizeof bits);
  if (bf16) return (Vector)_mm512_set1_epi32(bits);
#else
  (void)bf16;
#endif
  return broadcast(*weight);
}

/* sum + a * b; in bf16 a dot product of pairs. */
INLINE Vector multiply_add(bool bf16, Vector sum, Vector a, Vector b) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  if (bf16) return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  (void)bf16;
#endif
  return sum + a * b;
}

/* A weight panel comes from the L2 cache: it is prefetched this many iterations ahead. One iteration
 * reads up to two cache lines. Prefetching past the end is harmless. */
enum { PREFETCH_DISTANCE = 32, LINE = 16 /* float32 */ };

/* tile[row] = sum over k of weights[k][row] * states[k] */
INLINE void micro_kernel(bool bf16, long k, const void *weight_panel, const void *state_panel,
                         Vector tile[MR]) {
  const float *weights = weight_panel, *states = state_panel;
  Vector sums[MR]; /* in registers: every loop over it is unrolled */
#pragma GCC unroll 24
  for (int row = 0; row < MR; row++) sums[row] = broadcast(0.0f);
  for (long left = k_iterations(bf16, k); left > 0; left--, weights += MR, states += LANES) {
    __builtin_prefetch(weights + PREFETCH_DISTANCE * MR);
    __builtin_prefetch(weights + PREFETCH_DISTANCE * MR + LINE);
    const Vector state = load(states, LANES);
#pragma GCC unroll 24
    for (int row = 0; row < MR; row++)
      sums[row] = multiply_add(bf16, sums[row], state, broadcast_weight(bf16, weights + row));
  }
#pragma GCC unroll 24
  for (int row = 0; row < MR; row++) tile[row] = sums[row];
}

#if defined(__AVX512BF16__) && defined(__AVX512F__)
INLINE Bf16Vector to_bf16(Vector x) { return (Bf16Vector)_mm512_cvtneps_pbh((__m512)x); }

/* In each lane a pair of bf16 numbers: `first` in the low half, `second` in the high half. */
INLINE Vector bf16_pairs(Vector first, Vector second) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)to_bf16(first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)to_bf16(second));
  return (Vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#else
typedef Vector Bf16Vector; /* never called: bf16 is false on this processor */
INLINE Bf16Vector to_bf16(Vector x) { return x; }
INLINE Vector bf16_pairs(Vector first, Vector second) { return (void)second, first; }
#endif

/* Stores numbers, rounded to the compute dtype, into an array from `index` on. */
INLINE void store_rounded(bool bf16, void *array, long index, Vector x, long count) {
  if (!bf16) {
    store((float *)array + index, x, count);
    return;
  }
  const Bf16Vector rounded = to_bf16(x);
  uint16_t *to = (uint16_t *)array + index;
  if (count == LANES) memcpy(to, &rounded, LANES * sizeof *to);
  else memcpy(to, &rounded, count * sizeof *to);
}

/* Writes rows k to k + count of a state panel; in bf16 an odd count is padded with a row of zeros. */
INLINE void pack_states(bool bf16, void *panel, long k, const Vector *states, long count) {
  if (!bf16) {
    memcpy((float *)panel + k * LANES, states, count * sizeof(Vector));
    return;
  }
  for (long i = 0; i < count; i += 2) {
    const Vector next = i + 1 < count ? states[i + 1] : broadcast(0.0f);
    store((float *)panel + (k + i) / 2 * LANES, bf16_pairs(states[i], next), LANES);
  }
}

/* Writes rows k and k + 1 of a weight panel. */
INLINE void pack_weights(bool bf16, void *panel, long k, const float weights[2][MR]) {
  if (!bf16) {
    memcpy((float *)panel + k * MR, weights, 2 * MR * sizeof(float));
    return;
  }
  for (long row = 0; row < MR; row += LANES) {
    const long count = MR - row < LANES ? MR - row : LANES;
    const Vector pairs = bf16_pairs(load(weights[0] + row, count), load(weights[1] + row, count));
    store((float *)panel + k / 2 * MR + row, pairs, count);
  }
}
