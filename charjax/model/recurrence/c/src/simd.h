/* Vectors of float32, as wide as the processor's, and the functions of cells on them.
 *
 * Compilers that know GNU C's vector types (gcc, clang) make of one source the
 * instructions of any processor. */

#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, ACCUMULATORS = 24 }; /* of 32 registers */
#elif defined(__AVX__)
enum { LANES = 8, ACCUMULATORS = 12 }; /* of 16 */
#elif defined(__aarch64__)
enum { LANES = 4, ACCUMULATORS = 24 };
#else
enum { LANES = 4, ACCUMULATORS = 12 };
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

/* Whether products of bfloat16 numbers with float32 sums have instructions. */
#ifdef __x86_64__
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
enum { HAS_BFLOAT16 = 1 };
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
#else
enum { HAS_BFLOAT16 = 0 };
#endif

INLINE Vector all(float x) {
#ifdef __AVX512F__
  return (Vector)_mm512_set1_ps(x);
#else
  return x - (Vector){0};
#endif
}

/* The first `count` lanes; zero in the others. */
INLINE Vector load(const float *from, long count) {
  Vector x = {0};
  if (count == LANES) memcpy(&x, from, sizeof x); /* one instruction, not a call */
  else memcpy(&x, from, count * sizeof(float));
  return x;
}

INLINE void store(float *to, Vector x, long count) {
  if (count == LANES) memcpy(to, &x, sizeof x);
  else memcpy(to, &x, count * sizeof(float));
}

/* from[indices] */
INLINE Vector gather(const float *from, Integers indices) {
#ifdef __AVX512F__
  return (Vector)_mm512_i32gather_ps((__m512i)indices, from, sizeof(float));
#else
  Vector x;
  for (int lane = 0; lane < LANES; lane++) x[lane] = from[indices[lane]];
  return x;
#endif
}

/* Rows become columns. */
INLINE void transpose(Vector square[LANES]) {
#ifdef __AVX512F__
#pragma GCC unroll 4
  for (int apart = 1; apart < LANES; apart *= 2) { /* swaps blocks of that size */
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Integers low = lane + (((lane & apart) != 0) & (LANES - apart)), high = low + apart;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if ((i & apart) == 0) {
        const __m512 a = (__m512)square[i], b = (__m512)square[i + apart];
        square[i] = (Vector)_mm512_permutex2var_ps(a, (__m512i)low, b);
        square[i + apart] = (Vector)_mm512_permutex2var_ps(a, (__m512i)high, b);
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

/* Lanes of `yes` where the mask has ones, else of `no`. */
INLINE Vector choose(Integers mask, Vector yes, Vector no) {
  return (Vector)((mask & (Integers)yes) | (~mask & (Integers)no));
}

/* e^x, to 1 unit in the last place or two. Range reduction and polynomial: Cephes' expf. */
INLINE Vector exponential(Vector x) {
  const Vector low = all(-87.33654f), high = all(88.37626f);
  const Integers is_number = x == x;
  const Vector given = x;
  x = choose(x < low, low, choose(x > high, high, x));
  const Vector shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to whole numbers */
  const Vector shifted = x * 1.44269504f + shift;
  const Vector n = shifted - shift;
  const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers exponent = ((Integers)shifted - (Integers)shift) << 23;
  return choose(is_number, (Vector)((Integers)p + exponent), given);
}

INLINE Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

/* To 1 unit in the last place or two: Cephes' tanhf. */
INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = (Vector)((Integers)x & 0x7fffffff);
  const Integers sign = (Integers)x & ~0x7fffffff;
  const Vector z = x * x;
  Vector p = all(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Vector far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
  return choose(size < all(0.625f), p * z * x + x, (Vector)((Integers)far | sign));
}
