/* SIMD vectors of float32, as wide as the processor's registers, and exp, sigmoid and tanh of them.
 *
 * GNU C vector types (gcc, clang) compile one source to AVX-512, AVX, NEON or SSE. Intrinsics
 * stand only where the compiler's own choice is slow. */

#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
enum { LANES = 16, ACCUMULATORS = 24 }; /* of 32 vector registers */
#elif defined(__AVX__)
enum { LANES = 8, ACCUMULATORS = 12 }; /* of 16 */
#elif defined(__aarch64__)
enum { LANES = 4, ACCUMULATORS = 24 };
#else
enum { LANES = 4, ACCUMULATORS = 12 };
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVector __attribute__((vector_size(4 * LANES)));

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long max(long a, long b) { return a > b ? a : b; }

INLINE Vector broadcast(float x) { return x - (Vector){0}; }

/* `count` numbers in the first lanes, zeros in the others. AVX-512 has masks for that: a call of memcpy,
 * even if it is never executed, keeps the vectors around it out of registers. */
INLINE Vector load(const float *from, long count) {
  Vector x = {0};
  if (count == LANES) memcpy(&x, from, sizeof x); /* one instruction */
#ifdef __AVX512F__
  else x = (Vector)_mm512_maskz_loadu_ps((1 << count) - 1, from);
#else
  else memcpy(&x, from, count * sizeof(float));
#endif
  return x;
}

INLINE void store(float *to, Vector x, long count) {
  if (count == LANES) memcpy(to, &x, sizeof x);
#ifdef __AVX512F__
  else _mm512_mask_storeu_ps(to, (1 << count) - 1, (__m512)x);
#else
  else memcpy(to, &x, count * sizeof(float));
#endif
}

/* Transposes a LANES by LANES matrix, each row of which is a vector. */
INLINE void transpose(Vector square[LANES]) {
#ifdef __AVX512F__
#pragma GCC unroll 4
  for (int size = 1; size < LANES; size *= 2) { /* swaps off-diagonal blocks of this size */
    const IntVector lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const IntVector low = lane + (((lane & size) != 0) & (LANES - size)), high = low + size;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if ((i & size) == 0) {
        const __m512 a = (__m512)square[i], b = (__m512)square[i + size];
        square[i] = (Vector)_mm512_permutex2var_ps(a, (__m512i)low, b);
        square[i + size] = (Vector)_mm512_permutex2var_ps(a, (__m512i)high, b);
      }
  }
#else
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < i; j++) {
      const float above = square[j][i];
      square[j][i] = square[i][j];
      square[i][j] = above;
    }
#endif
}

/* `yes` in lanes where the mask is all ones, `no` where it is 0. */
INLINE Vector select_lanes(IntVector mask, Vector yes, Vector no) {
#ifdef __AVX512F__ /* a comparison and a blend; the compiler would take one instruction more */
  const __mmask16 lanes = _mm512_movepi32_mask((__m512i)mask);
  return (Vector)_mm512_mask_blend_ps(lanes, (__m512)no, (__m512)yes);
#else
  return (Vector)((mask & (IntVector)yes) | (~mask & (IntVector)no));
#endif
}

/* `x` limited to [low, high]; NaN stays NaN. */
INLINE Vector clamp(Vector x, float low, float high) {
#ifdef __AVX512F__ /* where an operand is NaN, the result is the second one */
  const __m512 at_least = _mm512_max_ps((__m512)broadcast(low), (__m512)x);
  return (Vector)_mm512_min_ps((__m512)broadcast(high), at_least);
#else
  return select_lanes(x < low, broadcast(low), select_lanes(x > high, broadcast(high), x));
#endif
}

/* p * 2^n, for whole n whose result is a normal number; NaN where p is. */
INLINE Vector scale(Vector p, Vector n) {
#ifdef __AVX512F__
  return (Vector)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const IntVector exponent = __builtin_convertvector(n, IntVector) << 23;
  return select_lanes(p == p, (Vector)((IntVector)p + exponent), p);
#endif
}

/* exp(x), to 1 or 2 units in the last place; NaN stays NaN. Range reduction and polynomial of
 * Cephes' expf: exp(x) = 2^n exp(r), |r| <= log(2) / 2. */
INLINE Vector vec_exp(Vector x) {
  const Vector shift = broadcast(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  x = clamp(x, -87.33654f, 88.37626f);
  const Vector n = x * 1.44269504f + shift - shift;
  const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return scale(p * (r * r) + r + 1.0f, n);
}

INLINE Vector vec_sigmoid(Vector x) { return 1.0f / (1.0f + vec_exp(-x)); }

/* tanh(x), to 1 or 2 units in the last place: Cephes' tanhf, a polynomial near 0. */
INLINE Vector vec_tanh(Vector x) {
  const Vector magnitude = (Vector)((IntVector)x & 0x7fffffff);
  const IntVector sign = (IntVector)x & ~0x7fffffff;
  const Vector z = x * x;
  Vector p = broadcast(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Vector far = 1.0f - 2.0f / (vec_exp(magnitude + magnitude) + 1.0f);
  return select_lanes(magnitude < broadcast(0.625f), p * z * x + x, (Vector)((IntVector)far | sign));
}
