/* The FFI targets whose matmuls have bfloat16 operands: on processors that have dot products of
 * bf16 pairs with float32 sums (AVX512_BF16). The functions are those of float32.c. */

#if defined(__AVX512BF16__) && defined(__AVX512F__)

#include "ffi.h"

#define TARGET(name) charjax_##name##_bfloat16

typedef uint16_t Number;
enum { DTYPE = BF16, NUMBERS_PER_WORD = 2 };

INLINE Vector multiply_add(Vector sum, Vector a, Vector b) {
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

/* Broadcast as an integer: on AMD Zen 4 the dot product that follows waits less for it
 * (docs/kernels.md). */
INLINE Vector broadcast_word(const float *word) {
  int32_t bits;
  memcpy(&bits, word, sizeof bits);
  return (Vector)_mm512_set1_epi32(bits);
}

/* A bf16 number is the high half of its float32. */
INLINE Vector number_of_words(Vector words, int i) {
  return (Vector)(i == 0 ? (IntVector)words << 16 : (IntVector)words & ~0xffff);
}

INLINE void store_rounded(Number *to, Vector x, long count) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
  if (count == LANES) memcpy(to, &rounded, sizeof rounded);
  else memcpy(to, &rounded, count * sizeof *to);
}

INLINE void store_pair(float *panel, long width, long k, Vector first, Vector second, long count) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
  store(panel + k / 2 * width, (Vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16)), count);
}

/* Pads an odd count with a row of zeros. */
INLINE void pack_states(float *panel, long k, const Vector *states, long count) {
  for (long i = 0; i < count; i += 2) {
    const Vector next = i + 1 < count ? states[i + 1] : broadcast(0.0f);
    store_pair(panel, LANES, k + i, states[i], next, LANES);
  }
}

INLINE Vector load_tiles(const Number *const from[], const long counts[]) {
  __m256i halves[2] = {0};
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    if (counts[i] == LANES) memcpy(&halves[i], from[i], sizeof halves[i]);
    else memcpy(&halves[i], from[i], counts[i] * sizeof *from[i]);
  return (Vector)_mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1);
}

#include "backward.h"
#include "forward.h"
#include "packed_matmul.h"
#include "weight_gradient.h"

#endif
