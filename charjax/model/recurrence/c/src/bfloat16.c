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
  else _mm256_mask_storeu_epi16(to, (1 << count) - 1, (__m256i)rounded);
}

INLINE void store_pair(float *panel, long width, long k, Vector first, Vector second, long count) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
  store(panel + k / 2 * width, (Vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16)), count);
}

INLINE void store_row(float *panel, long k, Vector x) {
  float *words = panel + k / 2 * LANES;
  __m512i pairs = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
  if (k % 2 == 1)
    pairs = _mm512_or_si512((__m512i)load(words, LANES), _mm512_slli_epi32(pairs, 16));
  store(words, (Vector)pairs, LANES);
}

INLINE void load_words(float *const tiles[], long feature, Vector rows[]) {
  __m512i pairs[2] = {0}, words[2]; /* pairs of adjacent features; words of adjacent positions */
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    if (tiles[i] != NULL) memcpy(&pairs[i], tiles[i] + feature / 2 * LANES, sizeof pairs[i]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    words[i] = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs[0], 16 * i)));
    words[i] = _mm512_inserti64x4(
        words[i], _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs[1], 16 * i)), 1);
    rows[i] = (Vector)words[i];
  }
}

INLINE Vector round_to_words(const Vector numbers[]) {
  return (Vector)_mm512_cvtne2ps_pbh((__m512)numbers[1], (__m512)numbers[0]);
}

#include "backward.h"
#include "cross_entropy.h"
#include "forward.h"
#include "packed_matmul.h"
#include "weight_gradient.h"

#endif
