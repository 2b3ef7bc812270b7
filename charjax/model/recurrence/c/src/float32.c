/* The FFI targets whose matmuls have float32 operands, and what Python reads of the library. */

#include "ffi.h"

#define TARGET(name) charjax_##name##_float32

typedef float Number;
enum { DTYPE = F32, NUMBERS_PER_WORD = 1 };

INLINE Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }

INLINE Vector broadcast_word(const float *word) { return broadcast(*word); }

INLINE Vector number_of_words(Vector words, int i) { return (void)i, words; }

INLINE void store_rounded(Number *to, Vector x, long count) { store(to, x, count); }

INLINE void store_pair(float *panel, long width, long k, Vector first, Vector second, long count) {
  store(panel + k * width, first, count);
  store(panel + (k + 1) * width, second, count);
}

INLINE void store_row(float *panel, long k, Vector x) { store(panel + k * LANES, x, LANES); }

INLINE void load_words(float *const tiles[], long feature, Vector rows[]) {
  rows[0] = load(tiles[0] + feature * LANES, LANES);
}

INLINE Vector round_to_words(const Vector numbers[]) { return numbers[0]; }

#include "backward.h"
#include "cross_entropy.h"
#include "forward.h"
#include "packed_matmul.h"
#include "weight_gradient.h"

/* For Python: see charjax/model/recurrence/c/library.py. */
const int charjax_vector_width = LANES, charjax_tiles_per_item = TILES_PER_ITEM;
