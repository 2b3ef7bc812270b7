/* The matmul's micro-kernel: a weight panel times a state panel, in one register tile.
 *
 * Operands are packed in panels, K-major, as in GotoBLAS and BLIS: a weight panel is [K, MR], a
 * state panel [K, LANES]. The register tile has MR rows of weights by LANES sequences. An iteration
 * of the K loop loads one vector of states, broadcasts MR weights and does MR fused multiply-adds.
 *
 * Panels consist of words of 32 bits: a float32, or a pair of bf16 with adjacent K, as the
 * dot-product instruction (vdpbf16ps) reads them. An iteration has one word of each row and column.
 *
 * A sum adds its terms in the order of K, with one rounding each. So its bits depend neither on the
 * panel that it falls into nor on the batch size.
 *
 * float32.c and bfloat16.c include this file. Each defines for its dtype:
 *   Number                   an operand as it is stored in arrays
 *   multiply_add             sum + a * b, or a dot product of pairs, on words
 *   broadcast_word           one word in all lanes
 *   number_of_words          number i of each word, as float32
 *   store_rounded            stores numbers, rounded to the dtype
 *   store_pair               stores numbers k and k + 1 of some columns of a panel [K, width]
 *   store_row                stores numbers k of a state panel, after k - 1 if k is odd; if it is
 *                            even, numbers k + 1 may become zeros
 *   load_words               words of NUMBERS_PER_WORD features from `feature` on, of adjacent
 *                            positions: of as many tiles, or of zeros for one that is NULL
 *   round_to_words           words of adjacent numbers of NUMBERS_PER_WORD vectors */

#pragma once

#include "simd.h"

enum { MR = ACCUMULATORS };

/* Rows of panels of fewer rows, a multiple of LANES: they divide most sizes without a rest. */
enum { SMALL_ROWS = MR * 2 / 3 };

/* How many panels, blocks or words of `size` hold `count`. */
INLINE long num_blocks(long count, long size) { return (count + size - 1) / size; }

/* How many rows the panels of an operand of `count` rows have: SMALL_ROWS, or up to a quarter less where
 * that leaves fewer rows of the last panel empty. They differ from SMALL_ROWS by a multiple of `step`. */
INLINE long panel_rows(long count, long step) {
  long best = SMALL_ROWS;
  for (long rows = SMALL_ROWS; rows >= SMALL_ROWS * 3 / 4; rows -= step)
    if (num_blocks(count, rows) * rows < num_blocks(count, best) * best) best = rows;
  return best;
}

/* The length K of sums, padded to pairs. */
INLINE long even(long k) { return k + (k & 1); }

/* Indices from `first` to before `end`. */
typedef struct Range {
  long first, end;
} Range;

/* A block of `size` of `count`; the last one may be smaller. */
INLINE Range block_range(long block, long size, long count) {
  return (Range){block * size, min((block + 1) * size, count)};
}

/* A weight panel comes from the L2 cache: it is prefetched this many iterations ahead. One iteration
 * reads up to two cache lines. Prefetching past the end is harmless. */
enum { PREFETCH_DISTANCE = 32, LINE = 16 /* float32 */ };

/* tile[row] = sum over k of weights[k][row] * states[k]. `rows` is a constant. */
INLINE void micro_kernel(const int rows, long iterations, const float *weights,
                         const float *states, Vector tile[]) {
  Vector sums[MR]; /* in registers: every loop over it is unrolled */
#pragma GCC unroll 24
  for (int row = 0; row < rows; row++) sums[row] = broadcast(0.0f);
  for (long left = iterations; left > 0; left--, weights += rows, states += LANES) {
    __builtin_prefetch(weights + PREFETCH_DISTANCE * rows);
    if (rows > LINE) __builtin_prefetch(weights + PREFETCH_DISTANCE * rows + LINE);
    const Vector state = load(states, LANES);
#pragma GCC unroll 24
    for (int row = 0; row < rows; row++)
      sums[row] = multiply_add(sums[row], state, broadcast_word(weights + row));
  }
#pragma GCC unroll 24
  for (int row = 0; row < rows; row++) tile[row] = sums[row];
}

/* The micro-kernel of `panel_rows` rows, which are no constant. */
static void multiply_panel_rows(long rows, long iterations, const float *weights, const float *states,
                                Vector tile[]) {
  switch (SMALL_ROWS - rows) {
    case 0: return micro_kernel(SMALL_ROWS, iterations, weights, states, tile);
    case 1: return micro_kernel(SMALL_ROWS - 1, iterations, weights, states, tile);
    case 2: return micro_kernel(SMALL_ROWS - 2, iterations, weights, states, tile);
    case 3: return micro_kernel(SMALL_ROWS - 3, iterations, weights, states, tile);
    case 4: return micro_kernel(SMALL_ROWS - 4, iterations, weights, states, tile);
  }
}
_Static_assert(SMALL_ROWS / 4 <= 4, "multiply_panel_rows needs a case for each number of rows");

/* Writes rows k and k + 1 of a panel [K, width], of `present` numbers, padded with zeros. */
INLINE void pack_rows(float *panel, long width, long k, const float *first, const float *second,
                      long present) {
  for (long column = 0; column < width; column += LANES) {
    const long count = min(max(present - column, 0), LANES);
    store_pair(panel + column, width, k, load(first + column, count),
               load(second + column, count), min(width - column, LANES));
  }
}
